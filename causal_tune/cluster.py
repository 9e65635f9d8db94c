"""Connecting to Ray: a local one made for this process, or the cluster that an address names."""

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

import psutil

from causal_tune.errors import CausalTuneError, Interrupted, StudyError, WorkFailed

__all__ = ["RayFailed", "RayLost", "connected", "has_other_nodes", "stopped", "told_in_a_line"]

_QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's C++ writes whatever it calls an error to the stderr of the driver, over a progress bar
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}

_ANSWER_TIMEOUT_S = 10
_START_PAUSE_S = 5.0  # what keeps the machine busy may pass
_WATCH_S = 0.5

_PACKAGE_ROOT = Path(__file__).resolve().parents[1]

_is_local = False
"""Whether the Ray that this process is connected to was started here; one that its caller started may be a cluster."""


class RayFailed(Exception):
    """An error of a task or actor that is none of this package's; `str(error)` is a line."""


class RayLost(KeyboardInterrupt):
    """Ray's node process on this machine is gone: raised in the main thread, which waits for its answers."""


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """A Ray to work on, for the length of the `with` block, in which SIGTERM does what Ctrl-C does.

    `address` is that of a cluster (`auto`, `host:6379`); without one, `RAY_ADDRESS` counts (it is
    set inside `ray job submit`), and without that a local Ray is started and ended again. An
    already connected process stays as it is. `StudyError` where the cluster does not answer, or
    where a local Ray does not start in two attempts. `RayLost` where Ray's node process on this machine ends under
    way.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray  # here, for what needs no Ray need not wait for it

    if ray.is_initialized():
        with stop_signals():
            yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    global _is_local
    _is_local = not address
    lost = threading.Event()
    with stop_signals(lost), _own_stdout():
        if address:
            _connect(address)
        else:
            _start()
        ended = threading.Event()
        raylet = _raylet()
        try:
            with stop_signals(lost):  # once more: Ray has set its own meanwhile
                if raylet and threading.current_thread() is threading.main_thread():
                    threading.Thread(target=_watch, args=(raylet, lost, ended), daemon=True).start()
                yield
        except (Exception, KeyboardInterrupt) as error:
            if raylet and not _is_alive(
                raylet
            ):  # that is why; Ray makes a `KeyboardInterrupt` of a `RayLost`
                lost.set()
                raise RayLost from error
            raise
        finally:
            ended.set()
            if not lost.is_set():  # without its node process Ray's shutdown ends this process, without a word
                ray.shutdown()


def _connect(address: str) -> None:
    import ray

    try:
        _check_answers(address)
        with _in_package_root(), _silent_start():
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise StudyError(
            f"No Ray answers at {address}: {_in_a_line(error)}. Start one with `ray start --head`, correct "
            "--address, set RAY_AUTH_MODE (and the token) as the cluster has it, or leave --address out to use a "
            "local Ray."
        ) from error


def _start() -> None:
    """Start a local Ray; once more where a busy machine was too slow for its time limits, which are fixed."""
    import ray

    for is_last in (False, True):
        try:
            with _in_package_root(), _silent_start():
                # `local`: without it Ray joins whatever cluster someone else has started on this machine
                ray.init(
                    "local", include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL
                )
            return
        except Exception as error:  # Ray raises a plain `Exception` where one of its processes is late
            ray.shutdown()
            if is_last:
                raise StudyError(
                    f"Ray did not start on this machine in two attempts: {_in_a_line(error)}. The machine may be "
                    "too busy, or short of memory or of space in /tmp; Ray's logs are in /tmp/ray/session_latest/"
                    "logs. Run the same command again when the machine is less busy, or start Ray yourself with "
                    "`ray start --head` and give --address auto."
                ) from error
            time.sleep(_START_PAUSE_S)


def _raylet() -> psutil.Process | None:
    """The node process of Ray that this process talks to, where it can be seen."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and f"--node_id={node_id}" in (process.info["cmdline"] or []):
            return process
    return None


def _watch(raylet: psutil.Process, lost: threading.Event, ended: threading.Event) -> None:
    """Interrupt the main thread when Ray's node process is gone.

    Ray itself notices after many seconds, and then ends the driver on the spot, with its own log as the only word.
    """
    while not ended.wait(_WATCH_S):
        if not _is_alive(raylet):
            lost.set()
            os.kill(os.getpid(), signal.SIGINT)
            return


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _in_package_root() -> Iterator[None]:
    """Within it the working folder is the one that this package lies in.

    Ray puts the driver's working folder first on the `sys.path` of its workers, whatever lies there: a `queue.py` or
    `numpy.py` of the user's would replace the real one in every worker.
    """
    before = os.open(".", os.O_RDONLY)
    os.chdir(_PACKAGE_ROOT)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextmanager
def _silent_start() -> Iterator[None]:
    """Within it what is written to the descriptor of stderr is dropped: Ray tells there which log level it has."""
    if os.environ["RAY_BACKEND_LOG_LEVEL"] != _QUIET["RAY_BACKEND_LOG_LEVEL"]:
        yield  # someone wants to know
        return
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    stderr = sys.stderr
    if _descriptor(stderr) == 2:  # what this process says itself is shown meanwhile
        sys.stderr = os.fdopen(os.dup(2), "w", encoding=stderr.encoding, errors="replace", buffering=1)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        sys.stderr = stderr
        os.close(before)
        os.close(nowhere)


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except OSError:
        return -1


class _OwnStdout:
    """The stdout of this process without what Ray's thread of remote errors prints: there is no switch for it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name == "ray_listen_error_messages":
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _own_stdout() -> Iterator[None]:
    before = sys.stdout
    own = sys.stdout = cast(TextIO, _OwnStdout(before))
    try:
        yield
    finally:
        if sys.stdout is own:  # else someone else has taken it since
            sys.stdout = before


@contextmanager
def stop_signals(lost: threading.Event | None = None) -> Iterator[None]:
    """Within it SIGTERM (which `ray job stop` sends first) raises `KeyboardInterrupt`, as Ctrl-C does.

    `RayLost` in its place once `lost` is set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> Any:
        raise RayLost if lost and lost.is_set() else KeyboardInterrupt

    before = {name: signal.signal(name, stop) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def stopped(by: BaseException, what: str, kept: str) -> CausalTuneError:
    """What is raised in the place of the Ctrl-C, the lost Ray or the `RayFailed` that ended `what`.

    `kept` says what of the work is kept and how it is continued.
    """
    if isinstance(by, RayLost):
        return WorkFailed(
            f"{what} was stopped, because Ray's node process on this machine (raylet) ended: it crashed or was killed, "
            f"as the operating system does when memory runs out. {kept}"
        )
    if isinstance(by, KeyboardInterrupt):
        return Interrupted(f"{what} was stopped. {kept}")
    return WorkFailed(f"{what} was stopped by an error: {str(by).rstrip('.')}. {kept}")


def _cause_of(error: BaseException) -> str:
    r"""What went wrong, in a line: of a task's error its own, of others what names an error in their text.

    >>> _cause_of(RuntimeError("Task failed.\n  File x.py\nMemoryError: 3 GB cannot be had"))
    'MemoryError: 3 GB cannot be had'
    """
    import ray

    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, Exception):
        return f"{type(error.cause).__name__}: {_own_words(error.cause)}"[:400]
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return ((named or lines or [type(error).__name__])[-1])[:400].rstrip(".")


def _own_words(cause: Exception) -> str:
    """The message of a task's error without the advice that Ray Data adds."""
    return _in_a_line(cause).partition(" Failed to apply UDF transform after ")[0].rstrip(".")


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """Within it an error of Ray's, which holds tracebacks of other processes, becomes a `RayFailed`.

    Or the error that the task itself raised, where it is one of this package's.
    """
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, CausalTuneError):
            error.cause.args = (f"{_own_words(error.cause)}.",)
            raise error.cause from None
        raise RayFailed(_cause_of(error)) from None


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _check_answers(address: str) -> None:
    """`OSError` where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_TIMEOUT_S).close()


def has_other_nodes() -> bool:
    """Whether the connected Ray is a cluster that has, or may get, nodes beside this one."""
    import ray

    return not _is_local or sum(node["Alive"] for node in ray.nodes()) > 1
