"""The main job, end to end: index, extract, tune, table, export. `jobs/` and `causal-tune demo` are this."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from causal_tune.cli.data import counts_table, make_index
from causal_tune.cli.extract import describe_extraction, precision_options, run_extract, show_quarantine
from causal_tune.cli.leaderboard import leaderboard_rows, show_leaderboard, show_winner
from causal_tune.cli.output import (
    emit,
    err,
    errors_as_paragraphs,
    json_option,
    names,
    out,
    table,
    workspace_option,
)
from causal_tune.cli.tune import run_tune, study_options
from causal_tune.errors import WorkFailed
from causal_tune.export import export_detector
from causal_tune.extraction import Extraction
from causal_tune.images.layouts import LAYOUTS
from causal_tune.study.space import SearchSpace
from causal_tune.study.spec import check_roles, study_path

__all__ = ["encode_images", "image_options", "job_command", "roles_of", "run_job"]


def encode_images(
    *,
    images: tuple[Path, ...],
    layout: str,
    index_path: Path,
    encoder: str,
    workspace: Path,
    layers: tuple[str, ...] = ("proj",),
    dtype: str = "auto",
    runtime: str = "auto",
    num_actors: int | None = None,
    gpus_per_actor: float = 0.0,
    address: str | None = None,
    check: Callable[[Sequence[str]], None] | None = None,
) -> Extraction:
    """Index and extract, telling on stderr what is there; every step continues what an earlier run left.

    `check` is given the generators of the index before anything is encoded, and raises what is wrong.
    """
    index = make_index(images, layout, index_path)
    columns = ["generator", "split<", "real", "generated", "unreadable"]
    err.print(table(f"{index.num_rows:,} images", columns, counts_table(index)))
    if check:
        check(sorted(set(index["generator"].to_pylist())))
    done = run_extract(
        index,
        encoder=encoder,
        workspace=workspace,
        layers=layers,
        dtype=dtype,
        runtime=runtime,
        num_actors=num_actors,
        gpus_per_actor=gpus_per_actor,
        address=address,
    )
    err.print(describe_extraction(done))
    show_quarantine(done)
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
    images: tuple[Path, ...],
    layout: str,
    encoder: str,
    workspace: Path,
    as_json: bool,
    study: str,
    space: str | SearchSpace,
    address: str | None,
    layers: tuple[str, ...] = ("proj",),
    dtype: str = "auto",
    runtime: str = "auto",
    num_actors: int | None = None,
    gpus_per_actor: float = 0.0,
    next_steps: Mapping[str, str] | None = None,
    **study_settings: Any,
) -> None:
    """Index, extract, tune, show and export; every step continues what an earlier run left."""
    folder = study_path(workspace, study)  # a bad name is told before hours of encoding
    index_path = workspace / "index" / f"{study}.parquet"
    done = encode_images(
        images=images,
        layout=layout,
        index_path=index_path,
        encoder=encoder,
        workspace=workspace,
        layers=layers,
        dtype=dtype,
        runtime=runtime,
        num_actors=num_actors,
        gpus_per_actor=gpus_per_actor,
        address=address,
        check=lambda known: check_roles(roles_of(study_settings), known, "the index"),
    )
    result, ui_command = run_tune(
        workspace=workspace,
        store=done.store.path,
        study=study,
        space=space,
        address=address,
        **study_settings,
    )
    criterion = result.spec.criterion
    detector_path = workspace / "detectors" / study
    detector = export_detector(folder, detector_path)
    rows = leaderboard_rows(result.spec, result.records, criterion)

    def show() -> None:
        out.print()
        show_leaderboard(rows, criterion, most=5)
        out.print()
        show_winner(result.spec, result.records, criterion)
        out.print(f"\nDetector: {detector_path}", soft_wrap=True)
        steps = {
            "score images": f"causal-tune predict {detector_path} PATH... -o scores.csv",
            "all trials": f"causal-tune leaderboard {result.path}",
            "compare in MLflow": ui_command,
            **(next_steps or {}),
        }
        out.print("What to type next:")
        for what, command in steps.items():
            out.print(f"  {what + ':':<20}{command}", soft_wrap=True, markup=False, highlight=False)

    num_failed = sum(not record.finished for record in result.records)
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
        "detector": str(detector_path),
        "winner": detector.description["provenance"],
        "metrics": detector.description["metrics"],
        "mlflow_ui": ui_command,
    }
    emit(as_json, document, show)
    if num_failed or done.num_quarantined:
        raise WorkFailed(
            f"Done, with {num_failed} of {len(result.records)} trials failed and {done.num_quarantined:,} of "
            f"{done.num_indexed:,} images unreadable; the reasons are in {result.path / 'trials'} and "
            f"{done.store.path / 'quarantine.arrow'}."
        )


def image_options(encoder: str) -> Callable[[Any], Any]:
    """The options of the jobs that say which images are encoded, and how."""

    def decorate(command: Any) -> Any:
        for option in reversed(
            [
                click.option(
                    "--images",
                    required=True,
                    multiple=True,
                    type=click.Path(path_type=Path),
                    help="A CSV or the root of a data set; may be given several times.",
                ),
                click.option(
                    "--layout",
                    required=True,
                    type=click.Choice(sorted(LAYOUTS)),
                    help="How the images lie on disk.",
                ),
                click.option("--encoder", default=encoder, show_default=True),
                click.option("--layers", multiple=True, default=("proj",), show_default=True, callback=names),
                precision_options,
                click.option("--actors", "num_actors", type=click.IntRange(1), help="Encoders side by side."),
                click.option("--gpus-per-actor", type=click.FloatRange(0), default=0.0, show_default=True),
            ]
        ):
            command = option(command)
        return command

    return decorate


def job_command(*, name: str, question: str, space: str, encoder: str) -> click.Command:
    """The command of one file in `jobs/`: its question, and the space and encoder that it defaults to."""

    @click.command(
        name,
        help=question,
        epilog=f"Example: python jobs/{name} --images GenImage --layout genimage --train-generator sd14 "
        "--val-generators glide --trials 100 --study sd14",
    )
    @image_options(encoder)
    @study_options
    @workspace_option
    @json_option
    def command(**options: Any) -> None:
        with errors_as_paragraphs():
            chosen = options.pop("space") or space
            run_job(space=chosen, **options)

    return command
