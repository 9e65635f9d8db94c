"""What every command shares: the workspace, `--json`, errors as paragraphs, progress on stderr."""

import io
import json
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from causal_tune.atomic import check_target, disk_error
from causal_tune.errors import CausalTuneError, DiskError, InferredArchitecture, Interrupted, InvalidConfig
from causal_tune.wording import title_of, visible

__all__ = [
    "METRIC_COLUMNS",
    "Bar",
    "PlainConsole",
    "check_folder",
    "emit",
    "err",
    "errors_as_paragraphs",
    "json_option",
    "metrics_rows",
    "names",
    "out",
    "percent",
    "progress_bar",
    "table",
    "under_workspace",
    "workspace_option",
    "workspace_words",
    "writable",
]

F = TypeVar("F", bound=Callable[..., Any])


class PlainConsole(Console):
    """Prints text as it is: brackets and colons are no markup, and what no reader sees is written as escapes.

    A reader that goes away (`head`, a pager) ends no work.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False)
        if not self.is_terminal and "width" not in options:
            self.width = 160  # a file or a pipe has no width to keep to

    def render_str(self, text: str, **options: Any) -> Text:
        """The text of a string that is printed, or of a cell or title of a table."""
        return super().render_str(visible(text, keep="\n"), **options)

    def on_broken_pipe(self) -> None:
        """Called by rich: what else is written has no reader."""
        _drop(sys.stderr if self.stderr else sys.stdout)


def _drop(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


out = PlainConsole()
err = PlainConsole(stderr=True)


@contextmanager
def errors_as_paragraphs() -> Iterator[None]:
    """Print a `CausalTuneError`, or what a disk refuses, as one paragraph on stderr and exit with its code.

    Ctrl-C exits with 130. Neither a terminal that lacks characters nor a reader that has enough (`head`) is an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with _notes():
            yield
        sys.stdout.flush()
    except CausalTuneError as error:
        _say(error)
    except KeyboardInterrupt:
        err.print(Text.assemble(("Stopped", "bold red"), "."))
        _end(Interrupted.exit_code)
    except BrokenPipeError:
        _drop(sys.stdout)
        sys.exit(0)
    except OSError as error:
        refused = disk_error(error)
        if refused is None:
            raise
        _say(refused)


@contextmanager
def _notes() -> Iterator[None]:
    """Within it, what is to be known of an encoder's architecture is printed once, and not as a line of Python."""
    before, told = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, InferredArchitecture):
            before(message, category, *where, **more)
        elif str(message) not in told:
            told.add(str(message))
            err.print(f"Note: {message}", soft_wrap=not err.is_terminal)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _say(error: CausalTuneError) -> NoReturn:
    kind = "Stopped: " if isinstance(error, Interrupted) else "Error: "
    words = visible(str(error) + _where_paths_lead(str(error)), keep="\n")
    err.print(Text.assemble((kind, "bold red"), words), soft_wrap=not err.is_terminal)
    _end(error.exit_code)


def _end(code: int) -> NoReturn:
    if code == Interrupted.exit_code:  # another Ctrl-C while Ray ends would be a traceback
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
    sys.exit(code)


def json_option(command: F) -> F:
    """`--json`: one JSON document on stdout instead of the table."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout; progress goes to stderr."
    )(command)


def workspace_option(command: F) -> F:
    """`--workspace`: where indexes, stores, studies, detectors and mlflow.db lie."""
    return click.option(
        "--workspace",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="CAUSAL_TUNE_HOME",
        default=Path("causal_tune_runs"),
        callback=_absolute_workspace,
        help="The folder of indexes, stores, studies, detectors and mlflow.db. "
        "[default: ./causal_tune_runs, or $CAUSAL_TUNE_HOME]",
    )(command)


def _is_submitted() -> bool:
    """Whether this process is the driver of a `ray job submit`, in the temporary copy of a folder."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _where_paths_lead(message: str) -> str:
    """What to know of a path in `message` that was given relative to the folder of a submission; else nothing."""
    if not _is_submitted() or str(Path.cwd()) not in message:
        return ""
    return (
        " A submitted job runs in a copy of the folder that was uploaded, without data and results: give an absolute "
        "path on the head's machine."
    )


def _absolute_workspace(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    if _is_submitted() and not value.is_absolute():
        raise click.BadParameter(
            f"{str(value)!r} is a relative path; a submitted job runs in a temporary copy of its folder, where "
            "results would be lost. Give an absolute path, or set CAUSAL_TUNE_HOME to one."
        )
    return value.absolute()


def workspace_words(workspace: Path) -> str:
    """What a printed command needs to find this workspace again; nothing for the default one."""
    default = Path(os.environ.get("CAUSAL_TUNE_HOME", "causal_tune_runs")).absolute()
    return "" if workspace == default else f" --workspace {shlex.quote(str(workspace))}"


_MARKS = {"studies": "study.json", "stores": "store.json", "detectors": "detector.json"}


def under_workspace(workspace: Path, kind: str, name_or_path: str) -> Path:
    """The folder that is meant: a path, or the name of one in `workspace/kind`, or of one in the current folder.

    What holds something else, such as images, and has the name of one in the workspace does not hide that.
    """
    given, named = Path(name_or_path), workspace / kind / name_or_path
    is_path = (
        os.sep in name_or_path or (given / _MARKS[kind]).is_file() or (not named.is_dir() and given.is_dir())
    )
    return (given if is_path else named).absolute()


def writable(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Option callback: refuse a file or folder that cannot be written, before the work that it is for."""
    if value is not None:
        try:
            check_target(value)
        except DiskError as error:
            raise click.BadParameter(str(error), context, parameter) from error
    return value


def check_folder(output: Path | None, what: str) -> None:
    """`InvalidConfig` where -o names a file: `what` is a folder of files."""
    if output is not None and output.is_file():
        raise InvalidConfig(f"{output} is a file; {what} is a folder of files. Name another one with -o.")


def names(context: click.Context, parameter: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    """Option callback: names given several times or with commas, in order, without repeats."""
    parts = [name.strip() for item in value for name in item.split(",")]
    return tuple(dict.fromkeys(name for name in parts if name))


def emit(as_json: bool, document: dict[str, Any], show: Callable[[], None]) -> None:
    """Print `document` as JSON, or let `show` print it for people."""
    if as_json:
        click.echo(json.dumps(document, indent=1, default=str))
    else:
        show()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> "_Table":
    """A table whose first column is text and whose others are numbers; columns ending in `<` are text.

    A column that is named by something from outside ends in `>` (`wording.title_of`). On a screen that is too narrow
    for all columns, the rest of them follow below, with the first one repeated: no number and no name is broken.
    """
    cells = [[visible(cell) for cell in row] for row in ([*map(title_of, columns)], *rows)]
    is_text = [place == 0 or column.endswith("<") for place, column in enumerate(columns)]
    return _Table(title, is_text, cells)


_LONGEST_NAME = 40
"""Characters of the first column that stay on one line; what is longer, such as a path, may go on below."""


class _Table:
    def __init__(self, title: str, is_text: Sequence[bool], cells: Sequence[Sequence[str]]) -> None:
        self._title, self._is_text, self._cells = title, is_text, cells
        columns = range(len(is_text))
        self._widest = [max(cell_len(row[place]) for row in cells) for place in columns]
        self._least = [self._unbroken(place) for place in columns]
        if self._least[0] > _LONGEST_NAME:
            self._least[0] = 24

    def _unbroken(self, place: int) -> int:
        """The width at which no number of a column and no word of its title or text is broken."""
        head, *cells = (row[place] for row in self._cells)
        words = [word for cell in (head, *cells * self._is_text[place]) for word in cell.split()]
        return max((cell_len(word) for word in (*words, *([] if self._is_text[place] else cells))), default=1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, and below it the columns in as many parts as the width asks for."""
        yield Text(visible(self._title), style="bold")
        parts: list[list[int]] = [[0]]
        for place in range(1, len(self._is_text)):
            if self._least_of([*parts[-1], place]) > options.max_width and len(parts[-1]) > 1:
                parts.append([0])
            parts[-1].append(place)
        yield from (self._part(part, options.max_width) for part in parts)

    def _least_of(self, part: Sequence[int]) -> int:
        return sum(self._least[place] for place in part) + _frame(len(part))

    def _part(self, part: Sequence[int], width: int) -> Table:
        spare = width - self._least_of(part)
        widths = {place: self._least[place] for place in part}
        if spare < 0:  # a single column that is wider than the screen
            widths[part[-1]] = max(1, widths[part[-1]] + spare)
        by_need = sorted(part, key=lambda place: self._widest[place] - self._least[place])
        for left, place in zip(range(len(part), 0, -1), by_need, strict=True):
            more = min(self._widest[place] - self._least[place], max(0, spare) // left)
            widths[place] += more
            spare -= more
        result = Table(header_style="bold", box=SIMPLE_HEAD)
        for place in part:
            justify: JustifyMethod = "left" if self._is_text[place] else "right"
            result.add_column(
                Text(self._cells[0][place]), justify=justify, overflow="fold", width=widths[place]
            )
        for row in self._cells[1:]:
            result.add_row(*(Text(row[place]) for place in part))
        return result


def _frame(num_columns: int) -> int:
    """What the spaces around and between the columns of a table take."""
    return 3 * num_columns + 1


def percent(value: float | None) -> str:
    """A rate as a percentage; a dash where it is undefined."""
    return "-" if value is None else f"{100 * value:.2f}"


METRIC_COLUMNS = ["generator", "role<", "AP", "accuracy", "real acc.", "gen. acc.", "n real", "n gen."]


def metrics_rows(sets: Iterable[tuple[str, str, Mapping[str, Any]]]) -> list[list[str]]:
    """Rows for `METRIC_COLUMNS` from (name, role, metrics)."""
    return [
        [
            name,
            role,
            percent(metrics["ap"]),
            percent(metrics["accuracy"]),
            percent(metrics["accuracy_real"]),
            percent(metrics["accuracy_generated"]),
            f"{metrics['num_real']:,}",
            f"{metrics['num_generated']:,}",
        ]
        for name, role, metrics in sets
    ]


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, or hours, minutes and seconds.

    >>> clock(64.2), clock(4005)
    ('1:04', '1:06:45')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """How fast units are done, from the moment at which they begin."""

    def __init__(self, unit: str, now: Callable[[], float] = time.monotonic) -> None:
        self._unit, self._now = unit, now
        self._started = now()
        self._begin: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def tell(self, done: int, *, is_waiting: bool) -> None:
        """`done` units by now; the time for which it was waiting for something else is none of theirs."""
        self._last = (self._now(), done)
        if is_waiting:
            self._begin = None
        elif self._begin is None:
            self._begin = self._last

    def _seconds_each(self) -> float | None:
        if self._begin is None or self._last[1] <= self._begin[1]:
            return None
        return (self._last[0] - self._begin[0]) / (self._last[1] - self._begin[1])

    def rate(self) -> str:
        """Such as `12.3 images/s`, or `7.4 s/trial` where one takes more than a second; empty until one is done."""
        each = self._seconds_each()
        if not each:
            return ""
        if each > 1:
            return f"{each:.{1 if each < 10 else 0}f} s/{self._unit.removesuffix('s')}"
        return f"{1 / each:.1f} {self._unit}/s"

    def times(self, total: int) -> str:
        """Elapsed, and behind `<` what remains as far as it is known, such as `0:44<1:07`."""
        now, each = self._now(), self._seconds_each()
        elapsed = clock(now - self._started)
        num_left = total - self._last[1]
        if each is None or num_left <= 0:
            return elapsed
        return f"{elapsed}<{clock(max(0.0, each * num_left - (now - self._last[0])))}"


class _PaceColumn(ProgressColumn):
    def __init__(self, pace: Pace) -> None:
        super().__init__(Column(no_wrap=True))
        self._pace = pace

    def render(self, task: Task) -> Text:
        """Rate, elapsed and remaining time."""
        return Text(f"{self._pace.rate()} {self._pace.times(int(task.total or 0))}".strip())


class Bar:
    """One progress bar, shown from its first word on; off a terminal, a line now and then instead."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = visible(description), total, unit
        self._progress: Progress | None = None
        self._pace = Pace(unit)
        self._done = 0
        self._said = ""  # off a terminal
        self._tenth = -1

    def stage(self, words: str, done: int | None = None) -> None:
        """What is being done before, between or after the units, `done` of which are there: `starting Ray`."""
        self._done = self._done if done is None else done
        self._show(f"{self._description}: {words}", is_waiting=True)

    def resize(self, total: int) -> None:
        """The total, where it is known only now."""
        self._total = total

    def follow(self, done: int, total: int, note: str = "") -> None:
        """`done` of a total that is known only now."""
        self.resize(total)
        self.update(done, note)

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total; `note` stands behind the description."""
        self._done = done
        self._show(f"{self._description}: {note}" if note else self._description, is_waiting=False)

    def part(self, name: str, begin: int) -> "Bar":
        """A bar whose units are some of this one's, from number `begin` on."""
        return _Part(self, name, begin)

    def close(self) -> None:
        """Leave what is shown as it is."""
        if self._progress is not None:
            self._progress.stop()

    def _show(self, words: str, *, is_waiting: bool) -> None:
        self._pace.tell(self._done, is_waiting=is_waiting)
        if not err.is_interactive:
            self._print(words, is_waiting)
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
                BarColumn(bar_width=24 if err.width >= 100 else 8),
                MofNCompleteColumn(),
                _PaceColumn(self._pace),
                console=err,
            )
            self._progress.add_task(words, total=self._total, completed=self._done)
            self._progress.start()
        (task,) = self._progress.task_ids
        self._progress.update(
            task, description=words, completed=self._done, total=self._total, refresh=is_waiting
        )

    def _print(self, words: str, is_waiting: bool) -> None:
        if is_waiting:
            if words != self._said:
                err.print(f"{words}.", markup=False)
            self._said = words
            return
        tenth = 10 * self._done // max(1, self._total)
        if tenth > self._tenth:
            self._tenth = tenth
            note = words.removeprefix(self._description).replace(":", "", 1)
            err.print(
                f"{self._description}: {self._done:,} of {self._total:,} {self._unit}.{note}", markup=False
            )


class _Part(Bar):
    def __init__(self, whole: Bar, name: str, begin: int) -> None:
        self._whole, self._name, self._begin = whole, name, begin

    def stage(self, words: str, done: int | None = None) -> None:
        self._whole.stage(f"{self._name}, {words}", None if done is None else self._begin + done)

    def resize(self, total: int) -> None:
        """Nothing: the whole has a total."""

    def update(self, done: int, note: str = "") -> None:
        self._whole.update(self._begin + done, f"{self._name}, {note}" if note else self._name)

    def close(self) -> None:
        """Nothing: it is the whole that is shown."""


@contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar on stderr with rate and time left, from the first thing that is told of it; `total` 0: not known yet."""
    bar = Bar(description, total, unit)
    try:
        yield bar
    finally:
        bar.close()
