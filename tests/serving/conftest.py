import http.client
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import draw

DETECTOR = Path(__file__).parents[1] / "stored" / "detector-format-1"
MAX_BODY = 2 * 2**20
MAX_IMAGES = 4
READ_TIMEOUT_S = 2.0
RATE = 100


def png(seed: int = 0, size: int = 240) -> bytes:
    buffer = io.BytesIO()
    draw(seed, generated=bool(seed % 2), size=size).save(buffer, "PNG")
    return buffer.getvalue()


def multipart(
    *parts: bytes, field: str = "image", name: str | None = "a.png", kind: str = "image/png"
) -> tuple[bytes, dict[str, str]]:
    """A body of parts, and its headers."""
    filename = "" if name is None else f'; filename="{name}"'
    head = (
        f'--edge\r\nContent-Disposition: form-data; name="{field}"{filename}\r\nContent-Type: {kind}\r\n\r\n'
    )
    body = b"".join(head.encode() + part + b"\r\n" for part in parts) + b"--edge--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=edge"}


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """`causal-tune serve` in a process of its own."""

    process: "subprocess.Popen[str]"
    url: str
    token: str
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 80)

    def ask(
        self,
        method: str = "GET",
        path: str = "/",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        token: bool = True,
        source: str = "127.0.0.1",
    ) -> Answered:
        connection = http.client.HTTPConnection(*self.address, timeout=60, source_address=(source, 0))
        sent = {"Authorization": f"Bearer {self.token}"} if token else {}
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            answer = connection.getresponse()
            return Answered(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def score(self, *images: bytes, source: str = "127.0.0.1") -> Answered:
        return self.ask("POST", "/v1/score", *multipart(*images), source=source)

    def raw(self, data: bytes, timeout_s: float = 10) -> bytes:
        """What comes back for bytes that are no request that a client would make."""
        with socket.create_connection(self.address, timeout=timeout_s) as connection:
            connection.sendall(data)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
                if b"}" in answer or b"Invalid" in answer:
                    break
        return answer

    def replicas(self) -> list[psutil.Process]:
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in below if "ServeReplica" in " ".join(_words(child))]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def start(folder: Path, *options: object) -> Server:
    """A server on a free port of loopback; its log in `folder`."""
    token = secrets.token_hex(16)
    (folder / "token").write_text(token + "\n")
    log = folder / "log"
    words = [sys.executable, "-m", "causal_tune", "serve", DETECTOR, "--port", 0, "--json"]
    words += ["--token-file", folder / "token", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(word) for word in words],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            return Server(process, json.loads(text)["url"], token, log)
    raise AssertionError(f"the server ended with {process.wait()}: {log.read_text()}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests; its end is one too: an upload that has begun is answered after SIGTERM."""
    options = ["--max-body-mb", MAX_BODY / 2**20, "--max-images", MAX_IMAGES, "--max-pixels", 1_000_000]
    options += ["--read-timeout", READ_TIMEOUT_S, "--rate", RATE, "--decoders", 2]
    started = start(tmp_path_factory.mktemp("serving"), *options)
    try:
        yield started
        _check_drain(started)
    finally:
        if started.process.poll() is None:
            started.process.terminate()
            try:
                started.process.wait(30)
            except subprocess.TimeoutExpired:
                started.process.kill()


def _check_drain(server: Server) -> None:
    body, headers = multipart(png())
    sent = {**headers, "Authorization": f"Bearer {server.token}", "Content-Length": str(len(body))}
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    connection.putrequest("POST", "/v1/score")
    for name, value in sent.items():
        connection.putheader(name, value)
    connection.endheaders(body[:1000])
    time.sleep(0.2)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    ready = server.ask("GET", "/readyz")
    assert (ready.status, ready.document["error"]["code"]) == (503, "not_ready")
    time.sleep(0.9)
    connection.send(body[1000:])
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()
    assert server.process.wait(30) == 0
    assert server.process.stdout is not None
    assert server.process.stdout.read() == ""  # of Ray's
    events = [line["event"] for line in server.lines()]
    assert "draining" in events
    assert events[-1] == "ended"
