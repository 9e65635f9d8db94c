"""The search without Ray: trials end in any order, drivers die at any moment."""

import json
import random

import pytest
import tiny
from ray.tune.search import Searcher

from causal_tune.errors import StudyError
from causal_tune.ledger import Ledger, TrialRecord, trial_id
from causal_tune.selection import score
from causal_tune.study.search import LedgerSearch
from causal_tune.study.worker import failed_record

NUM_TRIALS = 30


def outcome(number: int, config: dict) -> TrialRecord:
    """A trial whose AP is a plain function of its configuration; one in six fails."""
    if config["seed"] % 6 == 0:
        return failed_record(number, config, "it diverged")
    ap = 1 / (1 + abs(config["tau"] - 0.4) + config["p"] + abs(config["alpha"] - 0.1))
    return TrialRecord(
        number=number,
        id=trial_id(number, config),
        state="finished",
        config=config,
        seed=config["seed"],
        generators={"cyclegan": {"ap": ap}},
    )


def drive(spec, ledger, *, seed, num_trials=NUM_TRIALS, die_after=10**9):
    """What Ray Tune does with a searcher, trials ending in random order; True where it was not killed."""
    rng = random.Random(seed)
    search = LedgerSearch(spec, ledger.records(), num_trials=num_trials, record=ledger.add)
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


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return tiny.make_tiny_spec(tmp_path_factory.mktemp("workspace"), max_concurrent=3)


@pytest.fixture(scope="module")
def undisturbed(spec, tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("undisturbed"))
    assert drive(spec, ledger, seed=0)
    return substances(ledger)


def test_every_number_is_suggested_once(undisturbed):
    assert [record["number"] for record in undisturbed] == list(range(NUM_TRIALS))
    assert {record["state"] for record in undisturbed} == {"finished", "failed"}
    assert len({json.dumps(record["config"], sort_keys=True) for record in undisturbed}) == NUM_TRIALS


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_order_of_ending_does_not_change_the_study(spec, undisturbed, tmp_path, seed):
    ledger = Ledger(tmp_path)
    assert drive(spec, ledger, seed=seed)
    assert substances(ledger) == undisturbed


@pytest.mark.parametrize("seed", range(6))
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


def test_another_seed_gives_other_configurations(undisturbed, tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=3, seed=1)
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


def test_a_suggestion_waits_for_the_results_it_depends_on(spec):
    search = LedgerSearch(spec, [], num_trials=20, record=lambda record: None)
    suggested = [search.suggest(f"t{number}") for number in range(spec.window + 1)]
    assert [item and item["number"] for item in suggested] == [*range(spec.window), None]
    search.settle(outcome(**suggested[1]))
    assert search.suggest("later") is None  # trial 0 is what it waits for
    search.settle(outcome(**suggested[0]))
    assert search.suggest("later")["number"] == spec.window


def test_the_search_learns_from_results(spec, undisturbed):
    # Sharpness: were results not told to the sampler, or told with the wrong sign, this would not hold.
    records = [TrialRecord.from_json({**record, "timings": {}, "ended_at": 0.0}) for record in undisturbed]
    scores = [score(record, "val_generators", spec.roles) for record in records]
    early = [value for value in scores[2:12] if value is not None]
    late = [value for value in scores[-10:] if value is not None]
    assert sum(late) / len(late) > sum(early) / len(early)


def test_a_record_that_cannot_be_kept_ends_the_search(spec):
    def full(record):
        raise StudyError("the disk is full")

    search = LedgerSearch(spec, [], num_trials=5, record=full)
    search.settle(outcome(**search.suggest("a")))
    assert str(search.failure) == "the disk is full"
    assert search.suggest("b") == Searcher.FINISHED
    with pytest.raises(StudyError, match="from its ledger"):
        search.restore("nowhere")
