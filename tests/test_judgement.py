"""The figures of one set, recomputed with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from causal_tune.calibration import IDENTITY
from causal_tune.judgement import judge
from causal_tune.resampling import Scored


def some(num: int, *, ties: bool) -> Scored:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, num)
    logits = rng.normal(size=num) + labels
    return Scored.of(np.round(logits, 1) if ties else logits, labels)


@pytest.mark.parametrize("ties", [False, True])
def test_figures_are_those_of_scikit_learn(ties: bool) -> None:
    one = some(400, ties=ties)
    judged = judge(one, calibration=IDENTITY, real_below=-0.5, generated_from=0.5)
    assert judged["ap"] == pytest.approx(average_precision_score(one.labels, one.logits))
    assert judged["auc"] == pytest.approx(roc_auc_score(one.labels, one.logits))
    fpr, tpr, _ = roc_curve(one.labels, one.logits, drop_intermediate=False)
    assert judged["tpr_at_5_fpr"] == pytest.approx(tpr[fpr <= 0.05].max())
    assert judged["real_as"]["generated"] == pytest.approx((one.logits[one.labels == 0] >= 0.5).mean())
    assert sum(judged["generated_as"].values()) == pytest.approx(1)


def test_intervals_cover_the_figure_and_shrink_with_images() -> None:
    few, many = (
        judge(some(num, ties=False), calibration=IDENTITY, real_below=0, generated_from=0)
        for num in (60, 6000)
    )
    for name in ("ap", "auc", "tpr_at_5_fpr", "accuracy"):
        for judged in (few, many):
            low, high = judged["intervals"][name]
            assert low <= judged[name] <= high
        assert np.diff(many["intervals"][name]) < np.diff(few["intervals"][name]) / 3


def test_one_class_has_verdicts_and_no_ranking() -> None:
    judged = judge(Scored.of([1.0, -1.0], [1, 1]), calibration=IDENTITY, real_below=0, generated_from=0)
    assert judged["auc"] is None
    assert judged["real_as"] is None
    assert judged["generated_as"]["generated"] == 0.5
    assert set(judged["intervals"]) == {"found"}
