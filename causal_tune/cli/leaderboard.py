"""`leaderboard`: what came out of a study, by any criterion."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from causal_tune.cli.output import (
    METRIC_COLUMNS,
    emit,
    err,
    json_option,
    metrics_rows,
    out,
    percent,
    table,
    under_workspace,
    workspace_option,
)
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.selection import (
    CRITERIA,
    objective_values,
    oracle_gap,
    pareto_front,
    rank,
    saturated,
    score,
    undefined_note,
)
from causal_tune.study.spec import StudySpec, read_spec
from causal_tune.study.verdicts import one_verdict, remedy
from causal_tune.wording import plural

__all__ = ["criterion_option", "leaderboard_command", "leaderboard_rows", "show_leaderboard", "show_winner"]


def criterion_option(default: str, *, any_criterion: bool = False) -> Callable[[Any], Any]:
    """`--criterion`: what trials are ranked by; with `any_criterion` also by those that no study may choose by."""
    shown = [
        name
        for name, one in sorted(CRITERIA.items())
        if not one.skips_collapsed and (any_criterion or not one.uses_test_domain)
    ]
    return click.option(
        "--criterion",
        type=click.Choice(sorted(CRITERIA)),
        metavar="NAME",
        help=f"What the winner is best at: {', '.join(shown)}. Ending in _uncollapsed: without trials whose mask has "
        f"collapsed. [default: {default}]",
    )


WEIGHTS = ("lambda1", "lambda2", "alpha", "beta", "tau", "p")
"""The six numbers of the paper's head."""


def show_winner(spec: StudySpec, records: Sequence[TrialRecord], criterion: str) -> None:
    """The winner: its table generator x metrics, its settings, and warnings about the choice."""
    ranked = rank(records, criterion, spec.roles)
    failed = [record for record in records if record.failed]
    for record in failed[:5]:
        err.print(f"Trial {record.number} failed: {record.reason}")
    if len(failed) > 5:
        err.print(f"and {len(failed) - 5} more failed; their reasons are in the ledger")
    if not ranked:
        return
    winner, value = ranked[0]
    sets = [("validation split", ", ".join(spec.train_generators), winner.validation)]
    sets += [(name, spec.roles.role_of(name), metrics) for name, metrics in winner.generators.items()]
    out.print(table(f"Winner: trial {winner.id}", METRIC_COLUMNS, metrics_rows(sets)))
    out.print(f"Chosen by {criterion} = {percent(value)}: {CRITERIA[criterion].summary}.")
    settings = {name: winner.config[name] for name in ("head", "layer")}
    settings |= _weights(winner) | spec.search_space().settings_of(winner.config)
    settings["seed"] = winner.config["seed"]
    out.print(
        "Winner's settings: " + ", ".join(f"{name} {_short(value)}" for name, value in settings.items())
    )
    if winner.collapsed:
        out.print(
            f"Warning: its mask has collapsed (all {winner.collapsed}), so it is no causal head. "
            f"{remedy(winner.collapsed)} in the search space."
        )
    if warning := one_verdict(winner):
        out.print(f"Warning: {warning}")
    show_choice(spec, records, criterion)


def show_choice(spec: StudySpec, records: Sequence[TrialRecord], criterion: str) -> None:
    """How good the choice by this criterion is: the oracle gap, labelled, and whether it chose at all."""
    if found := oracle_gap(records, criterion, spec.roles):
        trial, value, gap = found
        chosen = rank(records, criterion, spec.roles)[0][0]
        oracle = (
            "the test generators would have chosen the same trial."
            if trial.id == chosen.id
            else f"choosing by the test generators, which is not allowed, would have taken trial {trial.id}."
        )
        out.print(f"Mean test AP {percent(value - gap)}. Oracle gap {100 * gap:.2f} points: {oracle}")
        if note := undefined_note(chosen, spec.roles):
            out.print(f"Warning: {note}")
    if warning := saturated(records, criterion, spec.roles):
        out.print(f"Warning: {warning}")


def show_front(spec: StudySpec, records: Sequence[TrialRecord], most: int) -> None:
    """The Pareto front of a study with several objectives."""
    front = pareto_front(records, spec.objectives)
    rows = []
    for record in front[:most]:
        values = objective_values(record, spec.objectives) or ()
        rows.append([record.id, record.config["head"], *(percent(value) for value in values)])
    columns = ["trial", "head<", *(f"{name}>" for name in spec.objectives)]
    out.print(table("Pareto front: mean AP by objective", columns, rows))
    if len(front) > most:
        out.print(f"and {len(front) - most} more on the front")


def count_states(records: Sequence[TrialRecord]) -> str:
    """How the trials ended, in words.

    >>> count_states([])
    '0 trials'
    """
    counts = Counter(record.state for record in records)
    parts = [f"{counts[state]} {word}" for state, word in _STATES.items() if counts[state]]
    return plural(len(records), "trial") + (f": {', '.join(parts)}" if parts else "")


_STATES = {"finished": "finished", "pruned": "pruned", "failed": "failed", "duplicate": "not trained again"}


def _short(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _weights(record: TrialRecord) -> dict[str, Any]:
    """The paper's six numbers of a trial of its head; nothing for other heads, which do not read them."""
    return {name: record.config[name] for name in WEIGHTS} if record.config["head"] == "causal" else {}


def leaderboard_rows(spec: StudySpec, records: Sequence[TrialRecord], criterion: str) -> list[dict[str, Any]]:
    """The finished trials, best first, as plain values.

    A searched setting that the trial's head does not read is None, and so are the paper's six for other heads.
    """
    space = spec.search_space()
    return [
        {
            "rank": place + 1,
            "trial": record.id,
            "head": record.config["head"],
            "layer": record.config["layer"],
            criterion: value,
            "validation_ap": record.validation["ap"],
            "mean_test_ap": score(record, "oracle", spec.roles) if spec.test_generators else None,
            "mask_mean": record.mask["mean"] if record.mask else None,
            "collapsed": record.collapsed,
            **dict.fromkeys(name for name in (*WEIGHTS, *space.names) if name not in ("head", "layer")),
            **_weights(record),
            **space.settings_of(record.config),
        }
        for place, (record, value) in enumerate(rank(records, criterion, spec.roles))
    ]


def show_leaderboard(spec: StudySpec, rows: Sequence[dict[str, Any]], criterion: str, most: int) -> None:
    """The first `most` rows: scores and what was searched."""
    shown = rows[:most]
    searched = [
        name
        for name in spec.search_space().names
        if name not in ("head", "layer") and any(row[name] is not None for row in shown)
    ]
    has_layers = len({row["layer"] for row in rows}) > 1
    columns = ["#", "trial<", "head<", *["layer<"] * has_layers]
    columns += [criterion, "val AP", "test AP*", "mask mean", *searched]
    cells = []
    for row in shown:
        mask = "-" if row["mask_mean"] is None else f"{row['mask_mean']:.3f}{'!' if row['collapsed'] else ''}"
        place = [str(row["rank"]), row["trial"], row["head"], *[row["layer"]] * has_layers]
        values = [percent(row[criterion]), percent(row["validation_ap"]), percent(row["mean_test_ap"]), mask]
        settings = ["-" if row[name] is None else _short(row[name], 2) for name in searched]
        cells.append([*place, *values, *settings])
    out.print(table(f"Leaderboard by {criterion}", columns, cells))
    out.print("Percent. * reported only: test generators never choose. ! the mask has collapsed.")


@click.command("leaderboard", epilog="Example: causal-tune leaderboard real --criterion train_domain")
@click.argument("study")
@criterion_option("the study's own", any_criterion=True)
@click.option("-n", "most", type=click.IntRange(1), default=10, show_default=True, help="Trials shown.")
@workspace_option
@json_option
def leaderboard_command(study: str, criterion: str | None, most: int, workspace: Path, as_json: bool) -> None:
    """The best trials of STUDY (a name, or a folder) with their hyperparameters, by any criterion."""
    path = under_workspace(workspace, "studies", study)
    spec = read_spec(path)
    criterion = criterion or spec.criterion
    records = Ledger(path / "trials").records()
    rows = leaderboard_rows(spec, records, criterion)
    num_failed = sum(record.failed for record in records)
    num_collapsed = sum(record.collapsed is not None for record in records)

    def show() -> None:
        show_leaderboard(spec, rows, criterion, most)
        if spec.objectives:
            show_front(spec, records, most)
        out.print(f"{count_states(records)}; {len(rows)} ranked, {num_collapsed} collapsed.")
        show_choice(spec, records, criterion)

    document = {
        "study": str(path),
        "criterion": criterion,
        "num_trials": len(records),
        "num_failed": num_failed,
        "num_pruned": sum(record.state == "pruned" for record in records),
        "num_duplicate": sum(record.state == "duplicate" for record in records),
        "num_collapsed": num_collapsed,
        "oracle_gap": gap[2] if (gap := oracle_gap(records, criterion, spec.roles)) else None,
        "saturated": saturated(records, criterion, spec.roles),
        "pareto_front": [record.id for record in pareto_front(records, spec.objectives)]
        if spec.objectives
        else None,
        "leaderboard": rows,
    }
    emit(as_json, document, show)
