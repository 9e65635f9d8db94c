"""Importance on records whose score is made by a known rule."""

import math

import numpy as np
import pytest
import tiny

from causal_tune.ledger import TrialRecord, trial_id
from causal_tune.study.importance import MIN_TRIALS, importance
from causal_tune.study.spec import StudySpec
from causal_tune.trial import TrialConfig


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    return tiny.make_tiny_spec(tmp_path_factory.mktemp("workspace"))


def records(spec: StudySpec, num: int, rule: str) -> list[TrialRecord]:
    rng = np.random.default_rng(3)
    made = []
    for number in range(num):
        drawn = {}
        for name, one in spec.search_space().distributions.items():
            low, high = (math.log(end) if one.log else end for end in (one.low, one.high))
            value = float(rng.uniform(low, high))
            drawn[name] = min(max(math.exp(value) if one.log else value, one.low), one.high)
        config = TrialConfig.from_dict({**spec.space["defaults"], **drawn, "seed": number}).to_dict()
        ap = float(rng.uniform(0.5, 0.9))
        if rule in drawn:
            range_ = spec.search_space().distributions[rule]
            place = [math.log(x) if range_.log else x for x in (range_.low, drawn[rule], range_.high)]
            ap = 0.5 + 0.4 * (place[1] - place[0]) / (place[2] - place[0]) + 0.02 * ap
        made.append(
            TrialRecord(
                number=number,
                id=trial_id(number, config),
                state="finished",
                config=config,
                seed=number,
                generators={"cyclegan": {"ap": ap}},
            )
        )
    return made


@pytest.mark.parametrize("rule", ["lambda1", "tau"])
def test_the_one_that_makes_the_score_is_found_and_told_from_chance(spec: StudySpec, rule: str) -> None:
    first, *others = importance(records(spec, 60, rule), spec)
    assert first.name == rule
    assert first.p < 0.05 / 6
    assert all(one.p > first.p for one in others)
    assert sum(one.share for one in [first, *others]) == pytest.approx(1)
    assert all(0 <= one.low <= one.share <= one.high <= 1 for one in [first, *others])
    assert {one.name for one in [first, *others]} == set(spec.search_space().distributions)


def test_scores_of_chance_are_told_as_chance(spec: StudySpec) -> None:
    found = importance(records(spec, 60, "nothing"), spec)
    assert not [one.name for one in found if one.p < 0.05 / len(found)]


def test_the_same_records_give_the_same_figures_and_few_of_them_none(spec: StudySpec) -> None:
    many = records(spec, MIN_TRIALS, "tau")
    assert importance(many, spec, num_draws=5) == importance(many, spec, num_draws=5) != []
    assert importance(many[1:], spec) == []


def test_a_baseline_outside_of_the_space_counts_where_it_is_a_point(spec: StudySpec) -> None:
    many = records(spec, 30, "tau")
    config = {**many[0].config, "lambda1": 0.0}
    many[0] = TrialRecord(
        number=0,
        id=trial_id(0, config),
        state="finished",
        config=config,
        seed=0,
        generators=many[0].generators,
    )
    counted = {one.name: one.num_trials for one in importance(many, spec, num_draws=5)}
    assert counted["lambda1"] == 29
    assert counted["tau"] == 30
