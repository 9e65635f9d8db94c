"""What the index says of one file without decoding it: size, format, JPEG quality, bytes, sha256."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from causal_tune.errors import UnreadableImage
from causal_tune.images.files import read_image_bytes
from causal_tune.images.headers import format_of, open_image
from causal_tune.images.isolated import isolated

__all__ = ["FileFacts", "estimate_jpeg_quality", "header_facts", "read_facts"]

# ITU-T T.81 Annex K, Table K.1: the luminance table that the IJG library scales by its quality.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)

_OPENED_IN_C = ("WEBP", "AVIF", "HEIF")
"""Formats whose headers a library in C reads, which a file can crash; Pillow reads those of all others itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """Facts of one file; None where the file, or its header, could not be read."""

    width: int | None = None
    """As stored, before EXIF orientation."""
    height: int | None = None
    format: str | None = None
    """Pillow's name, from the content: JPEG, MPO, PNG, WEBP, BMP, TIFF, GIF, AVIF, HEIF."""
    jpeg_quality: int | None = None
    """1-100, estimated; None for every other format."""
    mode: str | None = None
    bytes: int | None = None
    sha256: str | None = None


def read_facts(path: str) -> FileFacts:
    """The facts of a file; one that cannot be read has none, one with a broken header has bytes and hash.

    Pixels are not decoded: an image cut behind its header looks sound here and is refused at extraction. A file that
    crashes the library that reads its header costs its own facts, in a child process, and not the index.
    """
    try:
        data = read_image_bytes(path)
    except UnreadableImage:
        return FileFacts()  # the reason is found again, and kept, at extraction
    facts = FileFacts(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    try:
        if format_of(data) not in _OPENED_IN_C:
            return replace(facts, **header_facts(data))
        (found,) = isolated(header_facts, [(data,)])
    except UnreadableImage:
        return facts
    return facts if isinstance(found, UnreadableImage) else replace(facts, **found)


def header_facts(data: bytes) -> dict[str, Any]:
    """What the header alone says: width, height, format, jpeg_quality and mode; `UnreadableImage` if it is broken."""
    image = open_image(data)
    return {
        "width": image.width,
        "height": image.height,
        "format": image.format,
        "jpeg_quality": _jpeg_quality(image),
        "mode": image.mode,
    }


def _jpeg_quality(image: Image.Image) -> int | None:
    tables: Mapping[int, Sequence[int]] = getattr(image, "quantization", {})
    # The lowest table is luminance's. TIFFs with JPEG inside keep no table that can be read here.
    return estimate_jpeg_quality(tables[min(tables)]) if image.format in ("JPEG", "MPO") and tables else None


def estimate_jpeg_quality(luminance_table: Sequence[int]) -> int:
    """The IJG quality, 1-100, whose luminance table lies nearest to the given one.

    `luminance_table` holds 64 numbers in natural (not zigzag) order, as Pillow gives them. Exact for
    files written by the IJG library and its kin; for other encoders the nearest equivalent. The lower
    of two equally near qualities is taken.

    >>> estimate_jpeg_quality([1] * 64)
    100
    """
    differences = np.abs(_ijg_tables() - np.asarray(luminance_table)).sum(axis=1)
    return int(differences.argmin()) + 1


@functools.cache
def _ijg_tables() -> npt.NDArray[np.int64]:
    """Row q - 1 holds the luminance table of quality q, int64 [100, 64] (jcparam.c's formula)."""
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables: npt.NDArray[np.int64] = np.clip((np.array(_LUMINANCE).ravel() * scale + 50) // 100, 1, 255)
    return tables
