"""`evaluate`: a detector on labelled images."""

from pathlib import Path

import click
import numpy as np

from causal_tune.cli.encoding import Encoding, runtime_option
from causal_tune.cli.extract import describe_extraction, run_extract, show_quarantine
from causal_tune.cli.output import (
    METRIC_COLUMNS,
    emit,
    err,
    json_option,
    metrics_rows,
    out,
    table,
    workspace_option,
)
from causal_tune.detector import load_detector
from causal_tune.errors import WorkFailed
from causal_tune.images.index import read_index
from causal_tune.metrics import score_metrics

__all__ = ["evaluate_command"]


@click.command("evaluate", epilog="Example: causal-tune evaluate detectors/real genimage.parquet")
@click.argument("detector", type=click.Path(path_type=Path))
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--address", help="A Ray cluster. [default: $RAY_ADDRESS, or a local Ray]")
@runtime_option("that of the training where this machine has it")
@workspace_option
@json_option
def evaluate_command(
    detector: Path, index: Path, address: str | None, runtime: str, workspace: Path, as_json: bool
) -> None:
    """Judge DETECTOR on the labelled images of INDEX, generator by generator; features are kept in the store."""
    loaded = load_detector(detector)
    encoder = loaded.encoder(runtime).description  # refuses other weights before any image is read
    for note in loaded.notes:
        err.print(note)
    encoding = Encoding(
        encoder=encoder.name,
        layers=(loaded.layer,),
        dtype="int8" if encoder.dtype == "int8" else "auto",
        runtime=encoder.runtime,
        preprocessing=loaded.preprocessing,
    )
    done = run_extract(read_index(index), encoding, workspace=workspace, address=address)
    rows = done.store.rows
    generator = np.asarray(rows["generator"].to_pylist(), dtype=object)
    labels = rows["label"].to_numpy()
    metrics = {}
    for name in sorted(set(generator.tolist())):
        members = np.flatnonzero(generator == name)
        logits = loaded.logits(done.store.features(loaded.layer, members))
        metrics[name] = score_metrics(logits, labels[members])
    seen = loaded.description["provenance"]["train_generators"]

    def show() -> None:
        sets = [(name, "trained on" if name in seen else "", values) for name, values in metrics.items()]
        out.print(table(f"{loaded.name} on {index}", METRIC_COLUMNS, metrics_rows(sets)))
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
