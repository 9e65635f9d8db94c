import math

import numpy as np
import pytest

from causal_tune.errors import InvalidConfig
from causal_tune.intervals import mean_interval, paired_difference


def test_the_interval_is_the_textbook_one() -> None:
    # t(0.975, 4) = 2.7764, s = sqrt(2.5), n = 5
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3.0
    assert interval.half_width == pytest.approx(2.7764 * math.sqrt(2.5 / 5), abs=1e-4)
    assert interval.high - interval.mean == pytest.approx(interval.mean - interval.low)
    assert interval.num == 5


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_it_covers_the_true_mean_as_often_as_it_says(level: float) -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(loc=2.0, size=(2000, 4)).tolist()
    intervals = [mean_interval(row, level=level) for row in draws]
    covered = sum(item.low <= 2.0 <= item.high for item in intervals) / len(intervals)
    assert covered == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / len(intervals)))


def test_equal_values_have_an_interval_of_no_width_and_one_value_has_none() -> None:
    assert mean_interval([0.5, 0.5, 0.5]).half_width == 0
    single = mean_interval([0.5])
    assert (single.mean, single.low, single.high, single.half_width) == (0.5, None, None, None)


def test_what_pairs_share_cancels() -> None:
    shared = [0.1, 0.9, 0.4]
    interval = paired_difference([value + 0.25 for value in shared], shared)
    assert interval.mean == pytest.approx(0.25)
    assert interval.half_width == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf"), 1.0]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(InvalidConfig, match="no mean"):
        mean_interval(values)


def test_a_level_and_pairs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="level"):
        mean_interval([1.0, 2.0], level=1.0)
    with pytest.raises(InvalidConfig, match="no pairs"):
        paired_difference([1.0, 2.0], [1.0])
