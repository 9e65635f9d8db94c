"""One writer a folder: a lock that names its owner and does not outlive it."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from causal_tune.atomic import check_target, writing
from causal_tune.errors import StudyError

__all__ = ["is_owned", "owned"]


@contextmanager
def owned(folder: Path, work: str) -> Iterator[None]:
    """Be the only process that does `work` in `folder`; the operating system frees a dead owner's lock.

    `StudyError` that names the owner where another process holds it, `DiskError` where the folder cannot be
    written.
    """
    check_target(folder / ".lock")
    owner_path = folder / ".owner.json"
    lock = FileLock(str(folder / ".lock"))
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout:
        try:
            owner = json.loads(owner_path.read_text())
        except (OSError, json.JSONDecodeError):
            # the owner is between taking the lock and writing its name
            owner = {}
        raise StudyError(
            f"Another process is already doing this {work} in {folder}: process {owner.get('pid', '?')} on "
            f"{owner.get('host', '?')}, since {owner.get('since', '?')}. Wait for it, or end it and run the "
            "same command again: it continues."
        ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with writing(owner_path):
            owner_path.write_text(json.dumps(owner))
        yield
    finally:
        owner_path.unlink(missing_ok=True)
        lock.release()


def is_owned(folder: Path) -> bool:
    """Whether a process holds the lock of `folder` at this moment."""
    if not (folder / ".owner.json").exists():  # a killed owner leaves it behind
        return False
    lock = FileLock(str(folder / ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
