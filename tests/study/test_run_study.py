import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import ray
import tiny
from safetensors.torch import load_file

from causal_tune.errors import DiskError, InvalidConfig, StoreError, StudyError, TrackingError, WorkFailed
from causal_tune.features import load_study_data
from causal_tune.heads import load_head
from causal_tune.ledger import Ledger
from causal_tune.lock import owned
from causal_tune.selection import best, score
from causal_tune.study import run
from causal_tune.study.node_store import local_store, serve_store
from causal_tune.study.run import _Run, run_study
from causal_tune.study.spec import study_path
from causal_tune.study.worker import _study_data
from causal_tune.training import train
from causal_tune.trial import TrialConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

NUM_TRIALS = 14  # past the ten start-up trials of the sampler


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_local):
    """A study run at one go, its workers evenly fast."""
    workspace = tmp_path_factory.mktemp("undisturbed")
    return run_study(tiny.make_tiny_spec(workspace), num_trials=NUM_TRIALS, workspace=workspace)


def substances(records):
    return [tiny.substance(record) for record in records]


def test_every_trial_is_in_the_ledger_once_with_its_checkpoint(undisturbed):
    records = Ledger(undisturbed.path / "trials").records()
    assert [record.number for record in records] == list(range(NUM_TRIALS))
    assert records == undisturbed.records
    assert {path.name for path in (undisturbed.path / "checkpoints").iterdir()} == {
        record.checkpoint for record in records
    }
    assert undisturbed.best == best(records, "val_generators", undisturbed.spec.roles)
    assert [record.config["head"] for record in records[:3]] == ["linear", "causal", "causal"]
    assert len({record.seed for record in records}) == NUM_TRIALS


def test_nothing_of_ray_tune_is_left_in_the_study(undisturbed):
    names = {path.name for path in undisturbed.path.iterdir()}
    assert names - {".lock"} == {"study.json", "trials", "checkpoints", "optuna.journal"}


def test_a_checkpoint_scores_as_its_record_says(undisturbed):
    record, spec = undisturbed.best, undisturbed.spec
    state = load_file(undisturbed.path / "checkpoints" / record.checkpoint)
    head = load_head(record.head_config, state)
    data = _study_data(
        spec.store_path, spec.train_generators, spec.val_generators, spec.test_generators, "proj", 0, ()
    )
    logits = head.logits(data.validation.features)
    correct = ((logits > 0).float() == data.validation.labels).float().mean().item()
    assert correct == pytest.approx(record.validation["accuracy"], abs=1e-6)


@pytest.mark.journey
def test_a_study_whose_driver_is_killed_ends_as_the_undisturbed_one(undisturbed, tmp_path):
    trials_path = study_path(tmp_path, "tiny") / "trials"
    program = [sys.executable, str(Path(tiny.__file__)), str(tmp_path), str(NUM_TRIALS), "uneven"]
    tiny.make_tiny_spec(tmp_path)
    driver = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while len(list(trials_path.glob("0*.json"))) < 6 and time.monotonic() < deadline:
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert 6 <= len(list(trials_path.glob("0*.json"))) < NUM_TRIALS
    result = run_study(tiny.make_tiny_spec(tmp_path), num_trials=NUM_TRIALS, workspace=tmp_path)
    assert substances(result.records) == substances(undisturbed.records)
    assert result.best.id == undisturbed.best.id


def test_sigterm_stops_keeps_what_is_done_and_says_how_to_continue(tmp_path):
    trials_path = study_path(tmp_path, "tiny") / "trials"
    driver = subprocess.Popen(
        [sys.executable, str(Path(tiny.__file__)), str(tmp_path), "200", "uneven"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not list(trials_path.glob("0*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)
    _, stderr = driver.communicate(timeout=60)
    done = len(Ledger(trials_path).records())
    assert f"was stopped. {done} of 200 trials" in stderr
    assert "Run the same command again" in stderr
    assert not list(trials_path.parent.glob(".tune-*"))


def test_a_study_whose_ray_ends_says_so_and_what_is_kept(tmp_path):
    trials_path = study_path(tmp_path, "tiny") / "trials"
    driver = subprocess.Popen(
        [sys.executable, str(Path(tiny.__file__)), str(tmp_path), "200", "uneven"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not list(trials_path.glob("0*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in psutil.Process(driver.pid).children():
        if child.name() == "raylet":
            child.kill()
    stdout, stderr = driver.communicate(timeout=60)
    done = len(Ledger(trials_path).records())
    assert "(raylet) ended: it crashed or was killed" in stderr
    assert f" {done} of 200 trials are done and kept in " in stderr
    assert "(raylet) Raylet is terminated" not in stdout + stderr


@pytest.mark.journey
def test_pruned_trials_are_the_same_whatever_ends_first(tmp_path):
    space = tiny.small_space(max_epochs=12)
    results = []
    for name in ("one", "other"):
        spec = tiny.make_tiny_spec(tmp_path / name, space=space, pruner="asha", grace_steps=4, reduction=2)
        results.append(run_study(spec, num_trials=14, workspace=tmp_path / name, work=tiny.uneven))
    assert substances(results[0].records) == substances(results[1].records)
    pruned = [record for record in results[0].records if record.state == "pruned"]
    assert pruned
    assert results[0].num_failed == 0
    for record in pruned:
        assert record.steps < 24
        assert record.epochs[-1]["steps"] == record.steps
        assert "at step" in record.reason
        assert record.checkpoint is None
    assert results[0].best.finished


def test_a_generator_that_is_left_out_is_judged_by_a_head_that_never_saw_it(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, train_generators=["latent", "progan"], val_generators=[])
    assert spec.criterion == "leave_one_generator_out"
    result = run_study(spec, num_trials=3, workspace=tmp_path)
    for record in result.records:
        assert record.left_out.keys() == {"latent", "progan"}
        data = load_study_data(spec.store_path, train_generators=["latent"], test_generators=["progan"])
        alone = train(TrialConfig.from_dict(record.config), data)
        assert record.left_out["progan"] == alone.generators["progan"]
    scores = [score(record, spec.criterion, spec.roles) for record in result.records]
    assert score(result.best, spec.criterion, spec.roles) == max(scores)


@pytest.mark.journey
def test_a_worker_that_dies_is_run_again_alone_before_it_is_blamed(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_PAUSE_S", 0)
    spec = tiny.make_tiny_spec(tmp_path)
    result = run_study(spec, num_trials=3, workspace=tmp_path, work=tiny.deadly)
    assert (tmp_path / "died").read_text() == "xxxx"  # twice among others, twice alone
    assert [record.state for record in result.records] == ["failed", "finished", "finished"]
    reason = result.records[0].reason
    assert reason.startswith("its worker's process died, killed or crashed")
    assert "each of the 2 times that it was run alone" in reason


@pytest.mark.journey
def test_a_trial_that_dies_only_beside_others_finishes_alone(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(run, "_PAUSE_S", 0)
    warnings = []
    result = run_study(
        tiny.make_tiny_spec(tmp_path),
        num_trials=4,
        workspace=tmp_path,
        work=tiny.crowded,
        on_event=lambda event: warnings.append(event.message) if event.kind == "warning" else None,
    )
    assert any("It is run again, alone" in message for message in warnings)
    assert substances(result.records) == substances(undisturbed.records[:4])


@pytest.mark.journey
def test_a_study_of_which_nothing_gets_through_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_PAUSE_S", 0)
    with pytest.raises(WorkFailed, match="no trial gets through: its worker's process died"):
        run_study(tiny.make_tiny_spec(tmp_path), num_trials=20, workspace=tmp_path, work=tiny.lethal)
    records = Ledger(study_path(tmp_path, "tiny") / "trials").records()
    assert [record.number for record in records] == [0, 1, 2]


@pytest.mark.journey
@pytest.mark.timeout(600)
@pytest.mark.skipif(psutil.virtual_memory().available < 8e9, reason="needs 8 GB of free memory")
def test_what_the_memory_monitor_ends_is_failed_and_the_study_goes_on(tmp_path, undisturbed):
    """In a process of its own, whose Ray sees 3 GB left on this machine; the trial takes 6."""
    tiny.make_tiny_spec(tmp_path)
    memory = psutil.virtual_memory()
    threshold = 1 - (memory.available - 3e9) / memory.total
    done = subprocess.run(
        [sys.executable, str(Path(tiny.__file__)), str(tmp_path), "4", "hungry"],
        env={
            **os.environ,
            "RAY_memory_usage_threshold": f"{threshold:.3f}",
            "RAY_memory_monitor_refresh_ms": "100",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, *others = Ledger(study_path(tmp_path, "tiny") / "trials").records()
    assert first.state == "failed"
    assert re.match(
        r"Ray's memory monitor ended its worker: [\d.]+ of [\d.]+ GB were in use on ", first.reason
    )
    assert [record.config for record in others] == [record.config for record in undisturbed.records[1:4]]
    assert all(record.finished for record in others)


def test_a_second_driver_is_refused_and_told_who_the_first_is(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, pathlib; from causal_tune.lock import owned\n"
            "with owned(pathlib.Path(sys.argv[1]), 'study'): print('held', flush=True); time.sleep(60)",
            str(study_path(tmp_path, "tiny")),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StudyError, match=f"process {holder.pid}"):
            run_study(spec, num_trials=1, workspace=tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    with owned(study_path(tmp_path, "tiny"), "study"):
        pass  # a dead owner's lock is free
    assert not (study_path(tmp_path, "tiny") / "study.json").exists()


def test_a_store_with_another_fingerprint_is_refused(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path)
    other = tiny.make_store(tmp_path / "other", index_sha256="ff")
    changed = tiny.dataclasses.replace(spec, store_path=str(other.path))
    with pytest.raises(StudyError, match=other.fingerprint):
        run_study(changed, num_trials=1, workspace=tmp_path)


def test_no_trials_are_refused(tmp_path):
    with pytest.raises(InvalidConfig, match="at least 1"):
        run_study(tiny.make_tiny_spec(tmp_path), num_trials=0, workspace=tmp_path)


class FailingTracker:
    """A tracking server that goes away after the first trial."""

    def __init__(self, spec):
        self.spec, self.delivered, self.attempts = spec, [], 0

    def connect(self):
        pass

    def start(self):
        pass

    def sync(self, records):
        return 0

    def log_trial(self, record, roles):
        self.attempts += 1
        if self.attempts > 1:
            raise TrackingError("No MLflow server answers.")

    def watched(self):
        return nullcontext()

    def finish(self, best):
        raise TrackingError("No MLflow server answers.")


def test_failing_trials_and_a_tracking_server_that_goes_away_do_not_stop_the_study(tmp_path):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=1, seed=2)  # whose trials have all four moods
    events = []
    tracker = FailingTracker(spec)
    result = run_study(
        spec, num_trials=7, workspace=tmp_path, tracker=tracker, on_event=events.append, work=tiny.moody
    )
    reasons = {record.seed % 4: record.reason for record in result.records}
    assert len(result.records) == 7
    assert reasons == {
        0: "the loss became nan",
        1: "ZeroDivisionError: division by zero",
        2: "validation/loss of its result is not a finite number",
        3: None,
    }
    assert result.best.seed % 4 == 3
    assert tracker.attempts == 2
    assert [event.kind for event in events].count("warning") == 1
    assert result.undelivered == "No MLflow server answers."
    assert [event.record.number for event in events if event.kind == "trial"] == list(range(7))


def test_a_ledger_that_cannot_be_written_is_told_with_the_cause(tmp_path, undisturbed):
    study = _Run(tiny.make_tiny_spec(tmp_path), tmp_path, 1, None, None)
    study.path.mkdir(parents=True)
    (study.path / "trials").write_text("a file where the folder should be")
    with pytest.raises(DiskError, match="cannot be written"):
        study._record(undisturbed.records[0], b"")


def test_a_checkpoint_is_on_the_disk_before_the_record_that_names_it(tmp_path, undisturbed, monkeypatch):
    study = _Run(tiny.make_tiny_spec(tmp_path), tmp_path, 1, None, None)
    record = undisturbed.records[0]
    monkeypatch.setattr(study.ledger, "add", lambda record: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        study._record(record, b"the head")
    assert (study.path / "checkpoints" / record.checkpoint).read_bytes() == b"the head"


@pytest.mark.journey
def test_a_store_that_goes_away_ends_the_study_and_counts_against_no_trial(tmp_path, undisturbed):
    spec = tiny.make_tiny_spec(tmp_path, max_concurrent=1)
    with pytest.raises(StoreError, match="Bring it back"):
        run_study(spec, num_trials=6, workspace=tmp_path, work=tiny.vanishing)
    records = Ledger(study_path(tmp_path, "tiny") / "trials").records()
    assert 1 <= len(records) < 6
    assert all(record.finished for record in records)
    (tmp_path / "gone").rename(tmp_path / "store")
    result = run_study(spec, num_trials=6, workspace=tmp_path)
    assert result.num_finished == 6


def test_a_trial_has_the_threads_that_were_asked_for(tmp_path):
    changes = json.dumps({"threads_per_trial": 2, "max_concurrent": 1})
    # a Ray of its own: both processors have to be free
    subprocess.run(
        [sys.executable, str(Path(tiny.__file__)), str(tmp_path), "1", "threaded", changes],
        check=True,
        timeout=100,
        capture_output=True,
    )
    (record,) = Ledger(study_path(tmp_path, "tiny") / "trials").records()
    assert record.steps == 2


def test_a_node_without_the_store_fetches_it_once(tmp_path, monkeypatch):
    store = tiny.make_store(tmp_path / "store")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = serve_store(store.path)
    elsewhere = tmp_path / "not" / "here"
    copy = local_store(elsewhere, store.fingerprint, files)
    assert copy.is_relative_to(tmp_path / "cache")
    for path in (path for path in store.path.rglob("*") if path.is_file()):
        assert (copy / path.relative_to(store.path)).read_bytes() == path.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert local_store(elsewhere, store.fingerprint, files) == copy
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert local_store(store.path, store.fingerprint, files) == store.path
    with pytest.raises(StoreError, match="is not the store"):
        local_store(elsewhere, "0" * 16, files)
    with pytest.raises(StoreError, match="is gone"):
        local_store(elsewhere, store.fingerprint, None)
    ray.kill(files)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_node_is_lost_another_joins_and_the_study_ends_as_undisturbed(tmp_path, undisturbed):
    """In a process of its own: this one is connected to a Ray already."""
    tiny.make_tiny_spec(tmp_path)
    program = Path(__file__).with_name("two_nodes.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(NUM_TRIALS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["lost"] in told["nodes"]  # it had trained some
    assert told["joined"] in told["nodes"]
    records = Ledger(study_path(tmp_path, "tiny") / "trials").records()
    assert substances(records) == substances(undisturbed.records)
