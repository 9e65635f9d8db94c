"""What only the pixels say, before any encoder sees them: whether a file decodes, and its perceptual hash."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from causal_tune.errors import UnreadableImage
from causal_tune.images.decode import decode_crop, decode_thumbnail
from causal_tune.images.files import read_image_bytes
from causal_tune.images.isolated import isolated

__all__ = ["PixelFacts", "perceptual_hash", "read_all_pixels", "read_pixels"]

_SIDE = 32
_LOWEST = 8
_FLAT = 2.0
_BATCH = 1024
_CALLS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelFacts:
    """One file, decoded."""

    reason: str | None = None
    """Why it cannot be decoded; None where it can."""
    hash: int | None = None
    """`perceptual_hash` of the whole picture; None for a flat or unreadable one."""


def perceptual_hash(grey: NDArray[np.uint8]) -> int | None:
    """64 bits that hardly change when a picture is compressed or resized; `grey` is uint8 [32, 32].

    The 8 x 8 lowest frequencies of its cosine transform, each compared with their median (the mean grey
    value left out of it): the DCT hash of Zauner, 2010, "Implementation and benchmarking of perceptual
    image hash functions". None for a flat picture, which has nothing to compare.

    Not the `imagehash` package: it would bring PyWavelets for hashes that are not used here, and this is
    all that is needed of it.

    >>> ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    >>> perceptual_hash(ramp) == perceptual_hash(ramp // 2), perceptual_hash(ramp) == perceptual_hash(ramp.T)
    (True, False)
    >>> perceptual_hash(np.full((32, 32), 7, dtype=np.uint8)) is None
    True
    """
    if grey.std() < _FLAT:
        return None
    lowest = dctn(grey.astype(np.float64), norm="ortho")[:_LOWEST, :_LOWEST].ravel()
    bits = lowest > np.median(lowest[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def read_pixels(path: str) -> PixelFacts:
    """Decode one file as extraction will, and hash it.

    >>> read_pixels("missing.png")
    PixelFacts(reason='no such file', hash=None)
    """
    try:
        data = read_image_bytes(path)
        decode_crop(data)
        return PixelFacts(hash=perceptual_hash(decode_thumbnail(data, _SIDE)))
    except UnreadableImage as error:
        return PixelFacts(reason=str(error))


def _read_isolated(paths: Sequence[str]) -> list[PixelFacts]:
    answers = isolated(read_pixels, [(path,) for path in paths])
    return [PixelFacts(reason=str(a)) if isinstance(a, UnreadableImage) else a for a in answers]


def read_all_pixels(
    paths: Sequence[str],
    *,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, PixelFacts]:
    """`read_pixels` of each path, in child processes (None: one a processor), which a file may end."""
    found: dict[str, PixelFacts] = {}
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            parts = [batch[place : place + _CALLS] for place in range(0, len(batch), _CALLS)]
            for part, answers in zip(parts, pool.map(_read_isolated, parts), strict=True):
                found.update(zip(part, answers, strict=True))
            if progress is not None:
                progress(start + len(batch), len(paths))
    return found
