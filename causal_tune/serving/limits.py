"""What the gate accepts, and who has asked too often."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from causal_tune.errors import InvalidConfig
from causal_tune.images.headers import MAX_PIXELS

__all__ = ["Limits", "Rate", "Refused"]


class Refused(Exception):
    """A request that is answered with an error: an HTTP status, a word for programs, and a sentence for people."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one request, one client and all of them together may take."""

    max_body_bytes: int = 32 * 2**20
    """Of one request, as it is sent."""
    max_images: int = 32
    """In one request."""
    max_pixels: int = 50_000_000
    """Width x height of one image, read in its header before any pixel is decoded."""
    rate: float = 50.0
    """Requests a second and client address; twice as many may come at once. 0: no limit."""
    read_timeout_s: float = 30.0
    """For the headers of a request, and again for its body, to arrive."""
    answer_timeout_s: float = 60.0
    """For an answer of the replicas, their restarts included; then 503."""
    max_requests: int = 256
    """Being read, decoded or scored at a time; more get a 503."""
    max_held_bytes: int = 512 * 2**20
    """Of all bodies that are being read, decoded or scored; more get a 503."""
    decode_limit_s: float = 10.0
    """Processor time for decoding one image."""

    def __post_init__(self) -> None:
        if self.max_pixels > MAX_PIXELS:
            raise InvalidConfig(
                f"An image of {self.max_pixels:,} pixels is asked for; none above {MAX_PIXELS:,} is decoded. "
                "Name a smaller limit."
            )
        if self.max_held_bytes < self.max_body_bytes:
            raise InvalidConfig(
                f"A body may have {self.max_body_bytes:,} bytes and all of them together {self.max_held_bytes:,}: "
                "no body of the largest size would ever be read. Name a smaller limit of one body."
            )


class Rate:
    """A bucket of requests for each client address, filled again at `rate` a second.

    >>> rate = Rate(1.0, clock=iter([0.0, 0.0, 0.0, 0.5, 1.0]).__next__)
    >>> [rate.wait_s("a") for _ in range(5)]
    [0.0, 0.0, 1.0, 0.5, 0.0]
    """

    _MAX_CLIENTS = 10_000  # the one that was silent longest is forgotten first

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(2 * rate, 1.0)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str) -> float:
        """0 where the client may ask now, which is counted; else the seconds until it may."""
        if not self._rate:
            return 0.0
        now = self._clock()
        left, last = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - last) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > self._MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate
