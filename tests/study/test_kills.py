"""Kill -9 at random moments of one study: ledger, Optuna journal and MLflow end as undisturbed. Run by `make soak`."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny
from mlflow.tracking import MlflowClient

from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.selection import best, score
from causal_tune.study.journal import JOURNAL
from causal_tune.study.space import space_paths
from causal_tune.study.spec import read_spec
from tests.test_kills import victim_of

NUM_KILLS, NUM_TRIALS = 20, 30
WORKER = "ray::ResourceTrainable"


def command(workspace: Path, space: Path) -> list[str]:
    words = f"tune --store {workspace / 'store'} --space {space} --study tiny --trials {NUM_TRIALS}"
    roles = (
        "--train-generator latent --val-generators cyclegan --max-concurrent 2 --pruner asha --grace-steps 40"
    )
    return [
        sys.executable,
        "-m",
        "causal_tune",
        *words.split(),
        *roles.split(),
        "--workspace",
        str(workspace),
    ]


def run(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


def records_of(workspace: Path) -> list[TrialRecord]:
    return Ledger(workspace / "studies" / "tiny" / "trials").records()


def in_mlflow(workspace: Path) -> dict[str, int]:
    """How many runs each trial has."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiments = [item.experiment_id for item in client.search_experiments()]
    counts: dict[str, int] = {}
    for one in client.search_runs(experiments, max_results=1000):
        if trial := one.data.tags.get("causal_tune.trial_id"):
            counts[trial] = counts.get(trial, 0) + 1
            assert one.info.status != "RUNNING", trial
    return counts


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_random_kills_of_a_study_end_in_the_undisturbed_one(tmp_path: Path) -> None:
    rng = random.Random(0)
    space = tmp_path / "small.py"
    shorter = "\nDEFAULTS.update(max_epochs=20, min_epoch_steps=20)\n"
    space.write_text(space_paths()["demo"].read_text() + shorter)
    undisturbed, workspace = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, workspace):
        tiny.make_store(folder / "store")
    assert run(command(undisturbed, space)).wait(timeout=600) == 0
    expected = [tiny.substance(record) for record in records_of(undisturbed)]
    assert len(expected) == NUM_TRIALS

    trials = workspace / "studies" / "tiny" / "trials"
    killed: list[tuple[str, int]] = []
    while len(killed) < NUM_KILLS:
        done = sorted(trials.glob("0*.json"))
        for path in done[
            NUM_TRIALS - 8 :
        ]:  # nearly at the end: the last trials are lost, as by an old backup
            path.unlink()
        driver, before = run(command(workspace, space)), min(len(done), NUM_TRIALS - 8)
        for kind in rng.choice([("driver",), (WORKER, "driver"), (WORKER, "raylet"), ("raylet",)]):
            # never a worker twice: its trial would be run alone, which takes its time
            after = before + rng.randrange(4)
            while driver.poll() is None:
                num_done = len(list(trials.glob("0*.json")))
                if num_done >= after and (victim := victim_of(driver, kind)) is not None:
                    time.sleep(rng.random() * 0.5)
                    os.kill(victim, signal.SIGKILL)
                    killed.append((kind, num_done))
                    break
                time.sleep(0.02)
        driver.wait(timeout=300)
    assert run(command(workspace, space)).wait(timeout=600) == 0
    print(killed)

    records = records_of(workspace)
    spec = read_spec(workspace / "studies" / "tiny")
    assert [tiny.substance(record) for record in records] == expected
    assert (
        best(records, spec.criterion, spec.roles).id
        == best(records_of(undisturbed), spec.criterion, spec.roles).id
    )
    storage = optuna.storages.journal.JournalFileBackend(str(workspace / "studies" / "tiny" / JOURNAL))
    study = optuna.load_study(study_name="tiny", storage=optuna.storages.JournalStorage(storage))
    assert [trial.user_attrs["trial"] for trial in study.trials] == [record.id for record in records]
    for trial, record in zip(study.trials, records, strict=True):
        if record.finished:
            assert trial.values == [score(record, spec.criterion, spec.roles)]
    assert in_mlflow(workspace) == {record.id: 1 for record in records}
