"""Calls in a child process that really crash, hang and hunger."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from causal_tune.errors import UnreadableImage
from causal_tune.images import isolated as module
from causal_tune.images.decode import decode_crop
from causal_tune.images.isolated import isolated
from tests.images import misbehaving
from tests.images.pictures import encode, smooth


def outcomes(*words: object, **options: object) -> list[object]:
    return [
        str(found) if isinstance(found, UnreadableImage) else found for found in isolated(*words, **options)
    ]


def child_of_this_thread() -> int:
    return next(isolated(os.getpid, [()]))


def test_results_come_in_order_from_one_child_that_stays() -> None:
    numbers = range(200)  # several questions
    assert outcomes(divmod, [(number, 7) for number in numbers]) == [divmod(number, 7) for number in numbers]
    assert set(outcomes(os.getpid, [()] * 70)) == {child_of_this_thread()}
    assert child_of_this_thread() != os.getpid()
    assert outcomes(divmod, []) == []


def test_arrays_are_the_same_and_the_callers_own() -> None:
    data = [encode(smooth(250, 240, seed), "PNG") for seed in range(3)]
    for found, one in zip(isolated(decode_crop, [(one,) for one in data]), data, strict=True):
        assert np.array_equal(found, decode_crop(one))
        found[:] = 0


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_costs_one_call(number: signal.Signals) -> None:
    harmless = signal.SIGWINCH
    calls = [(harmless,), (number,), (harmless,), (number,)]
    reason = f"the decoder crashed (signal {int(number)})"
    assert outcomes(signal.raise_signal, calls) == [None, reason, None, reason]


def test_an_exit_costs_one_call() -> None:
    assert outcomes(os._exit, [(3,)]) == ["the decoder crashed (exit code 3)"]


def test_a_call_that_waits_for_ever_costs_itself() -> None:
    begin = time.monotonic()
    reason = "decoding took longer than 0.5 s"
    assert outcomes(time.sleep, [(0,), (60,), (0,)], limit_s=0.05) == [None, reason, None]
    assert time.monotonic() - begin < 30


def test_a_call_that_never_returns_from_c_costs_itself() -> None:
    words = ("(a+)+$", "a" * 64 + "b")
    assert outcomes(re.match, [words], limit_s=0.3) == ["decoding took more than 0.3 s of processor time"]


def test_the_limit_is_for_one_call_not_for_all() -> None:
    assert outcomes(time.sleep, [(0.1,)] * 8, limit_s=0.06) == [None] * 8


def test_hunger_costs_one_call() -> None:
    assert outcomes(np.ones, [(1,), (2**33,), (1,)])[1] == "decoding needs more than 4 GiB of memory"


def test_a_child_that_is_killed_from_outside_costs_no_image(tmp_path) -> None:
    calls = [(str(tmp_path / name),) for name in ("a", "b")]
    assert outcomes(misbehaving.crash_once, calls) == ["alive", "alive"]
    os.kill(child_of_this_thread(), signal.SIGKILL)
    assert outcomes(divmod, [(7, 2)]) == [(3, 1)]


def test_a_bug_is_raised_not_quarantined(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match="a bug"):
        outcomes(misbehaving.fail, [(1,)])
    with pytest.raises((AttributeError, TypeError)):  # cannot be pickled
        outcomes(lambda: 1, [()])
    monkeypatch.setattr(misbehaving.only_here, "__module__", "nowhere")  # not to be imported in the child
    monkeypatch.setitem(sys.modules, "nowhere", misbehaving)
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        outcomes(misbehaving.only_here, [()] * 3)
    assert outcomes(divmod, [(7, 2)]) == [(3, 1)]


def test_a_child_that_cannot_start_is_no_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    os.kill(child_of_this_thread(), signal.SIGKILL)
    monkeypatch.setattr(module, "_START", "raise SystemExit(5)")
    with pytest.raises(RuntimeError, match="did not start: exit code 5"):
        outcomes(divmod, [(1, 1)])


def test_generators_that_are_interleaved_or_left_do_not_mix() -> None:
    calls = [(number, 7) for number in range(80)]
    one, other = isolated(divmod, calls), isolated(max, calls)
    pairs = [(next(one), next(other)) for _ in range(40)]
    assert pairs == [(divmod(number, 7), max(number, 7)) for number in range(40)]
    del one, other
    assert outcomes(divmod, [(7, 2)]) == [(3, 1)]


def test_each_thread_has_a_child_that_ends_with_it() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(child_of_this_thread()))
    thread.start()
    thread.join()
    assert found[0] != child_of_this_thread()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(found[0], 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("the child outlived its thread")


def test_a_forked_process_gets_a_child_of_its_own() -> None:
    mine = child_of_this_thread()
    read, write = os.pipe()
    forked = os.fork()
    if forked == 0:
        os.write(write, str(child_of_this_thread()).encode())
        os._exit(0)
    os.waitpid(forked, 0)
    assert int(os.read(read, 100)) != mine
    assert child_of_this_thread() == mine


def test_the_child_dies_with_its_killed_owner() -> None:
    script = (
        "import os, time; from causal_tune.images.isolated import isolated; "
        "print(next(isolated(os.getpid, [()])), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        child = int(owner.stdout.readline())
        os.kill(child, 0)
        owner.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("the child outlived its owner")


def test_the_child_starts_light() -> None:
    loaded = next(isolated(misbehaving.modules, [()]))
    assert not {"torch", "ray", "pyarrow", "sklearn"} & set(loaded)
