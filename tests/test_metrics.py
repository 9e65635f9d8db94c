import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from causal_tune.errors import CausalTuneError
from causal_tune.metrics import average_precision, best_threshold, score_metrics


def ap_by_definition(scores, labels):
    """Sum over distinct thresholds of (increase of recall) x precision."""
    result, previous_recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        recall = sum(chosen) / sum(labels)
        result += (recall - previous_recall) * sum(chosen) / len(chosen)
        previous_recall = recall
    return result


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=2, max_size=15))
def test_average_precision_is_its_definition_also_with_ties(rows):
    scores, labels = [float(score) for score, _ in rows], [label for _, label in rows]
    if len(set(labels)) == 2:
        assert average_precision(scores, labels) == pytest.approx(ap_by_definition(scores, labels))
    else:
        assert average_precision(scores, labels) is None


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.sampled_from([0, 1, 6]))
def test_average_precision_is_scikit_learns_to_the_bit(seed, number, decimals):
    rng = np.random.default_rng(seed)
    labels = np.append([0, 1], rng.integers(0, 2, number - 2))
    scores = rng.normal(size=number).round(decimals)
    assert average_precision(scores, labels) == average_precision_score(labels, scores)


def test_all_measures_of_a_set_worked_out_by_hand():
    metrics = score_metrics([2.0, -1.0, 1.0, -3.0, 0.5], [1, 1, 0, 0, 0])
    loss = (
        sum(math.log1p(math.exp(z)) for z in (-2.0, 1.0))
        + sum(math.log1p(math.exp(z)) for z in (1.0, -3.0, 0.5))
    ) / 5
    assert metrics["ap"] == pytest.approx((1 + 2 / 4) / 2)
    assert metrics["accuracy"] == pytest.approx(2 / 5)
    assert metrics["accuracy_real"] == pytest.approx(1 / 3)
    assert metrics["accuracy_generated"] == pytest.approx(1 / 2)
    assert metrics["loss"] == pytest.approx(loss)
    assert (metrics["num_real"], metrics["num_generated"]) == (3, 2)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_average_precision_and_no_accuracy_of_the_other(label):
    metrics = score_metrics([1.0, -1.0], [label, label])
    assert metrics["ap"] is None
    missing, there = ("real", "generated") if label else ("generated", "real")
    assert metrics[f"accuracy_{missing}"] is None
    assert metrics[f"accuracy_{there}"] == 0.5
    assert metrics[f"num_{missing}"] == 0


def test_loss_of_extreme_scores_is_finite():
    assert score_metrics([1e4, -1e4], [0, 1])["loss"] == pytest.approx(1e4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(CausalTuneError, match="1 of 3 scores are not finite"):
        score_metrics([0.0, bad, 1.0], [0, 1, 1])


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "no scores"),
        ([1.0, 2.0], [1], "do not belong together"),
        (np.zeros((2, 1)), np.zeros((2, 1)), "do not belong together"),
        ([1.0, 2.0], [1, 2], "Labels other than"),
        ([1.0, 2.0], [1, math.nan], "Labels other than"),
    ],
)
def test_sets_that_cannot_be_measured_are_refused(scores, labels, message):
    with pytest.raises(CausalTuneError, match=message):
        score_metrics(scores, labels)


@given(
    rows=st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=12).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
def test_no_other_threshold_has_a_higher_balanced_accuracy(rows):
    scores = np.array([score for score, _ in rows], dtype=float)
    labels = np.array([label for _, label in rows])

    def balanced(threshold):
        verdicts = scores > threshold
        return (verdicts[labels].mean() + (~verdicts[~labels]).mean()) / 2

    found = best_threshold(scores, labels)
    candidates = [*(scores - 0.5), *(scores + 0.5)]
    inner = [cut for cut in candidates if scores.min() <= cut < scores.max()]
    if len(set(scores)) > 1:
        assert balanced(found) == pytest.approx(max(balanced(cut) for cut in inner))


def test_a_threshold_of_other_images_is_counted_at_beside_one_half():
    metrics = score_metrics([2.0, 0.5, 0.4, -1.0], [1, 1, 0, 0], threshold=0.45)
    assert (metrics["accuracy"], metrics["accuracy_val_threshold"]) == (0.75, 1.0)
    assert score_metrics([1.0, -1.0], [1, 0])["accuracy_val_threshold"] is None


def test_scores_that_part_at_zero_keep_zero():
    assert best_threshold([3.0, 1.0, -0.1, -7.0], [1, 1, 0, 0]) == 0.0
    assert best_threshold([1.0, 1.0], [1, 0]) == 0.0
    assert best_threshold([1.0, 2.0], [1, 1]) == 0.0
