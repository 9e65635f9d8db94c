"""What every command shares: the workspace, `--json`, errors as paragraphs, progress on stderr."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
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

from causal_tune.errors import CausalTuneError, InvalidConfig

__all__ = [
    "METRIC_COLUMNS",
    "Bar",
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
]

F = TypeVar("F", bound=Callable[..., Any])

# off a terminal (a file, a pipe) there is no width to keep to
out = Console(width=None if Console().is_terminal else 160)
err = Console(stderr=True, width=None if Console(stderr=True).is_terminal else 160)


@contextmanager
def errors_as_paragraphs() -> Iterator[None]:
    """Print a `CausalTuneError` as one paragraph on stderr and exit with its code."""
    try:
        yield
    except CausalTuneError as error:
        words = str(error) + _where_paths_lead(str(error))
        err.print(Text.assemble(("Error: ", "bold red"), words), soft_wrap=not err.is_terminal)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("\nStopped. The same command continues where this one ended.")
        sys.exit(130)
    except BrokenPipeError:
        # the reader of our output (`head`, a pager) has all that it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


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
        show_default="./causal_tune_runs, or $CAUSAL_TUNE_HOME",
        callback=_absolute_workspace,
        help="The folder of indexes, stores, studies, detectors and mlflow.db.",
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


def under_workspace(workspace: Path, kind: str, name_or_path: str) -> Path:
    """The folder that is meant: an existing path, or `workspace/kind/name`."""
    given = Path(name_or_path)
    return given.absolute() if given.is_dir() else (workspace / kind / name_or_path).absolute()


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


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers; columns ending in `<` are text."""
    result = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD
    )
    for position, column in enumerate(columns):
        left = position == 0 or column.endswith("<")
        result.add_column(column.rstrip("<"), justify="left" if left else "right", overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


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
        self._description, self._total, self._unit = description, total, unit
        self._task = progress.add_task(description, total=total) if progress else None
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
        TextColumn("{task.description}"),
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
