"""The main job, end to end: index, extract, tune, table, report, export. `jobs/` and `causal-tune demo` are this."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from causal_tune.audit.run import audit_index
from causal_tune.cli.audit import show_findings
from causal_tune.cli.encoding import Encoding, encoding_options
from causal_tune.cli.ending import Ending
from causal_tune.cli.export import passed_over_note
from causal_tune.cli.extract import describe_extraction, run_extract, show_quarantine
from causal_tune.cli.help import SectionedCommand
from causal_tune.cli.index import choice_options, counts_table, layout_option, make_index
from causal_tune.cli.leaderboard import leaderboard_rows, show_leaderboard, show_winner
from causal_tune.cli.output import (
    emit,
    err,
    errors_as_paragraphs,
    json_option,
    out,
    table,
    workspace_option,
    workspace_words,
)
from causal_tune.cli.reports import study_report
from causal_tune.cli.tune import run_tune, study_options
from causal_tune.export import export_detector
from causal_tune.extraction import Extraction
from causal_tune.images.choice import Choice
from causal_tune.model_card import calibration_findings
from causal_tune.report.page import write_report
from causal_tune.report.section import Report
from causal_tune.selection import best
from causal_tune.study.checks import check_roles
from causal_tune.study.space import SearchSpace, load_space
from causal_tune.study.spec import study_path, study_space

__all__ = ["encode_images", "image_options", "job_command", "roles_of", "run_job"]


def encode_images(
    *,
    images: tuple[Path | str, ...],
    layout: str,
    index_path: Path,
    encoding: Encoding,
    workspace: Path,
    choice: Choice | None = None,
    address: str | None = None,
    train_generators: Sequence[str] = (),
    check: Callable[[Sequence[str]], None] | None = None,
) -> Extraction:
    """Index, extract and audit, telling on stderr what is there; every step continues what an earlier run left.

    `train_generators` tells the audit whose images will train.
    `check` is given the generators of the index before anything is encoded, and raises what is wrong.
    """
    index = make_index(images, layout, index_path, choice or Choice())
    columns = ["generator", "split<", "real", "generated", "unreadable"]
    err.print(table(f"{index.num_rows:,} images", columns, counts_table(index)))
    if check:
        check(sorted(set(index["generator"].to_pylist())))
    done = run_extract(index, encoding, workspace=workspace, address=address)
    err.print(describe_extraction(done))
    show_quarantine(done)
    audit = audit_index(index, store=done.store, train_generators=train_generators)
    command = ["causal-tune", "audit", str(index_path), "--store", str(done.store.path)]
    command += [word for name in train_generators for word in ("--train-generator", name)]
    show_findings(audit, shlex.join(command))
    return done


def roles_of(options: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """The generators that a job's options name, by option."""
    return {
        "--train-generator": options["train_generators"],
        "--val-generators": options["val_generators"],
        "--test-generators": options["test_generators"],
    }


def run_job(
    *,
    images: tuple[Path | str, ...],
    layout: str,
    encoding: Encoding,
    workspace: Path,
    as_json: bool,
    study: str,
    space: str | SearchSpace,
    address: str | None,
    choice: Choice | None = None,
    next_steps: Mapping[str, str] | None = None,
    **study_settings: Any,
) -> None:
    """Index, extract, tune, show and export; every step continues what an earlier run left.

    Once trials have ended their table is shown, and no later step that fails takes anything with it: `WorkFailed` names
    each, with the command that repeats it.
    """
    folder = study_path(workspace, study)  # a bad name or space is told before hours of encoding
    space = space if isinstance(space, SearchSpace) else load_space(space)
    index_path = workspace / "index" / f"{study}.parquet"
    done = encode_images(
        images=images,
        layout=layout,
        index_path=index_path,
        encoding=encoding,
        workspace=workspace,
        choice=choice,
        address=address,
        train_generators=study_settings["train_generators"],
        check=lambda known: check_roles(roles_of(study_settings), known, "the index"),
    )
    result, ui_command = run_tune(
        workspace=workspace,
        store=done.store.path,
        study=study,
        space=space,
        layers=None if "layer" in space.distributions else encoding.layers,
        address=address,
        **study_settings,
    )
    criterion = result.spec.criterion
    rows = leaderboard_rows(result.spec, result.records, criterion)
    ending = Ending()
    ending.add(result.undelivered)
    again = partial(_command, study, workspace)
    if not as_json:  # before what may fail: the result of hours of training
        out.print()
        show_leaderboard(result.spec, rows, criterion, most=5)
        out.print()
        ending.step(
            "The winner's table was not shown",
            again("leaderboard"),
            lambda: show_winner(result.spec, result.records, criterion),
        )
    report_path = folder / "report" / "report.html"
    detector_path = workspace / "detectors" / study
    report = detector = None
    if rows:
        report = ending.step(
            "The report was not written", again("report"), lambda: _write_report(folder, report_path.parent)
        )
        detector = ending.step(
            "The detector was not exported", again("export"), lambda: export_detector(folder, detector_path)
        )
    else:
        ending.step(
            "There is neither a report nor a detector",
            again("leaderboard"),
            lambda: best(result.records, criterion, result.spec.roles),
        )
    provenance = detector.description["provenance"] if detector else {}

    def show() -> None:
        withstands = report and next(
            (one for part in report.sections for one in part.tables if one.name == "robustness"), None
        )
        if withstands:
            out.print()
            out.print(table("What it withstands: mean AP, %", withstands.columns, withstands.rows))
        out.print()
        if report:
            out.print(f"Report: {report_path}", soft_wrap=True)
        if detector:
            out.print(f"Detector: {detector_path}", soft_wrap=True)
            for subject, what in calibration_findings(detector.description):
                out.print(f"  {subject}: {what}", soft_wrap=True, highlight=False)
        if note := passed_over_note(provenance, workspace):
            out.print(note, soft_wrap=True)
        steps = {
            **(
                {
                    "score images": f"causal-tune predict {shlex.quote(str(detector_path))} PATH... -o scores.csv"
                }
                if detector
                else {}
            ),
            "all trials": f"causal-tune leaderboard {shlex.quote(str(result.path))}",
            **({"how sure it is": again("finalists")} if rows else {}),
            "compare in MLflow": ui_command,
            **(next_steps or {}),
        }
        out.print("What to type next:")
        for what, command in steps.items():
            out.print(f"  {what + ':':<20}{command}", soft_wrap=True, highlight=False)

    num_failed = sum(record.failed for record in result.records)
    if num_failed or done.num_quarantined:
        ending.add(
            f"Done, with {num_failed} of {len(result.records)} trials failed and {done.num_quarantined:,} of "
            f"{done.num_indexed:,} images unreadable; the reasons are in {result.path / 'trials'} and "
            f"{done.store.path / 'quarantine.arrow'}."
        )
    document = {
        "index": str(index_path),
        "store": str(done.store.path),
        "num_indexed": done.num_indexed,
        "num_stored": done.num_stored,
        "num_quarantined": done.num_quarantined,
        "study": str(result.path),
        "num_trials": len(result.records),
        "num_failed": num_failed,
        "criterion": criterion,
        "leaderboard": rows,
        "report": str(report_path) if report else None,
        "detector": str(detector_path) if detector else None,
        "winner": provenance or None,
        "metrics": detector.description["metrics"] if detector else None,
        "mlflow_ui": ui_command,
        "problems": ending.problems,
    }
    emit(as_json, document, show)
    ending.close()


def _command(study: str, workspace: Path, name: str) -> str:
    """What to type to do one step of the job again."""
    return f"causal-tune {name} {study}{workspace_words(workspace)}"


def _write_report(study_folder: Path, folder: Path) -> Report:
    report = study_report(study_folder)
    write_report(report, folder)
    return report


def image_options(encoder: str, degrade: Sequence[str] = ()) -> Callable[[Any], Any]:
    """The options of the jobs that say which images are encoded, and how."""

    def decorate(command: Any) -> Any:
        for option in reversed(
            [
                click.option(
                    "--images",
                    required=True,
                    multiple=True,
                    help="A CSV or Parquet list, the root of a data set, or a URI of either. Repeatable.",
                ),
                layout_option,
                choice_options("--sample-seed"),
                encoding_options(encoder, degrade),
            ]
        ):
            command = option(command)
        return command

    return decorate


def job_command(
    *, name: str, question: str, space: str, encoder: str, example: str, degrade: Sequence[str] = ()
) -> click.Command:
    """The command of one file in `jobs/`: its question, what it defaults to, an example."""

    @click.command(
        name,
        cls=SectionedCommand,
        help=question,
        epilog=f"Example: python jobs/{name} {example}",
    )
    @image_options(encoder, degrade)
    @study_options
    @workspace_option
    @json_option
    def command(**options: Any) -> None:
        with errors_as_paragraphs():
            chosen = options.pop("space")
            frozen = study_space(options["workspace"], options["study"], space)
            run_job(space=load_space(chosen) if chosen else frozen, **options)

    return command
