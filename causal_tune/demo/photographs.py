"""Real photographs that scikit-image, scikit-learn and matplotlib carry in their wheels.

Nothing is downloaded and nothing is copied into this package: the files are read where the
libraries are installed. Each photograph belongs to one split for good, so that no scene is on two
sides. Source and licence, as the package that ships the file states them:

astronaut (train)
    scikit-image, from the NASA Great Images database; "no known copyright restrictions, released
    into the public domain".
motorcycle_left, motorcycle_right (train)
    scikit-image, Middlebury 2014 stereo benchmark, down-sampled (Scharstein et al., GCPR 2014);
    states the source and no licence. Two views of one scene, so always in one split.
flower (train)
    scikit-learn, flickr.com/photos/vultilion/6056698931; Creative Commons BY 2.0. (The note beside
    the file names danielbuechele for this photograph too; its address names vultilion.)
hubble_deep_field (train)
    scikit-image, captured by NASA; "may be freely used in the public domain".
retina (train)
    scikit-image, Mikael Haggstrom, WikiJournal of Medicine 1 (2), 2014; CC0 1.0.
coffee (val)
    scikit-image, Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0.
grace_hopper (selection)
    matplotlib, sample data without a licence note; the file's comment gives its source as
    commons.wikimedia.org/wiki/File:Grace_Hopper.jpg.
china (test)
    scikit-learn, flickr.com/photos/danielbuechele/6061409035; Creative Commons BY 2.0.
rocket (test)
    scikit-image, captured by SpaceX; "released in the public domain".
chelsea (test)
    scikit-image, Stefan van der Walt; CC0.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from itertools import cycle
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from causal_tune.errors import InvalidConfig
from causal_tune.registry import look_up

__all__ = [
    "CROP_SIZE",
    "MAX_OVERLAP",
    "PHOTOGRAPHS",
    "SPLITS",
    "Crop",
    "Photograph",
    "cut",
    "draw_crops",
    "photographs_of",
    "read_photograph",
]

CROP_SIZE = 224
"""Side of a crop in pixels: what CLIP sees, so that nothing is resized later."""

MAX_OVERLAP = 0.8
"""The largest share of its area that a crop shares with another crop of the same draw and scale."""

SPLITS = ("train", "val", "selection", "test")
"""What trains, stops training early, chooses trials, and judges."""

_MAX_ATTEMPTS = 5000
_PACKING_ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """One photograph: where it lies and which split it belongs to."""

    package: str
    """The installed package that ships it."""
    path: str
    """Its path inside that package."""
    split: str
    """One of `SPLITS`; a scene is in one only."""
    reductions: tuple[int, ...] = (1,)
    """Whole factors by which it is reduced before it is cut; 2 only where a crop still fits."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Crop:
    """A square of `CROP_SIZE` pixels of a photograph that was reduced by `reduction`."""

    photograph: str
    reduction: int
    left: int
    top: int

    def overlap(self, other: "Crop") -> float:
        """The share of the area that both cover; 0 for another photograph or another scale.

        >>> Crop(photograph="china", reduction=1, left=0, top=0).overlap(
        ...     Crop(photograph="china", reduction=1, left=56, top=0))
        0.75
        """
        if (self.photograph, self.reduction) != (other.photograph, other.reduction):
            return 0.0
        width = max(0, CROP_SIZE - abs(self.left - other.left))
        height = max(0, CROP_SIZE - abs(self.top - other.top))
        return width * height / CROP_SIZE**2


def _skimage(name: str, split: str, *reductions: int) -> Photograph:
    return Photograph(package="skimage", path=f"data/{name}", split=split, reductions=reductions or (1,))


def _sklearn(name: str, split: str) -> Photograph:
    return Photograph(package="sklearn", path=f"datasets/images/{name}", split=split)


PHOTOGRAPHS: Mapping[str, Photograph] = MappingProxyType(
    {
        "astronaut": _skimage("astronaut.png", "train", 1, 2),
        "motorcycle_left": _skimage("motorcycle_left.png", "train", 1, 2),
        "motorcycle_right": _skimage("motorcycle_right.png", "train", 1, 2),
        "flower": _sklearn("flower.jpg", "train"),
        "hubble_deep_field": _skimage("hubble_deep_field.jpg", "train", 1, 2),
        # only at half size: at full size most crops are one smooth red
        "retina": _skimage("retina.jpg", "train", 2),
        "coffee": _skimage("coffee.png", "val"),
        "grace_hopper": Photograph(
            package="matplotlib",
            path="mpl-data/sample_data/grace_hopper.jpg",
            split="selection",
            reductions=(1, 2),
        ),
        "china": _sklearn("china.jpg", "test"),
        "rocket": _skimage("rocket.jpg", "test"),
        "chelsea": _skimage("chelsea.png", "test"),
    }
)
"""Every photograph of the demo, by name."""


def photographs_of(*splits: str) -> list[str]:
    """The names of the photographs of these splits, in the table's order.

    >>> photographs_of("val", "selection")
    ['coffee', 'grace_hopper']
    """
    return [name for name, photograph in PHOTOGRAPHS.items() if photograph.split in splits]


def read_photograph(name: str, reduction: int = 1) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of one photograph, 8-bit RGB, box-filtered down by the whole factor `reduction`."""
    with _open(name) as image:
        rgb = image.convert("RGB")
    return np.asarray(rgb.reduce(reduction) if reduction > 1 else rgb)


@contextmanager
def _open(name: str) -> Iterator[Image.Image]:
    photograph = look_up("photograph", PHOTOGRAPHS, name)
    resource = files(photograph.package).joinpath(photograph.path)
    if not resource.is_file():
        raise InvalidConfig(
            f"The photograph {name} is not in the installed {photograph.package} (expected "
            f"{photograph.path}). Install the versions of requirements.lock: run `make setup`."
        )
    with resource.open("rb") as file, Image.open(file) as image:
        yield image


def _size(name: str, reduction: int) -> tuple[int, int]:
    """Height and width of the reduced photograph, without decoding it."""
    with _open(name) as image:
        return -(-image.height // reduction), -(-image.width // reduction)


def cut(crop: Crop) -> UInt8[np.ndarray, "224 224 3"]:
    """The pixels of one crop. Reads the photograph; to cut many, read it once and slice."""
    pixels = read_photograph(crop.photograph, crop.reduction)
    return pixels[crop.top : crop.top + CROP_SIZE, crop.left : crop.left + CROP_SIZE]


def draw_crops(
    split: str, num_crops: int, rng: np.random.Generator, *, taken: frozenset[Crop] = frozenset()
) -> list[Crop]:
    """`num_crops` different crops of a split's photographs, as evenly over them as the number allows.

    Positions are uniform and drawn again until no two crops overlap by more than `MAX_OVERLAP`;
    crops in `taken` are not drawn again, though they may be overlapped.

    Raises:
        InvalidConfig: the photographs are too small for so many crops.
    """
    names = photographs_of(split)
    sizes = {
        (name, reduction): _size(name, reduction)
        for name in names
        for reduction in PHOTOGRAPHS[name].reductions
    }
    # A random packing can end in a corner where nothing more fits: begin again, with new positions.
    for _ in range(_PACKING_ATTEMPTS):
        crops: list[Crop] = []
        turns = cycle(names)
        while len(crops) < num_crops:
            name = next(turns)
            for crop in _candidates(name, sizes, rng):
                if crop not in taken and all(crop.overlap(other) <= MAX_OVERLAP for other in crops):
                    crops.append(crop)
                    break
            else:
                break
        if len(crops) == num_crops:
            return crops
    raise InvalidConfig(
        f"{num_crops} crops were asked of the {split} photographs ({', '.join(names)}), which have no room "
        f"for so many that overlap by {MAX_OVERLAP:.0%} at most. Ask for fewer."
    )


def _candidates(
    name: str, sizes: Mapping[tuple[str, int], tuple[int, int]], rng: np.random.Generator
) -> Iterator[Crop]:
    reductions = PHOTOGRAPHS[name].reductions
    for _ in range(_MAX_ATTEMPTS):
        reduction = reductions[int(rng.integers(len(reductions)))]
        height, width = sizes[name, reduction]
        yield Crop(
            photograph=name,
            reduction=reduction,
            left=int(rng.integers(width - CROP_SIZE + 1)),
            top=int(rng.integers(height - CROP_SIZE + 1)),
        )
