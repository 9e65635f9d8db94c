"""A request's body: read within limits and time, then taken apart into images."""

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from causal_tune.serving.limits import Limits, Refused

__all__ = ["Held", "Sent", "read_images"]

_LINGER_S = (
    2.0  # for which a refused body is read and dropped: a client in the middle of sending hears the reason
)
_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Sent:
    """One image of a request."""

    name: str | None
    """As the client calls it; only ever given back."""
    data: bytes


class Held:
    """Bytes and requests that the gate has taken and not yet answered."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.num_requests = 0
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Count bytes; 503 where all bodies together are too large."""
        if self.num_bytes + num_bytes > self.limits.max_held_bytes:
            raise Refused(
                503, "busy", "The server holds as many images as it can. Try again.", retry_after_s=1
            )
        self.num_bytes += num_bytes


async def read_images(request: Request, held: Held) -> tuple[list[Sent], int]:
    """The images of a request and the bytes of its body, which stay counted in `held` until the caller gives them back.

    `Refused` where the body is too large, too slow or not in a known form.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        await _drop(request)
        raise Refused(
            415,
            "unsupported_type",
            "Send images as multipart/form-data (one part called `image` each) or as application/json "
            '({"images": ["<base64>", ...]}), and name which in Content-Type.',
        )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        await _drop(request)
        raise Refused(415, "unsupported_encoding", "Send the body without Content-Encoding.")
    body = await _read_body(request, held)
    try:
        if not body:
            raise Refused(400, "empty", "The body is empty. Send at least one image.")
        if kind == "application/json":
            images = await asyncio.to_thread(_of_json, body, held.limits)
        else:
            images = await _of_multipart(request, body, held.limits)
    except BaseException:
        held.num_bytes -= len(body)
        raise
    return images, len(body)


async def _read_body(request: Request, held: Held) -> bytes:
    most = held.limits.max_body_bytes
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > most:  # h11 has refused what is no number
        await _drop(request)
        raise _too_large(most)
    read = _Read(held)
    try:
        await asyncio.wait_for(read.all(request, most), held.limits.read_timeout_s)
    except asyncio.TimeoutError:
        read.give_back()
        raise Refused(
            408,
            "too_slow",
            f"The body did not arrive within {held.limits.read_timeout_s:g} s. Send fewer or smaller images.",
        ) from None
    except BaseException:
        read.give_back()
        raise
    if read.num_bytes > most:
        read.give_back()
        await _drop(request)
        raise _too_large(most)
    return b"".join(read.chunks)


class _Read:
    """What has been read of one body so far."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.chunks: list[bytes] = []
        self.num_bytes = 0

    async def all(self, request: Request, most: int) -> None:
        """Read until the end, or until there is more than `most`."""
        while self.num_bytes <= most:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            self._held.take(len(chunk))
            self.num_bytes += len(chunk)
            self.chunks.append(chunk)
            if not message.get("more_body", False):
                return

    def give_back(self) -> None:
        """Let go of all of it."""
        self._held.num_bytes -= self.num_bytes
        self.chunks.clear()


async def _drop(request: Request) -> None:
    """Read on for a moment and keep nothing."""

    async def rest() -> None:
        while (message := await request.receive())["type"] == "http.request":
            if not message.get("more_body", False):
                return

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), _LINGER_S)


def _too_large(most: int) -> Refused:
    return Refused(
        413, "too_large", f"The body has more than {most:,} bytes. Send fewer or smaller images a request."
    )


def _too_many(most: int) -> Refused:
    return Refused(
        413, "too_many_images", f"There are more than {most} images. Send them in several requests."
    )


async def _of_multipart(request: Request, body: bytes, limits: Limits) -> list[Sent]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers,
        chunks(),
        max_files=limits.max_images,
        max_fields=limits.max_images,
        max_part_size=limits.max_body_bytes,
    )
    parser.spool_max_size = limits.max_body_bytes  # nothing of an image is written to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise _too_many(limits.max_images) from error
        raise Refused(400, "malformed", f"The multipart body cannot be read: {error.message}") from error
    except (KeyError, ValueError, LookupError) as error:  # no boundary, or a charset that there is not
        raise Refused(400, "malformed", "The multipart body cannot be read: wrong header fields.") from error
    try:
        images = []
        for field, value in form.multi_items():
            if field != "image" or not isinstance(value, UploadFile):
                raise Refused(
                    400, "wrong_field", "Each part has to be a file called `image`; another part was found."
                )
            images.append(Sent(_name(value.filename), await value.read()))
    finally:
        await form.close()
    if not images:
        raise Refused(400, "empty", "There is no part called `image`. Send at least one image.")
    return images


def _of_json(body: bytes, limits: Limits) -> list[Sent]:
    shape = 'It should be {"images": ["<base64>", ...]}.'
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "malformed", f"The body is not JSON. {shape}") from error
    if not isinstance(document, dict) or set(document) != {"images"}:
        raise Refused(400, "wrong_field", f"The JSON has other fields than `images`, or lacks it. {shape}")
    texts = document["images"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "wrong_field", f"`images` is no list of texts. {shape}")
    if not texts:
        raise Refused(400, "empty", f"`images` is empty. {shape}")
    if len(texts) > limits.max_images:
        raise _too_many(limits.max_images)
    images = []
    for number, text in enumerate(texts):
        try:
            images.append(Sent(None, base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError) as error:
            raise Refused(400, "malformed", f"Image {number} is not base64. {shape}") from error
    return images


def _name(filename: str | None) -> str | None:
    return filename[:_MAX_NAME] if filename else None
