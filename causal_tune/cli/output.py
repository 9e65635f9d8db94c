"""What every command shares: the workspace, `--json`, errors as paragraphs, progress on stderr."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from causal_tune.atomic import check_target, disk_error
from causal_tune.errors import CausalTuneError, DiskError, InvalidConfig
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
    """Prints text as it is: brackets and colons are no markup, and what no reader sees is written as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False)
        if not self.is_terminal and "width" not in options:
            self.width = 160  # a file or a pipe has no width to keep to

    def render_str(self, text: str, **options: Any) -> Text:
        """The text of a string that is printed, or of a cell or title of a table."""
        return super().render_str(visible(text, keep="\n"), **options)


out = PlainConsole()
err = PlainConsole(stderr=True)


@contextmanager
def errors_as_paragraphs() -> Iterator[None]:
    """Print a `CausalTuneError`, or what a disk refuses, as one paragraph on stderr and exit with its code."""
    try:
        yield
    except CausalTuneError as error:
        _say(error)
    except KeyboardInterrupt:
        err.print("\nStopped. The same command continues where this one ended.")
        sys.exit(130)
    except BrokenPipeError:
        # the reader of our output (`head`, a pager) has all that it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        refused = disk_error(error)
        if refused is None:
            raise
        _say(refused)


def _say(error: CausalTuneError) -> NoReturn:
    words = visible(str(error) + _where_paths_lead(str(error)), keep="\n")
    err.print(Text.assemble(("Error: ", "bold red"), words), soft_wrap=not err.is_terminal)
    sys.exit(error.exit_code)


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


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Completed units per second since the first was done."""
        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else "")


class Bar:
    """One progress bar; off a terminal, a line now and then instead."""

    def __init__(self, progress: Progress | None, description: str, total: int, unit: str) -> None:
        self._progress = progress
        self._description, self._total, self._unit = visible(description), total, unit
        self._task = progress.add_task(self._description, total=total) if progress else None
        self._tenth = -1

    def follow(self, done: int, total: int, note: str = "") -> None:
        """`done` of a total that is known only now."""
        self._total = total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)
        self.update(done, note)

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total; `note` stands behind the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, completed=done, description=f"{self._description} {note}".strip()
            )
            return
        tenth = 10 * done // max(1, self._total)
        if tenth > self._tenth:
            self._tenth = tenth
            err.print(f"{self._description}: {done:,} of {self._total:,} {self._unit}. {note}".rstrip())


@contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar on stderr with rate and time left."""
    if not err.is_terminal:
        yield Bar(None, description, total, unit)
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        speed_estimate_period=60,
    ) as progress:
        yield Bar(progress, description, total, unit)
