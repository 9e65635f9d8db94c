"""The header of an image file: what it is and how large, before any pixel is decoded.

A file is told by its content, never by its name. All that stands in the way of decoding becomes an
`UnreadableImage` whose text is one short line, the same for the same bytes.
"""

import contextlib
import io
import re
import struct
from collections.abc import Iterator

import PIL
from PIL import (
    AvifImagePlugin,  # noqa: F401  each plugin enters its format into Image.OPEN
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from causal_tune.errors import ImageTooLarge, InvalidConfig, UnreadableImage, UnsupportedFormat
from causal_tune.images.files import check_num_bytes

with contextlib.suppress(ImportError):  # optional; its absence becomes the reason of a HEIF image
    from pillow_heif import register_heif_opener

    register_heif_opener()

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "check_pixels",
    "exceeds_text_limit",
    "format_of",
    "open_image",
    "truncated",
    "unreadable",
    "without_text",
]

MAX_PIXELS = 100_000_000
"""Width x height above which an image is not decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
"""Formats that are decoded, by Pillow's names; HEIF where the optional package pillow-heif is installed."""

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"iCCP", b"iTXt", b"tEXt", b"zTXt")

_MAX_SIDE = 2**31 - 1  # what Pillow and the index can hold; a TIFF can name more

_MAX_REASON = 160


def open_image(data: bytes) -> ImageFile.ImageFile:
    """The image with its header read and its pixels not: `size`, `mode`, `format` are known.

    Not `Image.open`, which warns above Pillow's own pixel limit and names no width and height.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InvalidConfig(
            "Pillow's ImageFile.LOAD_TRUNCATED_IMAGES was switched on in this process, so truncated images "
            "would be padded with grey instead of being refused. Set it back to False."
        )
    if not data:
        raise UnreadableImage("empty file (0 bytes)")
    check_num_bytes(len(data))
    name = format_of(data)
    try:
        image = Image.OPEN[name][0](io.BytesIO(data), "")
    except Exception as error:  # whatever a plugin raises on a damaged header becomes the reason
        if name == "PNG" and exceeds_text_limit(error):
            return open_image(without_text(data))
        raise unreadable(name, data, error) from error
    if max(image.size) > _MAX_SIDE:
        check_pixels(image)
    return image


def check_pixels(image: Image.Image) -> None:
    """Refuse an image whose header names more than `MAX_PIXELS`."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageTooLarge(_too_many_pixels(width * height, f" ({width} x {height})"))


def format_of(data: bytes) -> str:
    """The name in `FORMATS` of what the data are, by their first bytes."""
    brands = _brands(data)
    if brands & _HEIF_BRANDS and not brands & _AVIF_BRANDS:
        if "HEIF" not in Image.OPEN:
            raise UnsupportedFormat(
                "HEIF (HEIC) images are not supported here",
                "they need the package pillow-heif: pip install pillow-heif",
            )
        return "HEIF"
    for name in FORMATS:
        _, accept = Image.OPEN.get(name, (None, None))
        accepted = accept(data[:16]) if accept else False
        if isinstance(accepted, str):  # Pillow was built without the library of this format
            raise UnsupportedFormat(
                f"{name} images are not supported here",
                f"this Pillow {PIL.__version__} was built without {name}; the wheels on PyPI have it",
            )
        if accepted:
            return name
    names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    start = data[:12].decode("latin-1")
    shown = repr(start) if start.isascii() and start.isprintable() else f"the bytes {data[:4].hex(' ')}"
    raise UnsupportedFormat(f"not a {names} image: begins with {shown}")


def _brands(data: bytes) -> set[bytes]:
    """Brands of the `ftyp` box (ISO 14496-12) that AVIF and HEIF files begin with; empty for all others."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 4096)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def exceeds_text_limit(error: Exception) -> bool:
    """Whether Pillow refused a PNG for the size that its text or profile unpacks to, not for its pixels."""
    return isinstance(error, ValueError) and "MAX_TEXT" in str(error)


def without_text(png: bytes) -> bytes:
    """A PNG without its text and profile chunks, which say nothing about the pixels."""
    return _PNG_SIGNATURE + b"".join(chunk for name, chunk in _png_chunks(png) if name not in _PNG_TEXT)


def _png_chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG_SIGNATURE)
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        yield png[at + 4 : at + 8], png[at:end]
        at = end


def _too_many_pixels(num_pixels: int | None, sides: str = "") -> str:
    found = "the pixels" if num_pixels is None else f"{num_pixels:,} pixels{sides}"
    return f"{found} exceed the limit of {MAX_PIXELS:,}"


def truncated(name: str, num_bytes: int) -> UnreadableImage:
    """The error of data that end before the pixels do."""
    return UnreadableImage(f"truncated {name}: {num_bytes:,} bytes, the image data ends early")


def unreadable(name: str | None, data: bytes, error: Exception) -> UnreadableImage:
    """What a decoder of the format `name` raised, as one short line that is the same for the same bytes."""
    if isinstance(error, UnreadableImage):
        return error
    text = re.sub(r"b'(\w+)'", r"\1", " ".join(str(error).split()))
    if isinstance(error, Image.DecompressionBombError):  # WebP checks before its size can be asked for
        found = re.search(r"\d+", text)
        return ImageTooLarge(_too_many_pixels(int(found[0]) if found else None))
    cut_webp = name == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    if cut_webp or re.search("truncated|end of file", text, re.IGNORECASE):
        return truncated(name or "image", len(data))
    if isinstance(error, MemoryError):
        return UnreadableImage(f"{name}: decoding needs more memory than there is")
    # Pillow hands some of these on as SyntaxErrors; their texts speak of buffers and offsets
    if {type(error), type(error.__cause__)} & {struct.error, IndexError, EOFError}:
        text = "a part of it is missing or too short"
    if text == "not identified by this driver":  # Pillow's words for a header without pixels or mode
        text = "its header names no pixels, or no known pixel mode"
    return UnreadableImage(f"damaged {name}: {text or type(error).__name__}"[:_MAX_REASON])
