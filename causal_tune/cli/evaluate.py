"""`evaluate`: a detector on labelled images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa

from causal_tune.cli.encoding import Encoding, runtime_option
from causal_tune.cli.extract import describe_extraction, run_extract, show_quarantine
from causal_tune.cli.help import SectionedCommand
from causal_tune.cli.index import (
    choice_options,
    labelled_images,
    layout_option,
    layout_without_index_option,
    make_index,
)
from causal_tune.cli.output import (
    METRIC_COLUMNS,
    emit,
    err,
    errors_as_paragraphs,
    json_option,
    metrics_rows,
    out,
    percent,
    table,
    under_workspace,
    workspace_option,
)
from causal_tune.detector import Detector, load_detector
from causal_tune.errors import WorkFailed
from causal_tune.images.choice import Choice
from causal_tune.judgement import judge
from causal_tune.resampling import Scored

__all__ = ["evaluate_command", "evaluate_job"]


@click.command("evaluate", epilog="Example: causal-tune evaluate detectors/real genimage.parquet")
@click.argument("detector")
@click.argument("index", type=click.Path(path_type=Path))
@layout_without_index_option
@click.option("--address", help="A Ray cluster. [default: $RAY_ADDRESS, or a local Ray]")
@runtime_option("what training used, if available here")
@workspace_option
@json_option
def evaluate_command(detector: str, index: Path, layout: str | None, workspace: Path, **options: Any) -> None:
    """Judge DETECTOR, a name or a folder, on the labelled images of INDEX, generator by generator.

    INDEX may be a folder or list of images too. Features are kept in the store.
    """
    folder = under_workspace(workspace, "detectors", detector)
    loaded = load_detector(folder)  # before a large index is read
    _evaluate(loaded, folder, labelled_images(index, layout), index, workspace=workspace, **options)


def evaluate_job(*, name: str, question: str) -> click.Command:
    """The command of the job that judges a detector: images to table, as `ray job submit` runs it."""

    @click.command(
        name,
        cls=SectionedCommand,
        help=question,
        epilog=f"Example: python jobs/{name} --detector detectors/real --images GenImage --layout genimage",
    )
    @click.option("--detector", required=True, help="Its name, or its folder.")
    @click.option(
        "--images",
        required=True,
        multiple=True,
        help="A CSV or Parquet list, the root of a data set, or a URI of either. Repeatable.",
    )
    @layout_option
    @choice_options("--sample-seed")
    @click.option("--address", help="A Ray cluster. [default: $RAY_ADDRESS, or a local Ray]")
    @runtime_option("what training used, if available here")
    @workspace_option
    @json_option
    def command(
        *,
        detector: str,
        images: tuple[str, ...],
        layout: str,
        choice: Choice,
        workspace: Path,
        **options: Any,
    ) -> None:
        with errors_as_paragraphs():
            folder = under_workspace(workspace, "detectors", detector)
            loaded = load_detector(folder)
            path = workspace / "index" / f"evaluate-{loaded.name}.parquet"
            index = make_index(images, layout, path, choice)
            _evaluate(loaded, folder, index, path, workspace=workspace, **options)

    return command


def _evaluate(
    loaded: Detector,
    detector: Path,
    images: pa.Table,
    index: Path,
    *,
    address: str | None,
    runtime: str,
    workspace: Path,
    as_json: bool,
) -> None:
    encoder = loaded.encoder(runtime).description  # refuses other weights before any image is read
    for note in loaded.notes:
        err.print(note)
    encoding = Encoding(
        encoder=encoder.name,
        layers=encoder.layers,
        dtype=encoder.dtype,
        runtime=encoder.runtime,
        preprocessing=loaded.preprocessing,
    )
    done = run_extract(images, encoding, workspace=workspace, address=address)
    rows = done.store.rows
    generator = np.asarray(rows["generator"].to_pylist(), dtype=object)
    labels = rows["label"].to_numpy()
    metrics = {}
    for name in sorted(set(generator.tolist())):
        members = np.flatnonzero(generator == name)
        logits = loaded.logits(done.store.features(loaded.layer, members))
        metrics[name] = judge(
            Scored.of(logits, labels[members]),
            calibration=loaded.calibration,
            real_below=loaded.unsure[0],
            generated_from=loaded.unsure[1],
        )

    def show() -> None:
        sets = [(name, _role(name, loaded), values) for name, values in metrics.items()]
        out.print(table(f"{loaded.name} on {index}", METRIC_COLUMNS, metrics_rows(sets)))
        out.print(table("With 95 % intervals over these images", _RANKING, _ranking_rows(metrics)))
        out.print(table("Verdicts", _VERDICTS, _verdict_rows(metrics)))
        out.print(
            "Percent. TPR at 5 % FPR: generated images found at the threshold where 5 % of these real images are false "
            "alarms. ECE: calibration error, in points. False alarms: real images called generated. Found: generated "
            "images called generated. Missed: generated images called real."
        )
        out.print(describe_extraction(done))
        show_quarantine(done)

    document = {
        "detector": str(detector),
        "index": str(index),
        "generators": metrics,
        "num_stored": done.num_stored,
        "num_quarantined": done.num_quarantined,
    }
    emit(as_json, document, show)
    if done.num_quarantined:
        raise WorkFailed(f"{done.num_quarantined:,} of {done.num_indexed:,} images could not be read.")


def _role(generator: str, detector: Detector) -> str:
    """What a generator was to the detector's study; a dash where it had no part in it."""
    provenance = detector.description["provenance"]
    if generator in provenance["train_generators"]:
        return "trained on"
    return "chosen by" if generator in provenance.get("val_generators", ()) else "-"


_RANKING = ["generator", "AP", "AUC", "TPR at 5 % FPR", "accuracy", "ECE"]
_VERDICTS = ["generator", "false alarms", "found", "unsure (real)", "unsure (gen.)", "missed (gen.)"]


def _ranking_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            name,
            *(
                _cell(one[key], one["intervals"].get(key))
                for key in ("ap", "auc", "tpr_at_5_fpr", "accuracy")
            ),
            percent(one["ece"]),
        ]
        for name, one in metrics.items()
    ]


def _verdict_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for name, one in metrics.items():
        real, generated = one["real_as"] or {}, one["generated_as"] or {}
        rows.append(
            [
                name,
                _cell(real.get("generated"), one["intervals"].get("false_positives")),
                _cell(generated.get("generated"), one["intervals"].get("found")),
                percent(real.get("unsure")),
                percent(generated.get("unsure")),
                percent(generated.get("real")),
            ]
        )
    return rows


def _cell(value: float | None, ends: Sequence[float] | None) -> str:
    if value is None or ends is None:
        return percent(value)
    return f"{100 * value:.1f} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
