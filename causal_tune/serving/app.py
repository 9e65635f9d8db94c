"""The gate: scores at /v1/score, a page at /, and what operators ask for."""

import asyncio
import hashlib
import hmac
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from causal_tune import __version__
from causal_tune.detector import Detector
from causal_tune.errors import UnreadableImage
from causal_tune.serving.decoding import Decoders
from causal_tune.serving.limits import Limits, Rate, Refused
from causal_tune.serving.page import Page
from causal_tune.serving.reading import Held, Sent, read_images
from causal_tune.serving.records import Metrics, log
from causal_tune.serving.replicas import Judgement, Replicas

__all__ = ["MAX_HEADER_BYTES", "Gate", "make_app"]

MAX_HEADER_BYTES = 32 * 2**10
"""Of the address and the headers of a request."""

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


class Model(BaseModel):
    """Which detector answered."""

    id: str
    calibrated: bool


class Result(BaseModel):
    """One image: its verdict, or the reason why there is none."""

    name: str | None
    score: float | None = None
    probability: float | None = None
    verdict: str | None = None
    note: str | None = None
    """Why the verdict is `unsure` whatever the score."""
    error: str | None = None
    code: str | None = None
    """One word for the error: `unreadable`, `too_large` or `unsupported_format`."""


class Answer(BaseModel):
    """One result an image, in the order in which they were sent."""

    model: Model
    results: list[Result]


@dataclass(kw_only=True)
class Gate:
    """All that the application needs of the process it runs in."""

    detector: Detector
    card: str
    """The model card, Markdown."""
    replicas: Replicas
    decoders: Decoders
    limits: Limits
    token: str | None = None
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    """Set when the process has been asked to end."""


def make_app(gate: Gate) -> FastAPI:
    """The application of a gate."""
    held, rate = Held(gate.limits), Rate(gate.limits.rate)
    model = Model(id=gate.detector.id, calibrated=gate.detector.description["calibration"] is not None)
    page = Page(gate.detector, gate.card, limits=gate.limits, has_token=bool(gate.token))
    digest = hashlib.sha256(gate.token.encode()).digest() if gate.token else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch(gate.replicas))
        yield
        watch.cancel()

    app = FastAPI(
        title=f"causal-tune: {gate.detector.name}",
        version=__version__,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(_Account, gate=gate)

    def check_token(request: Request) -> None:
        if digest is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # digests of equal length: how long comparing takes says nothing of the token
        same = hmac.compare_digest(hashlib.sha256(given.strip().encode("latin-1")).digest(), digest)
        if scheme.lower() != "bearer" or not same:
            raise Refused(
                401, "unauthorised", "Send the server's token in the header `Authorization: Bearer TOKEN`."
            )

    def check_origin(request: Request) -> None:
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise Refused(403, "foreign_page", "Pages of other addresses may not ask this server.")

    def check_rate(request: Request) -> None:
        wait_s = rate.wait_s(request.client.host if request.client else "")
        if wait_s:
            raise Refused(
                429,
                "too_many_requests",
                f"At most {gate.limits.rate:g} requests a second from one address are answered.",
                retry_after_s=math.ceil(wait_s),
            )

    @app.post("/v1/score", response_model=Answer, response_model_exclude_none=True, openapi_extra=_BODY)
    async def score(request: Request) -> Answer | JSONResponse:
        """Verdicts on images sent as multipart/form-data (parts called `image`) or as base64 in JSON."""
        check_rate(request)
        check_token(request)
        check_origin(request)
        if held.num_requests >= gate.limits.max_requests:
            raise Refused(
                503, "busy", "The server answers as many requests as it can. Try again.", retry_after_s=1
            )
        held.num_requests += 1
        num_bytes = 0
        started = time.monotonic()
        try:
            images, num_bytes = await read_images(request, held)
            gate.metrics.held.set(held.num_bytes)
            request.state.fields = {"num_images": len(images), "num_bytes": num_bytes}
            answer = Answer(model=model, results=await _results(gate, images))
        finally:
            held.num_requests -= 1
            held.num_bytes -= num_bytes
            gate.metrics.held.set(held.num_bytes)
            gate.metrics.seconds.observe(time.monotonic() - started)
        if all(result.error for result in answer.results):
            reasons = "; ".join(dict.fromkeys(str(result.error) for result in answer.results))
            error = {"code": "unreadable", "message": f"No image could be read: {reasons}."}
            return JSONResponse({"error": error, **answer.model_dump(exclude_none=True)}, status_code=422)
        return answer

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 while the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """200 while images can be scored; 503 where no replica runs or the server is ending."""
        if gate.draining or not gate.replicas.num_ready:
            reason = "The server is ending." if gate.draining else "No replica is running."
            raise Refused(503, "not_ready", reason, retry_after_s=5)
        return {"status": "ready", "replicas": gate.replicas.num_ready, "model": model.id}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Metrics for Prometheus; with the token where there is one."""
        check_token(request)
        gate.metrics.ready.set(gate.replicas.num_ready)
        gate.metrics.retries.set(gate.replicas.num_retries)
        return Response(gate.metrics.text(), media_type="text/plain; version=0.0.4")

    for path, (content, media_type) in page.files().items():
        app.add_api_route(path, _constant(content, media_type), include_in_schema=False)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        gate.metrics.refused.labels(error.code).inc()
        request.state.fields = {**getattr(request.state, "fields", {}), "code": error.code}
        headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s else {}
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        if error.status in (408, 413, 415, 401, 403, 429, 503):
            headers["connection"] = "close"  # what is left of the body is not read
        return _error(error.status, error.code, error.message, headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        allowed = (error.headers or {}).get("Allow", "another method")
        messages = {404: "There is nothing here. See /openapi.json.", 405: f"Use {allowed}."}
        message = messages.get(error.status_code, str(error.detail))
        return _error(error.status_code, "http", message, dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        return _error(499, "gone", "The client went away.", {})  # heard by nobody; it is in the log

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        log("failed", logging.ERROR, error=error, request=request.state.id)
        return _error(500, "failed", f"The server failed; its log has request {request.state.id}.", {})

    return app


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "byte"}}
                    },
                }
            },
        },
    }
}


async def _results(gate: Gate, images: Sequence[Sent]) -> list[Result]:
    crops = await gate.decoders.crops([image.data for image in images])
    judgements = iter(
        await gate.replicas.score([crop for crop in crops if not isinstance(crop, UnreadableImage)])
    )
    results = []
    for image, crop in zip(images, crops, strict=True):
        if isinstance(crop, UnreadableImage):
            gate.metrics.images.labels("unreadable").inc()
            results.append(Result(name=image.name, error=crop.reason, code=crop.code))
            continue
        judgement: Judgement = next(judgements)
        gate.metrics.images.labels(judgement.verdict).inc()
        gate.metrics.batch.observe(judgement.num_batch)
        results.append(
            Result(
                name=image.name,
                score=judgement.score,
                probability=judgement.probability,
                verdict=judgement.verdict,
                note=judgement.note,
            )
        )
    return results


async def _watch(replicas: Replicas) -> None:
    """Count the replicas that are running, once a second."""
    while True:
        try:
            replicas.num_ready = await asyncio.to_thread(replicas.count)
        except Exception as error:  # noqa: BLE001  the controller is itself restarted by Ray
            replicas.num_ready = 0
            log("replicas_unknown", logging.WARNING, reason=str(error).splitlines()[0] if str(error) else "")
        await asyncio.sleep(1)


def _error(status: int, code: str, message: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)


def _constant(content: str, media_type: str) -> Any:
    async def constant() -> Response:
        return Response(content, media_type=media_type)

    return constant


class _Account:
    """Every request gets an id, the headers of a careful server, a line in the log and a place in the metrics."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500
        state = scope.setdefault("state", {})
        state["id"] = uuid.uuid4().hex[:16]

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    *_HEADERS,
                    (b"x-request-id", state["id"].encode()),
                ]
            await send(message)

        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        self._gate.metrics.in_flight.inc()
        try:
            if size > MAX_HEADER_BYTES:  # the parser lets those pass that arrive in one piece
                message = f"The address and the headers have more than {MAX_HEADER_BYTES:,} bytes."
                response = _error(431, "large_headers", message, {"connection": "close"})
                await response(scope, receive, with_headers)
            else:
                await self._app(scope, receive, with_headers)
        finally:
            self._gate.metrics.in_flight.dec()
            route = scope.get("route")
            path = getattr(route, "path", "other")  # never what the client made up
            self._gate.metrics.requests.labels(path, str(status)).inc()
            log(
                "request",
                request=state["id"],
                client=scope["client"][0] if scope.get("client") else None,
                method=scope["method"][:16],
                path=path,
                status=status,
                ms=round(1000 * (time.monotonic() - started), 1),
                **state.get("fields", {}),
            )
