"""The search without Ray: trials end in any order, drivers die at any moment."""

import dataclasses
import json
import random

import numpy as np
import pytest
import tiny
from ray.tune.search import Searcher

from causal_tune.errors import StudyError
from causal_tune.ledger import Ledger, TrialRecord, trial_id
from causal_tune.selection import objective_values, score
from causal_tune.study.pruning import hopeless
from causal_tune.study.search import LedgerSearch
from causal_tune.study.space import load_space
from causal_tune.study.worker import failed_record

NUM_TRIALS = 30
KINDS = [
    ("tpe", "none"),
    ("tpe", "asha"),
    ("random", "hyperband"),
    ("cmaes", "none"),
    ("qmc", "none"),
]


def outcome(number: int, config: dict, limits: dict) -> TrialRecord:
    """A trial whose AP is a plain function of its configuration and rises with the steps; one in six fails."""
    if config["seed"] % 6 == 0:
        return failed_record(number, config, "it diverged")
    ap = 1 / (1 + abs(config["tau"] - 0.4) + config["p"] + abs(config["alpha"] - 0.1))
    epochs = []
    for epoch in range(1, 9):
        so_far = ap * epoch / (epoch + config["p"])
        epochs.append({"epoch": epoch, "steps": 50 * epoch, "kept": epoch, "generator_ap/cyclegan": so_far})
        if reason := hopeless(epochs, limits, lambda one: one["generator_ap/cyclegan"]):
            stopped = failed_record(number, config, reason)
            return dataclasses.replace(stopped, state="pruned", epochs=epochs, steps=50 * epoch)
    return TrialRecord(
        number=number,
        id=trial_id(number, config),
        state="finished",
        config=config,
        seed=config["seed"],
        epochs=epochs,
        steps=400,
        generators={"cyclegan": {"ap": epochs[-1]["generator_ap/cyclegan"]}},
    )


def drive(spec, ledger, *, seed, num_trials=NUM_TRIALS, die_after=10**9):
    """What Ray Tune does with a searcher, trials ending in random order; True where it was not killed."""
    rng = random.Random(seed)
    search = LedgerSearch(
        spec, ledger.records(), num_trials=num_trials, record=lambda record, checkpoint: ledger.add(record)
    )
    running, asked = {}, 0
    while die_after > 0:
        while len(running) < spec.max_concurrent:
            asked += 1
            suggested = search.suggest(f"trial{asked}")
            if suggested == Searcher.FINISHED or suggested is None:
                break
            running[f"trial{asked}"] = suggested
        if not running:
            assert suggested == Searcher.FINISHED
            return True
        ended = rng.choice(sorted(running))
        record = outcome(**running.pop(ended))
        search.on_trial_complete(ended, {"record": json.dumps(record.to_json())})
        die_after -= 1
    return False


def substances(ledger):
    return [tiny.substance(record) for record in ledger.records()]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind))
def spec(tmp_path_factory, request):
    sampler, pruner = request.param
    return tiny.make_tiny_spec(
        tmp_path_factory.mktemp("workspace"),
        max_concurrent=3,
        sampler=sampler,
        pruner=pruner,
        grace_steps=50,
        reduction=2,
    )


@pytest.fixture(scope="module")
def undisturbed(spec, tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("undisturbed"))
    assert drive(spec, ledger, seed=0)
    return substances(ledger)


def test_every_number_is_suggested_once(spec, undisturbed):
    assert [record["number"] for record in undisturbed] == list(range(NUM_TRIALS))
    pruned = set() if spec.pruner == "none" else {"pruned"}
    assert {record["state"] for record in undisturbed} == {"finished", "failed"} | pruned
    assert len({json.dumps(record["config"], sort_keys=True) for record in undisturbed}) == NUM_TRIALS


@pytest.mark.parametrize("seed", range(1, 3))
def test_the_order_of_ending_does_not_change_the_study(spec, undisturbed, tmp_path, seed):
    ledger = Ledger(tmp_path)
    assert drive(spec, ledger, seed=seed)
    assert substances(ledger) == undisturbed


@pytest.mark.parametrize("seed", range(2))
def test_a_study_killed_at_random_moments_ends_as_the_undisturbed_one(spec, undisturbed, tmp_path, seed):
    ledger, rng = Ledger(tmp_path), random.Random(seed)
    kills = 0
    while not drive(spec, ledger, seed=rng.random(), die_after=rng.randint(1, 5)):
        kills += 1
    assert kills > 4
    assert substances(ledger) == undisturbed


def test_an_extended_study_equals_one_that_was_long_from_the_start(spec, undisturbed, tmp_path):
    ledger = Ledger(tmp_path)
    for num_trials in (4, 17, 9, NUM_TRIALS):
        drive(spec, ledger, seed=num_trials, num_trials=num_trials)
    assert substances(ledger) == undisturbed


def test_records_that_got_lost_come_back_as_they_were(spec, undisturbed, tmp_path):
    ledger = Ledger(tmp_path)
    drive(spec, ledger, seed=1)
    for record in ledger.records():
        if record.number in (1, 6, 12, 13, 29):
            ledger.record_path(record).unlink()
    assert len(ledger.records()) == NUM_TRIALS - 5
    drive(spec, ledger, seed=2)
    assert substances(ledger) == undisturbed


def test_another_seed_gives_other_configurations(spec, undisturbed, tmp_path):
    spec = dataclasses.replace(spec, seed=1)
    ledger = Ledger(tmp_path / "trials")
    drive(spec, ledger, seed=0)
    assert all(
        mine["config"] != theirs["config"]
        for mine, theirs in zip(substances(ledger), undisturbed, strict=True)
    )


def test_one_at_a_time_uses_every_result(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=1)
    assert spec.window == 1
    assert drive(spec, Ledger(tmp_path / "trials"), seed=0)


def test_the_same_configuration_is_not_trained_twice(tmp_path):
    space = load_space("nearest")  # has 8 configurations
    spec = tiny.make_tiny_spec(tmp_path, space=space, max_concurrent=3)
    ledger = Ledger(tmp_path / "trials")
    search = LedgerSearch(spec, [], num_trials=15, record=lambda record, checkpoint: ledger.add(record))
    trained = []
    while (suggested := search.suggest(f"t{len(trained)}")) != Searcher.FINISHED:
        trained.append(suggested["number"])
        search.settle(failed_record(suggested["number"], suggested["config"], "no matter"))
    records = ledger.records()
    assert [record.number for record in records] == list(range(15))
    assert len(trained) == 8
    for record in records:
        assert record.state == ("failed" if record.number in trained else "duplicate")
        if record.state == "duplicate":
            first = records[int(record.reason.rsplit(" ", 1)[1])]
            assert first.number in trained
            assert {**first.config, "seed": 0} == {**record.config, "seed": 0}


@pytest.mark.slow  # a suggestion takes 0.2 s
def test_a_gaussian_process_suggests_the_same_in_any_order_and_after_any_kill(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=2, sampler="gp")
    ledgers = [Ledger(tmp_path / name) for name in ("whole", "killed")]
    drive(spec, ledgers[0], seed=0, num_trials=17)
    while not drive(spec, ledgers[1], seed=1, num_trials=17, die_after=9):
        pass
    assert substances(ledgers[0]) == substances(ledgers[1])


def test_enqueued_seeds_make_other_trials_of_one_configuration(tmp_path):
    space = dataclasses.replace(tiny.small_space(), enqueued=({"seed": 1}, {"seed": 2}, {"seed": 1}, {}))
    search = LedgerSearch(
        tiny.make_tiny_spec(tmp_path, space=space), [], num_trials=4, record=lambda record, checkpoint: None
    )
    assert [search.suggest(f"t{n}")["config"]["seed"] for n in range(2)] == [1, 2]
    assert search.suggest("t2") == Searcher.FINISHED
    assert [record.state for record in search._records.values()] == ["duplicate", "duplicate"]


def test_enqueued_trials_are_never_pruned_and_others_by_those_before_them(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=1, pruner="asha", grace_steps=50, reduction=2)
    search = LedgerSearch(spec, [], num_trials=12, record=lambda record, checkpoint: None)
    for number in range(12):
        suggested = search.suggest(f"t{number}")
        num_rivals = sum(search._records[other].finished for other in range(number))
        assert bool(suggested["limits"]) is (number >= 2 and num_rivals > 1)
        search.settle(outcome(**suggested))


def test_several_objectives_are_searched(tmp_path):
    groups = {"gans": ["cyclegan"], "diffusion": ["glide"]}
    spec = tiny.make_tiny_spec(
        tmp_path, val_generators=["cyclegan", "glide"], objectives=groups, max_concurrent=1
    )

    def told(number: int, config: dict, limits: dict) -> TrialRecord:
        record = outcome(number, {**config, "seed": 1}, limits)
        other = {"ap": 1 - abs(config["beta"] - 3) / 10}
        return dataclasses.replace(record, config=config, generators={**record.generators, "glide": other})

    search = LedgerSearch(spec, [], num_trials=40, record=lambda record, checkpoint: None)
    for number in range(40):
        search.settle(told(**search.suggest(f"t{number}")))
    values = [objective_values(record, spec.objectives) for record in search._records.values()]
    early, late = (np.mean(part, axis=0) for part in (values[2:14], values[-12:]))
    assert (late > early).all()


def test_a_suggestion_waits_for_the_results_it_depends_on(spec):
    search = LedgerSearch(spec, [], num_trials=20, record=lambda record, checkpoint: None)
    suggested = [search.suggest(f"t{number}") for number in range(spec.window + 1)]
    assert [item and item["number"] for item in suggested] == [*range(spec.window), None]
    search.settle(outcome(**suggested[1]))
    assert search.suggest("later") is None  # trial 0 is what it waits for
    search.settle(outcome(**suggested[0]))
    assert search.suggest("later")["number"] == spec.window


def test_the_search_learns_from_results(spec, undisturbed):
    # Sharpness: were results not told to the sampler, or told with the wrong sign, this would not hold.
    if spec.sampler in ("qmc", "random") or spec.pruner != "none":
        pytest.skip("these samplers do not learn, and pruned trials have no score to compare")
    records = [TrialRecord.from_json({**record, "timings": {}, "ended_at": 0.0}) for record in undisturbed]
    scores = [score(record, "val_generators", spec.roles) for record in records]
    early = [value for value in scores[2:12] if value is not None]
    late = [value for value in scores[-10:] if value is not None]
    assert sum(late) / len(late) > sum(early) / len(early)


def test_a_record_that_cannot_be_kept_ends_the_search(spec):
    def full(record, checkpoint):
        raise StudyError("the disk is full")

    search = LedgerSearch(spec, [], num_trials=5, record=full)
    search.settle(outcome(**search.suggest("a")))
    assert str(search.failure) == "the disk is full"
    assert search.suggest("b") == Searcher.FINISHED
    with pytest.raises(StudyError, match="from its ledger"):
        search.restore("nowhere")
