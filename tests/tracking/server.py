"""`mlflow server` in a process of its own."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from causal_tune.tracking import default_uri
from tests.ports import free_port


@contextmanager
def mlflow_server(workspace: Path) -> Iterator[str]:
    """Its address, once it answers, on the database of a workspace; gone afterwards."""
    port = free_port()
    words = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--backend-store-uri", default_uri(workspace)]
    words += ["--artifacts-destination", str(workspace / "mlartifacts")]
    with serving(words, port, workspace / "mlflow.log") as uri:
        yield uri


@contextmanager
def serving(words: Sequence[str], port: int, log: Path, **environment: str) -> Iterator[str]:
    """The address of a server, once it answers; it ends by kill -9, with its workers."""
    with log.open("a") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", *words, "--workers", "1"],
            stdout=out,
            stderr=out,
            # job execution is seven processes that serve no page, and whose start takes a minute
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment},
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 200
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield uri
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
