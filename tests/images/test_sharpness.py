"""Planted mistakes: each rule of decoding, broken, has to fail the test that is there for it."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFile

from causal_tune.images import decode, headers
from tests.images import test_decode as rules
from tests.images import test_preprocessing as options
from tests.images.pictures import encode

_loaded, _to_rgb, _recompress = decode._loaded, decode._to_rgb, decode.recompress


def _over_black(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), rgba).convert("RGB")


def _as_pillow_loads(data: bytes) -> ImageFile.ImageFile:
    image = headers.open_image(data)
    image.load()
    return image


def _grey_tails(data: bytes) -> ImageFile.ImageFile:
    image = headers.open_image(data)
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    return image


def _last_frame(data: bytes) -> ImageFile.ImageFile:
    image = headers.open_image(data)
    image.seek(getattr(image, "n_frames", 1) - 1)
    image.load()
    return image


def _clipped(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    return (
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)) if image.mode.startswith("I;16") else image
    )


def _colour_managed(data: bytes) -> ImageFile.ImageFile:
    """Stands for anything that reads the profile."""
    image = _loaded(data)
    return image.point(lambda value: 255 - value) if image.info.get("icc_profile") else image


TURNED_BACK = {**decode._TRANSPOSES, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

MISTAKES: dict[str, tuple[str, object, Callable[[], object]]] = {
    "offsets floor": (
        "_offset",
        lambda side, size: (side - size) // 2,
        lambda: rules.test_crop_is_torchvisions_centre_crop_of_the_upright_image((225, 227), None),
    ),
    "halves up": (
        "_offset",
        lambda side, size: (side - size + 1) // 2,
        lambda: rules.test_crop_is_torchvisions_centre_crop_of_the_upright_image((225, 227), None),
    ),
    "offsets of the stored image": (
        "_REVERSES_X",
        (),
        lambda: rules.test_crop_is_torchvisions_centre_crop_of_the_upright_image((225, 227), 2),
    ),
    "orientation ignored": (
        "_orientation",
        lambda image: 1,
        lambda: rules.test_crop_is_torchvisions_centre_crop_of_the_upright_image((230, 301), 6),
    ),
    "turned the other way": (
        "_TRANSPOSES",
        TURNED_BACK,
        lambda: rules.test_small_turned_image_is_resized_upright(),
    ),
    "alpha over black": ("_to_rgb", _over_black, lambda: rules.test_mode_policy(rules.CLEAR, (255,) * 3)),
    "alpha dropped": (
        "_to_rgb",
        lambda image: image.convert("RGB"),
        lambda: rules.test_mode_policy(rules.CLEAR, (255,) * 3),
    ),
    "grey tails accepted": (
        "_loaded",
        _grey_tails,
        lambda: rules.test_truncated_file_is_refused_or_complete_never_padded("jpeg"),
    ),
    "grey tails accepted behind an end marker": (
        "load_jpeg",
        _as_pillow_loads,
        rules.test_truncated_jpeg_that_was_closed_with_an_end_marker_is_refused,
    ),
    "16 bits clipped": (
        "_with_8_bits",
        _clipped,
        rules.test_16_bit_is_scaled_by_the_same_rule_in_grey_and_colour,
    ),
    "the last frame": ("_loaded", _last_frame, lambda: rules.test_animations_give_their_first_frame("GIF")),
    "profiles applied": ("_loaded", _colour_managed, rules.test_jpeg_metadata_does_not_change_pixels),
    "size not checked": ("check_pixels", lambda image: None, rules.test_pixel_limit_is_checked_in_the_header),
    "small padded": (
        "_resized_crop",
        lambda image, size, place: image.crop((0, 0, size, size)),
        lambda: rules.test_small_images_are_resized_and_never_padded((128, 90)),
    ),
    "edges repeated": (
        "_NUMPY_PADDING",
        {"reflect": "symmetric"},
        lambda: options.test_reflect_mirrors_at_the_edges((128, 90)),
    ),
    "padded with the edge": (
        "_NUMPY_PADDING",
        {"pad": "edge"},
        lambda: options.test_pad_is_torchvisions_centre_crop((128, 90)),
    ),
    "full chroma": (
        "recompress",
        lambda image, quality: Image.open(io.BytesIO(encode(image, "JPEG", quality=quality, subsampling=0))),
        lambda: options.test_recompression_is_pillows_jpeg_of_the_whole_image_at_native_size((300, 261)),
    ),
    "recompressed behind the crop": (
        "recompress",
        lambda image, quality: _recompress(Image.fromarray(decode.crop(image)), quality),
        lambda: options.test_recompression_is_pillows_jpeg_of_the_whole_image_at_native_size((301, 301)),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, wrong, check = MISTAKES[mistake]
    check()
    monkeypatch.setattr(decode, attribute, wrong)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()
