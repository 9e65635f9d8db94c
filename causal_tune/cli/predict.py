"""`predict`: a detector on any images."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape

from causal_tune.atomic import atomic_path
from causal_tune.cli.encoding import runtime_option
from causal_tune.cli.output import emit, err, json_option, out, progress_bar, table
from causal_tune.detector import UNSURE, Detector, Scored, image_paths, load_detector
from causal_tune.errors import InvalidConfig, WorkFailed
from causal_tune.images.walk import IMAGE_SUFFIXES

__all__ = ["predict_command"]


@click.command("predict", epilog="Example: causal-tune predict detectors/real photos/ -o scores.csv")
@click.argument("detector", type=click.Path(path_type=Path))
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A .csv or .parquet file."
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@runtime_option("that of the training where this machine has it")
@json_option
def predict_command(
    detector: Path, paths: tuple[Path, ...], output: Path | None, batch_size: int, runtime: str, as_json: bool
) -> None:
    """Score images with DETECTOR: files, and all images below folders. One row each: score, verdict or reason."""
    if output is not None and output.suffix.lower() not in (".csv", ".parquet"):
        raise InvalidConfig(f"The output {output} should end in .csv or .parquet.")
    loaded = load_detector(detector)
    images, num_skipped = image_paths(paths, IMAGE_SUFFIXES)
    if not images:
        raise InvalidConfig(
            f"There is no image in {', '.join(map(str, paths))} ({num_skipped:,} other files). Files ending in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} are taken from folders; any file that is named itself is taken."
        )
    loaded.encoder(runtime)
    for note in loaded.notes:
        err.print(note)
    results: list[Scored] = []
    with progress_bar("Scoring", len(images), "images") as bar:
        for result in loaded.score_images(images, batch_size=batch_size):
            results.append(result)
            bar.update(len(results))
    if output is not None:
        write_scores(results, output)
    scored = [result for result in results if result.score is not None]
    num_generated = sum(result.verdict == "generated" for result in scored)
    document = {
        "detector": str(detector),
        "num_images": len(results),
        "num_scored": len(scored),
        "num_generated": num_generated,
        "num_skipped_files": num_skipped,
        "output": str(output) if output else None,
        "scores": [asdict(result) for result in results],
    }
    emit(as_json, document, lambda: _show_scores(loaded, results, output, num_generated, num_skipped))
    if len(scored) < len(results):
        raise WorkFailed(
            f"{len(results) - len(scored):,} of {len(results):,} images could not be scored; "
            f"{'their reasons are in ' + str(output) if output else 'each has its reason in the table'}."
        )


def _show_scores(
    detector: Detector, results: Sequence[Scored], output: Path | None, num_generated: int, num_skipped: int
) -> None:
    most = 20
    columns = ["path", "score", "probability", "verdict<"]
    rows = [
        [
            escape(result.path),
            "-" if result.score is None else f"{result.score:.4f}",
            "-" if result.probability is None else f"{result.probability:.4f}",
            result.verdict or escape(f"- {result.reason}"),
        ]
        for result in results[:most]
    ]
    out.print(table(f"Scores by {detector.name}", columns, rows))
    if len(results) > most:
        out.print(
            f"... and {len(results) - most:,} more{f' in {output}' if output else '; -o FILE keeps them all'}."
        )
    num_scored = sum(result.score is not None for result in results)
    num_unsure = sum(result.verdict == UNSURE for result in results)
    num_real = num_scored - num_generated - num_unsure
    out.print(
        f"{num_scored:,} scored: {num_generated:,} generated, {num_unsure:,} unsure, {num_real:,} real."
    )
    if num_skipped:
        err.print(f"{num_skipped:,} files of the folders have no image suffix and were left out.")


def write_scores(results: Sequence[Scored], path: Path) -> None:
    """`path,score,probability,verdict,reason` as CSV or Parquet, by the suffix, whole or not at all."""
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".parquet":
            pq.write_table(pa.Table.from_pylist([asdict(result) for result in results]), temporary)
            return
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["path", "score", "probability", "verdict", "reason"])
            writer.writeheader()
            writer.writerows(asdict(result) for result in results)
