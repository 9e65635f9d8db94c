"""Layouts: how data sets lie on disk, and the index of what lies there.

A folder layout is a function of one folder's names below the root, so it needs no files to be tested.
Class folders are matched in any case; images may lie deeper below them. Shapes:

`folders`     ROOT/<generator>/{real,fake}, with `0_real`/`1_fake` or `nature`/`ai` as other names of the two.
              A level `train`, `val` or `test` may stand above or below <generator>; without it the split is
              empty. ROOT/{real,fake} is one generator, named after ROOT.
`genimage`    <Generator>/{train,val}/{ai,nature}, or with GenImage's level `imagenet_...` between. Labels are
              ai = 1 and nature = 0 (alphabetical order, which image-folder loaders use, inverts them).
              Generators get their usual short names (`sd14`, `adm`, ...); an unknown folder its own name
              in lower case. ROOT is the whole tree, a folder above it, one generator, or its inner level.
`forensynths` {train,val,test}/<generator>[/<category>]/{0_real,1_fake}. The split is the first part
              `train`, `val` or `test` that has a name below it, else `test`. LSUN categories right under
              `train` or `val`, as NPR and SAFE ship them, are `progan`. ROOT is any of these levels.
`csv`         a CSV file; see `causal_tune.images.csv_layout`.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from causal_tune.errors import IndexingError
from causal_tune.images.csv_layout import list_csv
from causal_tune.images.entries import GENERATED, REAL, Entry, Listing
from causal_tune.images.facts import FileFacts, read_facts
from causal_tune.images.index import INDEX_SCHEMA, with_skipped
from causal_tune.images.walk import IMAGE_SUFFIXES, Tree, is_utf8, list_images
from causal_tune.registry import look_up

__all__ = [
    "LAYOUTS",
    "SHAPES",
    "Place",
    "build_index",
    "place_folders",
    "place_forensynths",
    "place_genimage",
]

SHAPES: Mapping[str, str] = MappingProxyType(
    {
        "csv": "a CSV file with the columns path, label, generator and optionally split",
        "folders": "ROOT/<generator>/{real,fake}",
        "genimage": "ROOT/<Generator>/{train,val}/{ai,nature}",
        "forensynths": "ROOT/{train,val,test}/<generator>[/<category>]/{0_real,1_fake}",
    }
)
"""What each layout expects, in a few words."""

_NUM_THREADS = 8  # reading and hashing release the interpreter lock; disks like several requests at once
_BATCH = 256  # files between two calls of `progress`; bounds the futures in flight

_CLASSES = {
    "folders": {"real": 0, "fake": 1, "0_real": 0, "1_fake": 1, "nature": 0, "ai": 1},
    "genimage": {"nature": REAL, "ai": GENERATED},
    "forensynths": {"0_real": REAL, "1_fake": GENERATED},
}
_OUTSIDE = "outside the class folders"
_SPLIT_PARTS = ("train", "val", "test")

_GENIMAGE_NAMES = {
    "stablediffusionv14": "sd14", "sdv14": "sd14", "sdv4": "sd14", "sd14": "sd14",
    "stablediffusionv15": "sd15", "sdv15": "sd15", "sdv5": "sd15", "sd15": "sd15",
    **{name: name for name in ("midjourney", "adm", "biggan", "glide", "vqdm", "wukong")},
}  # fmt: skip
_GENIMAGE_INNER = re.compile(r"imagenet_(?:ai_)?(?:\d{4}_)?", re.IGNORECASE)

_FORENSYNTHS_NAMES = frozenset(
    {
        *("progan", "stylegan", "stylegan2", "cyclegan", "biggan", "stargan", "gaugan"),
        *("crn", "imle", "seeingdark", "san", "deepfake", "whichfaceisreal"),
    }
)
_LSUN_CATEGORIES = frozenset(
    {
        *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
        *("train", "tvmonitor"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What a folder's name says about the images in it."""

    label: int
    generator: str
    split: str


def place_folders(root: Path, parts: Sequence[str]) -> Place | None:
    """Label, generator and split of a folder in the `folders` layout; None where it does not fit.

    >>> place_folders(Path("/data"), ("train", "sd14", "fake"))
    Place(label=1, generator='sd14', split='train')
    >>> place_folders(Path("/data"), ("sd14", "cats", "fake")) is None
    True
    """
    above, label = _class_part("folders", parts)
    splits = [part for part in above if part.lower() in _SPLIT_PARTS]
    names = [part for part in above if part.lower() not in _SPLIT_PARTS]
    if label is None or len(splits) > 1 or len(names) > 1:
        return None
    generator = names[0] if names else root.name
    return Place(label=label, generator=generator, split=splits[0].lower() if splits else "")


def place_genimage(root: Path, parts: Sequence[str]) -> Place | None:
    """Label, generator and split of a folder in the `genimage` layout; None where it does not fit.

    >>> place_genimage(Path("/data"), ("ADM", "imagenet_ai_0508_adm", "train", "ai"))
    Place(label=1, generator='adm', split='train')
    """
    above, label = _class_part("genimage", parts)
    if label is None or not above or above[-1].lower() not in _SPLIT_PARTS:
        return None
    names = [*root.parts[-2:], *above[:-1]]
    inner = names.pop() if len(names) > 1 and _GENIMAGE_INNER.match(names[-1]) else None
    # the extra level names the generator too, which helps where the outer folder was renamed
    candidates = [names[-1], *([_GENIMAGE_INNER.sub("", inner)] if inner else [])]
    known = [_GENIMAGE_NAMES[key] for name in candidates if (key := _letters(name)) in _GENIMAGE_NAMES]
    return Place(label=label, generator=(known or [names[-1].lower()])[0], split=above[-1].lower())


def place_forensynths(root: Path, parts: Sequence[str]) -> Place | None:
    """Label, generator and split of a folder in the `forensynths` layout; None where it does not fit.

    One of ProGAN's categories is called `train`; it is no split, since no name stands below it.

    >>> place_forensynths(Path("/data"), ("test", "progan", "train", "0_real"))
    Place(label=0, generator='progan', split='test')
    """
    above, label = _class_part("forensynths", parts)
    if label is None:
        return None
    known_root = root.name.lower() in _FORENSYNTHS_NAMES
    names = [root.name, *above]
    if known_root and root.parent.name.lower() in _SPLIT_PARTS:
        names.insert(0, root.parent.name)
    split_at = next((i for i, name in enumerate(names[:-1]) if name.lower() in _SPLIT_PARTS), None)
    split = "test" if split_at is None else names[split_at].lower()
    generator = next((name.lower() for name in names if name.lower() in _FORENSYNTHS_NAMES), None)
    if generator is None:
        below = list(above) if split_at is None else names[split_at + 1 :]
        generator = below[0] if below else root.name
        if split in ("train", "val") and generator in _LSUN_CATEGORIES:
            generator = "progan"
    return Place(label=label, generator=generator, split=split)


_PLACES: Mapping[str, Callable[[Path, Sequence[str]], Place | None]] = MappingProxyType(
    {"genimage": place_genimage, "forensynths": place_forensynths, "folders": place_folders}
)
"""Folder layouts, the most specific first: that one is named where several would fit a tree."""


def _list_folders(roots: Sequence[Path]) -> Listing:
    return _list_placed(roots, "folders")


def _list_genimage(roots: Sequence[Path]) -> Listing:
    return _list_placed(roots, "genimage")


def _list_forensynths(roots: Sequence[Path]) -> Listing:
    return _list_placed(roots, "forensynths")


LAYOUTS: Mapping[str, Callable[[Sequence[Path]], Listing]] = MappingProxyType(
    {
        "csv": list_csv,
        "folders": _list_folders,
        "genimage": _list_genimage,
        "forensynths": _list_forensynths,
    }
)
"""Name of a layout -> the function that lists the images under its roots (absolute paths)."""


def build_index(
    roots: Sequence[Path | str],
    layout: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """The index of all images under `roots`, as a table of `INDEX_SCHEMA`.

    Rows are sorted by (generator, split, label, path), whatever the order of roots and of the disk.
    Files that cannot be read keep their row, with nulls. `progress` is called with the numbers of files
    read and of files in all. Raises `IndexingError` where there are no images, images of one class only,
    the same image twice for one generator, or a root that the layout does not fit.
    """
    list_layout = look_up("layout", LAYOUTS, layout)
    if not roots:
        raise IndexingError(f"No root was given. The layout {layout} expects {SHAPES[layout]}.")
    # normpath, not resolve: an index names images as the user does, links included
    listing = list_layout([Path(os.path.abspath(Path(root).expanduser())) for root in roots])  # noqa: PTH100
    _check_entries(listing, layout)
    entries = sorted(
        listing.entries, key=lambda entry: (entry.generator, entry.split, entry.label, entry.path)
    )
    facts = _read_all(sorted({entry.path for entry in entries}), progress)
    columns = {
        name: [getattr(entry, name) for entry in entries] for name in ("path", "label", "generator", "split")
    }
    columns |= {
        name: [getattr(facts[entry.path], name) for entry in entries]
        for name in INDEX_SCHEMA.names
        if name not in columns
    }
    return with_skipped(pa.table(columns, schema=INDEX_SCHEMA), listing.skipped)


def _read_all(paths: list[str], progress: Callable[[int, int], None] | None) -> dict[str, FileFacts]:
    """The facts of each file, read once even where several generators share it."""
    facts: dict[str, FileFacts] = {}
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            facts.update(zip(batch, pool.map(read_facts, batch), strict=True))
            if progress is not None:
                progress(len(facts), len(paths))
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
        raise IndexingError(
            f"{path!r} was found twice for the generator {generator!r} (and {len(twice) - 1:,} others were). "
            f"Two of the roots are the same, or one lies in another: name each once."
        )
    labels = {entry.label for entry in listing.entries}
    if len(labels) == 1:
        only, other = ("real", "generated") if REAL in labels else ("generated", "real")
        outside = listing.skipped[_OUTSIDE]
        also = f" ({outside:,} more lie outside its class folders)" if outside else ""
        raise IndexingError(
            f"All {len(listing.entries):,} images found are {only}, none is {other}{also}. A detector needs "
            f"both: add a root with {other} images; the layout {layout} expects {SHAPES[layout]}."
        )


def _list_placed(roots: Sequence[Path], layout: str) -> Listing:
    entries: list[Entry] = []
    skipped: Counter[str] = Counter()
    for root in roots:
        tree = _list_root(root, layout)
        skipped += tree.skipped
        num_before = len(entries)
        for folder in tree.folders:
            place = _PLACES[layout](root, folder.parts)
            if place is None:
                skipped[_OUTSIDE] += len(folder.names)
                continue
            entries.extend(
                # os.path.join keeps the string a plain one: pathlib costs 5 times as much per image
                Entry(
                    path=os.path.join(folder.path, name),  # noqa: PTH118
                    label=place.label,
                    generator=place.generator,
                    split=place.split,
                )
                for name in folder.names
            )
        if len(entries) == num_before:
            raise IndexingError(_misfit(tree, layout))
    return Listing(entries=entries, skipped=skipped)


def _list_root(root: Path, layout: str) -> Tree:
    if not root.exists():
        raise IndexingError(
            f"There is no folder {str(root)!r}. The layout {layout} expects {SHAPES[layout]}."
        )
    if not root.is_dir():
        step = " Use the layout csv for it." if root.suffix.lower() == ".csv" else ""
        raise IndexingError(
            f"{str(root)!r} is a file, but the layout {layout} expects a folder, {SHAPES[layout]}.{step}"
        )
    tree = list_images(root)
    if not tree.folders:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(tree.skipped.items()))
        raise IndexingError(
            f"There is no image under {str(root)!r}; other files: {reasons or 'none'}. "
            f"Images end in {', '.join(sorted(IMAGE_SUFFIXES))}, in any case."
        )
    return tree


def _misfit(tree: Tree, layout: str) -> str:
    seen = ", ".join("/".join(folder.parts) or "." for folder in tree.folders[:3])
    more = ", ..." if len(tree.folders) > 3 else ""
    text = (
        f"None of the {tree.num_images:,} images under {str(tree.root)!r} lies where the layout {layout} "
        f"expects it, {SHAPES[layout]}. Folders with images: {seen}{more}. "
    )
    fits = {name: _num_placed(tree, name) for name in _PLACES if name != layout}
    best = max(fits, key=lambda name: fits[name])
    if fits[best] == tree.num_images:
        return f"{text}The layout {best} fits all of them: use that."
    if tables := sorted(file.name for file in tree.root.glob("*.csv")):
        return f"{text}There is a CSV file in it, {tables[0]}: give that file to the layout csv."
    if fits[best]:
        return f"{text}The layout {best} would fit {fits[best]:,} of them: use that, or list them in a CSV."
    return f"{text}No other folder layout fits: write {SHAPES['csv']}, and use the layout csv."


def _num_placed(tree: Tree, layout: str) -> int:
    """How many images a layout would place; none where all would have the same label."""
    places = [(_PLACES[layout](tree.root, folder.parts), len(folder.names)) for folder in tree.folders]
    labels = {place.label for place, _ in places if place is not None}
    return sum(number for place, number in places if place is not None) if len(labels) == 2 else 0


def _class_part(layout: str, parts: Sequence[str]) -> tuple[Sequence[str], int | None]:
    """The names above the first class folder, and the label it stands for; None where there is none."""
    classes = _CLASSES[layout]
    for i, part in enumerate(parts):
        if part.lower() in classes:
            return parts[:i], classes[part.lower()]
    return parts, None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
