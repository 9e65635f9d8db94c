"""An MLflow server on PostgreSQL with its artifacts on S3, killed in the middle of a study."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from causal_tune.ledger import Ledger
from tests.conftest import Finished, run_cli
from tests.ports import free_port
from tests.s3 import serving as s3_serving
from tests.shown import shown
from tests.tracking.server import serving

pytest.importorskip("psycopg", reason="MLflow reaches PostgreSQL through psycopg")
pytest.importorskip("boto3", reason="MLflow reaches S3 through boto3")
_FOUND = [shutil.which("initdb"), *Path("/usr/lib/postgresql").glob("*/bin/initdb")]
INITDB = next((Path(path) for path in _FOUND if path), None)
pytestmark = [
    pytest.mark.journey,
    pytest.mark.timeout(600),
    pytest.mark.skipif(INITDB is None, reason="needs PostgreSQL: apt-get install postgresql"),
]

NUM_TRIALS = 8


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URI of a database on a PostgreSQL of this module's own."""
    assert INITDB is not None
    port = free_port()
    # it refuses root, and its user enters none of pytest's folders
    account = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    folder = Path(tempfile.mkdtemp(prefix="postgresql"))
    os.chown(folder, account.pw_uid, account.pw_gid)
    owner = {"user": account.pw_uid, "group": account.pw_gid, "cwd": folder} if os.getuid() == 0 else {}
    words = [INITDB, "-D", folder / "data", "-U", "mlflow", "--auth", "trust", "--no-sync"]
    subprocess.run(words, check=True, capture_output=True, **owner)
    words = [INITDB.resolve().with_name("postgres"), "-D", folder / "data", "-p", str(port)]
    words += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **owner)
    try:
        ready = [INITDB.resolve().with_name("pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, capture_output=True).returncode:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_server_that_is_killed_under_a_study_has_every_trial_once_in_the_end(
    finished: Finished, postgresql: str, tmp_path: Path
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    client = MlflowClient(uri)
    trials = finished.workspace / "studies" / "served" / "trials"

    def delivered() -> dict[str, Run]:
        """The study's runs by trial; that of the study itself is under an empty name."""
        experiments = [one.experiment_id for one in client.search_experiments()]
        runs = client.search_runs(experiments, "tags.`causal_tune.study` = 'served'", max_results=1000)
        by_trial = {run.data.tags.get("causal_tune.trial_id", ""): run for run in runs}
        assert len(by_trial) == len(runs), "a trial has two runs"
        return by_trial

    with s3_serving(tmp_path, cache="5m") as s3:
        (tmp_path / "bucket").mkdir()
        environment = {**s3.environment, "MLFLOW_S3_ENDPOINT_URL": f"http://{s3.address}"}
        changed = {
            "0.0.0.0": "127.0.0.1",
            "5000": str(port),
            "SERVER:5000": f"127.0.0.1:{port}",
            "postgresql://USER@HOST/DATABASE": postgresql,
            "s3://BUCKET/mlflow": "s3://bucket/mlflow",
        }
        server = (shown("cluster.md", "mlflow server", changed), port, tmp_path / "mlflow.log")
        tune = f"tune --store {finished.store} --space demo --study served --trials {NUM_TRIALS} --max-concurrent 1"
        tune += f" --train-generator alpha --val-generators beta --workspace {finished.workspace}"
        with serving(*server, **environment):
            study = subprocess.Popen(
                [sys.executable, "-m", "causal_tune", *tune.split(), "--tracking-uri", uri],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            deadline = time.monotonic() + 200
            while len(list(trials.glob("0*.json"))) < 3:
                assert study.poll() is None, study.stderr
                assert time.monotonic() < deadline
                time.sleep(0.05)
        _, told = study.communicate(timeout=300)
        assert study.returncode == 1, told
        assert "The study goes on without it" in " ".join(told.split())
        assert f"`causal-tune sync served --workspace {finished.workspace} --tracking-uri {uri}`" in told
        records = Ledger(trials).records()
        assert len(records) == NUM_TRIALS

        with serving(*server, **environment):
            num_complete = sum(run.info.status == "FINISHED" for run in delivered().values())
            assert 0 < num_complete < NUM_TRIALS
            sync = ("sync", "served", "--tracking-uri", uri, "--workspace", finished.workspace)
            first = run_cli(*sync)
            assert first.exit_code == 0, first.output
            assert f"{NUM_TRIALS - num_complete} of {NUM_TRIALS} trials delivered" in first.output
            assert f"0 of {NUM_TRIALS} trials delivered" in run_cli(*sync).output
            runs = delivered()
            parent = runs.pop("")
            assert set(runs) == {record.id for record in records}
            assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
            for record in records:
                judged = runs[record.id].data.metrics["val_generators/beta/ap"]
                assert judged == pytest.approx(record.generators["beta"]["ap"])
            client.log_text(parent.info.run_id, "kept", "note.txt")
    (note,) = (tmp_path / "bucket" / "mlflow").rglob("note.txt")
    assert note.read_text() == "kept"
