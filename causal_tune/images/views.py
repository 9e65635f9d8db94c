"""Views: an image as it is, augmented for training, or degraded to see what a detector withstands.

The operations work on the whole upright image, before the crop:

- `clean`: none.
- `augment-K`, K = 0, 1, ...: Gaussian blur with probability 1/2, sigma uniform in [0, 3]; then JPEG with
  probability 1/2, quality uniform in 30..100; a random crop in place of the central one; mirrored with
  probability 1/2. UnivFD's training (Ojha et al., CVPR 2023, arXiv 2302.10174) without its resize.
- `jpeg-Q`: JPEG of quality Q, 1..100; Figure 4 of CausalCLIP (arXiv 2512.13285), GenImage (arXiv 2306.08571).
- `blur-S`: Gaussian blur of sigma S pixels; both.
- `lr-N`: a longer shorter side resized (bicubic) to N; GenImage's low resolution.

JPEG is `decode.recompress`; blur is SciPy's on 8-bit channels, as in UnivFD. An augmented view is drawn from
its number and the hash of the image's bytes: the same in every index, on every machine and in every order.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image

from causal_tune.errors import InvalidConfig, UnreadableImage
from causal_tune.images.decode import crop, decode_crop, decode_upright, recompress
from causal_tune.images.files import read_image_bytes
from causal_tune.images.preprocessing import Preprocessing

__all__ = [
    "CLEAN",
    "DEGRADED",
    "ViewCrop",
    "augmented_view",
    "degraded_views",
    "is_augmented",
    "read_views",
    "view_applies",
]

CLEAN = "clean"
"""Name of the view that is the image itself."""

DEGRADED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "figure4": (
            *(f"jpeg-{quality}" for quality in (100, 95, 90, 80, 70, 60, 50, 40, 30)),
            *(f"blur-{sigma}" for sigma in (1, 2, 3, 4)),
        ),
        "genimage": ("lr-112", "lr-64", "jpeg-65", "jpeg-30", "blur-3", "blur-5"),
    }
)
"""Sets of degraded views by name: the sweep of the paper's Figure 4 (sigma 0 is the clean view), and GenImage's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewCrop:
    """What an encoder sees of one view of one image."""

    crop: npt.NDArray[np.uint8]
    operation: str
    """What was done, in order, joined by `+`; empty for the clean view."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """The numbers it was done with."""


def augmented_view(number: int) -> str:
    """The name of a training view.

    >>> augmented_view(0)
    'augment-0'
    """
    return f"augment-{number}"


def is_augmented(view: str) -> bool:
    """Whether a view is one for training."""
    return view.startswith("augment-")


def degraded_views(names: Sequence[str]) -> tuple[str, ...]:
    """The degraded views that these names and names of sets mean, without repetition, in a fixed order.

    `InvalidConfig` for a name that means none.

    >>> degraded_views(["blur-2", "genimage"])
    ('blur-2', 'blur-3', 'blur-5', 'jpeg-30', 'jpeg-65', 'lr-64', 'lr-112')
    """
    found = {view for name in names for view in DEGRADED.get(name, (name,))}
    for view in found:
        kind, number = _parsed(view)
        if kind not in _DEGRADATIONS or not _DEGRADATIONS[kind].takes(number):
            raise InvalidConfig(
                f"There is no degraded view {view!r}. There are jpeg-Q (quality 1 to 100), blur-S (sigma in "
                f"pixels, above 0), lr-N (shorter side in pixels) and the sets {', '.join(DEGRADED)}."
            )
    return tuple(sorted(found, key=_parsed))


def view_applies(view: str, split: str) -> bool:
    """Whether images of a split get a view: augmented ones are for training, degraded ones for judging."""
    if view == CLEAN:
        return True
    return split != "test" if is_augmented(view) else split != "train"


def read_views(
    path: str, sha256: str | None, preprocessing: Preprocessing, views: Sequence[str]
) -> list[ViewCrop | str]:
    """The crop of each view of a file, decoded once; for a view that cannot be made, the reason.

    `sha256` is the index's, None where the file could not be read then. `UnreadableImage` where the file
    cannot be decoded or holds other bytes now: its label may no longer hold.
    """
    data = read_image_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise UnreadableImage("the file has changed since it was indexed; run `causal-tune index` again")
    if all(view == CLEAN for view in views):
        return [ViewCrop(crop=decode_crop(data, preprocessing), operation="") for _ in views]
    image = decode_upright(data)
    if preprocessing.recompress is not None:
        image = recompress(image, preprocessing.recompress)
        preprocessing = replace(preprocessing, recompress=None)
    return [_attempt(image, view, digest, preprocessing) for view in views]


def _attempt(image: Image.Image, view: str, digest: str, preprocessing: Preprocessing) -> ViewCrop | str:
    try:
        return _view(image, view, digest, preprocessing)
    except UnreadableImage as error:
        return str(error)


def _view(image: Image.Image, view: str, digest: str, preprocessing: Preprocessing) -> ViewCrop:
    if view == CLEAN:
        return ViewCrop(crop=crop(image, preprocessing), operation="")
    kind, number = _parsed(view)
    if kind == "augment":
        return _augmented(image, int(number), digest, preprocessing)
    degradation = _DEGRADATIONS[kind]
    pixels = crop(degradation.apply(image, number), preprocessing)
    return ViewCrop(crop=pixels, operation=kind, parameters={degradation.parameter: number})


def _augmented(image: Image.Image, number: int, digest: str, preprocessing: Preprocessing) -> ViewCrop:
    rng = np.random.default_rng([number, int(digest[:16], 16)])
    # all numbers are drawn whether they are used or not: one choice does not move the others
    blurred, compressed, mirrored = rng.random(3) < 0.5
    sigma, quality, across, down = rng.uniform(0, 3), int(rng.integers(30, 101)), *rng.random(2)
    operation: list[str] = []
    parameters: dict[str, float] = {}
    if blurred:
        image = _blur(image, sigma)
        operation.append("blur")
        parameters["sigma"] = float(sigma)
    if compressed:
        image = recompress(image, quality)
        operation.append("jpeg")
        parameters["quality"] = quality
    pixels = crop(image, preprocessing, place=(float(across), float(down)))
    operation.append("crop")
    parameters |= {"across": float(across), "down": float(down)}
    if mirrored:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        operation.append("mirror")
    return ViewCrop(crop=pixels, operation="+".join(operation), parameters=parameters)


def _blur(image: Image.Image, sigma: float) -> Image.Image:
    from scipy.ndimage import gaussian_filter  # here, for it is not needed where nothing is blurred

    return Image.fromarray(gaussian_filter(np.asarray(image), sigma=(sigma, sigma, 0)))


def _shrink(image: Image.Image, shorter_side: float) -> Image.Image:
    shorter = min(image.size)
    if shorter <= shorter_side:
        return image
    width, height = (max(1, round(side * shorter_side / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


@dataclass(frozen=True, slots=True)
class _Degradation:
    parameter: str
    """What the number of the view's name is."""
    takes: Callable[[float], bool]
    """Which numbers there are."""
    apply: Callable[[Image.Image, float], Image.Image]


_DEGRADATIONS: Mapping[str, _Degradation] = MappingProxyType(
    {
        "blur": _Degradation("sigma", lambda sigma: sigma > 0, _blur),
        "jpeg": _Degradation(
            "quality",
            lambda quality: 1 <= quality <= 100 and quality == int(quality),
            lambda image, quality: recompress(image, int(quality)),
        ),
        "lr": _Degradation("shorter_side", lambda side: side >= 1 and side == int(side), _shrink),
    }
)


def _parsed(view: str) -> tuple[str, float]:
    match = re.fullmatch(r"([a-z]+)-(\d+(?:\.\d+)?)", view)
    return (match[1], float(match[2])) if match else (view, 0.0)
