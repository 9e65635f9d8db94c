"""What the gate tells those who run it: one JSON line a request, and metrics for Prometheus. No image, no token."""

import json
import logging
import sys
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["JsonLines", "Metrics", "log", "log_to_stderr"]

_LOGGER = logging.getLogger("causal_tune.serving")


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, event and the fields given with it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr() -> None:
    """Send the lines of the gate and what uvicorn warns of to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for logger, level in ((_LOGGER, logging.INFO), (logging.getLogger("uvicorn"), logging.WARNING)):
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log(event: str, level: int = logging.INFO, *, error: BaseException | None = None, **fields: Any) -> None:
    """Write one line."""
    _LOGGER.log(level, event, extra={"fields": fields}, exc_info=error)


class Metrics:
    """Counters, gauges and histograms of one gate."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "causal_tune_requests",
            "Requests answered, by path and status.",
            ["path", "status"],
            registry=registry,
        )
        self.refused = Counter(
            "causal_tune_refused",
            "Requests refused, by the code in their answer.",
            ["code"],
            registry=registry,
        )
        self.images = Counter(
            "causal_tune_images",
            "Images by verdict; `unreadable` where there is none.",
            ["verdict"],
            registry=registry,
        )
        self.seconds = Histogram(
            "causal_tune_request_seconds",
            "From the headers of a request for scores to its answer.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.batch = Histogram(
            "causal_tune_batch_images",
            "Images of the forward pass that an image went through.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.in_flight = Gauge(
            "causal_tune_requests_in_flight", "Requests being answered.", registry=registry
        )
        self.held = Gauge(
            "causal_tune_held_bytes", "Bodies being read, decoded or scored.", registry=registry
        )
        self.ready = Gauge("causal_tune_replicas_ready", "Replicas that are running.", registry=registry)
        self.retries = Gauge("causal_tune_retries", "Images given to another replica.", registry=registry)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
