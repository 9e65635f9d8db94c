"""Whatever is sent, the answer is a 4xx with a message, the memory is bounded and the server alive."""

import base64
import io
import json
import pickle
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.serving.conftest import MAX_BODY, MAX_IMAGES, RATE, READ_TIMEOUT_S, Server, multipart, png

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}


def encoded(format_: str, size: tuple[int, int] = (240, 240), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(buffer, format_)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header names this size and whose pixels are few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data) & 2**32 - 1)
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def wrong_crc() -> bytes:
    data = bytearray(png())
    data[len(data) // 2] ^= 255
    return bytes(data)


UNREADABLE = {
    "text": b"hello",
    "empty file": b"",
    "html": b"<!doctype html><script>alert(1)</script>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "pdf": b"%PDF-1.7\n1 0 obj\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": pickle.dumps(print),
    "truncated png": png()[:-4000],
    "truncated jpeg": encoded("JPEG")[:3000],
    "truncated webp": encoded("WEBP")[:500],
    "png signature only": b"\x89PNG\r\n\x1a\n",
    "gif header only": b"GIF89a\x01\x00\x01\x00",
    "damaged png": wrong_crc(),
    "tiff whose directory is itself": b"II*\x00\x08\x00\x00\x00\x00\x00" + b"\x08\x00\x00\x00",
    "bomb of 2.5 thousand million pixels": png_of(50_000, 50_000),
    "bomb of 2 thousand million pixels a side": png_of(2**31 - 1, 2**31 - 1),
    "over the limit of pixels": png_of(1001, 1000),
    "no pixels": png_of(0, 0),
    "zeros": bytes(100_000),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_image_is_named_with_its_reason(server: Server, data: bytes) -> None:
    answer = server.score(data)
    assert answer.status == 422
    assert answer.document["error"]["code"] == "unreadable"
    (result,) = answer.document["results"]
    assert result["error"]
    assert "verdict" not in result


def body_of(images: Any) -> bytes:
    return json.dumps({"images": images}).encode()


ONE = base64.b64encode(png(size=32)).decode()
GOOD, _ = multipart(png(size=32))

MALFORMED: dict[str, tuple[bytes, dict[str, str], int]] = {
    "no type": (GOOD, {}, 415),
    "text": (b"hello", {"Content-Type": "text/plain"}, 415),
    "an image as the body": (png(), {"Content-Type": "image/png"}, 415),
    "a form in a URL's manner": (b"image=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "compressed": (zlib.compress(GOOD), {**FORM, "Content-Encoding": "gzip"}, 415),
    "no boundary": (GOOD, {"Content-Type": "multipart/form-data"}, 400),
    "another boundary": (GOOD, {"Content-Type": "multipart/form-data; boundary=other"}, 400),
    "no body": (b"", FORM, 400),
    "no JSON body": (b"", JSON, 400),
    "no part": (b"--edge--\r\n", FORM, 400),
    "cut multipart": (GOOD[:40], FORM, 400),
    "another field": (*multipart(png(size=32), field="file"), 400),
    "a field instead of a file": (*multipart(b"text", name=None), 400),
    "a part without a name": (b"--edge\r\nContent-Type: image/png\r\n\r\nx\r\n--edge--\r\n", FORM, 400),
    "a part's header without a colon": (b"--edge\r\nnonsense\r\n\r\nx\r\n--edge--\r\n", FORM, 400),
    "many parts": (*multipart(*[png(size=32)] * (MAX_IMAGES + 1)), 413),
    "thousands of parts": (*multipart(*[b""] * 5000), 413),
    "many fields": (*multipart(*[b"x"] * 1000, name=None), 413),
    "no JSON": (b"{images:", JSON, 400),
    "JSON that is not UTF-8": (b'{"images": ["\xff\xfe"]}', JSON, 400),
    "JSON of many levels": (b"[" * 100_000, JSON, 400),
    "a list": (b"[]", JSON, 400),
    "null": (b"null", JSON, 400),
    "another JSON field": (json.dumps({"image": ONE}).encode(), JSON, 400),
    "one JSON field too many": (json.dumps({"images": [ONE], "path": "/etc/passwd"}).encode(), JSON, 400),
    "a text instead of a list": (body_of(ONE), JSON, 400),
    "a number": (body_of([1]), JSON, 400),
    "no JSON images": (body_of([]), JSON, 400),
    "many JSON images": (body_of([ONE] * (MAX_IMAGES + 1)), JSON, 413),
    "no base64": (body_of(["not base64!"]), JSON, 400),
    "cut base64": (body_of([ONE[:-1]]), JSON, 400),
    "a data URL": (body_of([f"data:image/png;base64,{ONE}"]), JSON, 400),
    "a path": (body_of(["../../etc/passwd"]), JSON, 400),
    "too large": (bytes(MAX_BODY + 1), FORM, 413),
    "a page of another address": (GOOD, {**FORM, "Origin": "https://example.org"}, 403),
}


@pytest.mark.parametrize(("body", "headers", "status"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_refused(
    server: Server, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = server.ask("POST", "/v1/score", body, headers)
    assert answer.status == status
    assert len(answer.document["error"]["message"]) > 20


TOKENS = {
    "none": {},
    "another": {"Authorization": "Bearer 0123456789abcdef0123456789abcdef"},
    "no scheme": {"Authorization": "{token}"},
    "another scheme": {"Authorization": "Basic {token}"},
    "an empty one": {"Authorization": "Bearer "},
    "a part": {"Authorization": "Bearer {part}"},
    "a longer one": {"Authorization": "Bearer {token}0"},
    "not ASCII": {"Authorization": "Bearer \xe4\xf6\xfc"},
}


@pytest.mark.parametrize("headers", TOKENS.values(), ids=TOKENS)
def test_a_wrong_token_is_refused(server: Server, headers: dict[str, str]) -> None:
    filled = {name: text.format(token=server.token, part=server.token[:-1]) for name, text in headers.items()}
    for method, path in (("POST", "/v1/score"), ("GET", "/metrics")):
        answer = server.ask(method, path, GOOD if method == "POST" else None, {**FORM, **filled}, token=False)
        assert answer.status == 401
        assert answer.document["error"]["code"] == "unauthorised"
        assert answer.headers["www-authenticate"] == "Bearer"


PATHS = {
    "nothing there": ("GET", "/v1/nothing", 404),
    "up": ("GET", "/../../etc/passwd", 404),
    "up, encoded": ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
    "up from a file": ("GET", "/page.css/../app.py", 404),
    "the folder of the page": ("GET", "/static/page.html", 404),
    "a null byte": ("GET", "/page.js%00", 404),
    "get": ("GET", "/v1/score", 405),
    "delete": ("DELETE", "/v1/score", 405),
    "a method that there is not": ("BREW", "/v1/score", 405),
}


@pytest.mark.parametrize(("method", "path", "status"), PATHS.values(), ids=PATHS)
def test_a_wrong_address_is_refused(server: Server, method: str, path: str, status: int) -> None:
    answer = server.ask(method, path)
    assert answer.status == status
    assert answer.document["error"]["message"]


RAW = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "length that is no number": b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    "negative length": b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "a header with a line break": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
}


@pytest.mark.parametrize("data", RAW.values(), ids=RAW)
def test_what_is_no_http_is_refused(server: Server, data: bytes) -> None:
    answer = server.raw(data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Invalid HTTP request" in answer


LARGE = {
    "huge header": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
    "thousands of headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "long address": b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_large_headers_are_refused(server: Server, data: bytes) -> None:
    status = server.raw(data).split()[1]
    assert status in (b"400", b"431")  # the first where they arrive in pieces


def head(server: Server, more: str) -> bytes:
    text = f"POST /v1/score HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {server.token}\r\n"
    return f"{text}Content-Type: multipart/form-data; boundary=edge\r\n{more}\r\n\r\n".encode()


@pytest.mark.parametrize("length", [MAX_BODY + 1, 10**15])
def test_a_declared_length_is_refused_before_the_body_comes(server: Server, length: int) -> None:
    answer = server.raw(head(server, f"Content-Length: {length}"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"too_large" in answer


def test_a_body_without_an_end_is_refused_at_the_limit(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2 * MAX_BODY // 65536):
            yield bytes(65536)

    answer = server.ask("POST", "/v1/score", endless(), FORM)
    assert answer.status == 413


def test_who_sends_slowly_is_told(server: Server) -> None:
    started = time.monotonic()
    with socket.create_connection(server.address, timeout=20) as headers:
        headers.sendall(b"POST /v1/score HT")
        with socket.create_connection(server.address, timeout=20) as body:
            body.sendall(head(server, "Content-Length: 1000") + b"--edge")
            assert body.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert headers.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started > READ_TIMEOUT_S - 0.1


def test_who_goes_away_in_the_middle_costs_nothing(server: Server) -> None:
    for _ in range(5):
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(head(server, "Content-Length: 1000") + b"--edge")
    assert server.score(png()).status == 200


def test_who_asks_too_often_waits(server: Server) -> None:
    for _ in range(20 * RATE):
        answer = server.ask("POST", "/v1/score", b"", token=False, source="127.0.0.9")
        if answer.status == 429:
            break
        assert answer.status == 401
    assert answer.document["error"]["code"] == "too_many_requests"
    assert int(answer.headers["retry-after"]) >= 1
    assert server.score(png()).status == 200  # from another address


def test_bad_requests_leave_no_memory_behind(server: Server) -> None:
    gate = psutil.Process(server.process.pid)
    large = multipart(UNREADABLE["zeros"] * 15)
    for body, headers in (large, (b"[" * 1_500_000, JSON), (bytes(MAX_BODY + 1), FORM)):
        server.ask("POST", "/v1/score", body, headers)
    before = gate.memory_info().rss
    for _ in range(10):
        for body, headers in (large, (b"[" * 1_500_000, JSON), (bytes(MAX_BODY + 1), FORM)):
            assert 400 <= server.ask("POST", "/v1/score", body, headers, source="127.0.0.10").status < 500
    assert gate.memory_info().rss - before < 8 * MAX_BODY
    text = server.ask("GET", "/metrics").body.decode()
    assert "causal_tune_held_bytes 0.0" in text
