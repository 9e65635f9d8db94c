"""Every measure stays in its range, whatever the scores: a share is a share, to the last bit."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_tune.calibration import IDENTITY, Platt, cross_fitted, ece, fit_platt, reliability
from causal_tune.export import _verdicts
from causal_tune.fidelity import cosines
from causal_tune.intervals import share_interval
from causal_tune.judgement import judge
from causal_tune.ledger import TrialRecord
from causal_tune.metrics import average_precision, best_threshold, score_metrics
from causal_tune.report.measured import _mcnemar
from causal_tune.resampling import Scored, interval_of, measure_draws
from causal_tune.resampling import average_precision as of_counts
from causal_tune.selection import CRITERIA, Roles, saturated, score
from causal_tune.study.finalists import Candidate, Trained, difference

ROLES = Roles(
    train_generators=("a", "b"),
    val_generators=("c",),
    test_generators=("d", "e"),
    degraded_views=("jpeg-50",),
)


@st.composite
def scored(draw: st.DrawFn) -> Scored:
    """Logits of any size that a head in float32 can give, of both classes; often separated without a mistake."""
    num_real, num_generated = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    scale = draw(st.sampled_from([0.0, 1e-30, 1.0, 800.0, 1e30, 3e38]))
    apart = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = np.repeat([0, 1], [num_real, num_generated])
    logits = rng.uniform(-1, 1, len(labels))
    if apart:
        logits = np.abs(logits) * np.where(labels == 1, 1, -1)
    order = rng.permutation(len(labels))
    return Scored.of((scale * logits)[order], labels[order])


def is_share(value: object) -> bool:
    return isinstance(value, float) and 0.0 <= value <= 1.0


@settings(deadline=None, max_examples=60)
@given(scored())
def test_every_figure_of_a_set_is_a_share(one: Scored) -> None:
    fitted = fit_platt(one.logits, one.labels)
    assert math.isfinite(fitted.slope)
    assert math.isfinite(fitted.offset)
    for platt in (IDENTITY, fitted, Platt(slope=1e6, offset=-5.0)):
        probabilities = platt.probabilities(one.logits)
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        assert is_share(ece(reliability(probabilities, one.labels)))
    crossed = cross_fitted(one.logits, one.labels)
    assert ((crossed >= 0) & (crossed <= 1)).all()
    threshold = best_threshold(one.logits, one.labels)
    assert math.isfinite(threshold)
    judged = judge(one, calibration=fitted, real_below=-1.0, generated_from=1.0, threshold=threshold)
    for name in ("ap", "auc", "tpr_at_5_fpr", "ece", "accuracy", "accuracy_real", "accuracy_val_threshold"):
        assert is_share(judged[name]), (name, judged[name])
    assert judged["loss"] >= 0
    for name, (low, high) in judged["intervals"].items():
        assert 0 <= low <= high <= 1, (name, low, high)
    shares = [*judged["real_as"].values(), *judged["generated_as"].values()]
    assert all(map(is_share, shares))
    json.dumps(judged, allow_nan=False)


@settings(deadline=None, max_examples=30)
@given(scored())
def test_what_is_drawn_of_a_set_is_a_share(one: Scored) -> None:
    other = Scored(-one.logits, one.labels)
    draws = measure_draws(
        [[one, one], [other, other]], lambda values: sum(values) / 2, np.random.default_rng(0), 200
    )
    assert ((draws >= 0) & (draws <= 1)).all()
    low, high = interval_of(draws[0])
    assert 0 <= low <= high <= 1
    both = [Trained(Candidate("x", {}), {0: 0.5, 1: 0.5}, {}, part) for part in (draws, draws[::-1])]
    assert is_share(difference(both[0], both[1])["p"])


@pytest.mark.parametrize("num", [43, 44, 49, 86, 98, 103, 107, 161])
def test_a_separated_set_has_an_ap_of_1_and_no_more(num: int) -> None:
    """Its steps add up to more than 1 for many numbers of images."""
    one = Scored.of(np.arange(2.0 * num), np.repeat([0, 1], num))
    ap = average_precision(one.logits, one.labels)
    auc = judge(one, calibration=IDENTITY, real_below=0, generated_from=0)["auc"]
    assert 1 - 1e-12 < ap <= 1
    assert 1 - 1e-12 < auc <= 1


def test_steps_that_add_up_to_more_are_held_at_1() -> None:
    sums = [np.diff(np.arange(1, num + 1) / num, prepend=0.0)[::-1].sum() for num in range(1, 200)]
    too_many = [place + 1 for place, total in enumerate(sums) if total > 1]
    assert too_many, "the rounding that the limit is for"
    hits = np.arange(1.0, too_many[0] + 1)[None]
    assert of_counts(hits, np.zeros_like(hits)).tolist() == [1.0]


@given(st.integers(1, 10**9), st.data())
def test_wilson_s_interval_is_of_shares(num: int, data: st.DataObject) -> None:
    low, high = share_interval(data.draw(st.integers(0, num)), num)
    assert 0 <= low <= high <= 1


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_mcnemar_s_p_is_a_probability(right: int, wrong: int) -> None:
    assert 0 <= _mcnemar(right, wrong) <= 1


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-10, 1.0, 1e15]), st.integers(1, 512))
def test_a_cosine_is_one(seed: int, scale: float, width: int) -> None:
    values = (scale * np.random.default_rng(seed).normal(size=(4, width))).astype(np.float32)
    found = cosines(values, np.concatenate([values[:2], -values[2:]]))
    assert -1 <= found.worst <= found.mean <= 1


@pytest.mark.parametrize("logit", [-1e38, -710.0, -709.0, 0.0, 709.0, 1e38])
def test_a_cut_at_any_logit_has_a_score(logit: float) -> None:
    from causal_tune.calibration import choose_cuts

    logits = [logit - abs(logit) / 2 - 1, logit, logit + 1, logit + abs(logit) / 2 + 2]
    one = Scored.of(logits, [0, 1, 0, 1])
    platt = fit_platt(one.logits, one.labels)
    told = _verdicts(choose_cuts(one.logits, one.labels, 0.05), platt, one, "these")
    for cut in (told["threshold"], told["unsure"]["low"], told["unsure"]["high"]):
        assert is_share(cut["score"])
        assert is_share(cut["probability"])


aps = st.one_of(st.none(), st.floats(0, 1), st.just(1.0), st.just(1.0000000000000002))


@given(st.lists(st.tuples(*[aps] * 6), min_size=4, max_size=8), st.integers(1, 100))
def test_no_ap_that_a_ledger_can_hold_breaks_a_choice(
    trials: list[tuple[float | None, ...]], num: int
) -> None:
    """Ledgers of earlier releases hold an AP of 1.0000000000000002."""

    def metrics(ap: float | None) -> dict[str, object]:
        return {"ap": ap, "num_real": num if ap is not None else 0, "num_generated": num}

    records = [
        TrialRecord(
            number=number,
            id=f"{number:05d}-x",
            state="finished",
            config={"head": "linear"},
            seed=0,
            validation=metrics(values[0]),
            generators={name: metrics(ap) for name, ap in zip("cde", values[1:4], strict=True)},
            perturbed={"jpeg-50": metrics(values[4])},
            left_out={"a": metrics(values[5]), "b": metrics(values[5])},
        )
        for number, values in enumerate(trials)
    ]
    for criterion in CRITERIA:
        warning = saturated(records, criterion, ROLES)
        assert warning is None or "nan" not in warning
        for record in records:
            value = score(record, criterion, ROLES)
            assert value is None or 0 <= value <= 1


def test_score_metrics_take_logits_of_any_size() -> None:
    found = score_metrics([-3e38, 3e38, -1e4, 1e4], [1, 0, 0, 1])
    assert math.isfinite(found["loss"])
    assert found["accuracy"] == 0.5
