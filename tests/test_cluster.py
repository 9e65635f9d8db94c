"""A Ray of one's own: what it may print, what it may import, what happens when it ends or does not start."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from causal_tune import cluster
from causal_tune.errors import StoreError, StudyError
from causal_tune.extraction import run_pieces
from causal_tune.features import FeatureStore
from causal_tune.images.index import write_index
from causal_tune.images.layouts import build_index
from tests.conftest import write_images

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 240
ADVICE = (
    "Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s). To change retry attempts, ..."
)
"""What Ray Data adds to the message of every error."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    csv = write_images(folder / "images", {"alpha": NUM_IMAGES // 2})
    write_index(build_index([csv], "csv"), folder / "index.parquet")
    return folder / "index.parquet"


def start(index: Path, workspace: Path, folder: Path) -> subprocess.Popen[str]:
    # views, so that there is something to interrupt
    words = ["extract", str(index), "--encoder", "tiny-random", "--views", "8", "--workspace", str(workspace)]
    return subprocess.Popen(
        [sys.executable, "-m", "causal_tune", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until_something_is_done(driver: subprocess.Popen[str]) -> str:
    assert driver.stderr is not None
    told = ""
    for line in driver.stderr:
        told += line
        if f" of {NUM_IMAGES} images." in line:
            break
    return told


def num_kept(stderr: str) -> int:
    (line,) = [
        line for line in stderr.splitlines() if f" of {NUM_IMAGES} images are done and kept in " in line
    ]
    assert line.endswith("Run the same command again to continue.")
    return int(line.split(f" of {NUM_IMAGES} images")[0].rsplit(" ", 1)[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder whose files have names of modules."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("queue", "random", "numpy", "secrets"):
        (folder / f"{name}.py").write_text("raise RuntimeError('of the working folder')\n")
    return folder


def all_of_encoding(lines: list[str]) -> bool:
    return all(line.startswith("Encoding with tiny-random: ") for line in lines)


@pytest.mark.ray
@pytest.mark.slow
def test_an_extraction_shows_its_own_words_alone(index: Path, folder: Path, tmp_path: Path) -> None:
    driver = start(index, tmp_path / "runs", folder)
    stdout, stderr = driver.communicate(timeout=200)
    assert driver.returncode == 0, stderr
    told = stderr.splitlines()
    assert all_of_encoding(told), stderr
    assert "Encoding with tiny-random: starting Ray." in told
    assert "Encoding with tiny-random: loading the encoder." in told
    assert f"Encoding with tiny-random: 16 of {NUM_IMAGES} images." in told
    assert stdout.startswith(f"{NUM_IMAGES} indexed = {NUM_IMAGES} stored + 0 quarantined; ")

    driver = start(index, tmp_path / "runs", folder)
    stdout, stderr = driver.communicate(timeout=100)
    assert stderr == ""  # no bar of what is not done
    assert "all were stored before" in stdout


@pytest.mark.ray
@pytest.mark.journey
def test_an_extraction_ends_by_ctrl_c_or_with_its_ray_and_continues(
    index: Path, folder: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "runs"
    driver = start(index, workspace, folder)
    stderr = read_until_something_is_done(driver)
    driver.send_signal(signal.SIGINT)
    stderr += driver.communicate(timeout=100)[1]
    assert driver.returncode == 130, stderr
    *told, stopped = stderr.splitlines()
    assert stopped.startswith("Stopped: Encoding with tiny-random was stopped. ")
    assert all_of_encoding(told), stderr
    kept = num_kept(stderr)
    assert 0 < kept < NUM_IMAGES

    driver = start(index, workspace, folder)
    stderr = read_until_something_is_done(driver)
    for child in psutil.Process(driver.pid).children():
        if child.name() == "raylet":
            child.kill()
    stdout, rest = driver.communicate(timeout=100)
    stderr += rest
    assert driver.returncode == 1, stderr
    *told, stopped = stderr.splitlines()
    assert "because Ray's node process on this machine (raylet) ended" in stopped
    assert all_of_encoding(told), stderr
    assert kept < num_kept(stderr) < NUM_IMAGES
    assert stdout == ""

    driver = start(index, workspace, folder)
    stdout, stderr = driver.communicate(timeout=200)
    assert driver.returncode == 0, stderr
    assert all_of_encoding(stderr.splitlines()), stderr
    assert stdout.startswith(f"{NUM_IMAGES} indexed = {NUM_IMAGES} stored + 0 quarantined; ")
    (store,) = workspace.glob("stores/*")
    assert FeatureStore(store).num_images == NUM_IMAGES


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`ray.init` does not start anything; the calls that it was given."""
    calls: list[Any] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "_START_PAUSE_S", 0.0)
    monkeypatch.setattr(cluster, "_raylet", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return calls


def test_a_ray_that_is_late_is_started_once_more(no_ray: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*where: str, **options: Any) -> None:
        no_ray.append(Path.cwd())
        if len(no_ray) == 1:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    before = Path.cwd()
    with cluster.connected():
        assert no_ray == [ROOT, ROOT]  # what the workers find beside it is no one else's
        assert Path.cwd() == before


def test_a_ray_that_does_not_start_is_a_sentence(no_ray: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*where: str, **options: Any) -> None:
        no_ray.append(where)
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    said = r"in two attempts: The current node timed out .* `ray start --head`"
    with pytest.raises(StudyError, match=said), cluster.connected():
        pass
    assert len(no_ray) == 2


def test_a_node_process_that_ends_interrupts_the_main_thread() -> None:
    handler = signal.getsignal(signal.SIGINT)
    raylet = subprocess.Popen(["sleep", "60"])
    lost, ended = threading.Event(), threading.Event()
    with cluster.stop_signals(lost), pytest.raises(cluster.RayLost):  # noqa: PT012  it comes while this waits
        threading.Thread(
            target=cluster._watch, args=(psutil.Process(raylet.pid), lost, ended), daemon=True
        ).start()
        raylet.kill()
        time.sleep(30)
    raylet.wait()
    assert signal.getsignal(signal.SIGINT) is handler


def test_sigterm_does_what_ctrl_c_does() -> None:
    with cluster.stop_signals(), pytest.raises(KeyboardInterrupt) as raised:
        signal.raise_signal(signal.SIGTERM)
    assert raised.type is KeyboardInterrupt


def test_how_work_was_stopped_is_told_with_what_is_kept() -> None:
    kept = "3 of 8 trials are kept."
    for by, code, said in (
        (KeyboardInterrupt(), 130, "The study 'a' was stopped. "),
        (
            cluster.RayLost(),
            1,
            "The study 'a' was stopped, because Ray's node process on this machine (raylet) ",
        ),
        (cluster.RayFailed("KeyError: 1."), 1, "The study 'a' was stopped by an error: KeyError: 1. "),
    ):
        error = cluster.stopped(by, "The study 'a'", kept)
        assert error.exit_code == code
        assert str(error).startswith(said)
        assert str(error).endswith(kept)


def test_what_ray_says_reaches_nobody(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")

    def listen() -> None:
        print("(raylet) The node with node id 1 has been marked dead")

    with cluster._own_stdout(), cluster._silent_start():
        os.write(2, b"logging.cc:303: Set ray log level")
        print("starting Ray, ", end="", file=sys.stderr, flush=True)
        thread = threading.Thread(target=listen, name="ray_listen_error_messages")
        thread.start()
        thread.join()
        print("38 indexed", flush=True)
    os.write(2, b"told afterwards")
    assert tuple(capfd.readouterr()) == ("38 indexed\n", "starting Ray, told afterwards")


class _Fails:
    def __init__(self, error: Exception, num_threads: int) -> None:
        self.error = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        raise self.error


def test_an_error_of_this_package_that_a_task_raised_stays_what_it_is() -> None:
    error = ray.exceptions.RayTaskError("read", "Traceback ...", StoreError(f"A shard is damaged. {ADVICE}"))
    with pytest.raises(StoreError, match=r"^A shard is damaged\.$"), cluster.told_in_a_line():
        raise error.as_instanceof_cause()


@pytest.mark.ray
@pytest.mark.slow
def test_the_error_of_a_task_is_a_line(ray_local: None, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(cluster.RayFailed, match=r"^ZeroDivisionError: of a kind$"):
        list(run_pieces([{"piece": 0}], _same, _Fails, {"error": ZeroDivisionError("of a\nkind")}))
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err


def _same(row: dict[str, Any]) -> dict[str, Any]:
    return row
