"""From the bytes of an image file to the uint8 crop that an encoder sees.

The rules, whose version is in `Preprocessing.name` (a change of any crop is another version, and with it
another fingerprint of every feature store):

- **Crop.** The centre 224 x 224 pixels at native resolution, offsets `round((side - 224) / 2)` with
  halves to even, as torchvision's `CenterCrop` computes them. The field crops and does not resize:
  resampling destroys the traces that detectors look for.
- **Small images**, where the shorter side is below 224, by `Preprocessing.small`:
  `resize` (default): resized first (bicubic with antialias, the shorter side to 224, the longer one in
  proportion), then cropped. `pad`: zeros around, as torchvision's `CenterCrop` and so the published
  detectors do; it gives every 128-pixel generator a black frame that tells it apart. `reflect`: the image
  mirrored at its edges without repeating them (a side of one pixel is repeated).
- **Recompression**, where `Preprocessing.recompress` asks for it: the whole upright image to JPEG of that
  quality by Pillow, baseline, chroma 4:2:0, standard Huffman tables, and back, before anything above.
  The bytes, and so the pixels, are those of the installed Pillow and libjpeg-turbo.
- **Orientation** in EXIF (or XMP, where EXIF has none; in AVIF and HEIF the file's own turns) is applied:
  it says where the pixels are.
- **Alpha** (RGBA, LA, a palette or colour key with transparency) is composited over white.
- **16-bit** channels keep their high byte: scaled, not clipped. AVIF and HEIF of 10 or 12 bits are
  brought to 8 by their decoders.
- **Float and 32-bit integer** pixels declare no range: values within [0, 1] (float) are multiplied by
  255, within [0, 255] kept, within [0, 65535] divided by 257; anything else is unreadable.
- **CMYK, YCbCr, Lab** are converted by Pillow's formulas; CMYK in JPEG is taken as inverted, as Adobe
  writes it and all readers assume, whether or not Adobe's marker is there.
- **ICC profiles and gamma chunks are ignored**, as in all published detectors: equal pixels give equal
  crops whatever the metadata (orientation excepted), and no colour engine's version enters the features.
  Text and profiles of a PNG that unpack to more than Pillow takes are skipped, not unpacked.
- **Animations** (GIF, WebP, APNG, AVIF, HEIF, MPO, several TIFF pages): the first frame.
- **Damaged or truncated files are unreadable**, never padded with grey: grey tails are a cue. A file
  that lacks only bytes behind its last pixel (PNG's end marker) is complete. For JPEG see
  `causal_tune.images.jpeg`.
- **Limits**: `files.MAX_BYTES`, and `MAX_PIXELS` checked in the header before anything is decoded. What a decoder
  does in spite of them, `causal_tune.images.isolated` contains.

Only `FORMATS` are decoded, told apart by content, not by the file's name. Pixels of lossy formats are those
of the installed Pillow and its libraries. No global state of Pillow is read or changed, except that
`LOAD_TRUNCATED_IMAGES` must be off; all functions are thread-safe.
"""

import io
import os
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from causal_tune.errors import UnreadableImage
from causal_tune.images.files import read_image_bytes
from causal_tune.images.headers import (
    FORMATS,
    MAX_PIXELS,
    check_pixels,
    exceeds_text_limit,
    open_image,
    unreadable,
    without_text,
)
from causal_tune.images.jpeg import load_jpeg
from causal_tune.images.preprocessing import CROP_SIZE, Preprocessing

__all__ = [
    "CROP_SIZE",
    "FORMATS",
    "MAX_PIXELS",
    "Preprocessing",
    "SizedCrop",
    "crop",
    "crop_image",
    "decode_crop",
    "decode_sized",
    "decode_thumbnail",
    "decode_upright",
    "open_image",
    "read_crop",
    "read_sized",
    "recompress",
]

_DEFAULT = Preprocessing()

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

_MAX_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION

_NUMPY_PADDING = {"pad": "constant", "reflect": "reflect"}


def read_crop(path: str | os.PathLike[str], preprocessing: Preprocessing = _DEFAULT) -> npt.NDArray[np.uint8]:
    """The crop of an image file; see `decode_crop`.

    >>> read_crop("missing.png")
    Traceback (most recent call last):
    causal_tune.errors.UnreadableImage: no such file
    """
    return decode_crop(read_image_bytes(path), preprocessing)


@dataclass(frozen=True, slots=True)
class SizedCrop:
    """A crop and the size of the image that it is of."""

    pixels: npt.NDArray[np.uint8]
    """[size, size, 3]"""
    size: tuple[int, int]
    """Width and height of the whole image, in pixels."""


def decode_crop(data: bytes, preprocessing: Preprocessing = _DEFAULT) -> npt.NDArray[np.uint8]:
    """The centre crop of an encoded image, uint8 [size, size, 3], RGB; the rules are the module's.

    Equal to `crop(decode_upright(data), preprocessing)`, and faster where only the crop is needed.
    Raises `UnreadableImage`, whose text is a short reason, for whatever cannot be decoded completely.

    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (300, 260), "red").save(buffer, "PNG")
    >>> decode_crop(buffer.getvalue()).shape
    (224, 224, 3)
    >>> decode_crop(b"hello")
    Traceback (most recent call last):
    causal_tune.errors.UnsupportedFormat: not a JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF or HEIF image: begins with 'hello'
    """
    return decode_sized(data, preprocessing).pixels


def decode_sized(data: bytes, preprocessing: Preprocessing = _DEFAULT) -> SizedCrop:
    """`decode_crop`, and the size of the image as it is stored."""
    image = _loaded(data)
    try:
        if preprocessing.recompress is None and min(image.size) >= preprocessing.crop_size:
            return SizedCrop(_crop_first(image, preprocessing.crop_size), image.size)
        return SizedCrop(crop(_upright(image), preprocessing), image.size)
    except Exception as error:  # whatever a conversion raises on odd data becomes the reason
        raise unreadable(image.format, data, error) from error


def read_sized(path: str | os.PathLike[str], preprocessing: Preprocessing = _DEFAULT) -> SizedCrop:
    """`read_crop`, and the size of the image as it is stored."""
    return decode_sized(read_image_bytes(path), preprocessing)


def decode_upright(data: bytes) -> Image.Image:
    """All pixels of an encoded image, upright, in mode RGB; the rules are the module's, up to the crop.

    Raises `UnreadableImage` for whatever cannot be decoded completely.

    >>> buffer = io.BytesIO()
    >>> exif = Image.Exif()
    >>> exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    >>> Image.new("L", (300, 260)).save(buffer, "PNG", exif=exif)
    >>> upright = decode_upright(buffer.getvalue())
    >>> upright.mode, upright.size
    ('RGB', (260, 300))
    """
    image = _loaded(data)
    try:
        return _upright(image)
    except Exception as error:  # whatever a conversion raises on odd data becomes the reason
        raise unreadable(image.format, data, error) from error


def crop_image(image: Image.Image, preprocessing: Preprocessing = _DEFAULT) -> npt.NDArray[np.uint8]:
    """The centre crop of a picture that Pillow has opened, in any mode: what `decode_crop` makes of its file.

    Two things that need the file itself are not done: to see whether a JPEG is complete, and to find the pixels of
    a PNG's colour key where samples have 2 or 4 bits, or where there are three of 16.

    >>> crop_image(Image.new("L", (300, 260))).shape
    (224, 224, 3)
    """
    check_pixels(image)
    try:
        image.load()
        return crop(_upright(image), preprocessing)
    except UnreadableImage:
        raise
    except Exception as error:  # whatever a decoder or a conversion raises becomes the reason
        raise UnreadableImage(f"cannot be decoded: {error}") from error


def crop(
    image: Image.Image,
    preprocessing: Preprocessing = _DEFAULT,
    *,
    place: tuple[float, float] | None = None,
) -> npt.NDArray[np.uint8]:
    """The crop of an upright RGB image, uint8 [size, size, 3], recompressed first where that is asked for.

    `place` is how far across and down it lies, in [0, 1) of the places there are; None: the centre.

    >>> crop(Image.new("RGB", (300, 100), "white"), Preprocessing(small="pad"))[:, 0, 0].tolist().count(255)
    100
    """
    size = preprocessing.crop_size
    if preprocessing.recompress is not None:
        image = recompress(image, preprocessing.recompress)
    width, height = image.size
    if min(width, height) < size and preprocessing.small == "resize":
        return np.array(_resized_crop(image, size, place))
    left, top = (max(offset, 0) for offset in _offsets(width, height, size, place))
    pixels = np.array(image.crop((left, top, min(left + size, width), min(top + size, height))))
    lacking = [size - side for side in pixels.shape[:2]]
    if not any(lacking):
        return pixels
    # an odd one goes behind, as torchvision's CenterCrop has it
    around = [(number // 2, number - number // 2) for number in lacking]
    return np.pad(pixels, [*around, (0, 0)], mode=_NUMPY_PADDING[preprocessing.small])  # type: ignore[call-overload,no-any-return]


def recompress(image: Image.Image, quality: int) -> Image.Image:
    """An RGB image after JPEG of this quality (1 to 100): baseline, chroma 4:2:0, standard Huffman tables.

    The pixels depend on the versions of Pillow and libjpeg-turbo. `UnreadableImage` for a side that JPEG
    cannot hold.
    """
    if max(image.size) > _MAX_JPEG_SIDE:
        raise UnreadableImage(
            f"a side of {max(image.size):,} pixels cannot be recompressed: JPEG holds at most {_MAX_JPEG_SIDE:,}"
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", optimize=False, progressive=False)
    result = open_image(buffer.getvalue())
    result.load()
    return result


def _loaded(data: bytes) -> ImageFile.ImageFile:
    """The image with all its pixels decoded, as stored."""
    image = open_image(data)
    check_pixels(image)
    try:
        if image.format in ("JPEG", "MPO"):
            return load_jpeg(data)
        try:
            image.load()
        except ValueError as error:
            if image.format != "PNG" or not exceeds_text_limit(error):  # text behind the pixels
                raise
            data = without_text(data)
            image = open_image(data)
            image.load()
        if image.format == "PNG" and "transparency" in image.info:
            _set_colour_key(image, data)
    except Exception as error:  # whatever a decoder raises on damaged data becomes the reason
        raise unreadable(image.format, data, error) from error
    return image


def _set_colour_key(image: ImageFile.ImageFile, png: bytes) -> None:
    """Make Pillow see the pixels of the colour key: it compares the key, in the file's bits, with 8-bit pixels."""
    depth, key = png[24], image.info["transparency"]
    if image.mode == "L":
        largest = 2**depth - 1  # only the lowest bits of a key count
        image.info["transparency"] = (key & largest) * 255 // largest
    elif image.mode == "RGB" and depth == 8:
        image.info["transparency"] = tuple(value & 255 for value in key)
    elif image.mode == "RGB":  # of 16 bits, of which the high bytes are decoded
        other = open_image(png)
        other.tile = [other.tile[0]._replace(args="RGB;16L")]  # takes the low bytes
        other.load()
        values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(other)
        del image.info["transparency"]
        image.putalpha(_opaque_but(values, key))


def _opaque_but(values: npt.NDArray[np.uint16], key: object) -> Image.Image:
    """Alpha that is 0 where the values, [h, w] or [h, w, 3], are the key and 255 elsewhere."""
    is_key = (values == np.asarray(key)).reshape(*values.shape[:2], -1).all(axis=-1)
    return Image.fromarray(np.where(is_key, 0, 255).astype(np.uint8))


def _upright(image: Image.Image) -> Image.Image:
    rgb = _to_rgb(_with_8_bits(image))
    # TIFF is turned by Pillow while loading, which also removes the tag: nothing is turned twice.
    transpose = _TRANSPOSES.get(_orientation(image))
    return rgb if transpose is None else rgb.transpose(transpose)


def decode_thumbnail(data: bytes, side: int) -> npt.NDArray[np.uint8]:
    """The whole picture, upright, grey, squeezed to `side` x `side`: uint8 [side, side]; for hashes only.

    Raises `UnreadableImage`. A JPEG is decoded at an eighth to a half of its size where that is enough,
    so that a cut one may pass: `decode_crop` decides what can be read.
    """
    image = open_image(data)
    check_pixels(image)
    try:
        image.draft(None, (4 * side, 4 * side))
        image.load()
        transpose = _TRANSPOSES.get(_orientation(image))  # as in `_upright`, after TIFF has turned itself
        small = _to_rgb(_with_8_bits(image)).convert("L").resize((side, side), Image.Resampling.BOX)
        return np.array(small if transpose is None else small.transpose(transpose))
    except Exception as error:  # whatever a decoder raises on damaged data becomes the reason
        raise unreadable(image.format, data, error) from error


def _crop_first(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Crop first, then convert and turn: work on 224 x 224 pixels instead of on all."""
    transpose = _TRANSPOSES.get(_orientation(image))
    pixels = _with_8_bits(image)
    width, height = image.size
    left, top = _offset(width, size), _offset(height, size)
    # Offsets are computed in the upright image. A turn reverses an axis of an odd difference, and
    # round-half-to-even is not symmetric, so the offset counts from the other end there.
    if transpose in _REVERSES_X:
        left = width - size - left
    if transpose in _REVERSES_Y:
        top = height - size - top
    cropped = _to_rgb(pixels.crop((left, top, left + size, top + size)))
    return np.array(cropped if transpose is None else cropped.transpose(transpose))


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


def _offsets(width: int, height: int, size: int, place: tuple[float, float] | None) -> tuple[int, int]:
    if place is None:
        return _offset(width, size), _offset(height, size)
    across, down = place
    return int(across * (width - size + 1)), int(down * (height - size + 1))


def _resized_crop(image: Image.Image, size: int, place: tuple[float, float] | None) -> Image.Image:
    """Shorter side to `size`, then the crop, as one resampling of the part that is kept.

    Resizing all of a 1 x 100,000 image first would make 5 billion pixels to throw away. Equal to doing
    so, except for the rounding between Pillow's two passes.
    """
    width, height = image.size
    shorter = min(width, height)
    new_width, new_height = size * width // shorter, size * height // shorter
    left, top = _offsets(new_width, new_height, size, place)
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
        samples = np.asarray(image).astype(np.uint16)
        high = Image.fromarray((samples >> 8).astype(np.uint8))
        key = image.info.get("transparency")
        return high if key is None else Image.merge("LA", (high, _opaque_but(samples, key)))
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
