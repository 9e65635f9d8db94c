"""`predict`: a detector on any images."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from causal_tune.cli.encoding import runtime_option
from causal_tune.cli.output import (
    emit,
    err,
    json_option,
    out,
    progress_bar,
    table,
    under_workspace,
    workspace_option,
    writable,
)
from causal_tune.detector import UNSURE, load_detector
from causal_tune.errors import InvalidConfig, WorkFailed
from causal_tune.images.index import read_index
from causal_tune.images.walk import IMAGE_SUFFIXES
from causal_tune.prediction import Prediction, Scored, ScoreProgress, check_output, image_paths, predict
from causal_tune.wording import plural

__all__ = ["predict_command"]

_MOST_SHOWN = 20


@click.command("predict", epilog="Example: causal-tune predict detectors/real photos/ -o scores.csv")
@click.argument("detector")
@click.argument("paths", nargs=-1)
@click.option("--index", type=click.Path(path_type=Path), help="Score the images of an index, in its order.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=writable,
    help="A .csv, .jsonl or .parquet file. An interrupted run with one continues.",
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--actors", "num_actors", type=click.IntRange(1), help="Detectors side by side.")
@click.option(
    "--gpus-per-actor", type=click.FloatRange(0), default=0.0, show_default=True, help="May be a fraction."
)
@click.option("--address", help="A Ray cluster. [default: $RAY_ADDRESS, or a local Ray]")
@runtime_option("what training used, if available here")
@workspace_option
@json_option
def predict_command(
    detector: str,
    paths: tuple[str, ...],
    index: Path | None,
    output: Path | None,
    batch_size: int,
    num_actors: int | None,
    gpus_per_actor: float,
    address: str | None,
    runtime: str,
    workspace: Path,
    as_json: bool,
) -> None:
    """Score images with DETECTOR, a name or a folder.

    The images are files and all those below folders, local or behind URIs (s3://, gs://, ...). One row each: score,
    probability and verdict with a note where the picture cannot be judged, or the reason why there is none, and the id
    of the detector.
    """
    check_output(output)
    folder = under_workspace(workspace, "detectors", detector)
    loaded = load_detector(folder)
    images, skipped = image_paths(paths)
    if index is not None:
        images += read_index(index)["path"].to_pylist()
    if not images:
        raise InvalidConfig(
            f"There is no image in {', '.join(paths)} ({plural(skipped.total(), 'other file')}). From folders are "
            f"taken files ending in {', '.join(sorted(IMAGE_SUFFIXES))} and files without a suffix; any file that is "
            f"named itself is taken."
            if paths
            else "There is nothing to score: name files, folders or --index."
        )
    loaded.encoder_description(runtime)  # refuses other weights before any image is read
    for note in loaded.notes:
        err.print(note)
    if loaded.description["calibration"] is None:
        err.print(
            f"{loaded.name} was exported without calibration: each probability is its score, and no verdict is unsure. "
            "Export it again with this release for both."
        )
    with progress_bar(f"Scoring with {loaded.name}", len(images), "images") as bar:

        def on_progress(progress: ScoreProgress) -> None:
            if progress.stage:
                bar.stage(progress.stage, progress.num_done)
                return
            note = f"{progress.num_unreadable:,} unreadable" if progress.num_unreadable else ""
            bar.update(progress.num_done, note)

        done = predict(
            folder,
            images,
            output,
            runtime=runtime,
            batch_size=batch_size,
            num_actors=num_actors,
            gpus_per_actor=gpus_per_actor,
            address=address,
            num_first=sys.maxsize if as_json and output is None else _MOST_SHOWN,
            on_progress=on_progress,
            on_note=err.print,
        )
    document = {
        "detector": str(folder),
        "model": loaded.id,
        "num_images": done.num_images,
        "num_scored": done.num_images - done.num_unreadable,
        "num_generated": done.verdicts.get("generated", 0),
        "num_real": done.verdicts.get("real", 0),
        "num_unsure": done.verdicts.get(UNSURE, 0),
        "num_noted": done.num_noted,
        "num_skipped_files": skipped.total(),
        "skipped": dict(skipped),
        "num_done_before": done.num_done_before,
        "elapsed_s": done.elapsed_s,
        "output": str(output) if output else None,
        "scores": [asdict(one) for one in done.first] if output is None else None,
    }
    emit(as_json, document, lambda: _show(loaded.id, done, done.first, output))
    if skipped:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in skipped.most_common())
        err.print(
            f"{plural(skipped.total(), 'other file')} in the folders left out: {reasons}.",
            soft_wrap=True,
        )
    if done.num_unreadable:
        raise WorkFailed(
            f"{done.num_unreadable:,} of {done.num_images:,} images could not be scored; "
            f"{'their reasons are in ' + str(output) if output else 'each has its reason in the table'}."
        )


def _show(name: str, done: Prediction, shown: Sequence[Scored], output: Path | None) -> None:
    columns = ["path", "score", "probability", "verdict<"]
    rows = [
        [
            one.path,
            "-" if one.score is None else f"{one.score:.4f}",
            "-" if one.probability is None else f"{one.probability:.4f}",
            ": ".join(filter(None, [one.verdict or "-", one.note or one.reason])),
        ]
        for one in shown
    ]
    out.print(table(f"Scores by {name}", columns, rows))
    if done.num_images > len(shown):
        where = f" in {output}" if output else "; -o FILE keeps them all"
        out.print(f"... and {done.num_images - len(shown):,} more{where}.", soft_wrap=True)
    words = {"generated": "generated", UNSURE: UNSURE, "real": "real"}
    if done.num_noted:
        words[UNSURE] += f" ({done.num_noted:,} cannot be judged)"
    counts = ", ".join(f"{done.verdicts.get(verdict, 0):,} {word}" for verdict, word in words.items())
    num_now = done.num_images - done.num_done_before
    before = f", {done.num_done_before:,} by an earlier run" if done.num_done_before else ""
    rate = num_now / done.elapsed_s if done.elapsed_s else 0.0
    out.print(
        f"{done.num_images - done.num_unreadable:,} scored: {counts}. {plural(num_now, 'image')} in "
        f"{done.elapsed_s:.0f} s ({rate:.1f} images/s){before}.",
        soft_wrap=True,
    )
