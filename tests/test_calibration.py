"""Calibration and cuts: against scikit-learn and scipy, and by what they promise."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from causal_tune.calibration import Platt, choose_cuts, cross_fitted, ece, fit_platt, reliability
from causal_tune.errors import InvalidConfig
from causal_tune.intervals import share_interval


def drawn(num: int, seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose true log odds are 2 * logit / scale - 0.5, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=num)
    labels = (rng.random(num) < expit(2 * logits - 0.5)).astype(int)
    return scale * logits, labels


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_platt_finds_the_log_odds_at_any_scale(scale: float) -> None:
    logits, labels = drawn(40_000, 0, scale)
    fitted = fit_platt(logits, labels)
    assert fitted.slope * scale == pytest.approx(2, abs=0.06)
    assert fitted.offset == pytest.approx(-0.5, abs=0.05)


def test_platt_is_logistic_regression_where_there_are_many_images() -> None:
    logits, labels = drawn(20_000, 1)
    theirs = LogisticRegression(C=1e12, tol=1e-10).fit(logits[:, None], labels)
    fitted = fit_platt(logits, labels)
    assert fitted.slope == pytest.approx(theirs.coef_[0, 0], rel=2e-3)  # the targets are smoothed
    assert fitted.offset == pytest.approx(theirs.intercept_[0], abs=2e-3)


def test_separated_classes_give_finite_probabilities_of_the_smoothed_targets() -> None:
    fitted = fit_platt([-5.0, -5.0, 5.0, 5.0], [0, 0, 1, 1])
    assert fitted.probabilities([-5.0, 5.0]).tolist() == pytest.approx([0.25, 0.75], abs=1e-6)


@pytest.mark.parametrize("logits", [[1.0, 1.0, 1.0, 1.0], [2.0, 3.0, -2.0, -3.0]])
def test_scores_that_do_not_rank_all_get_the_share(logits: list[float]) -> None:
    fitted = fit_platt(logits, [0, 0, 1, 1])
    assert fitted.slope == 0
    assert fitted.probabilities(logits).tolist() == pytest.approx([0.5] * 4)


def test_calibration_lowers_the_error_of_overconfident_scores() -> None:
    logits, labels = drawn(4_000, 2)
    before = ece(reliability(expit(10 * logits), labels))
    after = ece(reliability(cross_fitted(10 * logits, labels), labels))
    assert before > 0.1
    assert after < 0.03


def test_no_image_is_judged_by_a_fit_that_it_was_part_of() -> None:
    logits, labels = drawn(60, 3)
    probabilities = cross_fitted(logits, labels)
    position = 5
    moved = np.array(logits)
    moved[position] += 100
    assert cross_fitted(moved, labels)[position] > probabilities[position]
    fitted_without = np.flatnonzero(np.abs(cross_fitted(moved, labels) - probabilities) < 1e-12)
    # the others of its fold are calibrated by the same four fifths as before
    assert len(fitted_without) >= 60 // 5 - 2
    assert position not in fitted_without


def test_the_error_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(4)
    probabilities, labels = rng.random(500), rng.integers(0, 2, 500)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (probabilities >= low) & (probabilities < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(probabilities[inside].mean() - labels[inside].mean())
    assert ece(reliability(probabilities, labels)) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_new_images_get_the_other_verdict_at_the_wished_rate(rate: float) -> None:
    false_positives, misses = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        real, generated = rng.normal(0, 1, (2, 150)), rng.normal(2, 1, (2, 150))
        cuts = choose_cuts(np.concatenate([real[0], generated[0]]), [0] * 150 + [1] * 150, rate)
        false_positives.append((real[1] >= cuts.generated_from).mean())
        misses.append((generated[1] < cuts.real_below).mean())
    for rates in (false_positives, misses):
        error = np.std(rates) / math.sqrt(200)
        assert np.mean(rates) <= rate + 3 * error
        assert np.mean(rates) > rate / 3  # not by being needlessly careful


def test_too_few_images_promise_what_they_can() -> None:
    cuts = choose_cuts(np.arange(20.0), [0] * 10 + [1] * 10, 0.05)
    assert cuts.bound_real == pytest.approx(1 / 11)
    assert cuts.generated_from > 9
    assert cuts.generated_from == pytest.approx(9)
    assert cuts.real_below == 10
    assert cuts.unsure == (cuts.generated_from, 10)


def test_what_cannot_be_calibrated_is_refused() -> None:
    for logits, labels in (([1.0, 2.0], [1, 1]), ([1.0], [0, 1]), ([np.nan, 1.0], [0, 1])):
        with pytest.raises(InvalidConfig, match="cannot be calibrated"):
            fit_platt(logits, labels)
    for rate in (0.0, 0.5, 1.0):
        with pytest.raises(InvalidConfig, match="above 0 and below"):
            choose_cuts([0.0, 1.0], [0, 1], rate)


def test_wilson_is_scipys() -> None:
    from scipy.stats import binomtest

    for count, num in ((0, 5), (3, 10), (10, 10), (499, 1000)):
        theirs = binomtest(count, num).proportion_ci(method="wilson")
        assert share_interval(count, num) == pytest.approx((theirs.low, theirs.high))


def test_platt_keeps_the_shape_it_is_given() -> None:
    assert Platt(slope=2.0, offset=0.0).probabilities(np.zeros((2, 3))).shape == (2, 3)
