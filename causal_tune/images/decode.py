"""From the bytes of an image file to the uint8 crop that an encoder sees.

The policy, named by `PREPROCESSING` (a change of any rule below changes that name, and with it the
fingerprint of every feature store):

- **Crop.** The centre 224 x 224 pixels at native resolution, offsets `round((side - 224) / 2)` with
  halves to even, as torchvision's `CenterCrop` computes them. The field crops and does not resize:
  resampling destroys the traces that detectors look for.
- **Small images.** Where the shorter side is below 224 the image is resized first (bicubic with
  antialias, the shorter side to 224, the longer one in proportion), then cropped. Zero padding, which
  bare centre crops use, would give every 128-pixel generator a black frame that tells it apart.
- **Orientation** in EXIF (or XMP, where EXIF has none) is applied: it says where the pixels are.
- **Alpha** (RGBA, LA, a palette or colour key with transparency) is composited over white.
- **16-bit** channels keep their high byte: scaled, not clipped.
- **Float and 32-bit integer** pixels declare no range: values within [0, 1] (float) are multiplied by
  255, within [0, 255] kept, within [0, 65535] divided by 257; anything else is unreadable.
- **CMYK, YCbCr, Lab** are converted by Pillow's formulas.
- **ICC profiles and gamma chunks are ignored**, as in all published detectors: equal pixels give equal
  crops whatever the metadata (orientation excepted), and no colour engine's version enters the features.
- **Animations** (GIF, WebP, APNG, MPO, several TIFF pages): the first frame.
- **Damaged or truncated files are unreadable**, never padded with grey: grey tails are a cue. A file
  that lacks only bytes behind its last pixel (PNG's end marker) is complete. What is not seen: a
  progressive JPEG that was cut and then closed again with an end marker by other software.
- **Limits**: `MAX_BYTES`, and `MAX_PIXELS` checked in the header before anything is decoded.

Only `FORMATS` are decoded, told apart by content, not by the file's name. No global state of Pillow is
read or changed, except that `LOAD_TRUNCATED_IMAGES` must be off; all functions are thread-safe.
"""

import io
import os
import re
import stat
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,  # noqa: F401  each plugin enters its format into Image.OPEN
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from causal_tune.errors import InvalidConfig, UnreadableImage

__all__ = [
    "CROP_SIZE",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "PREPROCESSING",
    "decode_crop",
    "decode_thumbnail",
    "open_image",
    "read_crop",
    "read_image_bytes",
]

CROP_SIZE = 224
"""Side of the square crop, in pixels: what CLIP ViT-B/16 and ViT-L/14 take."""

PREPROCESSING = "center-crop-224/v1"
"""Name and version of the policy above; part of a store's fingerprint."""

MAX_PIXELS = 100_000_000
"""Width x height above which an image is not decoded."""

MAX_BYTES = 512 * 2**20
"""File size above which an image is not read."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are decoded, by Pillow's names."""

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what brings the stored pixels upright."""

_MAX_REASON = 160


def read_crop(path: str | os.PathLike[str], size: int = CROP_SIZE) -> npt.NDArray[np.uint8]:
    """The crop of an image file; see `decode_crop`.

    >>> read_crop("missing.png")
    Traceback (most recent call last):
    causal_tune.errors.UnreadableImage: no such file
    """
    return decode_crop(read_image_bytes(path), size)


def read_image_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`; UnreadableImage says why not."""
    try:
        status = os.stat(path)  # noqa: PTH116  one call tells kind and size; Path has no such call
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImage("a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait for ever
            raise UnreadableImage("not a regular file")
        _check_num_bytes(status.st_size)
        return Path(path).read_bytes()
    except FileNotFoundError:
        link = Path(path).is_symlink()
        raise UnreadableImage("broken symbolic link" if link else "no such file") from None
    except PermissionError:
        raise UnreadableImage("permission denied") from None
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from None
    except UnreadableImage:
        raise
    except ValueError as error:  # a null character in the path
        raise UnreadableImage(f"not a path: {error}") from None


def decode_crop(data: bytes, size: int = CROP_SIZE) -> npt.NDArray[np.uint8]:
    """The centre crop of an encoded image, uint8 [size, size, 3], RGB; the policy is the module's.

    Raises `UnreadableImage`, whose text is a short reason, for whatever cannot be decoded completely.

    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (300, 260), "red").save(buffer, "PNG")
    >>> decode_crop(buffer.getvalue()).shape
    (224, 224, 3)
    >>> decode_crop(b"hello")
    Traceback (most recent call last):
    causal_tune.errors.UnreadableImage: not a JPEG, PNG, WEBP, BMP, TIFF or GIF image: begins with b'hello'
    """
    image = open_image(data)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImage(_too_many_pixels(width * height, f" ({width} x {height})"))
    try:
        image.load()
        if image.format in ("JPEG", "MPO") and _ends_grey(image):
            _check_grey_end(image, data)
        return _crop(image, size)
    except UnreadableImage:
        raise
    except Exception as error:  # whatever a decoder raises on damaged data becomes the reason
        raise UnreadableImage(_reason(image.format, data, error)) from error


def decode_thumbnail(data: bytes, side: int) -> npt.NDArray[np.uint8]:
    """The whole picture, upright, grey, squeezed to `side` x `side`: uint8 [side, side]; for hashes only.

    Raises `UnreadableImage`. A JPEG is decoded at an eighth to a half of its size where that is enough,
    so that a cut one may pass: `decode_crop` decides what can be read.
    """
    image = open_image(data)
    if image.size[0] * image.size[1] > MAX_PIXELS:
        raise UnreadableImage(_too_many_pixels(image.size[0] * image.size[1]))
    try:
        image.draft(None, (4 * side, 4 * side))
        image.load()
        transpose = _TRANSPOSES.get(_orientation(image))  # as in `_crop`, after TIFF has turned itself
        grey = _to_rgb(_with_8_bits(image)).convert("L")
        small = grey.resize((side, side), Image.Resampling.BOX)
        return np.array(small if transpose is None else small.transpose(transpose))
    except UnreadableImage:
        raise
    except Exception as error:  # whatever a decoder raises on damaged data becomes the reason
        raise UnreadableImage(_reason(image.format, data, error)) from error


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
    _check_num_bytes(len(data))
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]) is not True:
            continue
        try:
            image = factory(io.BytesIO(data), "")
        except Image.DecompressionBombError as error:  # WebP checks before its size can be asked for
            found = re.search(r"\d+", str(error))
            raise UnreadableImage(_too_many_pixels(int(found[0]) if found else None)) from error
        except Exception as error:  # whatever a plugin raises on a damaged header becomes the reason
            raise UnreadableImage(_reason(name, data, error)) from error
        return image
    names = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    raise UnreadableImage(f"not a {names} image: begins with {data[:12]!r}")


def _crop(image: ImageFile.ImageFile, size: int) -> npt.NDArray[np.uint8]:
    """Crop first, then convert and turn: work on 224 x 224 pixels instead of on all."""
    transpose = _TRANSPOSES.get(_orientation(image))
    # TIFF is turned by Pillow while loading, which also removes the tag: nothing is turned twice.
    pixels = _with_8_bits(image)
    if min(image.size) < size:
        upright = _to_rgb(pixels) if transpose is None else _to_rgb(pixels).transpose(transpose)
        return np.array(_resized_crop(upright, size))
    width, height = image.size
    left, top = _offset(width, size), _offset(height, size)
    # Offsets are computed in the upright image. A turn reverses an axis of an odd difference, and
    # round-half-to-even is not symmetric, so the offset counts from the other end there.
    if transpose in _REVERSES_X:
        left = width - size - left
    if transpose in _REVERSES_Y:
        top = height - size - top
    crop = _to_rgb(pixels.crop((left, top, left + size, top + size)))
    return np.array(crop if transpose is None else crop.transpose(transpose))


_T = Image.Transpose
_REVERSES_X = (_T.FLIP_LEFT_RIGHT, _T.ROTATE_180, _T.TRANSVERSE, _T.ROTATE_90)
"""Turns after which the stored x axis runs backwards along the upright axis that it lies on."""
_REVERSES_Y = (_T.FLIP_TOP_BOTTOM, _T.ROTATE_180, _T.TRANSVERSE, _T.ROTATE_270)


def _offset(side: int, size: int) -> int:
    """First pixel of the centre crop; Python rounds halves to even, as torchvision does.

    >>> [_offset(side, 224) for side in (224, 225, 226, 227)]
    [0, 0, 1, 2]
    """
    return round((side - size) / 2)


def _resized_crop(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size`, then the centre crop, as one resampling of the part that is kept.

    Resizing all of a 1 x 100,000 image first would make 5 billion pixels to throw away. Equal to doing
    so, except for the rounding between Pillow's two passes.
    """
    width, height = image.size
    shorter = min(width, height)
    new_width, new_height = size * width // shorter, size * height // shorter
    left, top = _offset(new_width, size), _offset(new_height, size)
    x_scale, y_scale = width / new_width, height / new_height
    box = (
        left * x_scale,
        top * y_scale,
        min((left + size) * x_scale, width),
        min((top + size) * y_scale, height),
    )
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1  # damaged metadata says nothing about the pixels, which are complete


def _with_8_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey images as mode L; every other image as it is."""
    if image.mode.startswith("I;16"):
        # the high byte, which is also what Pillow keeps of 16-bit colour images
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # also where either is NaN
        raise UnreadableImage(f"{image.mode} pixels from {low:g} to {high:g}: their range is not known")
    if image.mode == "F" and high <= 1:
        values = values * 255
    elif high > 255:
        values = values / 257
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _ends_grey(image: Image.Image) -> bool:
    """Whether the last 8 x 8 block is mid-grey throughout, as libjpeg fills what it could not read."""
    width, height = image.size
    corner = image.crop((max(width - 8, 0), max(height - 8, 0), width, height))
    return corner.mode in ("L", "RGB") and set(corner.tobytes()) == {128}


def _check_grey_end(image: Image.Image, data: bytes) -> None:
    """Refuse a JPEG whose data end before its pixels although an end marker follows.

    Bytes put in front of the end marker are skipped where the data are complete, and decoded into
    other pixels where they are not. A photograph with a grey corner passes.
    """
    end = data.rfind(b"\xff\xd9")
    longer = open_image(data[:end] + b"\x5a\x31\x0f" * 64 + data[end:])
    longer.load()
    if longer.tobytes() != image.tobytes():
        raise UnreadableImage(_truncated("JPEG", len(data)))


def _check_num_bytes(num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise UnreadableImage(f"{num_bytes:,} bytes exceed the limit of {MAX_BYTES:,}")


def _too_many_pixels(num_pixels: int | None, sides: str = "") -> str:
    found = "the pixels" if num_pixels is None else f"{num_pixels:,} pixels{sides}"
    return f"{found} exceed the limit of {MAX_PIXELS:,}"


def _truncated(name: str, num_bytes: int) -> str:
    return f"truncated {name}: {num_bytes:,} bytes, the image data ends early"


def _reason(name: str | None, data: bytes, error: Exception) -> str:
    """One short line, the same for the same bytes."""
    text = " ".join(str(error).split())
    cut_webp = name == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    if cut_webp or "truncated" in text.lower():
        return _truncated(name or "image", len(data))
    if isinstance(error, MemoryError):
        return f"{name}: decoding needs more memory than there is"
    if isinstance(error, (struct.error, IndexError, EOFError)):  # their texts speak of buffers and offsets
        text = "a part of it is missing or too short"
    if text == "not identified by this driver":  # Pillow's words for a header without pixels or mode
        text = "its header names no pixels, or no known pixel mode"
    return f"damaged {name}: {text or type(error).__name__}"[:_MAX_REASON]
