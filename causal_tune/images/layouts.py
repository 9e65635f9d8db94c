"""Layouts: how data sets lie on disk, and the index of what lies there.

A layout of folders puts every folder of the trees under its roots somewhere: see `causal_tune.images.places`
for those that look at one folder at a time, `causal_tune.images.univfd` for the one that pairs folders, and
`causal_tune.images.auto` for how a layout is recognised. `csv` reads lists: `causal_tune.images.csv_layout`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from causal_tune.errors import IndexingError
from causal_tune.images.auto import SHAPES, TREE_LAYOUTS, fit, recognise
from causal_tune.images.choice import Choice, choose
from causal_tune.images.csv_layout import list_csv, lists_in
from causal_tune.images.entries import GENERATED, REAL, Entry, Listing
from causal_tune.images.facts import FileFacts, read_facts
from causal_tune.images.files import join, kind_of, located
from causal_tune.images.index import INDEX_SCHEMA, with_origin, with_skipped
from causal_tune.images.places import Assignment
from causal_tune.images.tables import LIST_SUFFIXES, is_list
from causal_tune.images.walk import IMAGE_SUFFIXES, Tree, is_utf8, list_images
from causal_tune.registry import look_up
from causal_tune.wording import plural

__all__ = ["LAYOUTS", "SHAPES", "build_index"]

_NUM_THREADS = 8  # reading and hashing release the interpreter lock; disks like several requests at once
_BATCH = 256  # files between two calls of `progress`; bounds the futures in flight
_OUTSIDE = "outside the class folders"


def _list_layout(layout: str, roots: Sequence[str], choice: Choice) -> Listing:
    trees = [_list_root(root, layout, choice) for root in roots]
    assignment = TREE_LAYOUTS[layout](trees)
    placed = assignment.paths()
    for tree in trees:
        if not any(folder.path in placed for folder in tree.folders):
            raise IndexingError(_misfit(tree, layout))
    return _listing(trees, assignment)


def _list_lists(roots: Sequence[str], choice: Choice) -> Listing:
    listing = list_csv(roots)
    reasons = [choice.by_name(entry.name) for entry in listing.entries]
    entries = [entry for entry, reason in zip(listing.entries, reasons, strict=True) if reason is None]
    if not entries:
        raise IndexingError(
            f"None of the {len(reasons):,} images in {', '.join(roots)} is left by --include and --exclude "
            f"({choice.describe()}); the first is {listing.entries[0].name}. `*` crosses folders."
        )
    skipped = Counter(reason for reason in reasons if reason)
    return Listing(entries=entries, skipped=skipped, notes=listing.notes)


def _recognise(roots: Sequence[str], choice: Choice) -> Listing:
    lists = [root for root in roots if is_list(root) and kind_of(root) != "folder"]
    listings = [_list_lists(lists, choice)] if lists else []
    if len(lists) < len(roots):
        trees = [_list_root(root, "auto", choice) for root in roots if root not in lists]
        listings += [_listing(part, assignment) for part, assignment in recognise(trees)]
    return Listing(
        entries=[entry for listing in listings for entry in listing.entries],
        skipped=sum((listing.skipped for listing in listings), Counter()),
        notes=tuple(note for listing in listings for note in listing.notes),
    )


LAYOUTS: Mapping[str, Callable[[Sequence[str], Choice], Listing]] = MappingProxyType(
    {
        "auto": _recognise,
        "csv": _list_lists,
        **{name: partial(_list_layout, name) for name in TREE_LAYOUTS},
    }
)
"""Name of a layout -> the function that lists the chosen images under its roots (located names)."""


def build_index(
    roots: Sequence[Path | str],
    layout: str = "auto",
    *,
    choice: Choice | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """The index of the images under `roots` that `choice` takes, as a table of `INDEX_SCHEMA`.

    A root is a local path or a URI (see `causal_tune.images.files`). Rows are sorted by (generator, split,
    label, path), whatever the order of roots and of the disk. Files that cannot be read keep their row, with
    nulls. `progress` is called with the numbers of files read and of files in all. The table's metadata keep
    the roots, the layout with its notes, the choice and what was skipped. Raises `IndexingError` where there
    are no images, no generator with images of both classes, the same image twice for one generator, or a
    root that the layout does not fit.
    """
    list_layout = look_up("layout", LAYOUTS, layout)
    choice = choice or Choice()
    if not roots:
        raise IndexingError(f"No root was given. The layout {layout} expects {SHAPES[layout]}.")
    names = [located(root) for root in roots]
    listing = list_layout(names, choice)
    _check_entries(listing, layout)
    num_read = 0

    def read(paths: Sequence[str]) -> dict[str, FileFacts]:
        nonlocal num_read
        found = _read_all(paths, num_read, progress)
        num_read += len(paths)
        return found

    chosen, facts, dropped = choose(listing.entries, choice, read)
    if dropped:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.most_common())
        _check_classes(chosen, "left", f" (dropped: {reasons})", None)
    entries = sorted(chosen, key=lambda entry: (entry.generator, entry.split, entry.label, entry.path))
    columns = {
        name: [getattr(entry, name) for entry in entries] for name in ("path", "label", "generator", "split")
    }
    columns |= {
        name: [getattr(facts[entry.path], name) for entry in entries]
        for name in INDEX_SCHEMA.names
        if name not in columns
    }
    table = with_skipped(pa.table(columns, schema=INDEX_SCHEMA), listing.skipped + dropped)
    notes = [*listing.notes, *_one_sided(entries), *_case_notes(entries)]
    return with_origin(
        table, {"roots": sorted(names), "layout": layout, "notes": notes, "choice": choice.as_dict()}
    )


def _read_all(
    paths: Sequence[str], num_before: int, progress: Callable[[int, int], None] | None
) -> dict[str, FileFacts]:
    """The facts of each file, read once even where several generators share it."""
    facts: dict[str, FileFacts] = {}
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            facts.update(zip(batch, pool.map(read_facts, batch), strict=True))
            if progress is not None:
                progress(num_before + len(facts), num_before + len(paths))
    return facts


def _check_entries(listing: Listing, layout: str) -> None:
    if not all(is_utf8(entry.path) for entry in listing.entries):
        path = next(entry.path for entry in listing.entries if not is_utf8(entry.path))
        raise IndexingError(
            f"The path {path!r} is not UTF-8, and an index holds text. Rename the folder whose name is not, "
            "or name the images by a link to it."
        )
    numbers = Counter((entry.path, entry.generator) for entry in listing.entries)
    if twice := sorted(key for key, number in numbers.items() if number > 1):
        path, generator = twice[0]
        others = f", and so were {plural(len(twice) - 1, 'other')}" if len(twice) > 1 else ""
        raise IndexingError(
            f"{path!r} was found twice for the generator {generator!r}{others}. "
            f"Two of the roots are the same, or one lies in another: name each once."
        )
    outside = listing.skipped[_OUTSIDE]
    also = f" ({outside:,} more lie outside its class folders)" if outside else ""
    _check_classes(listing.entries, "found", also, layout)


def _check_classes(entries: Sequence[Entry], how: str, also: str, layout: str | None) -> None:
    """Refuse entries among which no generator has both classes; without a layout the choice is to blame."""
    labels = _labels(entries)
    seen = set().union(*labels.values()) if labels else set()
    if len(seen) == 2 and any(len(both) == 2 for both in labels.values()):
        return
    step = f"the layout {layout} expects {SHAPES[layout]}" if layout else "widen the choice"
    if len(seen) == 1:
        only, other = ("real", "generated") if REAL in seen else ("generated", "real")
        step = f"add a root with {other} images; {step}" if layout else step
        raise IndexingError(
            f"All {len(entries):,} images {how} are {only}, none is {other}{also}. A detector needs "
            f"both: {step}."
        )
    if not seen:
        raise IndexingError(f"No image is {how}{also}. A detector needs real and generated ones: {step}.")
    names = ", ".join(f"{name} ({_class_name(both)})" for name, both in sorted(labels.items())[:8])
    step = f"A generator needs real images to be compared with: {step}"
    if alike := _alike(labels):
        step = f"{' and '.join(alike[0])} differ only in case: if they are one generator, write them alike"
    raise IndexingError(
        f"Each of the {len(labels):,} generators {how} has images of one class only: {names}{also}. {step}."
    )


def _one_sided(entries: Sequence[Entry]) -> list[str]:
    found = {name: both for name, both in sorted(_labels(entries).items()) if len(both) == 1}
    names = ", ".join(f"{name} ({_class_name(both)})" for name, both in found.items())
    return [f"Generators with images of one class only: {names}."] if found else []


def _case_notes(entries: Sequence[Entry]) -> list[str]:
    return [
        f"The generators {' and '.join(names)} differ only in case; they are kept apart."
        for names in _alike({entry.generator for entry in entries})
    ]


def _alike(generators: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in upper and lower case."""
    groups: dict[str, list[str]] = {}
    for name in sorted(generators):
        groups.setdefault(name.casefold(), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _labels(entries: Sequence[Entry]) -> dict[str, set[int]]:
    labels: dict[str, set[int]] = {}
    for entry in entries:
        labels.setdefault(entry.generator, set()).add(entry.label)
    return labels


def _class_name(labels: set[int]) -> str:
    return "generated" if GENERATED in labels else "real"


def _listing(trees: Sequence[Tree], assignment: Assignment) -> Listing:
    skipped = sum((tree.skipped for tree in trees), Counter())
    skipped[_OUTSIDE] += assignment.num_outside
    skipped["real, with no generator to compare"] += sum(len(folder.names) for folder in assignment.unused)
    return Listing(
        entries=[
            Entry(
                path=join(folder.path, name),
                label=place.label,
                generator=place.generator,
                split=place.split,
                name="/".join((*folder.parts, name)),
            )
            for folder, place in assignment.placed
            for name in folder.names
        ],
        skipped=+skipped,
        notes=assignment.notes,
    )


def _list_root(root: str, layout: str, choice: Choice) -> Tree:
    kind = kind_of(root)
    if kind == "missing":
        raise IndexingError(f"There is no folder {root!r}. The layout {layout} expects {SHAPES[layout]}.")
    if kind == "file":
        if is_list(root):
            raise IndexingError(
                f"{root!r} is a file, but the layout {layout} expects a folder, {SHAPES[layout]}. "
                f"Use the layout csv for it."
            )
        raise IndexingError(
            f"{root!r} is a file, but no list of images by its name: these end in {', '.join(LIST_SUFFIXES)}. "
            f"Rename it if it is a list; unpack it if it is a compressed one."
        )
    tree = list_images(root, choice.by_name if choice.include or choice.exclude else None)
    if not tree.folders:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(tree.skipped.items()))
        chosen = f" The choice was {choice.describe()}; `*` crosses folders." if choice.describe() else ""
        raise IndexingError(
            f"There is no image under {root!r}; other files: {reasons or 'none'}. "
            f"Images end in {', '.join(sorted(IMAGE_SUFFIXES))}, in any case.{chosen}"
        )
    return tree


def _misfit(tree: Tree, layout: str) -> str:
    seen = ", ".join("/".join(folder.parts) or "." for folder in tree.folders[:3])
    more = ", ..." if len(tree.folders) > 3 else ""
    text = (
        f"None of the {tree.num_images:,} images under {tree.root!r} lies where the layout {layout} "
        f"expects it, {SHAPES[layout]}. Folders with images: {seen}{more}. "
    )
    found = {name: fit(name, [tree]) for name in TREE_LAYOUTS if name != layout}
    fits = {name: its.num_paired() if its else 0 for name, its in found.items()}
    best = max(fits, key=lambda name: fits[name])
    if fits[best] == tree.num_images:
        return f"{text}The layout {best} fits all of them: use that."
    lists = lists_in(tree.root)
    if lists:
        return f"{text}There is a CSV file in it, {lists[0]}: give that file to the layout csv."
    if fits[best]:
        return f"{text}The layout {best} would fit {fits[best]:,} of them: use that, or list them in a CSV."
    return f"{text}No other folder layout fits: write {SHAPES['csv']}, and use the layout csv."
