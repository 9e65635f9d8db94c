"""The `auto` layout: which layout a tree has, and why, or what was seen where none or several fit.

A layout fits where it places images and one of its generators has both classes. Of those that fit, the one
that places the most images is taken, the more specific where two place as many (`<generator>/{0_real,1_fake}`
is `forensynths` only with a name of its test sets, a split or a level of categories). It has to place every
image that another one would: half a tree is never left out silently.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from causal_tune.errors import IndexingError
from causal_tune.images.csv_layout import lists_in
from causal_tune.images.entries import GENERATED, REAL
from causal_tune.images.files import pure_path
from causal_tune.images.places import FORENSYNTHS_NAMES, SPLIT_NAMES, Assignment, assign_places, class_part
from causal_tune.images.univfd import assign_univfd, place_univfd
from causal_tune.images.walk import ImageFolder, Tree

__all__ = ["SHAPES", "TREE_LAYOUTS", "fit", "recognise"]

SHAPES: Mapping[str, str] = MappingProxyType(
    {
        "auto": "a folder or a list of any other layout",
        "csv": "a CSV file with the columns path, label, generator and optionally split",
        "folders": "ROOT/<generator>/{real,fake}",
        "genimage": "ROOT/<Generator>/{train,val}/{ai,nature}",
        "forensynths": "ROOT/{train,val,test}/<generator>[/<category>]/{0_real,1_fake}",
        "univfd": "ROOT/<generator>/1_fake and ROOT/<real set>/0_real, one real set for several generators",
    }
)
"""What each layout expects, in a few words."""

TREE_LAYOUTS: Mapping[str, Callable[[Sequence[Tree]], Assignment]] = MappingProxyType(
    {
        "genimage": lambda trees: assign_places(trees, "genimage"),
        "forensynths": lambda trees: assign_places(trees, "forensynths"),
        "univfd": assign_univfd,
        "folders": lambda trees: assign_places(trees, "folders"),
    }
)
"""Layouts of folders, the most specific first -> what places the folders of all roots."""


def recognise(trees: Sequence[Tree]) -> list[tuple[Sequence[Tree], Assignment]]:
    """Trees, and where their layout puts their folders; several such pairs where roots differ.

    The first note of each assignment says which layout it is, and why. IndexingError where none fits, or several.
    """
    found = {name: its for name in TREE_LAYOUTS if (its := fit(name, trees)) is not None}
    best = _best(trees, found)
    if best is not None:
        why = f"{best}: {_reason(best, trees, found[best])}."
        return [(trees, replace(found[best], notes=(why, *found[best].notes)))]
    if len(trees) > 1:  # roots of several data sets, each with its own layout
        try:
            return [part for tree in trees for part in recognise([tree])]
        except IndexingError as error:
            raise IndexingError(f"{error} All roots together: {_classes(trees)}") from error
    raise IndexingError(_unknown(trees, found))


def _describe(trees: Sequence[Tree]) -> str:
    """What lies under roots, in a line: folders at the top, and how many images of which suffix."""
    tops = list(
        dict.fromkeys(folder.parts[0] if folder.parts else "." for tree in trees for folder in tree.folders)
    )
    suffixes = sum((tree.num_by_suffix for tree in trees), Counter())
    others = sum((tree.skipped for tree in trees), Counter())
    text = f"folders {', '.join(tops[:8])}{', ...' if len(tops) > 8 else ''}; images {_counts(suffixes)}"
    return text + (f"; other files {_counts(others)}" if others else "")


def fit(layout: str, trees: Sequence[Tree]) -> Assignment | None:
    """Where a layout puts the folders of trees; None where it does not fit them."""
    try:
        assignment = TREE_LAYOUTS[layout](trees)
    except IndexingError:  # its own reason is told where the layout is named; here it does not fit
        return None
    placed = assignment.paths()
    empty = [tree for tree in trees if not any(folder.path in placed for folder in tree.folders)]
    if empty or not assignment.num_paired():
        return None
    if layout == "univfd" and not assignment.notes:  # no real set is shared: that is another layout's tree
        return None
    return assignment


def _best(trees: Sequence[Tree], found: Mapping[str, Assignment]) -> str | None:
    """The name of the layout that is taken, or None."""
    places = {name: its.paths() for name, its in found.items()}
    whole = [name for name in found if all(places[name] >= others for others in places.values())]
    if "forensynths" in whole and "folders" in whole and not _forensynths_mark(trees):
        whole.remove("forensynths")
    # genimage and forensynths have no class folder in common and univfd shares real sets, which the others
    # cannot: so of several that place the same folders one is more specific than the others
    most = max((found[name].num_paired() for name in whole), default=0)
    return next((name for name in whole if found[name].num_paired() == most), None)


def _reason(layout: str, trees: Sequence[Tree], found: Assignment) -> str:
    folders = list({folder.path: folder for folder, _ in found.placed}.values())
    example = _named(folders[0])
    number = f"{len(folders):,} folder{'s' * (len(folders) != 1)}"
    if layout == "genimage":
        return f"{number} with {{train,val}}/{{ai,nature}} such as {example}"
    if layout == "forensynths":
        mark = _forensynths_mark(trees) or "a level of categories"
        return f"{number} with {{0_real,1_fake}} such as {example}, and {mark}"
    if layout == "univfd":
        return f"{number} with class names such as {example}, real and generated images apart"
    return f"{number} with <generator>/{{real,fake}} such as {example}"


def _forensynths_mark(trees: Sequence[Tree]) -> str:
    """What tells the layout from plain folders of the same class names."""
    for tree in trees:
        for folder in tree.folders:
            above, label = class_part("forensynths", folder.parts)
            names = (pure_path(tree.root).name, *above)
            if label is None:
                continue
            if known := [name for name in names if name.lower() in FORENSYNTHS_NAMES]:
                return f"the test set {known[0]}"
            if splits := [name for name in names if name.lower() in SPLIT_NAMES]:
                return f"the split {splits[0]}"
    return ""


def _unknown(trees: Sequence[Tree], found: Mapping[str, Assignment]) -> str:
    roots = ", ".join(repr(tree.root) for tree in trees)
    lists = [name for tree in trees for name in lists_in(tree.root)]
    held = f" A list is in it, {lists[0]}: give that file as a root." if lists else ""
    seen = f"Seen: {_describe(trees)}.{held}"
    expected = "; ".join(f"{name} {SHAPES[name]}" for name in SHAPES if name != "auto")
    if found:
        counts = ", ".join(
            f"{name} ({sum(len(folder.names) for folder, _ in its.placed):,} images)"
            for name, its in found.items()
        )
        return (
            f"Several layouts fit parts of {roots}, and none fits all of it: {counts}. {seen} Name one with --layout, "
            f"or give the parts as roots of their own. Layouts expect: {expected}."
        )
    return (
        f"No layout fits {roots}. {seen} {_classes(trees)} Layouts expect: {expected}. Name one, or list the images "
        f"in a CSV."
    )


def _classes(trees: Sequence[Tree]) -> str:
    """What is known of the classes, where folders are called after them."""
    numbers: Counter[int] = Counter()
    for tree in trees:
        for folder in tree.folders:
            if place := place_univfd(pure_path(tree.root), folder.parts):
                numbers[place.label] += len(folder.names)
    if not numbers:
        return (
            "No folder is called after a class, such as real and fake, 0_real and 1_fake, or nature and ai."
        )
    try:
        assign_univfd(trees)
    except IndexingError as error:
        return str(error)
    return f"Folders called after classes hold {numbers[REAL]:,} real and {numbers[GENERATED]:,} generated images."


def _named(folder: ImageFolder) -> str:
    return "/".join(pure_path(folder.path).parts[-max(2, len(folder.parts)) :])


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in counter.most_common(6)) or "none"
