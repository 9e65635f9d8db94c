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
from PIL import AvifImagePlugin, Image, ImageFile, ImageOps, PngImagePlugin
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from causal_tune.errors import InvalidConfig, UnreadableImage
from causal_tune.images import decode, files, headers
from causal_tune.images.decode import Preprocessing, decode_crop, open_image, read_crop
from tests.images.pictures import encode, noise, png, png_16, png_chunk, png_header, png_of_zeros, smooth


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
    crop = decode_crop(encode(smooth(300, 300), "PNG"), Preprocessing(crop_size=64))
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


JPEG = encode(smooth(240, 230), "JPEG")
PNG = encode(smooth(240, 230), "PNG")
EXIF = Image.Exif()
EXIF[0x010E], EXIF[0x0131] = "a description", "a program"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><Creator>someone</Creator></x:xmpmeta>"
JPEG_SEGMENTS = st.one_of(
    st.binary(max_size=300).map(lambda body: segment(0xFE, body)),  # a comment
    st.binary(max_size=300).map(lambda body: segment(0xE2, b"ICC_PROFILE\0\1\1" + body)),
    st.just(segment(0xE1, b"Exif\0\0" + EXIF.tobytes().removeprefix(b"Exif\0\0"))),
    st.just(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
    st.binary(max_size=50).map(lambda body: segment(0xED, b"Photoshop 3.0\0" + body)),
    st.binary(max_size=50).map(lambda body: segment(0xE5, body)),
)
PNG_CHUNKS = st.one_of(
    st.binary(max_size=99).map(lambda body: png_chunk(b"tEXt", b"parameters\0" + body)),
    st.binary(max_size=99).map(lambda body: png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(body))),
    st.binary(max_size=99).map(lambda body: png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(body))),
    st.just(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    st.just(png_chunk(b"eXIf", EXIF.tobytes().removeprefix(b"Exif\0\0"))),
    st.integers(1, 10**6).map(lambda gamma: png_chunk(b"gAMA", struct.pack(">I", gamma))),
    st.just(png_chunk(b"sRGB", b"\0")),
    st.just(png_chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1))),
    st.binary(max_size=99).map(lambda body: png_chunk(b"caBX", body)),  # content credentials
)


@settings(max_examples=100, deadline=None)
@given(segments=st.lists(JPEG_SEGMENTS, max_size=4))
def test_jpeg_metadata_of_any_kind_changes_no_pixel(segments):
    assert np.array_equal(decode_crop(JPEG[:2] + b"".join(segments) + JPEG[2:]), decode_crop(JPEG))


@settings(max_examples=100, deadline=None)
@given(before=st.lists(PNG_CHUNKS, max_size=4), behind=st.lists(PNG_CHUNKS, max_size=2))
def test_png_metadata_of_any_kind_changes_no_pixel(before, behind):
    data = PNG[:33] + b"".join(before) + PNG[33:-12] + b"".join(behind) + PNG[-12:]
    assert np.array_equal(decode_crop(data), decode_crop(PNG))


@pytest.mark.parametrize("format", ["WEBP", "AVIF", "TIFF"])
def test_metadata_of_other_formats_changes_no_pixel(format):
    options = {"lossless": True} if format == "WEBP" else {}
    plain = decode_crop(encode(smooth(240, 230), format, **options))
    for metadata in ({"exif": EXIF.tobytes()}, {"icc_profile": b"p" * 200}, {"exif": EXIF, "xmp": XMP}):
        assert np.array_equal(decode_crop(encode(smooth(240, 230), format, **options, **metadata)), plain)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF", "PNG"])
@pytest.mark.parametrize("orientation", [2, 6, 8])
def test_orientation_is_applied_in_every_format(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = smooth(260, 300)
    options = {} if format == "PNG" else {"quality": 100}
    found = decode_crop(encode(image, format, exif=exif, **options)).astype(int)
    upright = image.transpose(decode._TRANSPOSES[orientation])
    expected = np.asarray(torchvision.center_crop(upright, [224, 224])).astype(int)
    assert np.abs(found - expected).mean() < 3  # lossy


def test_avif_is_named_where_pillow_was_built_without_it(monkeypatch):
    data = encode(smooth(240, 230), "AVIF")
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    assert reason_of(data).endswith("was built without AVIF; the wheels on PyPI have it")


def test_heif_names_the_package_that_it_needs(monkeypatch):
    for brand in (b"heic", b"heix", b"mif1"):
        data = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(99)
        with monkeypatch.context() as patch:
            patch.delitem(Image.OPEN, "HEIF", raising=False)
            assert (
                reason_of(data)
                == "HEIF (HEIC) images are not supported here: they need the package pillow-heif: "
                "pip install pillow-heif"
            )


def test_heif():
    pytest.importorskip("pillow_heif")
    image = smooth(260, 300)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(image, "HEIF", quality=100, exif=exif.tobytes())
    assert open_image(whole).format == "HEIF"
    upright = image.transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(torchvision.center_crop(upright, [224, 224])).astype(int)
    assert np.abs(decode_crop(whole).astype(int) - expected).mean() < 3
    assert (decode_crop(encode(flat("RGBA", (255, 0, 0, 0)), "HEIF")) >= 254).all()
    for share in (2, 10, 50, 90, 99):
        assert is_short_line(reason_of(whole[: len(whole) * share // 100]))


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


def without_adobe_marker(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


CLEAR = encode(flat("RGBA", (200, 0, 0, 0)), "PNG")


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
        (CLEAR, (255, 255, 255)),
        (encode(flat("RGBA", (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
        (encode(flat("RGBA", (255, 0, 0, 0)), "WEBP", lossless=True), (255, 255, 255)),
        (encode(flat("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
        (encode(flat("RGBA", (255, 0, 0, 0)), "AVIF"), (255, 255, 255)),
        (encode(flat("CMYK", (0, 0, 0, 0)), "JPEG", quality=100), (255, 255, 255)),
        (without_adobe_marker(encode(flat("CMYK", (0, 0, 0, 0)), "JPEG", quality=100)), (255, 255, 255)),
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


PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def to_8_bits(values: np.ndarray, depth: int) -> np.ndarray:
    return values >> 8 if depth == 16 else values * 255 // (2**depth - 1)


@pytest.mark.parametrize(
    ("colour_type", "depth", "has_trns"),
    [
        (colour_type, depth, has_trns)
        for colour_type, depths in PNG_DEPTHS.items()
        for depth in depths
        for has_trns in (False, True)
        if not (has_trns and colour_type >= 4)  # they have an alpha channel
    ],
)
def test_every_kind_of_png_over_white(colour_type, depth, has_trns):
    """Against the PNG specification, from the values that were written."""
    random = np.random.default_rng(depth)
    values = random.integers(0, 2**depth, (224, 224, PNG_CHANNELS[colour_type]))
    alpha, chunks = np.full(values.shape[:2], 255), b""
    if colour_type == 3:
        palette = random.integers(0, 256, (2**depth, 3))
        colours = palette[values[..., 0]]
        chunks = png_chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        if has_trns:  # of all entries but the last, which is opaque
            alphas = np.append(random.integers(0, 256, 2**depth - 1), 255)
            alpha = alphas[values[..., 0]]
            chunks += png_chunk(b"tRNS", alphas[:-1].astype(np.uint8).tobytes())
    else:
        if has_trns:
            key = values[0, 0].copy()
            values[::2, ::3] = key
            values[1::2, ::3] = key ^ 1  # in 16 bits it differs in the low byte alone
            alpha = np.where((values == key).all(axis=-1), 0, 255)
            unused = 0xFF00 if depth in (2, 4, 8) else 0  # bits above the depth say nothing
            chunks = png_chunk(b"tRNS", (key | unused).astype(">u2").tobytes())
        if colour_type >= 4:
            alpha = to_8_bits(values[..., -1], depth)
        colours = to_8_bits(values[..., : PNG_CHANNELS[colour_type & ~4]], depth)
    over_white = (colours * alpha[..., None] + 255 * (255 - alpha[..., None])) / 255
    expected = np.broadcast_to(over_white, (224, 224, 3))
    crop = decode_crop(png(values, depth, colour_type, chunks))
    assert np.abs(crop - expected).max() <= 1  # rounding of half-transparent pixels


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


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
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
    "avif": ("AVIF", {}),
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
    assert (decode_crop(data)[-20:] == 128).all()
    assert (decode_crop(encode(flat("L", 128), "JPEG")) == 128).all()


def test_other_unreadable_bytes_have_short_reasons():
    assert reason_of(b"") == "empty file (0 bytes)"
    assert reason_of(b"hello world, I am text").startswith(
        "not a JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF or HEIF image: begins"
    )
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n").startswith("not a JPEG")
    assert reason_of(b"BM and then text").startswith("damaged BMP")
    assert reason_of(b"\xff\xd8\xff" + b"\0" * 50).startswith(("damaged JPEG", "truncated JPEG"))
    assert reason_of(encode(smooth(240, 240), "PNG").replace(b"IDAT", b"IDAX")).startswith("damaged PNG")
    assert len(reason_of(b"\x89PNG\r\n\x1a\n" + b"\xff" * 5000)) <= 200


def test_a_reason_is_one_bounded_line_whatever_the_decoder_says():
    reason = headers.unreadable("PNG", b"x", OSError("long\nand longer " * 100))
    assert is_short_line(str(reason))


@pytest.mark.filterwarnings("error")  # Pillow would warn about its own limit
def test_pixel_limit_is_checked_in_the_header():
    bomb = png_header(20_000, 20_000) + struct.pack(">I", 10**6) + b"IDAT"
    assert reason_of(bomb) == "400,000,000 pixels (20000 x 20000) exceed the limit of 100,000,000"
    assert "exceed the limit" not in reason_of(
        png_header(10_000, 10_000) + struct.pack(">I", 10**6) + b"IDAT"
    )


def test_real_png_of_20000_by_20000_is_refused():
    assert (
        reason_of(png_of_zeros(20_000))
        == "400,000,000 pixels (20000 x 20000) exceed the limit of 100,000,000"
    )


def test_webp_beyond_pillows_own_limit_is_refused_with_our_limit():
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    lossless = b"VP8L" + struct.pack("<I", 8) + b"\x2f" + bytes(7)
    body = b"WEBP" + vp8x + lossless
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    assert reason_of(data) == "268,402,689 pixels exceed the limit of 100,000,000"


def test_image_without_pixels_is_refused():
    assert (
        reason_of(png_header(0, 5) + png_chunk(b"IDAT", zlib.compress(b"\0" * 5)))
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


def test_a_missing_file_given_as_path_object():
    with pytest.raises(UnreadableImage, match="no such file"):
        read_crop(Path("/nowhere/at/all.png"))
