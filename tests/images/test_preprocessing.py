"""The options of preprocessing: their names, and what each does to the pixels, against other libraries."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as torchvision

from causal_tune.errors import InvalidConfig, UnreadableImage
from causal_tune.images import decode
from causal_tune.images.decode import crop, decode_crop, decode_upright, recompress
from causal_tune.images.preprocessing import SMALL_POLICIES, Preprocessing
from tests.images.pictures import encode, noise, png_16, smooth

ALL = st.builds(
    Preprocessing,
    crop_size=st.integers(1, 1000),
    small=st.sampled_from(SMALL_POLICIES),
    recompress=st.none() | st.integers(1, 100),
)


def test_the_default_keeps_its_name() -> None:
    """Stores and detectors that exist carry it."""
    assert Preprocessing().name == "center-crop-224/v1"


@given(ALL, ALL)
def test_names_are_one_to_one_and_parse_is_the_inverse(one: Preprocessing, other: Preprocessing) -> None:
    assert Preprocessing.parse(one.name) == one
    assert (one.name == other.name) == (one == other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "none",
        "center-crop-224",
        "center-crop-224/v2",
        "center-crop-0/v1",
        "center-crop-224/v1+small=resize",  # the default has one name
        "center-crop-224/v1+small=stretch",
        "center-crop-224/v1+recompress=0",
        "center-crop-224/v1+recompress=101",
        "center-crop-224/v1+recompress=90+small=pad",
        "center-crop-224/v1+blur=1",
        "center-crop-224/v1\n",
        "center-crop-\u0662\u0662\u0664/v1",
    ],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match="is not known to this release, which knows names like"):
        Preprocessing.parse(name)


@pytest.mark.parametrize("value", [{"small": "stretch"}, {"recompress": 0}, {"crop_size": 0}])
def test_values_out_of_range_are_refused(value: dict) -> None:
    with pytest.raises(InvalidConfig, match=r"expected|should be"):
        Preprocessing(**value)


SIZES = [(1, 1), (1, 300), (223, 224), (224, 223), (128, 90), (31, 500), (300, 101), (224, 224), (225, 300)]


@pytest.mark.parametrize("size", SIZES)
def test_pad_is_torchvisions_centre_crop(size: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*size))
    found = decode_crop(encode(image, "PNG"), Preprocessing(small="pad"))
    np.testing.assert_array_equal(found, np.asarray(torchvision.center_crop(image, [224, 224])))


@pytest.mark.parametrize("size", [size for size in SIZES if size != (1, 1)])
def test_reflect_mirrors_at_the_edges(size: tuple[int, int]) -> None:
    """Pixel -k is pixel k, and n - 1 + k is n - 1 - k: a triangle wave of the position."""
    pixels = noise(*size)
    found = decode_crop(encode(Image.fromarray(pixels), "PNG"), Preprocessing(small="reflect"))

    def source(side: int) -> np.ndarray:
        first = round((side - 224) / 2) if side >= 224 else -((224 - side) // 2)
        if side == 1:
            return np.zeros(224, int)
        return np.abs((np.arange(first, first + 224) + side - 1) % (2 * side - 2) - (side - 1))

    np.testing.assert_array_equal(found, pixels[source(size[1])][:, source(size[0])])


@pytest.mark.parametrize("small", SMALL_POLICIES)
def test_one_pixel_under_each_policy(small: str) -> None:
    found = decode_crop(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), Preprocessing(small=small))
    assert found.shape == (224, 224, 3)
    assert np.unique(found.reshape(-1, 3), axis=0).tolist() == ([[0] * 3] if small == "pad" else []) + [
        [9, 8, 7]
    ]


@pytest.mark.parametrize("small", SMALL_POLICIES)
def test_the_policy_for_small_images_leaves_others_alone(small: str) -> None:
    data = encode(Image.fromarray(noise(224, 300)), "PNG")
    np.testing.assert_array_equal(decode_crop(data, Preprocessing(small=small)), decode_crop(data))


@pytest.mark.parametrize("size", [(300, 261), (301, 301)])
def test_recompression_is_pillows_jpeg_of_the_whole_image_at_native_size(size: tuple[int, int]) -> None:
    image = smooth(*size)
    jpeg = Image.open(io.BytesIO(encode(image, "JPEG", quality=40, subsampling=2)))
    found = decode_crop(encode(image, "PNG"), Preprocessing(recompress=40))
    np.testing.assert_array_equal(found, np.asarray(torchvision.center_crop(jpeg, [224, 224])))
    assert not np.array_equal(found, decode_crop(encode(image, "PNG")))


def test_recompression_settings() -> None:
    image = smooth(64, 48)
    image.info["comment"] = b"of the file it came from"
    result = recompress(image, 73)
    assert [part[1:3] for part in result.layer] == [(2, 2), (1, 1), (1, 1)]  # 4:2:0
    assert "progressive" not in result.info
    np.testing.assert_array_equal(np.asarray(result), np.asarray(recompress(smooth(64, 48), 73)))


def test_recompression_takes_the_file_format_away() -> None:
    """What a PNG and a lossless WebP of one image give is equal, and so is what is small."""
    image, chosen = smooth(100, 260), Preprocessing(recompress=80, small="pad")
    one, other = encode(image, "PNG"), encode(image, "WEBP", lossless=True)
    np.testing.assert_array_equal(decode_crop(one, chosen), decode_crop(other, chosen))


def test_a_side_that_jpeg_cannot_hold_is_a_reason() -> None:
    data = encode(Image.new("L", (65_501, 1)), "PNG")
    with pytest.raises(UnreadableImage, match="a side of 65,501 pixels cannot be recompressed"):
        decode_crop(data, Preprocessing(recompress=90))


def pictures() -> dict[str, Image.Image]:
    colour = Image.fromarray(noise(40, 40))
    see_through = colour.copy()
    see_through.putalpha(Image.fromarray(noise(40, 40)[..., 0]))
    return {
        "RGB": colour,
        "L": colour.convert("L"),
        "1": colour.convert("1"),
        "P": colour.quantize(16),
        "RGBA": see_through,
        "LA": see_through.convert("LA"),
        "I;16": Image.fromarray(noise(40, 40)[..., 0].astype(np.uint16) * 251),
    }


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(sorted(pictures())),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    orientation=st.integers(1, 8),
    crop_size=st.integers(1, 40),
    small=st.sampled_from(SMALL_POLICIES),
    quality=st.none() | st.just(50),
    transparency=st.booleans(),
)
def test_the_crop_alone_is_the_crop_of_the_whole_upright_image(
    mode, width, height, orientation, crop_size, small, quality, transparency
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"transparency": 3} if transparency and mode in ("P", "L") else {}
    data = encode(pictures()[mode].crop((0, 0, width, height)), "PNG", exif=exif, **options)
    chosen = Preprocessing(crop_size=crop_size, small=small, recompress=quality)
    upright = decode_upright(data)
    assert upright.mode == "RGB"
    assert upright.size == ((width, height) if orientation < 5 else (height, width))
    np.testing.assert_array_equal(decode_crop(data, chosen), crop(upright, chosen))


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.new("CMYK", (250, 240), (10, 90, 30, 40)), "JPEG"),
        encode(Image.new("YCbCr", (250, 240), (10, 90, 30)), "TIFF"),
        encode(Image.fromarray(np.linspace(0, 1, 250 * 241, dtype=np.float32).reshape(250, 241)), "TIFF"),
        encode(Image.fromarray(noise(251, 240)), "TIFF", tiffinfo={274: 6}),
        png_16(np.arange(240 * 241 * 4).reshape(240, 241, 4) % 65536),
        encode(smooth(251, 240), "WEBP"),
        encode(smooth(251, 240), "AVIF"),
        encode(smooth(251, 240), "GIF"),
    ],
    ids=["cmyk", "ycbcr", "float", "turned tiff", "16 bit alpha", "webp", "avif", "gif"],
)
def test_both_ways_agree_on_other_formats(data: bytes) -> None:
    np.testing.assert_array_equal(decode_crop(data), crop(decode_upright(data)))


def test_the_fast_way_converts_only_the_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    whole = decode._to_rgb
    monkeypatch.setattr(decode, "_to_rgb", lambda image: (sizes.append(image.size), whole(image))[1])
    decode_crop(encode(smooth(400, 300).convert("RGBA"), "PNG"))
    decode_crop(encode(smooth(400, 300), "PNG"), Preprocessing(recompress=90))
    assert sizes == [(224, 224), (400, 300)]
