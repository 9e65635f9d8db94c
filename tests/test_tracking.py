import dataclasses
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest

from causal_tune.cli import main
from causal_tune.errors import TrackingError
from causal_tune.ledger import TrialRecord, trial_id
from causal_tune.selection import Roles
from causal_tune.study.space import load_space
from causal_tune.study.spec import StudySpec
from causal_tune.tracking import Tracker, default_uri

ROLES = Roles(train_generators=("latent",), val_generators=("cycle gan+",), test_generators=("progan",))


def make_spec(**changes):
    space = load_space("sd14")
    values = {
        "name": "tiny",
        "uid": "u1",
        "store_path": "/store",
        "store_fingerprint": "f00d",
        "space_name": space.name,
        "space_sha256": space.sha256,
        "space": space.to_json(),
        **dataclasses.asdict(ROLES),
        "criterion": "val_generators",
        "seed": 0,
        "max_concurrent": 2,
        "window": 4,
        "versions": {"python": "3"},
    }
    return StudySpec(**{**values, **changes})


def make_record(number, *, num_epochs=3, **changes):
    config = {**load_space("sd14").defaults, "head": "causal", "seed": number}

    def metrics(ap):
        return {"ap": ap, "accuracy": 0.75, "loss": 0.5, "num_real": 10, "num_generated": 10}

    values = {
        "number": number,
        "id": trial_id(number, config),
        "state": "finished",
        "config": config,
        "seed": number,
        "epochs": [
            {"epoch": epoch, "validation/ap": 0.5 + epoch / 1000, "mask/mean": 0.3, "loss/total": 1 / epoch}
            for epoch in range(1, num_epochs + 1)
        ],
        "best_epoch": 2,
        "validation": metrics(0.9),
        "generators": {"cycle gan+": metrics(0.6 + number / 100), "progan": metrics(0.4)},
        "mask": {"mean": 0.25},
        "steps": 300,
        "timings": {"trial_s": 2.0},
        "ended_at": 1_700_000_000.0 + number,
    }
    return TrialRecord(**{**values, **changes})


def runs_of(tracker):
    """Every run of the experiment, by the id of its trial ("" for the parent)."""
    runs = tracker._client.search_runs([tracker.experiment_id], max_results=1000)
    ids = [run.data.tags.get("causal_tune.trial_id", "") for run in runs]
    assert len(ids) == len(set(ids)), "a trial has two runs"
    return dict(zip(ids, runs, strict=True))


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database for the module: making its tables is what takes the time."""
    return default_uri(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def experiment(request):
    return request.node.name


@pytest.fixture
def tracker(database, experiment):
    tracker = Tracker(database, experiment, make_spec())
    tracker.start()
    return tracker


def test_a_trial_is_a_nested_run_with_params_curves_and_results(tracker):
    record = make_record(3)
    tracker.log_trial(record, ROLES)
    run = runs_of(tracker)[record.id]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_run_id
    assert run.data.tags["causal_tune.criterion"] == "val_generators"
    assert run.data.tags["causal_tune.store_fingerprint"] == "f00d"
    assert {"lambda1", "lambda2", "alpha", "beta", "tau", "p"} <= run.data.params.keys()
    assert run.data.params["lambda1"] == "0.0001"
    assert run.data.metrics["val_generators/cycle gan_/ap"] == 0.63
    assert run.data.metrics["test/progan/accuracy"] == 0.75
    assert run.data.metrics["best_validation/ap"] == 0.9
    assert run.data.metrics["criterion/val_generators"] == 0.63
    curve = tracker._client.get_metric_history(run.info.run_id, "validation/ap")
    assert [(point.step, point.value) for point in curve] == [(1, 0.501), (2, 0.502), (3, 0.503)]
    assert (run.info.start_time, run.info.end_time) == (1_700_000_001_000, 1_700_000_003_000)


def test_a_failed_trial_is_a_failed_run_with_its_reason(tracker):
    record = make_record(0, state="failed", reason="the loss became nan", generators={}, validation={})
    tracker.log_trial(record, ROLES)
    run = runs_of(tracker)[record.id]
    assert run.info.status == "FAILED"
    assert run.data.tags["causal_tune.reason"] == "the loss became nan"


def test_runs_name_the_store_the_commit_and_the_versions(tracker, database, experiment):
    record = make_record(4, versions={"python": "3.11", "commit": "c0ffee", "torch": "2"})
    tracker.log_trial(record, ROLES)
    Tracker(database, experiment, make_spec()).start()  # a study that is continued reads the store once more
    runs = runs_of(tracker)
    (read,) = runs[""].inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("store", "f00d")
    assert mlflow.data.get_source(read).uri == "/store"
    assert runs[record.id].data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert runs[record.id].data.tags["causal_tune.versions"] == "python 3.11, torch 2"
    assert runs[""].data.tags["causal_tune.versions"] == "python 3"
    assert "mlflow.source.git.commit" not in runs[""].data.tags


def test_delivering_again_changes_nothing(tracker, database, experiment):
    records = [make_record(number) for number in range(3)]
    assert tracker.sync(records) == 3
    before = {key: run.to_dictionary() for key, run in runs_of(tracker).items()}
    again = Tracker(database, experiment, make_spec())
    again.start()
    again.log_trial(records[1], ROLES)
    assert again.sync(records) == 0
    assert again.parent_run_id == tracker.parent_run_id
    assert {key: run.to_dictionary() for key, run in runs_of(again).items()} == before


def test_a_run_that_was_begun_and_not_ended_is_completed_once(tracker, database, experiment):
    record = make_record(5)
    tracker.log_trial(record, ROLES)
    run_id = runs_of(tracker)[record.id].info.run_id
    # as a driver leaves it that is killed between the batch and the end of the run
    tracker._client.update_run(run_id, status="RUNNING")
    again = Tracker(database, experiment, make_spec())
    again.start()
    assert again.sync([record]) == 1
    assert runs_of(again)[record.id].info.status == "FINISHED"
    assert len(again._client.get_metric_history(run_id, "validation/ap")) == 3


def test_more_metrics_than_a_request_may_hold_all_arrive(tracker):
    record = make_record(6, num_epochs=700)
    tracker.log_trial(record, ROLES)
    run = runs_of(tracker)[record.id]
    assert len(tracker._client.get_metric_history(run.info.run_id, "loss/total")) == 700
    assert run.data.metrics["test/progan/ap"] == 0.4


def test_the_parent_ends_with_the_winner_on_it(tracker):
    records = [make_record(number) for number in range(2)]
    tracker.sync(records)
    tracker.finish(records[1])
    parent = runs_of(tracker)[""]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["causal_tune.best_trial"] == records[1].id
    assert parent.data.tags["best.tau"] == "0.5"
    assert parent.data.metrics["best/val_generators/cycle gan_/ap"] == 0.61


def test_a_study_without_a_winner_ends_too(tracker):
    tracker.finish(None)
    assert runs_of(tracker)[""].info.status == "FINISHED"


def test_two_studies_of_one_name_do_not_share_runs(tracker, database, experiment):
    other = Tracker(database, experiment, make_spec(uid="u2"))
    other.start()
    assert other.parent_run_id != tracker.parent_run_id


def test_the_experiment_opens_as_a_table_of_trainings(tracker):
    # the value is the one that mlflow's own pages compare with
    experiment = tracker._client.get_experiment(tracker.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert Path(tracker._database.parent / "mlartifacts").as_uri() in experiment.artifact_location


def test_a_deleted_experiment_is_told_with_the_way_back(tracker, database, experiment):
    tracker._client.delete_experiment(tracker.experiment_id)
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        Tracker(database, experiment, make_spec()).start()


def test_the_command_for_the_ui_names_the_database(database):
    assert (
        Tracker(database, "x", make_spec())
        .ui_command()
        .split("  # ")[0]
        .endswith(f" ui --backend-store-uri {database}")
    )
    assert "http://host:5000/#/experiments/" in Tracker("http://host:5000/", "x", make_spec()).ui_command()


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/mlflow.db", "nonsense://x"])
def test_a_place_that_cannot_hold_runs_is_told(uri):
    with pytest.raises(TrackingError, match=uri.partition(":")[0]):
        Tracker(uri, "x", make_spec()).start()


def test_a_server_that_is_not_there_is_told_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(TrackingError, match="--tracking-uri"):
            Tracker(uri, "x", make_spec()).start()
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_server_that_never_answers_is_told_within_ten_seconds():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(TrackingError, match="No MLflow server answers"):
            Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", "x", make_spec()).start()
    assert time.monotonic() - started < 10


@pytest.mark.journey
def test_a_real_server_takes_a_study_and_its_loss_is_told(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", default_uri(tmp_path), "--artifacts-destination", str(tmp_path / "a")]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    uri = f"http://127.0.0.1:{port}"
    tracker = Tracker(uri, "causal-tune", make_spec())
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.3)
        tracker.start()
        assert tracker.sync([make_record(0), make_record(1, num_epochs=500)]) == 2
        assert len(runs_of(tracker)) == 3
    finally:
        os.killpg(server.pid, 9)  # with its workers; a group of its own
        server.wait()
    started = time.monotonic()
    with pytest.raises(TrackingError, match="delivers what is missing"):
        tracker.log_trial(make_record(2), ROLES)
    assert time.monotonic() - started < 30


def test_the_parent_run_says_what_the_study_is_and_how_it_is_made_again(database):
    tracker = Tracker(database, "described", make_spec(uid="described"))
    tracker.start()
    records = [make_record(number) for number in range(3)]
    assert tracker.sync(records) == 3
    tracker.finish(records[2])
    parent = tracker._client.get_run(tracker.parent_run_id)
    text = parent.data.tags["mlflow.note.content"]
    assert tracker.spec.space["question"].strip() in text
    assert f"trial {records[2].id}" in text
    assert "| chosen by | cycle gan+ |" in text
    assert "--val-generators 'cycle gan+'" in text
    line = next(line for line in text.splitlines() if line.startswith("    causal-tune tune"))
    command = main.get_command(None, "tune")
    words = shlex.split(line)[2:]
    assert {word for word in words if word.startswith("--")} <= {
        option for parameter in command.params for option in parameter.opts
    }
    names = {run.info.run_name for run in runs_of(tracker).values()}
    assert names == {"tiny", "000 causal", "001 causal", "002 causal"}


def test_a_pruned_trial_is_no_failure(database):
    tracker = Tracker(database, "pruned", make_spec(uid="pruned"))
    tracker.start()
    record = make_record(0, state="pruned", reason="its score is below", generators={}, best_epoch=None)
    tracker.log_trial(record, ROLES)
    run = runs_of(tracker)[record.id]
    assert run.info.status == "KILLED"
    assert run.data.tags["causal_tune.state"] == "pruned"
