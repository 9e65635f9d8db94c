"""Files that are either whole or absent, and what the operating system refuses, in sentences.

A file is written under a temporary name beside its own, then renamed. `DiskError` says what cannot be written and
what to do; it is raised in a worker as in the driver.
"""

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from causal_tune.errors import DiskError

__all__ = [
    "atomic_directory",
    "atomic_path",
    "check_target",
    "disk_error",
    "is_full",
    "write_json",
    "write_text",
    "writing",
]

_FULL = {
    errno.ENOSPC: "has no space left",
    errno.EDQUOT: "has no space left within your quota",
    errno.EFBIG: "takes no file as large as this one",
}
_ELSEWHERE = "Name another place, and run the same command again."
_REFUSED = {
    errno.EROFS: f"its file system is read-only. {_ELSEWHERE}",
    errno.EACCES: "permission denied. Change the permissions there, or name another place.",
    errno.EPERM: "the operation is not permitted. Change the permissions there, or name another place.",
    errno.ENOTDIR: f"a part of its path is a file, not a folder. {_ELSEWHERE}",
    errno.EEXIST: f"a file is where a folder is needed. {_ELSEWHERE}",
    errno.EISDIR: f"it is a folder. {_ELSEWHERE}",
    errno.EBUSY: "it is in use, as a mount point is. Name a folder below it.",
    errno.ELOOP: f"its symbolic links go in a circle. {_ELSEWHERE}",
    errno.EIO: "the disk failed (input/output error). Check the disk, or name a place on another one.",
    errno.EMFILE: "this process has too many files open. Raise the limit with `ulimit -n`, and run it again.",
}
_WORDS = {
    "No space left": errno.ENOSPC,
    "disk is full": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "readonly database": errno.EROFS,
    "File name too long": errno.ENAMETOOLONG,
}
"""How libraries tell it that raise errors of their own."""

_PROBE_BYTES = 4096


def disk_error(error: BaseException, path: Path | None = None) -> DiskError | None:
    """`error` as a sentence about `path`, or the path that it names; None where it is no matter of the disk's."""
    if isinstance(error, DiskError):
        return error
    number = _number(error)
    verb = "written" if path is not None else "used"
    named = error.filename if isinstance(error, OSError) else None
    if isinstance(named, str | bytes) and (path is None or not _is_temporary(Path(os.fsdecode(named)))):
        path = Path(os.fsdecode(named))
    place = "A file" if path is None else str(path)
    if number in _FULL:
        where = "of the file's folder" if path is None else f"of {path.parent}"
        return DiskError(
            f"The disk {where} {_FULL[number]}: {place} was not written, and no part of it is left. What was "
            "finished before is kept. Free some space, or name a place on another disk, and run the same command "
            "again."
        )
    if number == errno.ENAMETOOLONG:
        longest = max(map(len, map(os.fsencode, path.parts)), default=0) if path is not None else 0
        return DiskError(
            f"{place[:80]}... cannot be {verb}: its name is too long ({longest:,} bytes; most file systems take 255 "
            "for a name and 4,096 for a path). Give a shorter one."
        )
    return DiskError(f"{place} cannot be {verb}: {_REFUSED[number]}") if number in _REFUSED else None


def is_full(error: BaseException) -> bool:
    """Whether the error, or what it was made of, is that of a full disk."""
    return _number(error) in _FULL or (error.__cause__ is not None and is_full(error.__cause__))


def _is_temporary(path: Path) -> bool:
    return any(part.startswith(".") and part.endswith((".tmp", ".old")) for part in path.parts)


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return next((number for words, number in _WORDS.items() if words in str(error)), None)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, what the operating system refuses is a `DiskError` about `path`."""
    try:
        yield
    except Exception as error:
        refused = disk_error(error, path)
        if refused is None or refused is error:
            raise
        raise refused from error


def check_target(path: Path) -> None:
    """`DiskError` where `path`, a file or folder to be made, cannot be written: asked before the work it is for."""
    path = path.absolute()
    try:
        with writing(path):
            with suppress(FileNotFoundError):
                path.lstat()  # refuses a name that is too long, and a path through a file
            above = next(parent for parent in path.parents if parent.exists())
            for folder in (above, path) if path.is_dir() else (above,):
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(bytes(_PROBE_BYTES))
    except DiskError as error:
        error.exit_code = 2
        raise


def _temporary(path: Path, ending: str) -> Path:
    name = path.name if len(os.fsencode(path.name)) <= 200 else path.name[:40]  # room for what is added
    return path.with_name(f".{name}.{uuid.uuid4().hex[:8]}.{ending}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it on success, removed on any error.

    The file's bytes reach the disk before the rename, so that a name never stands for half a file. `DiskError`
    where it cannot be written.
    """
    temporary = _temporary(path, "tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` on success; an existing `path` is replaced. `DiskError` as above."""
    temporary = _temporary(path, "tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            if path.exists():
                previous = _temporary(path, "old")
                path.rename(previous)
                temporary.rename(path)
                shutil.rmtree(previous)
            else:
                temporary.rename(path)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
