from collections import Counter

import numpy as np
import pytest

from causal_tune.demo.photographs import (
    CROP_SIZE,
    MAX_OVERLAP,
    PHOTOGRAPHS,
    SPLITS,
    Crop,
    cut,
    draw_crops,
    photographs_of,
    read_photograph,
)
from causal_tune.errors import InvalidConfig, UnknownName


def test_every_photograph_is_installed_and_large_enough_at_every_reduction():
    for name, photograph in PHOTOGRAPHS.items():
        for reduction in photograph.reductions:
            pixels = read_photograph(name, reduction)
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            assert min(pixels.shape[:2]) >= CROP_SIZE, (name, reduction)


def test_photographs_are_in_colour():
    for name in PHOTOGRAPHS:
        red, _, blue = np.moveaxis(read_photograph(name).astype(int), 2, 0)
        assert np.abs(red - blue).max() > 50, name


def test_each_photograph_is_on_one_side_and_each_side_has_some():
    sides = [set(photographs_of(split)) for split in SPLITS]
    assert all(sides)
    assert sum(map(len, sides)) == len(PHOTOGRAPHS) == len(set.union(*sides))


def test_both_views_of_the_motorcycle_are_on_one_side():
    assert PHOTOGRAPHS["motorcycle_left"].split == PHOTOGRAPHS["motorcycle_right"].split


def test_no_two_files_of_different_splits_have_the_same_pixels():
    seen = {read_photograph(name).tobytes(): name for name in PHOTOGRAPHS}
    assert len(seen) == len(PHOTOGRAPHS)


@pytest.mark.parametrize("split", SPLITS)
def test_crops_come_from_their_split_evenly_and_overlap_within_bounds(split):
    crops = draw_crops(split, 30, np.random.default_rng(3))
    counts = Counter(crop.photograph for crop in crops)
    assert set(counts) == set(photographs_of(split))
    assert max(counts.values()) - min(counts.values()) <= 1
    overlaps = [a.overlap(b) for i, a in enumerate(crops) for b in crops[:i]]
    assert max(overlaps) <= MAX_OVERLAP


def test_crops_depend_on_the_seed_alone():
    first, again, other = (draw_crops("val", 8, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_taken_crops_are_not_drawn_again():
    first = draw_crops("test", 20, np.random.default_rng(1))
    # the same seed would draw the very same crops
    second = draw_crops("test", 20, np.random.default_rng(1), taken=frozenset(first))
    assert not set(first) & set(second)


def test_a_crop_is_that_part_of_the_photograph():
    crop = Crop(photograph="astronaut", reduction=2, left=5, top=31)
    whole = read_photograph("astronaut", 2)
    assert cut(crop).shape == (CROP_SIZE, CROP_SIZE, 3)
    np.testing.assert_array_equal(cut(crop), whole[31 : 31 + CROP_SIZE, 5 : 5 + CROP_SIZE])


def test_overlap_is_none_between_scales_and_between_photographs():
    crop = Crop(photograph="astronaut", reduction=1, left=0, top=0)
    assert crop.overlap(crop) == 1
    assert crop.overlap(Crop(photograph="astronaut", reduction=2, left=0, top=0)) == 0
    assert crop.overlap(Crop(photograph="flower", reduction=1, left=0, top=0)) == 0
    assert crop.overlap(Crop(photograph="astronaut", reduction=1, left=CROP_SIZE, top=0)) == 0


def test_too_many_crops_are_refused(monkeypatch):
    monkeypatch.setattr("causal_tune.demo.photographs._MAX_ATTEMPTS", 50)
    with pytest.raises(InvalidConfig, match="5000 crops were asked of the val photographs"):
        draw_crops("val", 5000, np.random.default_rng(0))


def test_an_unknown_photograph_is_named_with_those_there_are():
    with pytest.raises(UnknownName, match="chelsea"):
        read_photograph("chelsey")
