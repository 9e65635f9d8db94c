"""The journal is opened with Optuna itself, as its dashboard does."""

import dataclasses
import warnings

import optuna
import pytest
import tiny
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from causal_tune.ledger import TrialRecord, trial_id
from causal_tune.study.journal import Journal
from causal_tune.trial import TrialConfig


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return tiny.make_tiny_spec(tmp_path_factory.mktemp("workspace"))


def record(spec, number, state="finished", **changes):
    config = TrialConfig.from_dict({**spec.space["defaults"], "seed": number, **changes}).to_dict()
    epochs = [
        {"epoch": n, "steps": 10 * n, "kept": n, "generator_ap/cyclegan": 0.5 + n / 100} for n in (1, 2)
    ]
    return TrialRecord(
        number=number,
        id=trial_id(number, config),
        state=state,
        reason=None if state == "finished" else "why",
        config=config,
        seed=number,
        epochs=epochs if state in ("finished", "pruned") else [],
        generators={"cyclegan": {"ap": 0.6 + number / 100}} if state == "finished" else {},
        timings={"trial_s": 2.0},
        ended_at=1.7e9,
    )


def trials(path, spec):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.load_study(study_name=spec.name, storage=JournalStorage(JournalFileBackend(str(path))))
        return study, study.get_trials()


def test_states_values_and_numbers_are_those_of_the_ledger(spec, tmp_path):
    path = tmp_path / "optuna.journal"
    records = [
        record(spec, 0, head="linear", lambda1=0.0),
        record(spec, 1),
        record(spec, 2, "failed"),
        record(spec, 3, "pruned"),
        record(spec, 4, "duplicate"),
    ]
    Journal(path, spec, records)
    study, found = trials(path, spec)
    assert [one.state.name for one in found] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED", "FAIL"]
    assert [one.number for one in found] == list(range(5))
    assert [one.value for one in found[:2]] == [0.6, 0.61]
    assert [one.user_attrs["trial"] for one in found] == [one.id for one in records]
    assert found[0].user_attrs["lambda1"] == 0.0  # outside of its range: an attribute, no parameter
    assert "lambda1" not in found[0].params
    assert found[1].params["lambda1"] == 1e-4
    assert found[3].intermediate_values == {10: 0.51, 20: 0.52}
    assert found[2].user_attrs["reason"] == "why"
    assert found[4].user_attrs["duplicate"]
    assert found[1].duration.total_seconds() == 2
    assert study.best_trial.number == 1
    assert study.metric_names == ["val_generators"]


def test_trials_stand_in_the_order_of_their_numbers_whenever_they_end(spec, tmp_path):
    path = tmp_path / "optuna.journal"
    journal = Journal(path, spec, [])
    for number in (2, 0, 3):
        journal.add(record(spec, number))
    assert [one.user_attrs["trial"][:5] for one in trials(path, spec)[1]] == ["00000"]
    journal.add(record(spec, 1))
    assert [one.user_attrs["trial"][:5] for one in trials(path, spec)[1]] == [f"0000{n}" for n in range(4)]


@pytest.mark.parametrize("damage", ["cut", "gone", "nonsense", "another ledger", "none"])
def test_a_journal_is_brought_up_to_date_or_made_anew(spec, tmp_path, damage):
    path = tmp_path / "optuna.journal"
    records = [record(spec, number) for number in range(4)]
    Journal(path, spec, records[:3] if damage != "another ledger" else [record(spec, 0, tau=1.0)])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "nonsense":
        path.write_bytes(b"\x00\x01 no journal")
    elif damage == "gone":
        path.unlink()
    size = path.stat().st_size if path.exists() else 0
    content = path.read_bytes() if path.exists() else b""
    Journal(path, spec, records)
    assert [one.user_attrs["trial"] for one in trials(path, spec)[1]] == [one.id for one in records]
    if damage == "none":  # continued, not written again
        assert path.read_bytes()[:size] == content


def test_several_objectives_are_there_as_such(spec, tmp_path):
    several = dataclasses.replace(spec, objectives={"gans": ("cyclegan",), "diffusion": ("glide",)})
    one = record(spec, 0)
    both = dataclasses.replace(one, generators={**one.generators, "glide": {"ap": 0.7}})
    Journal(tmp_path / "optuna.journal", several, [both, record(spec, 1)])
    study, found = trials(tmp_path / "optuna.journal", several)
    assert study.metric_names == ["gans", "diffusion"]
    assert found[0].values == [0.6, 0.7]
    assert found[1].state.name == "FAIL"  # no AP on glide
