"""Decoders that do what C code can do to the process that it runs in. Imported in the child process."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from causal_tune.images.views import ViewCrop, read_views


def read(path: str, sha256: str | None, preprocessing: Any, views: list[str]) -> list[ViewCrop | str]:
    """`read_views`, and for files of certain names a real end of the process."""
    name = Path(path).name
    if "crash" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hunger" in name:
        np.ones(2**33, np.uint8)
    return read_views(path, sha256, preprocessing, views)


def crash(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def crash_once(marker: str) -> str:
    """Die as if killed from outside, at the first call only."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def fail(_: int) -> None:
    raise KeyError("a bug")


def modules() -> list[str]:
    return sorted(sys.modules)


def only_here() -> None:
    """Its module is given another name by the test."""
