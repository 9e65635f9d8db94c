import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageEnhance, ImageOps

from causal_tune.audit.pixels import perceptual_hash, read_all_pixels, read_pixels
from causal_tune.audit.run import MAX_DISTANCE
from causal_tune.errors import UnreadableImage
from causal_tune.images.decode import decode_thumbnail
from tests.conftest import draw

PICTURE = draw(5, generated=False, size=260)


def encoded(image: Image.Image, name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def distance(one: bytes, other: bytes) -> int:
    hashes = [perceptual_hash(decode_thumbnail(data, 32)) for data in (one, other)]
    assert None not in hashes
    return int(hashes[0] ^ hashes[1]).bit_count()


@pytest.mark.parametrize(
    "change",
    [
        lambda image: encoded(image, "JPEG", quality=40),
        lambda image: encoded(image, "WEBP", quality=60),
        lambda image: encoded(image.resize((130, 130))),
        lambda image: encoded(image.convert("L")),
        lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.8)),
    ],
    ids=["jpeg", "webp", "half", "grey", "darker"],
)
def test_the_hash_survives(change: Callable[[Image.Image], bytes]) -> None:
    assert distance(encoded(PICTURE), change(PICTURE)) <= MAX_DISTANCE


@pytest.mark.parametrize(
    "change",
    [
        ImageOps.mirror,
        ImageOps.flip,
        lambda image: image.crop((50, 50, 210, 210)),
        lambda image: draw(6, False, 260),
    ],
    ids=["mirrored", "flipped", "a part", "another"],
)
def test_the_hash_does_not_see_as_equal(change: Callable[[Image.Image], Image.Image]) -> None:
    assert distance(encoded(PICTURE), encoded(change(PICTURE))) > MAX_DISTANCE


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_the_thumbnail_is_upright(name: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored a quarter turn to the left of upright
    turned = encoded(PICTURE.transpose(Image.Transpose.ROTATE_90), name, exif=exif)
    assert distance(encoded(PICTURE), turned) <= MAX_DISTANCE


def test_transparency_and_16_bits_are_read_as_crops_are() -> None:
    grey = np.asarray(PICTURE.convert("L")).astype(np.uint16)
    deep = decode_thumbnail(encoded(Image.fromarray(grey * 257)), 32)
    assert np.abs(deep.astype(int) - decode_thumbnail(encoded(PICTURE.convert("L")), 32)).max() <= 1
    assert (decode_thumbnail(encoded(Image.new("RGBA", (40, 40), (0, 0, 0, 0))), 32) == 255).all()


def test_damaged_files_have_a_reason_and_no_hash(tmp_path: Path) -> None:
    whole = encoded(PICTURE, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flat.png").write_bytes(encoded(Image.new("RGB", (300, 300), "grey")))
    (tmp_path / "good.jpg").write_bytes(whole)
    steps: list[tuple[int, int]] = []
    paths = [str(tmp_path / name) for name in ("cut.jpg", "flat.png", "good.jpg", "none.jpg")]
    found = read_all_pixels(paths, num_threads=2, progress=lambda done, total: steps.append((done, total)))
    cut, flat, good, missing = (found[path] for path in paths)
    assert (cut.hash, missing.reason) == (None, "no such file")
    assert "truncated" in str(cut.reason)
    assert (flat.reason, flat.hash) == (None, None)
    assert good == read_pixels(paths[2])
    assert good.hash is not None
    assert steps[-1] == (4, 4)


def test_a_thumbnail_of_no_image_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="begins with"):
        decode_thumbnail(b"words", 32)
