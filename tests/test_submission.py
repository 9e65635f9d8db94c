"""`ray job submit` end to end on clusters of this machine, with a token and without: docs/cluster.md executed."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from causal_tune.ledger import Ledger, TrialRecord
from tests.conftest import write_images
from tests.ports import free_port
from tests.shown import ROOT, shown

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

PAGE = "cluster.md"
NUM_TRIALS = 12
VERSION = "0.1+submitted"


@dataclass(frozen=True)
class Cluster:
    """What `ray start --head` has started."""

    address: str
    dashboard: str
    folder: Path
    environment: dict[str, str]

    def run(self, words: Sequence[str], cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            words,
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=400,
        )


@contextmanager
def started(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """`ray start ... --block`, killed with all that it started."""
    with log.open("w") as out:
        process = subprocess.Popen([*words, "--block"], stdout=out, stderr=out, env=dict(environment))
    try:
        deadline = time.monotonic() + 120
        while "block forever" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.wait()


@contextmanager
def cluster(folder: Path, **environment: str) -> Iterator[Cluster]:
    """A head node of the page's command, on ports and in a folder of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_"))}
    scripts = sysconfig.get_path("scripts")
    values = {
        **inherited,
        "PATH": f"{scripts}:{inherited['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **environment,
    }
    port, dashboard, client = free_port(), free_port(), free_port()
    words = shown(PAGE, "ray start --head", {"6379": str(port)})
    words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--num-cpus", "2"]
    words += ["--ray-client-server-port", str(client), "--dashboard-agent-listen-port", "0"]
    words += ["--min-worker-port", "0", "--max-worker-port", "0"]
    # Ray's sockets lie in its folder, and the path of a socket has 107 bytes at most
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as scratch,
        started([*words, "--temp-dir", scratch], folder / "head.log", values),
    ):
        yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", Path(scratch), values)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as people work in it: the images and the default workspace lie inside."""
    folder = tmp_path_factory.mktemp("c") / "checkout"
    ignored = (".git", ".venv", "*_cache", "__pycache__", ".hypothesis", "causal_tune_runs")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*ignored))
    (folder / "causal_tune" / "__init__.py").write_text(
        f'__version__ = "{VERSION}"\n__all__ = ["__version__"]\n'
    )
    write_images(folder / "data", {"sd14": 60, "cyclegan": 12, "gamma": 12})
    return folder


@pytest.fixture(scope="module")
def without_token(checkout: Path) -> Iterator[Cluster]:
    with cluster(checkout.parent, RAY_AUTH_MODE="disabled") as head:
        yield head


def submission(
    head: Cluster, checkout: Path, study: str, working_dir: str = ".", **options: str
) -> list[str]:
    """The page's submission, of a small study with an encoder that needs no weights."""
    changed = {
        ".": working_dir,
        "http://127.0.0.1:8265": head.dashboard,
        "/data/images.csv": str(checkout / "data" / "images.csv"),
        "/data/causal_tune_runs": str(checkout / "causal_tune_runs"),
        "24": str(NUM_TRIALS),
        "mine": study,
    }
    more = {"--encoder": "tiny-random", "--space": "demo", "--max-concurrent": "1", **options}
    return [*shown(PAGE, "ray job submit", changed), *(word for pair in more.items() for word in pair)]


@pytest.fixture(scope="module")
def undisturbed(without_token: Cluster, checkout: Path) -> str:
    """What the submission of the study `undisturbed` printed."""
    done = without_token.run(submission(without_token, checkout, "undisturbed"), checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records_of(checkout: Path, study: str) -> list[TrialRecord]:
    return Ledger(checkout / "causal_tune_runs" / "studies" / study / "trials").records()


def substances(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """The records without what a clock wrote."""
    contents = [record.to_json() for record in records]
    for content in contents:
        del content["timings"], content["ended_at"]
        for epoch in content["epochs"]:
            del epoch["time_s"]
    return contents


def uploads(head: Cluster) -> list[Path]:
    return list(head.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))


def test_a_submission_runs_the_uploaded_code_from_images_to_detector(
    undisturbed: str, checkout: Path
) -> None:
    workspace = checkout / "causal_tune_runs"
    assert f"Detector: {workspace / 'detectors' / 'undisturbed'}" in undisturbed
    assert (workspace / "detectors" / "undisturbed" / "model.safetensors").is_file()
    records = records_of(checkout, "undisturbed")
    assert len(records) == NUM_TRIALS
    assert {record.state for record in records} <= {"finished", "duplicate"}
    # the workers write the records: theirs is the code of the copy, whatever is installed
    assert {record.versions["causal_tune"] for record in records} == {VERSION}


def test_no_image_store_or_database_is_uploaded_however_often(
    undisturbed: str, without_token: Cluster, checkout: Path
) -> None:
    (upload,) = uploads(without_token)
    assert not (upload / "data").exists()
    assert not (upload / "causal_tune_runs").exists()
    names = {path.relative_to(upload) for path in upload.rglob("*") if path.is_file()}
    assert Path("jobs/tune_sd14.py") in names
    assert not [name for name in names if name.suffix in (".png", ".arrow", ".parquet", ".db", ".journal")]
    assert sum((upload / name).stat().st_size for name in names if "__pycache__" not in name.parts) < 8e6
    # the workspace has grown meanwhile: were any of it uploaded, this were another package
    words = submission(without_token, checkout, "undisturbed", **{"--trials": str(NUM_TRIALS)})
    again = without_token.run(words, checkout)
    assert again.returncode == 0, again.stdout + again.stderr
    assert uploads(without_token) == [upload]


def test_a_submission_from_another_folder_takes_absolute_paths(
    undisturbed: str, without_token: Cluster, checkout: Path, tmp_path: Path
) -> None:
    def refused(**options: str) -> str:
        words = submission(without_token, checkout, "elsewhere", str(checkout), **options)
        changed = {str(checkout / "data" / "images.csv"): "images.csv"} if not options else {}
        done = without_token.run([changed.get(word, word) for word in words], tmp_path)
        assert done.returncode != 0
        assert "Traceback" not in done.stdout
        assert not (checkout / "causal_tune_runs" / "studies" / "elsewhere").exists()
        return " ".join(done.stdout.split())

    shutil.copy(checkout / "data" / "images.csv", tmp_path)
    told = refused()
    assert "There is no CSV file" in told
    assert "give an absolute path on the head's machine" in told
    assert "'runs' is a relative path" in refused(**{"--workspace": "runs"})
    assert "give an absolute path on the head's machine" in refused(**{"--space": "mine.py"})
    # what lies in the uploaded folder is found by its place there
    words = submission(
        without_token, checkout, "elsewhere", str(checkout), **{"--space": "search_spaces/demo.py"}
    )
    done = without_token.run([*words, "--trials", "2"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert substances(records_of(checkout, "elsewhere")) == substances(
        records_of(checkout, "undisturbed")[:2]
    )
    assert not list(tmp_path.glob("causal_tune_runs"))


def test_a_stopped_job_says_how_to_continue_and_ends_as_undisturbed(
    undisturbed: str, without_token: Cluster, checkout: Path
) -> None:
    words = submission(without_token, checkout, "stopped")
    submitted = without_token.run([*words[:3], "--no-wait", *words[3:]], checkout)
    name = re.findall(r"raysubmit_\w+", submitted.stdout)[0]
    deadline = time.monotonic() + 200
    while len(records_of(checkout, "stopped")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    at = ["--address", without_token.dashboard, name]
    stop = without_token.run(["ray", "job", "stop", *at], checkout)
    assert stop.returncode == 0, stop.stderr
    num_kept = len(records_of(checkout, "stopped"))
    assert 2 <= num_kept < NUM_TRIALS
    told = without_token.run(["ray", "job", "logs", *at], checkout).stdout
    assert f"was stopped. {num_kept} of {NUM_TRIALS} trials are done and kept" in told
    assert "Run the same command again to continue" in told
    again = without_token.run(words, checkout)
    assert again.returncode == 0, again.stdout + again.stderr
    assert substances(records_of(checkout, "stopped")) == substances(records_of(checkout, "undisturbed"))


def test_a_second_machine_takes_the_trials_that_the_first_has_no_room_for(
    undisturbed: str, without_token: Cluster, checkout: Path
) -> None:
    (store,) = (checkout / "causal_tune_runs" / "stores").iterdir()
    joins = shown(PAGE, "ray start --address", {"FIRST:6379": without_token.address})
    joins += ["--num-cpus", "3", "--min-worker-port", "0", "--max-worker-port", "0"]
    changed = {
        "auto": without_token.address,
        "/data/causal_tune_runs/stores/STORE": str(store),
        "/data/causal_tune_runs": str(checkout / "causal_tune_runs"),
        "sd14": "sd14",
        "mine": "two",
        "200": "3",
    }
    tune = shown(PAGE, "causal-tune tune --address", changed)
    tune = [sys.executable, "-m", "causal_tune", *tune[1:]]
    with started(joins, checkout.parent / "joins.log", without_token.environment):
        # three CPUs a trial, of which the head has two
        done = without_token.run([*tune, "--space", "demo", "--threads-per-trial", "3"], checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [record.state for record in records_of(checkout, "two")] == ["finished"] * 3


def test_an_address_at_which_nothing_listens_is_told_at_once_and_makes_no_study(
    undisturbed: str, checkout: Path
) -> None:
    address, runs = f"127.0.0.1:{free_port()}", checkout / "causal_tune_runs"
    (store,) = (runs / "stores").iterdir()
    tune = [sys.executable, "-m", "causal_tune", "tune", "--store", str(store), "--study", "unmade"]
    tune += ["--trials", "1", "--train-generator", "sd14", "--workspace", str(runs), "--address", address]
    began = time.monotonic()
    done = subprocess.run(tune, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"No Ray answers at {address}: [Errno 111] Connection refused" in " ".join(done.stderr.split())
    assert time.monotonic() - began < 60  # importing Ray included; Ray itself tries for minutes
    assert not (runs / "studies" / "unmade" / "study.json").exists()


def test_with_a_token_a_submission_continues_and_without_it_is_refused(
    undisturbed: str, checkout: Path, tmp_path: Path
) -> None:
    home = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    environment = {**os.environ, **home}
    words = shown(PAGE, "ray get-auth-token", {})
    words[0] = str(Path(sysconfig.get_path("scripts")) / words[0])
    subprocess.run(words, env=environment, check=True, capture_output=True)
    folder = checkout.parent / "t"
    folder.mkdir()
    with cluster(folder, **home) as head:
        words = submission(head, checkout, "undisturbed", **{"--trials": str(NUM_TRIALS + 2)})
        refused = head.run(words, checkout, RAY_AUTH_MODE="disabled")
        assert refused.returncode != 0
        assert "AuthenticationError" in refused.stderr
        assert len(records_of(checkout, "undisturbed")) == NUM_TRIALS
        (store,) = (checkout / "causal_tune_runs" / "stores").iterdir()
        tune = [
            "-m",
            "causal_tune",
            "tune",
            "--address",
            head.address,
            "--store",
            str(store),
            "--study",
            "refused",
        ]
        tune += ["--trials", "2", "--train-generator", "sd14"]
        told = head.run([sys.executable, *tune], checkout, HOME=str(folder))
        assert told.returncode == 2, told.stderr
        assert "Traceback" not in told.stderr
        assert "set RAY_AUTH_MODE (and the token) as the cluster has it" in " ".join(told.stderr.split())
        done = head.run(words, checkout)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(records_of(checkout, "undisturbed")) == NUM_TRIALS + 2
