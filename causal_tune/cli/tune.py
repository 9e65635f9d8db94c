"""`tune`: create, continue or extend a study."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from causal_tune.cli.ending import Ending
from causal_tune.cli.help import SectionedCommand
from causal_tune.cli.leaderboard import (
    count_states,
    criterion_option,
    leaderboard_rows,
    show_front,
    show_winner,
)
from causal_tune.cli.output import (
    Bar,
    emit,
    err,
    json_option,
    names,
    out,
    percent,
    progress_bar,
    under_workspace,
    workspace_option,
    workspace_words,
)
from causal_tune.cli.reports import study_figures
from causal_tune.cli.tracking import study_tracker, tracking_option
from causal_tune.ledger import Ledger
from causal_tune.selection import rank, score
from causal_tune.study.pruning import GRACE_STEPS, PRUNER, PRUNERS
from causal_tune.study.run import StudyEvent, StudyResult, run_study
from causal_tune.study.space import SearchSpace, load_space
from causal_tune.study.spec import make_spec, study_path, study_space
from causal_tune.study.suggestion import SAMPLER, SAMPLERS
from causal_tune.tracking import redacted
from causal_tune.wording import plural

__all__ = ["run_tune", "study_options", "tune_command"]

_SPACE = "sd14"
"""Search space of a study that names none."""


def _objectives(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for value in values:
        name, equals, listed = value.partition("=")
        members = [item.strip() for item in listed.split(",") if item.strip()]
        if not equals or not name or not members or name in groups:
            raise click.BadParameter(
                f"{value!r}: expected NAME=GEN1,GEN2 with a name not used before, such as gans=progan,cyclegan."
            )
        groups[name] = members
    return groups


def study_options(command: Any) -> Any:
    """The options that `tune` and the jobs share, but for the layers: a job has those that it extracts."""
    for option in reversed(
        [
            click.option("--study", required=True, help="Its name. The same name continues or extends it."),
            click.option(
                "--trials", required=True, type=click.IntRange(1), help="Trials in total, baselines included."
            ),
            click.option(
                "--space",
                help="A name of search_spaces/, or the path of such a file. [default: the study's own; for a new "
                "one sd14, or the job's]",
            ),
            click.option(
                "--train-generator",
                "train_generators",
                multiple=True,
                callback=names,
                help="Generators to train on. Comma-separated.",
            ),
            click.option(
                "--val-generators",
                multiple=True,
                callback=names,
                help="Generators that choose the winner. Comma-separated.",
            ),
            click.option(
                "--test-generators",
                multiple=True,
                callback=names,
                help="Generators that are only reported on. [default: all the others]",
            ),
            criterion_option("val_generators where some are named"),
            click.option(
                "--sampler",
                type=click.Choice(sorted(SAMPLERS)),
                default=SAMPLER,
                show_default=True,
                help="How configurations are suggested.",
            ),
            click.option(
                "--pruner",
                type=click.Choice(sorted(PRUNERS)),
                default=PRUNER,
                show_default=True,
                help="How trials that fall behind are stopped.",
            ),
            click.option(
                "--grace-steps",
                type=click.IntRange(1),
                default=GRACE_STEPS,
                show_default=True,
                help="Gradient steps that the pruner lets every trial take.",
            ),
            click.option(
                "--objective",
                "objectives",
                multiple=True,
                metavar="NAME=GENERATORS",
                callback=_objectives,
                help="Search for the Pareto front of the mean AP of groups of validation generators: "
                "gans=progan,cyclegan. Repeatable.",
            ),
            click.option(
                "--seed",
                type=click.IntRange(0),
                default=0,
                show_default=True,
                help="Of the search and of every trial.",
            ),
            click.option(
                "--threads-per-trial",
                type=click.IntRange(1),
                default=1,
                show_default=True,
                help="CPUs of a trial.",
            ),
            click.option(
                "--gpus-per-trial",
                type=click.FloatRange(0),
                default=0.0,
                help="GPUs of a trial, or a share of one: 0.25 trains four on each. [default: trains on CPUs]",
            ),
            click.option(
                "--max-concurrent", type=click.IntRange(1), help="Trials at a time. [default: the CPUs]"
            ),
            tracking_option,
            click.option("--address", help="A Ray cluster. [default: $RAY_ADDRESS, or a local Ray]"),
        ]
    ):
        command = option(command)
    return command


def run_tune(
    *,
    workspace: Path,
    store: Path,
    study: str,
    trials: int,
    space: str | SearchSpace,
    train_generators: Sequence[str],
    val_generators: Sequence[str] = (),
    test_generators: Sequence[str] = (),
    criterion: str | None = None,
    seed: int = 0,
    max_concurrent: int | None = None,
    tracking_uri: str | None = None,
    address: str | None = None,
    figures: bool = True,
    bar: Bar | None = None,
    **settings: Any,
) -> tuple[StudyResult, str]:
    """Create or continue a study, with a progress bar; the study and the command that opens its MLflow UI.

    With `figures` MLflow gets those of its report. What MLflow did not get is in `StudyResult.undelivered`, with the
    command that delivers it. `bar` is one of several studies, in the place of its own.
    `settings` are the rest of `make_spec`: sampler, pruner, grace_steps, objectives, layers.
    """
    spec = make_spec(
        workspace=workspace,
        name=study,
        store_path=store,
        space=space if isinstance(space, SearchSpace) else load_space(space),
        train_generators=train_generators,
        val_generators=val_generators,
        test_generators=test_generators or None,
        criterion=criterion,
        seed=seed,
        max_concurrent=max_concurrent,
        **settings,
    )
    path = study_path(workspace, study)
    problems: list[str] = []
    draw = partial(study_figures, path, failed=problems.append) if figures else None
    tracker = study_tracker(path, spec, workspace, tracking_uri, draw=draw)
    records = Ledger(path / "trials").records()
    numbers = {record.number for record in records}
    before = rank(records, spec.criterion, spec.roles)
    best_score = before[0][1] if before else None
    num_failed = num_collapsed = 0
    is_missing = any(number not in numbers for number in range(trials))
    with progress_bar(f"Study {study}", trials, "trials") if bar is None else nullcontext(bar) as shown:

        def on_event(event: StudyEvent) -> None:
            nonlocal best_score, num_failed, num_collapsed
            if event.kind == "warning":
                err.print(f"Warning: {event.message}")
            if event.record is not None:
                value = score(event.record, spec.criterion, spec.roles)
                best_score = max((item for item in (best_score, value) if item is not None), default=None)
                num_failed += event.record.failed
                num_collapsed += event.record.collapsed is not None
            if not is_missing:
                return
            if event.kind == "stage":
                shown.stage(event.message, event.num_done)
                return
            note = f"best {spec.criterion} {percent(best_score)}" if best_score is not None else ""
            failed = f", {num_failed} failed" if num_failed else ""
            collapsed = f", {num_collapsed} collapsed" if num_collapsed else ""
            shown.follow(event.num_done, event.num_trials, note + failed + collapsed)

        result = run_study(
            spec,
            num_trials=trials,
            workspace=workspace,
            ray_address=address,
            on_event=on_event,
            tracker=tracker,
            tracker_required=tracking_uri is not None,  # the database of the workspace can be filled later
        )
    if not is_missing and bar is None:
        err.print(f"Study {study}: nothing to run, it has {plural(len(result.records), 'trial')}.")
    problems += [result.undelivered] if result.undelivered else []
    if problems:
        again = f"causal-tune sync {spec.name}{workspace_words(workspace)}"
        again += f" --tracking-uri {shlex.quote(redacted(tracking_uri))}" if tracking_uri else ""
        said = " ".join(problem.rstrip(".") + "." for problem in problems)
        result = replace(result, undelivered=f"{said} Deliver what is missing with `{again}`.")
    return result, tracker.ui_command()


@click.command(
    "tune",
    cls=SectionedCommand,
    epilog="Example: causal-tune tune --store causal_tune_runs/stores/0123456789abcdef --space sd14 --study real "
    "--trials 24 --train-generator sd14 --val-generators cyclegan",
)
@click.option(
    "--store", required=True, help="A name of `causal-tune stores`, or the path that `extract` printed."
)
@click.option(
    "--layers",
    multiple=True,
    callback=names,
    help="Layers of the store to search, as the weights are; one fixes it. [default: the space's]",
)
@study_options
@workspace_option
@json_option
def tune_command(store: str, workspace: Path, as_json: bool, space: str | None, **options: Any) -> None:
    """Create or continue a study of detector heads on the features of a store."""
    store_path = under_workspace(workspace, "stores", store)
    chosen = load_space(space) if space else study_space(workspace, options["study"], _SPACE)
    result, ui_command = run_tune(workspace=workspace, store=store_path, space=chosen, **options)

    ending = Ending()
    ending.add(result.undelivered)
    again = f"causal-tune leaderboard {result.spec.name}{workspace_words(workspace)}"

    def show_tables() -> None:
        show_winner(result.spec, result.records, result.spec.criterion)
        if result.spec.objectives:
            show_front(result.spec, result.records, most=10)

    def show() -> None:
        ending.step("The winner's table was not shown", again, show_tables)
        out.print(f"{count_states(result.records)}.")
        out.print(f"Study: {result.path}", soft_wrap=True)
        out.print(f"Compare the trials: {ui_command}", soft_wrap=True)
        out.print(
            f"Next: causal-tune finalists {result.spec.name}{workspace_words(workspace)}", soft_wrap=True
        )

    num_failed = sum(record.failed for record in result.records)
    document = {
        "study": str(result.path),
        "num_trials": len(result.records),
        "num_failed": num_failed,
        "criterion": result.spec.criterion,
        "mlflow_ui": ui_command,
        "undelivered": result.undelivered,
        "leaderboard": leaderboard_rows(result.spec, result.records, result.spec.criterion),
    }
    emit(as_json, document, show)
    if num_failed:
        ending.add(
            f"{num_failed} of {len(result.records)} trials failed; the others stand. Their reasons are in "
            f"{result.path / 'trials'}."
        )
    ending.close()
