import concurrent.futures
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, PngImagePlugin
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from causal_tune.errors import InvalidConfig, UnreadableImage
from causal_tune.images import decode, files
from causal_tune.images.decode import decode_crop, open_image, read_crop


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image that a lossy codec can keep: no two rows alike, no sharp edges."""
    return Image.fromarray(noise(8, 8, seed)).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_16(values: np.ndarray) -> bytes:
    """A 16-bit PNG of [h, w, channels] values: Pillow cannot write 16-bit colour."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


def reason_of(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_crop(data)
    return str(caught.value)


def outcome(data: bytes) -> np.ndarray | str:
    """The crop, or the reason why there is none; any other exception fails the test."""
    try:
        return decode_crop(data)
    except UnreadableImage as error:
        return str(error)


def is_short_line(text: str) -> bool:
    no_address = " at 0x" not in text  # Pillow names objects by address: reasons would differ from run to run
    return 0 < len(text) < 200 and "\n" not in text and no_address


@pytest.mark.parametrize("size", [(224, 224), (225, 227), (227, 225), (230, 301), (231, 229), (512, 512)])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_crop_is_torchvisions_centre_crop_of_the_upright_image(size, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = encode(Image.fromarray(noise(*size)), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decode_crop(data), np.asarray(torchvision.center_crop(upright, [224, 224])))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_tiff_orientation_is_applied_once(orientation):
    pixels = noise(230, 301)
    stored = encode(Image.fromarray(pixels), "TIFF", tiffinfo={274: orientation})
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_crop(stored), decode_crop(encode(Image.fromarray(pixels), "PNG", exif=exif)))


@pytest.mark.parametrize("size", [(32, 32), (128, 90), (223, 500), (500, 223), (1, 1), (3, 700)])
def test_small_images_are_resized_and_never_padded(size):
    image = smooth(*size)
    resized = torchvision.resize(image, [224], interpolation=InterpolationMode.BICUBIC, antialias=True)
    expected = np.asarray(torchvision.center_crop(resized, [224, 224])).astype(int)
    crop = decode_crop(encode(image, "PNG")).astype(int)
    assert np.abs(crop - expected).max() <= 2  # rounding between the two passes of the resampling


def test_small_turned_image_is_resized_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = smooth(150, 60)
    turned = encode(image, "PNG", exif=exif)
    upright = encode(image.transpose(Image.Transpose.ROTATE_270), "PNG")
    assert np.array_equal(decode_crop(turned), decode_crop(upright))


def test_thin_long_image_needs_no_huge_intermediate():
    assert (decode_crop(encode(Image.new("RGB", (1, 60_000), "red"), "PNG")) == [255, 0, 0]).all()


def test_crop_is_writable_contiguous_uint8_of_the_asked_size():
    crop = decode_crop(encode(smooth(300, 300), "PNG"), 64)
    assert crop.shape == (64, 64, 3)
    assert crop.dtype == np.uint8
    assert crop.flags["C_CONTIGUOUS"]
    assert crop.flags["WRITEABLE"]


def test_identical_pixels_give_identical_crops_whatever_container_and_metadata():
    image = Image.fromarray(noise(260, 240))
    expected = decode_crop(encode(image, "PNG"))
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat, 20 steps")
    text.add(b"gAMA", struct.pack(">I", 100_000))
    others = {
        "png text and gamma": encode(image, "PNG", pnginfo=text),
        "png stored": encode(image, "PNG", compress_level=0),
        "png profile": encode(image, "PNG", icc_profile=b"not even a profile" * 20),
        "png opaque alpha": encode(image.convert("RGBA"), "PNG"),
        "bmp": encode(image, "BMP"),
        "tiff": encode(image, "TIFF"),
        "tiff lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "webp": encode(image, "WEBP", lossless=True),
        "png 16 bit": png_16(np.asarray(image).astype(np.uint16) * 257),
    }
    for name, data in others.items():
        assert np.array_equal(decode_crop(data), expected), name


def test_jpeg_metadata_does_not_change_pixels():
    image = smooth(300, 240)
    exif = Image.Exif()
    exif[0x010E] = "description"
    plain = decode_crop(encode(image, "JPEG"))
    for options in ({"exif": exif}, {"comment": b"hello"}, {"icc_profile": b"x" * 500}, {"optimize": True}):
        assert np.array_equal(decode_crop(encode(image, "JPEG", **options)), plain)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored():
    image = smooth(240, 240)
    broken = encode(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x01\x02")
    assert np.array_equal(decode_crop(broken), decode_crop(encode(image, "JPEG")))


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (240, 240), colour)  # type: ignore[arg-type]


def palette(colours: list[int]) -> Image.Image:
    image = flat("P", 0)
    image.putpalette(colours)
    return image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(flat("1", 1), "PNG"), (255, 255, 255)),
        (encode(flat("L", 77), "PNG"), (77, 77, 77)),
        (encode(palette([9, 8, 7]), "PNG"), (9, 8, 7)),
        (encode(palette([9, 8, 7]), "GIF"), (9, 8, 7)),
        (encode(palette([9, 8, 7]), "PNG", transparency=0), (255, 255, 255)),
        (encode(palette([0, 0, 0]), "PNG", transparency=bytes([128])), (127, 127, 127)),
        (encode(flat("L", 5), "PNG", transparency=5), (255, 255, 255)),
        (encode(flat("RGB", (5, 6, 7)), "PNG", transparency=(5, 6, 7)), (255, 255, 255)),
        (encode(flat("RGB", (5, 6, 7)), "PNG", transparency=(5, 6, 8)), (5, 6, 7)),
        (encode(flat("LA", (0, 0)), "PNG"), (255, 255, 255)),
        (encode(flat("LA", (0, 128)), "PNG"), (127, 127, 127)),
        (encode(flat("RGBA", (200, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (encode(flat("RGBA", (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
        (encode(flat("RGBA", (255, 0, 0, 0)), "WEBP", lossless=True), (255, 255, 255)),
        (encode(flat("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
        (encode(flat("CMYK", (0, 0, 0, 0)), "JPEG", quality=100), (255, 255, 255)),
        (encode(flat("YCbCr", (128, 128, 128)), "TIFF"), (128, 128, 128)),
        (png_16(np.full((240, 240, 1), 0x1234)), (0x12,) * 3),
        (png_16(np.full((240, 240, 3), 0xFEDC)), (0xFE,) * 3),
        (png_16(np.full((240, 240, 4), 0)), (255,) * 3),
        (encode(Image.fromarray(np.full((240, 240), 0x8000, np.uint16)), "TIFF"), (0x80,) * 3),
        (encode(Image.fromarray(np.full((240, 240), 65535, np.int32)), "TIFF"), (255,) * 3),
        (encode(Image.fromarray(np.full((240, 240), 200, np.int32)), "TIFF"), (200,) * 3),
        (encode(Image.fromarray(np.full((240, 240), 0.5, np.float32)), "TIFF"), (128,) * 3),
        (encode(Image.fromarray(np.full((240, 240), 99.0, np.float32)), "TIFF"), (99,) * 3),
    ],
)
def test_mode_policy(data, expected):
    assert (decode_crop(data) == expected).all()


def test_16_bit_is_scaled_by_the_same_rule_in_grey_and_colour():
    values = np.arange(240 * 240, dtype=np.uint16).reshape(240, 240, 1)
    assert np.array_equal(decode_crop(png_16(values)), decode_crop(png_16(values.repeat(3, 2))))


def test_float_range_is_taken_from_the_whole_image_not_from_the_crop():
    values = np.full((300, 300), 0.9, np.float32)
    values[0, 0] = 200.0
    assert (decode_crop(encode(Image.fromarray(values), "TIFF")) == 1).all()


@pytest.mark.parametrize("value", [-1.0, 1e6, np.nan, np.inf])
def test_float_of_unknown_range_is_unreadable(value):
    values = np.full((240, 240), 0.5, np.float32)
    values[1, 1] = value
    assert "range is not known" in reason_of(encode(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_animations_give_their_first_frame(format):
    frames = [flat("RGB", "red"), flat("RGB", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.abs(decode_crop(data).astype(int) - [255, 0, 0]).max() <= 2


TRUNCATABLE = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "webp": ("WEBP", {}),
    "webp lossless": ("WEBP", {"lossless": True}),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow reports damaged TIFF directories twice
@pytest.mark.parametrize("kind", TRUNCATABLE)
def test_truncated_file_is_refused_or_complete_never_padded(kind):
    format, options = TRUNCATABLE[kind]
    whole = encode(smooth(240, 250), format, **options)
    expected = decode_crop(whole)
    num_refused = 0
    for length in sorted(
        {*range(0, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 20, len(whole))}
    ):
        found = outcome(whole[:length])
        if isinstance(found, str):
            num_refused += 1
            assert is_short_line(found)
        else:
            assert length > 0.99 * len(whole) - 20
            assert np.array_equal(found, expected)
    assert num_refused >= 60


def test_reason_of_a_truncated_jpeg():
    data = encode(smooth(400, 400), "JPEG")[:1204]
    assert reason_of(data) == "truncated JPEG: 1,204 bytes, the image data ends early"


def test_truncated_jpeg_that_was_closed_with_an_end_marker_is_refused():
    data = encode(smooth(400, 400), "JPEG")
    assert "ends early" in reason_of(data[: len(data) * 2 // 3] + b"\xff\xd9")


def test_sound_jpeg_that_ends_in_mid_grey_passes():
    pixels = np.full((300, 300, 3), 128, np.uint8)
    pixels[:200] = np.asarray(smooth(300, 200))
    data = encode(Image.fromarray(pixels), "JPEG", quality=95)
    assert decode._ends_grey(Image.open(io.BytesIO(data)))
    assert decode_crop(data).shape == (224, 224, 3)
    assert decode_crop(encode(flat("L", 128), "JPEG")).shape == (224, 224, 3)


def test_other_unreadable_bytes_have_short_reasons():
    assert reason_of(b"") == "empty file (0 bytes)"
    assert reason_of(b"hello world, I am text").startswith(
        "not a JPEG, PNG, WEBP, BMP, TIFF or GIF image: begins"
    )
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n").startswith("not a JPEG")
    assert reason_of(b"BM and then text").startswith("damaged BMP")
    assert reason_of(b"\xff\xd8\xff" + b"\0" * 50).startswith(("damaged JPEG", "truncated JPEG"))
    assert reason_of(encode(smooth(240, 240), "PNG").replace(b"IDAT", b"IDAX")).startswith("damaged PNG")
    assert len(reason_of(b"\x89PNG\r\n\x1a\n" + b"\xff" * 5000)) <= 200


def test_a_reason_is_one_bounded_line_whatever_the_decoder_says():
    reason = decode._reason("PNG", b"x", OSError("long\nand longer " * 100))
    assert is_short_line(reason)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.filterwarnings("error")  # Pillow would warn about its own limit
def test_pixel_limit_is_checked_in_the_header():
    bomb = png_header(20_000, 20_000) + struct.pack(">I", 10**6) + b"IDAT"
    assert reason_of(bomb) == "400,000,000 pixels (20000 x 20000) exceed the limit of 100,000,000"
    assert "exceed the limit" not in reason_of(
        png_header(10_000, 10_000) + struct.pack(">I", 10**6) + b"IDAT"
    )


def test_real_png_of_20000_by_20000_is_refused():
    data = encode(Image.new("1", (20_000, 20_000)), "PNG")
    assert reason_of(data) == "400,000,000 pixels (20000 x 20000) exceed the limit of 100,000,000"


def test_webp_beyond_pillows_own_limit_is_refused_with_our_limit():
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    lossless = b"VP8L" + struct.pack("<I", 8) + b"\x2f" + bytes(7)
    body = b"WEBP" + vp8x + lossless
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    assert reason_of(data) == "268,402,689 pixels exceed the limit of 100,000,000"


def test_image_without_pixels_is_refused():
    idat = b"IDAT" + zlib.compress(b"\0" * 5)
    chunk = struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    assert (
        reason_of(png_header(0, 5) + chunk)
        == "damaged PNG: its header names no pixels, or no known pixel mode"
    )


def test_bytes_limit(monkeypatch, tmp_path):
    data = encode(smooth(240, 240), "PNG")
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    path = tmp_path / "large.png"
    path.write_bytes(data)
    for refuse in (lambda: decode_crop(data), lambda: read_crop(path)):
        with pytest.raises(UnreadableImage, match=rf"{len(data):,} bytes exceed the limit of 100"):
            refuse()


def test_read_crop_reasons(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    expected = {
        "missing.png": "no such file",
        "link.png": "broken symbolic link",
        "loop.png": "cannot be read: Too many levels of symbolic links",
        ".": "a folder, not a file",
        "pipe.png": "not a regular file",
        "nul\0.png": "not a path: ",
        "x" * 300 + ".png": "cannot be read: File name too long",
    }
    for name, reason in expected.items():
        with pytest.raises(UnreadableImage) as caught:
            read_crop(f"{tmp_path}/{name}")
        assert str(caught.value).startswith(reason)


def test_permission_denied(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encode(smooth(240, 240), "PNG"))
    path.chmod(0)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        with pytest.raises(UnreadableImage, match="permission denied"):
            read_crop(path)
    finally:
        if is_root:
            os.seteuid(0)


def test_names_with_odd_characters_are_read(tmp_path):
    data = encode(smooth(240, 240), "PNG")
    for name in ("a b.png", "q\"uo'te.png", "new\nline.png", "ünï 猫.png", os.fsdecode(b"bytes-\xff.png")):
        path = tmp_path / name
        path.write_bytes(data)
        assert np.array_equal(read_crop(path), decode_crop(data))


def test_truncated_images_switch_of_another_library_is_refused(monkeypatch):
    data = encode(smooth(240, 240), "PNG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InvalidConfig, match="LOAD_TRUNCATED_IMAGES"):
        decode_crop(data)


def test_pillows_global_state_is_left_alone():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(Image.ID))
    decode_crop(encode(smooth(240, 240), "PNG"))
    reason_of(b"hello")
    reason_of(png_header(20_000, 20_000))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(Image.ID)) == before


def test_threads_give_the_same_crops():
    files = [encode(smooth(240 + i, 260, i), ("PNG", "JPEG", "WEBP", "GIF")[i % 4]) for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode_crop, files * 2))
    for crop, data in zip(together, files * 2, strict=True):
        assert np.array_equal(crop, decode_crop(data))


WHOLE_PNG = encode(smooth(230, 240), "PNG")
WHOLE_CROP = decode_crop(WHOLE_PNG)


@settings(max_examples=150, deadline=None)
@given(length=st.integers(0, len(WHOLE_PNG)))
@example(length=len(WHOLE_PNG) - 12)
def test_any_truncation_of_a_png_gives_its_crop_or_unreadable(length):
    found = outcome(WHOLE_PNG[:length])
    if isinstance(found, str):
        assert is_short_line(found)
    else:
        assert np.array_equal(found, WHOLE_CROP)


MAGIC = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF0000WEBPVP8 ",
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200, deadline=None)
@given(magic=st.sampled_from(MAGIC), body=st.binary(max_size=300))
def test_random_bytes_give_a_crop_or_unreadable(magic, body):
    found = outcome(magic + body)
    assert is_short_line(found) if isinstance(found, str) else found.shape == (224, 224, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(TRUNCATABLE)), at=st.floats(0, 1), byte=st.integers(0, 255))
def test_one_wrong_byte_gives_a_crop_or_unreadable(kind, at, byte):
    format, options = TRUNCATABLE[kind]
    data = bytearray(encode(smooth(64, 64), format, **options))
    data[int(at * (len(data) - 1))] = byte
    found = outcome(bytes(data))
    assert is_short_line(found) if isinstance(found, str) else found.shape == (224, 224, 3)


def test_header_is_read_without_pixels():
    image = open_image(encode(smooth(300, 200), "PNG"))
    assert (image.size, image.mode, image.format) == ((300, 200), "RGB", "PNG")


def test_preprocessing_names_the_crop_size():
    assert decode.PREPROCESSING.startswith(f"center-crop-{decode.CROP_SIZE}/v")


def test_a_missing_file_given_as_path_object():
    with pytest.raises(UnreadableImage, match="no such file"):
        read_crop(Path("/nowhere/at/all.png"))
