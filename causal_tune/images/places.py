"""Folder layouts as functions of one folder's names below the root, so that they need no files to be tested.

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
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from types import MappingProxyType

from causal_tune.images.entries import GENERATED, REAL
from causal_tune.images.files import pure_path
from causal_tune.images.walk import ImageFolder, Tree

__all__ = [
    "CLASS_NAMES",
    "FORENSYNTHS_NAMES",
    "PLACES",
    "SPLIT_NAMES",
    "Assignment",
    "Place",
    "assign_places",
    "class_part",
    "genimage_name",
    "place_folders",
    "place_forensynths",
    "place_genimage",
]

CLASS_NAMES = {
    "folders": {"real": 0, "fake": 1, "0_real": 0, "1_fake": 1, "nature": 0, "ai": 1},
    "genimage": {"nature": REAL, "ai": GENERATED},
    "forensynths": {"0_real": REAL, "1_fake": GENERATED},
}
SPLIT_NAMES = ("train", "val", "test")

_GENIMAGE_NAMES = {
    "stablediffusionv14": "sd14", "sdv14": "sd14", "sdv4": "sd14", "sd14": "sd14",
    "stablediffusionv15": "sd15", "sdv15": "sd15", "sdv5": "sd15", "sd15": "sd15",
    **{name: name for name in ("midjourney", "adm", "biggan", "glide", "vqdm", "wukong")},
}  # fmt: skip
_GENIMAGE_INNER = re.compile(r"imagenet_(?:ai_)?(?:\d{4}_)?", re.IGNORECASE)

FORENSYNTHS_NAMES = frozenset(
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Where a layout puts the folders of a tree or of several."""

    placed: list[tuple[ImageFolder, Place]]
    """One pair for each folder and generator that its images belong to."""
    num_outside: int = 0
    """Images in folders that have no place."""
    unused: list[ImageFolder] = field(default_factory=list)
    """Folders of real images that no generator is compared with."""
    notes: tuple[str, ...] = ()

    def paths(self) -> set[str]:
        """The folders that are understood."""
        return {folder.path for folder, _ in self.placed} | {folder.path for folder in self.unused}

    def num_paired(self) -> int:
        """Images of the generators that have both classes."""
        labels: dict[str, set[int]] = {}
        for _, place in self.placed:
            labels.setdefault(place.generator, set()).add(place.label)
        return sum(len(folder.names) for folder, place in self.placed if len(labels[place.generator]) == 2)


def assign_places(trees: Sequence[Tree], layout: str) -> Assignment:
    """The places that a layout of `PLACES` gives to each folder by itself."""
    pairs = [
        (folder, PLACES[layout](pure_path(tree.root), folder.parts))
        for tree in trees
        for folder in tree.folders
    ]
    return Assignment(
        placed=[(folder, place) for folder, place in pairs if place is not None],
        num_outside=sum(len(folder.names) for folder, place in pairs if place is None),
    )


def place_folders(root: PurePath, parts: Sequence[str]) -> Place | None:
    """Label, generator and split of a folder in the `folders` layout; None where it does not fit.

    >>> place_folders(PurePath("/data"), ("train", "sd14", "fake"))
    Place(label=1, generator='sd14', split='train')
    >>> place_folders(PurePath("/data"), ("sd14", "cats", "fake")) is None
    True
    """
    above, label = class_part("folders", parts)
    splits = [part for part in above if part.lower() in SPLIT_NAMES]
    names = [part for part in above if part.lower() not in SPLIT_NAMES]
    if label is None or len(splits) > 1 or len(names) > 1:
        return None
    generator = names[0] if names else root.name
    return Place(label=label, generator=generator, split=splits[0].lower() if splits else "")


def place_genimage(root: PurePath, parts: Sequence[str]) -> Place | None:
    """Label, generator and split of a folder in the `genimage` layout; None where it does not fit.

    >>> place_genimage(PurePath("/data"), ("ADM", "imagenet_ai_0508_adm", "train", "ai"))
    Place(label=1, generator='adm', split='train')
    """
    above, label = class_part("genimage", parts)
    if label is None or not above or above[-1].lower() not in SPLIT_NAMES:
        return None
    names = [*root.parts[-2:], *above[:-1]]
    inner = names.pop() if len(names) > 1 and _GENIMAGE_INNER.match(names[-1]) else None
    # the extra level names the generator too, which helps where the outer folder was renamed
    candidates = [names[-1], *([inner] if inner else [])]
    known = [short for name in candidates if (short := genimage_name(name))]
    return Place(label=label, generator=(known or [names[-1].lower()])[0], split=above[-1].lower())


def genimage_name(name: str) -> str | None:
    """The usual short name of a generator of GenImage, from its folder's; None for other names.

    >>> genimage_name("stable_diffusion_v_1_4"), genimage_name("imagenet_ai_0508_adm"), genimage_name("train")
    ('sd14', 'adm', None)
    """
    return _GENIMAGE_NAMES.get(re.sub(r"[^a-z0-9]", "", _GENIMAGE_INNER.sub("", name).lower()))


def place_forensynths(root: PurePath, parts: Sequence[str]) -> Place | None:
    """Label, generator and split of a folder in the `forensynths` layout; None where it does not fit.

    One of ProGAN's categories is called `train`; it is no split, since no name stands below it.

    >>> place_forensynths(PurePath("/data"), ("test", "progan", "train", "0_real"))
    Place(label=0, generator='progan', split='test')
    """
    above, label = class_part("forensynths", parts)
    if label is None:
        return None
    known_root = root.name.lower() in FORENSYNTHS_NAMES
    names = [root.name, *above]
    if known_root and root.parent.name.lower() in SPLIT_NAMES:
        names.insert(0, root.parent.name)
    split_at = next((i for i, name in enumerate(names[:-1]) if name.lower() in SPLIT_NAMES), None)
    split = "test" if split_at is None else names[split_at].lower()
    generator = next((name.lower() for name in names if name.lower() in FORENSYNTHS_NAMES), None)
    if generator is None:
        below = list(above) if split_at is None else names[split_at + 1 :]
        generator = below[0] if below else root.name
        if split in ("train", "val") and generator in _LSUN_CATEGORIES:
            generator = "progan"
    return Place(label=label, generator=generator, split=split)


PLACES: Mapping[str, Callable[[PurePath, Sequence[str]], Place | None]] = MappingProxyType(
    {"genimage": place_genimage, "forensynths": place_forensynths, "folders": place_folders}
)
"""Layouts of single folders, the most specific first: that one is named where several would fit a tree."""


def class_part(layout: str, parts: Sequence[str]) -> tuple[Sequence[str], int | None]:
    """The names above the first class folder, and the label it stands for; None where there is none."""
    classes = CLASS_NAMES[layout]
    for i, part in enumerate(parts):
        if part.lower() in classes:
            return parts[:i], classes[part.lower()]
    return parts, None
