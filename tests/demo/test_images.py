import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from causal_tune.demo import images
from causal_tune.demo.generators import GENERATORS
from causal_tune.demo.images import (
    NUM_PAIRS,
    TEST_GENERATORS,
    TRAIN_GENERATOR,
    VAL_GENERATORS,
    make_images,
)
from causal_tune.demo.photographs import PHOTOGRAPHS, draw_crops, read_photograph
from causal_tune.errors import InvalidConfig


def _rows(csv_path: Path) -> list[dict[str, str]]:
    with csv_path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


FEWER_PAIRS = {key: max(3, num_pairs // 10) for key, num_pairs in NUM_PAIRS.items()}


@pytest.fixture(scope="module")
def csv_path(tmp_path_factory):
    """All generators and splits, with a tenth of the images."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(images, "NUM_PAIRS", FEWER_PAIRS)
        return make_images(tmp_path_factory.mktemp("demo") / "images")


@pytest.fixture(scope="module")
def pairs(csv_path):
    """(generator, split) -> (reals, fakes) as uint8 [n, 224, 224, 3]."""
    folder = csv_path.parent
    return {
        (generator, split): tuple(
            np.stack(
                [
                    np.asarray(Image.open(path))
                    for path in sorted((folder / generator / split / label).iterdir())
                ]
            )
            for label in ("real", "fake")
        )
        for generator, split, _ in NUM_PAIRS
    }


@pytest.fixture
def few_pairs(monkeypatch):
    few = {
        ("vae", "train", "train"): 7,
        ("nearest", "test", "selection"): 2,
        ("diffusion", "test", "test"): 3,
    }
    monkeypatch.setattr(images, "NUM_PAIRS", few)


def test_the_table_lists_every_file_once_with_the_announced_counts(csv_path):
    rows = _rows(csv_path)
    assert list(rows[0]) == ["path", "label", "generator", "split"]
    assert len({row["path"] for row in rows}) == len(rows) == 2 * sum(FEWER_PAIRS.values())
    files = {path.relative_to(csv_path.parent).as_posix() for path in csv_path.parent.rglob("*.png")}
    assert {row["path"] for row in rows} == files
    counts = Counter((row["generator"], row["split"], row["label"]) for row in rows)
    for (generator, split, _), num_pairs in FEWER_PAIRS.items():
        assert counts[generator, split, "real"] == counts[generator, split, "fake"] == num_pairs


def test_there_is_room_for_all_crops_with_any_seed():
    assert 600 <= 2 * sum(NUM_PAIRS.values()) <= 700
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for (_, _, side), num_pairs in NUM_PAIRS.items():
            assert len(set(draw_crops(side, num_pairs, rng))) == num_pairs


def test_the_roles_cover_the_generators_without_overlap():
    roles = (TRAIN_GENERATOR, *VAL_GENERATORS, *TEST_GENERATORS)
    assert sorted(roles) == sorted(GENERATORS)
    assert {split for generator, split, _ in NUM_PAIRS if generator == TRAIN_GENERATOR} >= {"train", "val"}
    for generator, split, photographs in NUM_PAIRS:
        if generator in VAL_GENERATORS:
            assert (split, photographs) == ("test", "selection")
        if generator in TEST_GENERATORS:
            assert (split, photographs) == ("test", "test")


def test_both_sides_have_one_format_and_one_size(csv_path):
    kinds = set()
    for path in csv_path.parent.rglob("*.png"):
        with Image.open(path) as image:
            kinds.add((image.format, image.mode, image.size, tuple(image.info)))
    assert kinds == {("PNG", "RGB", (224, 224), ())}
    assert len({path.stat().st_size for path in csv_path.parent.rglob("*.png")}) == 1


def test_no_image_is_there_twice(csv_path):
    digests = [digest for name, digest in _digests(csv_path.parent).items() if name.endswith(".png")]
    assert len(set(digests)) == len(digests)


def test_reals_are_crops_of_the_photographs_of_their_side(pairs):
    for (generator, split, side), _ in NUM_PAIRS.items():
        real = pairs[generator, split][0][0]
        found = {
            photograph.split
            for name, photograph in PHOTOGRAPHS.items()
            for reduction in photograph.reductions
            if _contains(read_photograph(name, reduction), real)
        }
        assert found == {side}, (generator, split)


def _contains(photograph: np.ndarray, crop: np.ndarray) -> bool:
    height, width = (have - want + 1 for have, want in zip(photograph.shape[:2], crop.shape[:2], strict=True))
    places = np.ones((height, width), bool)
    for row, column in ((0, 0), (100, 50), (30, 200), (223, 223), (150, 120)):
        shifted = photograph[row : row + height, column : column + width]
        places &= (shifted == crop[row, column]).all(axis=2)
    return any(
        np.array_equal(photograph[top : top + 224, left : left + 224], crop)
        for top, left in np.argwhere(places)
    )


def test_every_fake_is_its_real_made_anew_and_not_the_same(pairs):
    for key, (reals, fakes) in pairs.items():
        errors = np.square(reals.astype(np.float64) - fakes).mean(axis=(1, 2, 3))
        assert errors.min() > 0, key
        # pairs belong together: another real is much farther away
        strangers = np.square(np.roll(reals, 1, axis=0).astype(np.float64) - fakes).mean(axis=(1, 2, 3))
        assert np.median(errors) < np.median(strangers) / 5, key


def test_no_side_is_brighter_or_darker(pairs):
    for key, (reals, fakes) in pairs.items():
        assert abs(reals.mean() - fakes.mean()) < 2, key


@pytest.mark.usefixtures("few_pairs")
def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(tmp_path):
    num_threads = torch.get_num_threads()
    make_images(tmp_path / "first")
    try:
        torch.set_num_threads(3)
        make_images(tmp_path / "again")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(num_threads)
    make_images(tmp_path / "other", seed=1)
    first, again, other = (_digests(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first.keys() == other.keys()
    assert sum(first[name] == other[name] for name in first) <= 1  # images.csv, which has no pixels


def test_a_second_call_does_nothing(csv_path):
    before = {path: path.stat().st_mtime_ns for path in csv_path.parent.rglob("*")}
    assert make_images(csv_path.parent) == csv_path
    assert {path: path.stat().st_mtime_ns for path in csv_path.parent.rglob("*")} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InvalidConfig, match="it has no images"):
        make_images(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.usefixtures("few_pairs")
def test_an_interrupted_call_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(images, "load_generator", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_images(tmp_path / "images")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "images").mkdir()  # an empty folder is no obstacle
    assert make_images(tmp_path / "images").is_file()
