"""Successive halving by hand-made epochs."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_tune.ledger import TrialRecord
from causal_tune.study.pruning import PRUNERS, cutoffs, hopeless, rung_scores


def score(epoch):
    return epoch["ap"]


def epochs(*aps, steps=50):
    """Epochs of `steps` whose best so far is kept."""
    return [
        {"steps": steps * (place + 1), "ap": ap, "kept": 1 + aps.index(max(aps[: place + 1]))}
        for place, ap in enumerate(aps)
    ]


def record(number, *aps, state="finished"):
    rows = epochs(*aps)
    return TrialRecord(
        number=number, id="", state=state, config={}, seed=0, epochs=rows, steps=rows[-1]["steps"]
    )


def limits(records, *, number=100, pruner="asha", grace=50, reduction=2):
    return cutoffs(
        number,
        {one.number: one for one in records},
        score,
        pruner=pruner,
        grace_steps=grace,
        reduction=reduction,
    )


def test_a_rung_has_the_score_of_the_epoch_that_was_kept_when_it_was_reached():
    rows = epochs(0.6, 0.5, 0.8)
    assert rung_scores(rows, [50, 100, 120, 150], score, ended=True) == {
        50: 0.6,
        100: 0.6,
        120: 0.8,
        150: 0.8,
    }


def test_a_trial_that_ended_by_itself_counts_at_later_rungs_and_a_pruned_one_does_not():
    rows = epochs(0.6, 0.7)
    assert rung_scores(rows, [100, 200], score, ended=True) == {100: 0.7, 200: 0.7}
    assert rung_scores(rows, [100, 200], score, ended=False) == {100: 0.7}


def test_the_best_share_of_each_rung_goes_on():
    four = [record(n, ap, ap, ap, ap) for n, ap in enumerate([0.1, 0.4, 0.3, 0.2])]
    assert limits(four) == {50: 0.3, 100: 0.3, 200: 0.3}
    assert limits(four, reduction=4) == {50: 0.4, 200: 0.4}
    assert limits(four[:1]) == {}  # one rival is too few for a best half
    assert limits(four, pruner="none") == {}
    assert limits([dataclasses.replace(four[0], epochs=[{"steps": 9}])] * 3) == {}  # without `kept`: of old


def test_pruned_trials_are_rivals_as_far_as_they_came():
    rivals = [record(0, 0.9, 0.9, 0.9, 0.9), record(1, 0.5, state="pruned"), record(2, 0.6, state="pruned")]
    assert limits(rivals) == {50: 0.9}
    assert limits([*rivals, record(3, 0.7, 0.7)]) == {50: 0.7, 100: 0.9, 200: 0.9}


def test_brackets_are_apart_and_later_ones_more_patient():
    rivals = [record(n, *[n / 100] * 30) for n in range(12)]
    by_bracket = [limits(rivals, number=number, pruner="hyperband") for number in (99, 100, 101)]
    assert [min(one) for one in by_bracket] == [50, 100, 200]
    assert [one[200] for one in by_bracket] == [0.06, 0.07, 0.08]  # second best of 0, 3, 6, 9 and so on
    assert PRUNERS["hyperband"].num_brackets == 3


def test_a_trial_is_stopped_at_the_epoch_that_passes_the_rung_and_only_there():
    rows = epochs(0.5, 0.4, 0.6)
    assert hopeless(rows[:1], {75: 0.55}, score) is None  # not there yet
    reason = hopeless(rows[:2], {75: 0.55}, score)
    assert "0.5000 at step 75 is below 0.5500" in (reason or "")
    assert hopeless(rows, {75: 0.55}, score) is None  # it is past that
    assert hopeless(rows[:2], {75: 0.5}, score) is None  # as good as the cut-off is good enough
    assert hopeless(rows[:2], {75: 0.55}, lambda epoch: None) is None


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=1, max_size=10),
    st.integers(2, 4),
)
def test_the_best_of_all_is_never_stopped(rivals, reduction):
    records = [record(number, *aps) for number, aps in enumerate(rivals)]
    best = max(max(aps) for aps in rivals)
    mine = epochs(*[best] * 6)
    for place in range(1, 7):
        assert hopeless(mine[:place], limits(records, reduction=reduction), score) is None


@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_every_pruner_says_what_it_does(name):
    assert PRUNERS[name].summary
