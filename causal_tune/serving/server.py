"""The process of `causal-tune serve`: it listens, ends slow connections, and drains when it is asked to end."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from causal_tune.errors import InvalidConfig
from causal_tune.serving.app import MAX_HEADER_BYTES, Gate, make_app
from causal_tune.serving.records import log

__all__ = ["listen", "run"]


class _Impatient(H11Protocol):
    """Ends a connection whose request line and headers do not arrive in time: uvicorn would wait for ever."""

    read_timeout_s = 30.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel()
        elif self._deadline is None and self.conn.trailing_data[0]:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(self.read_timeout_s, self._expire)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        text = b'{"error":{"code":"too_slow","message":"The headers did not arrive in time."}}'
        self.transport.write(
            b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(text), text)
        )
        self.transport.close()


class _Server(uvicorn.Server):
    """SIGTERM and Ctrl-C end it once what it has begun is answered; Ctrl-C again ends it at once."""

    def __init__(
        self, config: uvicorn.Config, gate: Gate, drain_delay_s: float, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._gate = gate
        self._drain_delay_s = drain_delay_s
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        yield
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _end(self, number: int) -> None:
        log("draining", signal=signal.Signals(number).name)
        if self._gate.draining:
            self.handle_exit(number, None)
            return
        self._gate.draining = True
        asyncio.get_running_loop().call_later(self._drain_delay_s, self.handle_exit, number, None)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; `InvalidConfig` where the address is taken or not of this machine."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends small packets at once only where the protocol is named: 40 ms an answer otherwise
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        raise InvalidConfig(
            f"The address {host}:{port} cannot be listened on: {error.strerror or error}. Name another --port "
            "(0 takes a free one) or --host."
        ) from error
    return bound


def run(
    gate: Gate,
    bound: socket.socket,
    *,
    drain_delay_s: float = 1.0,
    drain_s: int,
    announce: Callable[[], None],
) -> None:
    """Answer until SIGTERM or Ctrl-C, then finish what was begun.

    For `drain_delay_s` seconds /readyz says no while connections are still taken, so that a load balancer can look
    elsewhere; then no more are taken, and what was begun has `drain_s` seconds.

    `announce` is called once connections are accepted.
    """
    protocol = type("Impatient", (_Impatient,), {"read_timeout_s": gate.limits.read_timeout_s})
    config = uvicorn.Config(
        make_app(gate),
        http=protocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # whoever connects is who is counted
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=4 * gate.limits.max_requests,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=drain_s,
        backlog=1024,
    )
    _Server(config, gate, drain_delay_s, announce).run([bound])
