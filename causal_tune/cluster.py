"""Connecting to Ray: a local one made for this process, or the cluster that an address names."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from causal_tune.errors import StudyError

__all__ = ["connected", "has_other_nodes"]

_QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_ANSWER_TIMEOUT_S = 10

_is_local = True
"""Whether this process started the Ray that it is connected to."""


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """A Ray to work on, for the length of the `with` block.

    `address` is that of a cluster (`auto`, `host:6379`); without one, `RAY_ADDRESS` counts (it is
    set inside `ray job submit`), and without that a local Ray is started and ended again. An
    already connected process stays as it is. `StudyError` where the cluster does not answer.
    """
    import ray  # here, for what needs no Ray need not wait for it

    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    global _is_local
    _is_local = not address
    try:
        if address:
            _check_answers(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            # `local`: without it Ray joins whatever cluster someone else has started on this machine
            ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise StudyError(
            f"No Ray answers at {address or 'this machine'}: {words}. Start one with `ray start --head`, correct "
            "--address, set RAY_AUTH_MODE (and the token) as the cluster has it, or leave --address out to use a "
            "local Ray."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """`OSError` where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_TIMEOUT_S).close()


def has_other_nodes() -> bool:
    """Whether the connected Ray is a cluster that has, or may get, nodes beside this one."""
    import ray

    return not _is_local or sum(node["Alive"] for node in ray.nodes()) > 1
