"""What all commands share: progress, endings, terminals that lack characters, readers that go away."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from causal_tune.cli.ending import Ending
from causal_tune.cli.output import Bar, Pace, err
from causal_tune.errors import Interrupted

ROOT = Path(__file__).parents[1]

TABLE = (
    "from causal_tune.cli.output import errors_as_paragraphs, out, table\n"
    "with errors_as_paragraphs():\n"
    "    out.print(table('mean ± 1', ['generator', 'AP'], [['†gan', '81 ± 2']]))\n"
    "    out.print('and on')\n"
)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
    )


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_elapsed_and_remaining_time_are_told_apart_and_remaining_counts_down(clock: Clock) -> None:
    pace = Pace("images", clock)
    pace.tell(64, is_waiting=True)  # of an earlier run
    clock.now = 20.0
    assert (pace.rate(), pace.times(364)) == ("", "0:20")
    pace.tell(64, is_waiting=False)
    clock.now = 30.0
    pace.tell(164, is_waiting=False)
    assert (pace.rate(), pace.times(364)) == ("10.0 images/s", "0:30<0:20")
    clock.now = 35.0  # nothing new has come
    assert pace.times(364) == "0:35<0:15"
    clock.now = 100.0
    assert pace.times(364) == "1:40<0:00"
    pace.tell(364, is_waiting=False)
    assert pace.times(364) == "1:40"


@pytest.mark.parametrize(
    ("seconds", "rate"), [(0.5, "2.0 trials/s"), (7.42, "7.4 s/trial"), (61.0, "61 s/trial")]
)
def test_slow_units_have_seconds_each(clock: Clock, seconds: float, rate: str) -> None:
    pace = Pace("trials", clock)
    pace.tell(0, is_waiting=False)
    clock.now = seconds
    pace.tell(1, is_waiting=False)
    assert pace.rate() == rate


def test_off_a_terminal_each_stage_and_tenth_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("Study mine", 20, "trials")
    bar.close()
    assert capsys.readouterr().err == ""  # nothing was told of it
    bar.stage("starting Ray", 8)
    bar.stage("starting Ray", 8)
    for done in (8, 9, 10):
        bar.update(done, "best AP 96.48")
    assert capsys.readouterr().err.splitlines() == [
        "Study mine: starting Ray.",
        "Study mine: 8 of 20 trials. best AP 96.48",
        "Study mine: 10 of 20 trials. best AP 96.48",
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_on_a_terminal_the_bar_begins_where_an_earlier_run_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr(err, "is_interactive", True)
    monkeypatch.setattr(err, "_force_terminal", True)
    monkeypatch.setattr(err, "_width", width)
    bar = Bar("Study mine", 16, "trials")
    bar.stage("starting Ray", 8)
    bar.update(8, "best val_generators 96.48, 2 failed")
    bar.close()
    shown = capsys.readouterr().err
    assert "starting" in shown
    assert "8/16" in shown
    assert "0/16" not in shown
    assert "96.48" in shown
    assert "…" not in shown


def test_parts_of_a_bar_count_on(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("Finalists of mine", 0, "trainings")
    bar.resize(30)
    first, second = bar.part("stage 1 of 2", 0), bar.part("stage 2 of 2", 10)
    first.stage("starting Ray", 0)
    first.follow(10, 10)
    second.stage("starting Ray", 0)
    second.follow(20, 20, "best AP 96.48")
    assert capsys.readouterr().err.splitlines() == [
        "Finalists of mine: stage 1 of 2, starting Ray.",
        "Finalists of mine: 10 of 30 trainings. stage 1 of 2",
        "Finalists of mine: stage 2 of 2, starting Ray.",
        "Finalists of mine: 30 of 30 trainings. stage 2 of 2, best AP 96.48",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_characters_shows_the_others(encoding: str) -> None:
    done = python(TABLE, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "gan" in done.stdout
    assert "and on" in done.stdout
    done.stdout.encode(encoding, errors="surrogateescape")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_nothing(stream: str, tmp_path: Path) -> None:
    console = "out" if stream == "stdout" else "err"
    code = (
        f"import sys; from pathlib import Path; from causal_tune.cli.output import {console}, errors_as_paragraphs\n"
        "with errors_as_paragraphs():\n"
        f"    for _ in range(100): {console}.print('x' * 2000)\n"
        f"    Path({str(tmp_path / 'ended')!r}).touch()\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: pipe}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, **streams
        )
    assert done.returncode == 0
    assert not done.stdout
    assert not done.stderr
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("words", [["encoders"], ["encoders", "--json"]])
def test_a_command_whose_reader_goes_away_ends_with_0_and_without_a_word(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "causal_tune", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("KeyboardInterrupt", "Stopped.\n"),
        (
            "Interrupted('The study was stopped. 3 of 8 trials are kept.')",
            "Stopped: The study was stopped. 3",
        ),
    ],
)
def test_what_is_interrupted_ends_with_130_and_a_sentence(raised: str, said: str) -> None:
    done = python(
        "from causal_tune.cli.output import errors_as_paragraphs\n"
        "from causal_tune.errors import Interrupted\n"
        f"with errors_as_paragraphs(): raise {raised}\n"
    )
    assert done.returncode == 130 == 128 + signal.SIGINT
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


def test_an_interruption_is_no_problem_of_a_step() -> None:
    def stopped() -> None:
        raise Interrupted("The study was stopped.")

    with pytest.raises(Interrupted):
        Ending().step("The terms were not measured", "causal-tune finalists real", stopped)


def test_modules_of_the_working_folder_are_not_taken_for_others(tmp_path: Path) -> None:
    for name in ("queue", "random", "numpy", "click"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('of the working folder')\n")
    done = subprocess.run(
        [sys.executable, "-m", "causal_tune", "encoders"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
