"""Run a function in a child process, so that its crash, hang or hunger costs one call and not the caller.

Image files come from anywhere, and the libraries that decode them are C: a file can end the process that
reads it. So images are decoded in a child, one for each thread that asks, started at its first call and
used for all later ones: a start costs as much as decoding some sixty images.

The child is a fresh interpreter (`subprocess`), neither forked (a Ray worker has threads that hold locks)
nor started by `multiprocessing`, which would import the caller's main module again. It guards itself:
alarms whose action is death end a call that takes too long, even inside C; a limit of its address space
turns a blow-up into a failed allocation. It ends when its connection closes, so it outlives nobody.

Questions and the word that they are answered pass through a socket, sixteen calls at a time: to wake
the other side for every image would cost a tenth of decoding it. The answers lie in a file in memory, each
whole before the next call begins, so that a death loses none of those before it. Linux only.
"""

import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

import numpy as np
from PIL import AvifImagePlugin

from causal_tune.errors import UnreadableImage
from causal_tune.images.files import access_environment

__all__ = ["LIMIT_S", "MAX_MEMORY_BYTES", "PATIENCE", "isolated", "serve"]

T = TypeVar("T")

LIMIT_S = 30.0
"""Processor time after which a call is ended: six times what the largest images take, progressive JPEGs."""

PATIENCE = 10
"""Times the limit, by the clock, after which a call is ended too: it waits for something that does not come."""

MAX_MEMORY_BYTES = 4 * 2**30
"""Address space of the child: an image of `MAX_PIXELS` passes in every mode."""

_CALLS_AT_ONCE = 16  # their crops, 2.4 MB, are still in the cache when they are read

_START = (
    "import sys; sys.path[:] = sys.argv[3:]; from causal_tune.images.isolated import serve; "
    "serve(int(sys.argv[1]), int(sys.argv[2]))"
)
_FRUGAL = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""Environment of the child: threads reserve address space by the core, which the limit is not meant for."""

_HEAD = struct.Struct("<QQ")
"""Head of the file: number of the question, and how many of its calls are answered in what follows."""

_ANSWER = struct.Struct("<QQ")
"""Head of an answer: bytes of the sizes of its arrays, and of its pickle, both of which precede the arrays."""

_threads = threading.local()


def isolated(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], limit_s: float = LIMIT_S
) -> Iterator[T | UnreadableImage]:
    """`function(*call)` for each of `calls`, in order, computed in this thread's child process.

    An `UnreadableImage` that `function` raises stands in the place of its result; so does one for a call
    that kills the child (twice, so that whoever kills the child from outside costs no image), needs more
    than `limit_s` seconds of processor time (so that a busy machine costs no image either), `PATIENCE` times
    that by the clock, or more memory than `MAX_MEMORY_BYTES`. Any other exception is raised here. `function`
    has to be one of a module, which is imported in the child.

    >>> list(isolated(os.path.basename, [("/a/b.png",), ("/a/c.png",)]))
    ['b.png', 'c.png']
    >>> list(isolated(signal.raise_signal, [(signal.SIGSEGV,)]))
    [UnreadableImage('the decoder crashed (signal 11)')]
    """
    num_done = num_deaths = 0  # deaths at the call that is next
    while num_done < len(calls):
        child = _this_threads_child()
        answers, status = child.run(function, calls[num_done : num_done + _CALLS_AT_ONCE], limit_s)
        for is_result, answer in answers:
            if isinstance(answer, MemoryError):
                gib = MAX_MEMORY_BYTES / 2**30
                answer = UnreadableImage(f"decoding needs more than {gib:g} GiB of memory")
            elif not is_result and not isinstance(answer, UnreadableImage):
                raise answer
            yield answer
        num_done += len(answers)
        if status is not None:
            num_deaths = 1 if answers else num_deaths + 1
            if status in (-signal.SIGPROF, -signal.SIGALRM) or num_deaths == 2:
                yield UnreadableImage(_death(status, limit_s))
                num_done += 1
                num_deaths = 0


def _this_threads_child() -> "_Child":
    child: _Child | None = getattr(_threads, "child", None)
    # a forked process must not talk to its parent's child, nor a child read with credentials of before
    if (
        child is None
        or not child.stop.alive
        or (child.owner, child.environment) != (os.getpid(), access_environment())
    ):
        child = _threads.child = _Child()
    return child


def _death(status: int, limit_s: float) -> str:
    if status == -signal.SIGPROF:
        return f"decoding took more than {limit_s:g} s of processor time"
    if status == -signal.SIGALRM:
        return f"decoding took longer than {PATIENCE * limit_s:g} s"
    if status == -signal.SIGKILL:  # what the kernel sends when memory runs out
        return "the decoder was killed (signal 9), probably for want of memory"
    return f"the decoder crashed ({f'signal {-status}' if status < 0 else f'exit code {status}'})"


class _Child:
    """One child process, the connection to it and the file of its answers; ended when this object is."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.environment = access_environment()
        self._num_questions = 0
        self._file = os.memfd_create("answers")
        os.pwrite(self._file, _HEAD.pack(0, 0), 0)
        self._connection, theirs = Pipe()
        with theirs:
            descriptors = (theirs.fileno(), self._file)
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _START, *map(str, descriptors), *sys.path],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a command's JSON is there
                env={**os.environ, **_FRUGAL},
            )
        self.stop = weakref.finalize(self, _stop, self._connection, self._file, process)
        try:
            self._connection.recv()
        except EOFError as error:  # no image's fault
            code = self.stop()
            raise RuntimeError(f"the process that decodes images did not start: exit code {code}") from error

    def run(
        self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]], limit_s: float
    ) -> tuple[list[tuple[bool, Any]], int | None]:
        """(True, result) or (False, what was raised) for each call, and None; the exit code after a death."""
        self._num_questions += 1
        file, dead = self._file, False
        try:
            self._connection.send((self._num_questions, pickle.dumps((function, calls, limit_s))))
            self._connection.recv()
        except (EOFError, OSError):
            file, dead = os.dup(file), True  # stopping closes it
        except BaseException:  # interrupted: the next question must not be given this one's answers
            self.stop()
            raise
        status = self.stop() if dead else None
        try:
            return list(_read_answers(file, self._num_questions)), status
        finally:
            if dead:
                os.close(file)


def _stop(connection: Connection, file: int, process: "subprocess.Popen[bytes]") -> int:
    """Close what leads to the child and give its exit code; a child that does not end by itself is killed."""
    connection.close()
    os.close(file)
    try:
        return process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _write_answer(file: int, offset: int, answer: tuple[bool, Any]) -> int:
    """Write a pickle and behind it the arrays in it, uncopied; gives where the next answer goes."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
    return offset + os.pwritev(file, [_ANSWER.pack(len(sizes), len(body)), sizes, body, *views], offset)


def _read_answers(file: int, question: int) -> Iterator[tuple[bool, Any]]:
    """The answers to a question; none where the file still holds those to the one before."""
    number, num_answers = _HEAD.unpack(os.pread(file, _HEAD.size, 0))
    offset = _HEAD.size
    for _ in range(num_answers if number == question else 0):
        num_bytes, num_body = _ANSWER.unpack(os.pread(file, _ANSWER.size, offset))
        offset += _ANSWER.size
        text = os.pread(file, num_bytes + num_body, offset)
        offset += len(text)
        buffers = [np.empty(size, np.uint8).data for (size,) in struct.iter_unpack("<Q", text[:num_bytes])]
        if buffers:
            offset += os.preadv(file, buffers, offset)
        yield pickle.loads(text[num_bytes:], buffers=buffers)


def serve(connection_descriptor: int, file: int) -> None:
    """The child's life: answer questions until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller decides
    for alarm in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(alarm, signal.SIG_DFL)  # death, without waiting for Python's turn
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF, signal.SIGALRM})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MAX_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded side by side already
    with Connection(connection_descriptor) as connection:
        connection.send("ready")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries print about a file, its reason says
        while True:
            try:
                number, question = connection.recv()
            except EOFError:
                return
            offset = _HEAD.size
            for num_done, answer in enumerate(_answers(question), start=1):
                offset = _write_answer(file, offset, answer)
                os.pwrite(file, _HEAD.pack(number, num_done), 0)  # last: an answer is whole or not counted
            connection.send("done")


def _answers(question: bytes) -> Iterator[tuple[bool, Any]]:
    """(True, result) or (False, what was raised) for each call; raised errors are the other side's to judge."""
    try:
        function, calls, limit_s = pickle.loads(question)
    except Exception as error:  # noqa: BLE001  the function's module cannot be imported here
        yield False, error
        return
    for call in calls:
        _set_alarms(limit_s)
        try:
            answer = True, function(*call)
        except Exception as error:  # noqa: BLE001
            answer = False, error
        _set_alarms(0)
        yield answer


def _set_alarms(limit_s: float) -> None:
    """Of this process's own time, and by the clock; 0 takes them back."""
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * limit_s)
