"""What is done to an image in each view."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from causal_tune.errors import InvalidConfig, UnreadableImage
from causal_tune.images.decode import decode_crop
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.images.views import DEGRADED, augmented_view, degraded_views, read_views, view_applies

DEFAULT = Preprocessing()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    path = tmp_path_factory.mktemp("views") / "photograph.png"
    coarse.resize((330, 270), Image.Resampling.BICUBIC).save(path)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def crops(
    photograph: tuple[str, str], *views: str, preprocessing: Preprocessing = DEFAULT
) -> list[np.ndarray]:
    return [view.crop for view in read_views(*photograph, preprocessing, views)]


def centre(pixels: np.ndarray) -> np.ndarray:
    return pixels[23:247, 53:277]  # of 270 x 330


def test_the_clean_view_is_the_crop_whatever_stands_beside_it(photograph: tuple[str, str]) -> None:
    expected = decode_crop(Path(photograph[0]).read_bytes())
    assert np.array_equal(crops(photograph, "clean")[0], expected)
    assert np.array_equal(crops(photograph, "jpeg-50", "clean")[1], expected)


def test_degraded_views_are_what_their_names_say(photograph: tuple[str, str]) -> None:
    pixels = np.asarray(Image.open(photograph[0]))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=50, subsampling="4:2:0")
    blurred = np.stack([gaussian_filter(pixels[..., band], 2) for band in range(3)], axis=-1)
    found = crops(photograph, "jpeg-50", "blur-2", "lr-64")
    assert np.array_equal(found[0], centre(np.asarray(Image.open(buffer))))
    assert np.array_equal(found[1], centre(blurred))
    small = Image.fromarray(pixels).resize((78, 64), Image.Resampling.BICUBIC)
    up = small.resize((273, 224), Image.Resampling.BICUBIC).crop((24, 0, 248, 224))
    assert np.abs(found[2].astype(int) - np.asarray(up).astype(int)).max() <= 3


def test_a_small_image_is_not_made_smaller(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    own = (str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    clean, shrunk = crops(own, "clean", "lr-112")
    assert np.array_equal(clean, shrunk)


def test_augmented_views_are_drawn_from_the_bytes_and_the_number_alone(photograph: tuple[str, str]) -> None:
    names = [augmented_view(number) for number in range(40)]
    views = read_views(*photograph, DEFAULT, names)
    again = read_views(*photograph, DEFAULT, names[::-1])[::-1]
    assert all(np.array_equal(one.crop, two.crop) for one, two in zip(views, again, strict=True))
    assert len({view.crop.tobytes() for view in views}) == 40
    operations = [set(view.operation.split("+")) for view in views]
    for name in ("blur", "jpeg", "mirror"):  # each with probability 1/2: 20 +- 4 * sqrt(40 / 4)
        assert 8 <= sum(name in found for found in operations) <= 32, name
    for view, found in zip(views, operations, strict=True):
        assert view.operation.split("+") == [n for n in ("blur", "jpeg", "crop", "mirror") if n in found]
        assert ("sigma" in view.parameters) == ("blur" in found)
        assert 0 <= view.parameters.get("sigma", 0) < 3
        assert 30 <= view.parameters.get("quality", 30) <= 100


def test_an_augmented_view_can_be_made_again_from_its_parameters(photograph: tuple[str, str]) -> None:
    pixels = np.asarray(Image.open(photograph[0]))
    tried = 0
    for view in read_views(*photograph, DEFAULT, [augmented_view(number) for number in range(20)]):
        if view.operation not in ("crop", "crop+mirror"):
            continue
        left, top = (int(view.parameters[k] * n) for k, n in (("across", 107), ("down", 47)))
        expected = pixels[top : top + 224, left : left + 224]
        assert np.array_equal(view.crop, expected[:, ::-1] if "mirror" in view.operation else expected)
        tried += 1
    assert tried >= 2


def test_recompression_comes_before_what_a_view_does(photograph: tuple[str, str]) -> None:
    recompressed = Preprocessing(recompress=40)
    clean, blurred = crops(photograph, "clean", "blur-1", preprocessing=recompressed)
    assert np.array_equal(clean, crops(photograph, "jpeg-40")[0])
    assert not np.array_equal(blurred, crops(photograph, "blur-1")[0])


def test_a_changed_file_is_refused_and_a_view_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("L", (70_000, 4)).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    clean, compressed = read_views(str(path), digest, DEFAULT, ["clean", "jpeg-90"])
    assert clean.crop.shape == (224, 224, 3)
    assert "70,000 pixels" in compressed
    with pytest.raises(UnreadableImage, match="changed since it was indexed"):
        read_views(str(path), "0" * 64, DEFAULT, ["clean"])


@pytest.mark.parametrize(
    "name", ["jpeg-0", "jpeg-101", "jpeg-5.5", "blur-0", "lr-0", "noise-3", "jpeg", "augment-1"]
)
def test_a_name_that_means_no_view_is_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"There are jpeg-Q.*figure4, genimage"):
        degraded_views([name])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["figure4", "genimage", "blur-0.5", "jpeg-7"])))
def test_names_of_sets_and_views_give_each_view_once_in_a_fixed_order(names: list[str]) -> None:
    found = degraded_views(names)
    assert found == degraded_views(names[::-1])
    assert len(found) == len(set(found))
    assert set(found) == {view for name in names for view in DEGRADED.get(name, (name,))}


def test_augmented_views_train_and_degraded_ones_judge() -> None:
    assert [view_applies("clean", split) for split in ("train", "val", "test", "")] == [True] * 4
    assert [view_applies("augment-3", split) for split in ("train", "val", "test", "")] == [
        True,
        True,
        False,
        True,
    ]
    assert [view_applies("blur-1", split) for split in ("train", "val", "test", "")] == [
        False,
        True,
        True,
        True,
    ]
