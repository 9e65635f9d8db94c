"""`studies`: which studies a workspace has, and how far each is."""

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from causal_tune.cli.output import emit, json_option, out, percent, table, workspace_option, workspace_words
from causal_tune.errors import CausalTuneError
from causal_tune.ledger import Ledger
from causal_tune.lock import is_owned
from causal_tune.selection import rank
from causal_tune.study.finalists import read_finalists
from causal_tune.study.spec import read_spec

__all__ = ["studies_command"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Summary:
    """One study of a workspace."""

    name: str
    path: str
    state: str
    """`running`, `idle`, or `unreadable` with the `reason`."""
    reason: str = ""
    num_trials: int = 0
    num_failed: int = 0
    criterion: str | None = None
    best: float | None = None
    """The best trial's score by the criterion, a share of 1."""
    best_trial: str | None = None
    finalists: str | None = None
    """What `causal-tune finalists` said of it: `winner` or `tie`; None where it has not run on these trials."""
    changed: str | None = None
    """When the last trial ended, or the study was made: ISO 8601, UTC."""


def _summary(path: Path) -> _Summary:
    try:
        spec = read_spec(path)
        records = Ledger(path / "trials").records()
        ranked = rank(records, spec.criterion, spec.roles)
        document = read_finalists(path, len(records))
    except CausalTuneError as error:
        return _Summary(name=path.name, path=str(path), state="unreadable", reason=str(error))
    written = max(one.stat().st_mtime for one in (path / "study.json", *(path / "trials").glob("*.json")))
    return _Summary(
        name=spec.name,
        path=str(path),
        state="running" if is_owned(path) else "idle",
        num_trials=len(records),
        num_failed=sum(record.failed for record in records),
        criterion=spec.criterion,
        best=ranked[0][1] if ranked else None,
        best_trial=ranked[0][0].id if ranked else None,
        finalists=None if document is None else "winner" if document["verdict"]["winner"] else "tie",
        changed=datetime.fromtimestamp(written, timezone.utc).isoformat(timespec="seconds"),
    )


@click.command("studies", epilog="Example: causal-tune studies --workspace causal_tune_runs")
@click.option("--all", "show_all", is_flag=True, help="Also the studies that `causal-tune finalists` made.")
@workspace_option
@json_option
def studies_command(show_all: bool, workspace: Path, as_json: bool) -> None:
    """List the studies of a workspace: their state, trials, best score and when they last changed."""
    paths = sorted(path.parent for path in (workspace / "studies").glob("*/study.json"))
    # `finalists` names its studies after the one that they belong to: mine.probe
    parts = [
        path for path in paths if path.with_name(path.name.partition(".")[0]) in paths and "." in path.name
    ]
    found = [_summary(path) for path in paths if show_all or path not in parts]
    document: dict[str, Any] = {"studies": [asdict(one) for one in found]}
    emit(as_json, document, lambda: _show(found, 0 if show_all else len(parts), workspace))


def _show(studies: list[_Summary], num_hidden: int, workspace: Path) -> None:
    if not studies:
        out.print(f"There is no study in {workspace} yet. `causal-tune tune` makes one.")
        return
    rows = [
        [
            one.name,
            one.state,
            str(one.num_trials) + (f" ({one.num_failed} failed)" if one.num_failed else ""),
            percent(one.best),
            one.criterion or "-",
            one.finalists or "-",
            _local(one.changed),
        ]
        for one in studies
    ]
    columns = ["study", "state<", "trials", "best, %", "criterion<", "finalists<", "last change<"]
    out.print(table(f"Studies in {workspace / 'studies'}", columns, rows))
    for one in studies:
        if one.reason:
            out.print(f"{one.name}: {one.reason}")
    if num_hidden:
        out.print(f"{num_hidden} more, made by `causal-tune finalists`: --all shows them.")
    out.print(f"Next: causal-tune leaderboard STUDY{workspace_words(workspace)}", soft_wrap=True)


def _local(changed: str | None) -> str:
    """A moment as people read it, in the time of this machine."""
    return f"{datetime.fromisoformat(changed).astimezone():%Y-%m-%d %H:%M}" if changed else "-"
