"""`extract`: the images of an index into the feature store."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
import pyarrow as pa

from causal_tune.cli.output import emit, err, json_option, names, out, progress_bar, workspace_option
from causal_tune.errors import WorkFailed
from causal_tune.extraction import Extraction, Progress, extract
from causal_tune.images.index import read_index
from causal_tune.runtimes import RUNTIMES

__all__ = [
    "describe_extraction",
    "extract_command",
    "precision_options",
    "run_extract",
    "runtime_option",
    "show_quarantine",
]


Command = TypeVar("Command", bound=Callable[..., Any])


def runtime_option(auto: str) -> Callable[[Command], Command]:
    """`--runtime`: what computes the encoder; `auto` says what is taken by default."""
    return click.option(
        "--runtime",
        type=click.Choice(["auto", *sorted(RUNTIMES)]),
        default="auto",
        show_default=True,
        help=f"What computes the encoder. auto: {auto}.",
    )


def precision_options(command: Command) -> Command:
    """`--dtype` and `--runtime`: what an encoder computes in, and by what."""
    dtype = click.option(
        "--dtype",
        type=click.Choice(["auto", "bfloat16", "float32", "int8"]),
        default="auto",
        show_default=True,
        help="What it computes in. int8 (needs the extra causal-tune[int8]) costs accuracy, and prints how much.",
    )
    return dtype(runtime_option("OpenVINO on CPUs with AVX-512, else torch")(command))


def run_extract(
    index: pa.Table,
    *,
    encoder: str,
    workspace: Path,
    layers: Sequence[str],
    dtype: str = "auto",
    runtime: str = "auto",
    batch_size: int = 64,
    num_actors: int | None = None,
    gpus_per_actor: float = 0.0,
    address: str | None = None,
) -> Extraction:
    """`extraction.extract` with a progress bar."""
    with progress_bar(f"Encoding with {encoder}", index.num_rows, "images") as bar:

        def on_progress(progress: Progress) -> None:
            note = f"({progress.num_quarantined:,} unreadable)" if progress.num_quarantined else ""
            bar.update(progress.num_stored + progress.num_quarantined, note)

        return extract(
            index,
            encoder=encoder,
            workspace=workspace,
            layers=layers,
            dtype=dtype,
            runtime=runtime,
            batch_size=batch_size,
            num_actors=num_actors,
            gpus_per_actor=gpus_per_actor,
            address=address,
            on_progress=on_progress,
        )


def describe_extraction(done: Extraction) -> str:
    """Indexed = stored + quarantined, the rate of this run, and what rounding did to the features."""
    encoder = done.store.description["encoder"]
    note = (
        f"\n{encoder['dtype']} by {encoder.get('runtime', 'torch')}: {done.fidelity}."
        if done.fidelity
        else ""
    )
    text = f"{done.num_indexed:,} indexed = {done.num_stored:,} stored + {done.num_quarantined:,} quarantined"
    if done.num_encoded_now:
        rate = done.num_encoded_now / done.elapsed_s
        return f"{text}; {done.num_encoded_now:,} encoded now in {done.elapsed_s:.0f} s ({rate:.1f} images/s).{note}"
    return f"{text}; all were stored before, nothing was encoded.{note}"


@click.command(
    "extract",
    epilog="Example: causal-tune extract genimage.parquet --encoder vit-b-16-int8 --layers proj,cls@7",
)
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--encoder", required=True, help="A name of `causal-tune encoders`, MODEL:TAG, or a weights file."
)
@click.option(
    "--layers", multiple=True, default=("proj",), show_default=True, callback=names, help="Comma-separated."
)
@precision_options
@click.option(
    "--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images encoded at once."
)
@click.option(
    "--actors", "num_actors", type=click.IntRange(1), help="Encoders side by side. [default: by resources]"
)
@click.option(
    "--gpus-per-actor", type=click.FloatRange(0), default=0.0, show_default=True, help="May be a fraction."
)
@click.option("--address", help="A Ray cluster. [default: $RAY_ADDRESS, or a local Ray]")
@workspace_option
@json_option
def extract_command(
    index: Path,
    encoder: str,
    layers: tuple[str, ...],
    dtype: str,
    runtime: str,
    batch_size: int,
    num_actors: int | None,
    gpus_per_actor: float,
    address: str | None,
    workspace: Path,
    as_json: bool,
) -> None:
    """Encode the images of INDEX into the feature store; a second run does only what is missing."""
    done = run_extract(
        read_index(index),
        encoder=encoder,
        workspace=workspace,
        layers=layers,
        dtype=dtype,
        runtime=runtime,
        batch_size=batch_size,
        num_actors=num_actors,
        gpus_per_actor=gpus_per_actor,
        address=address,
    )
    document = {
        "store": str(done.store.path),
        "num_indexed": done.num_indexed,
        "num_stored": done.num_stored,
        "num_quarantined": done.num_quarantined,
        "num_encoded_now": done.num_encoded_now,
        "elapsed_s": done.elapsed_s,
        "fidelity": asdict(done.fidelity) if done.fidelity else None,
    }

    def show() -> None:
        out.print(describe_extraction(done))
        show_quarantine(done)
        out.print(f"Store: {done.store.path}", soft_wrap=True)

    emit(as_json, document, show)
    if done.num_quarantined:
        raise WorkFailed(
            f"{done.num_quarantined:,} of {done.num_indexed:,} images could not be read; the others are stored. "
            f"Their reasons are in {done.store.path / 'quarantine.arrow'}."
        )


def show_quarantine(done: Extraction, most: int = 5) -> None:
    """The first few unreadable images with their reasons."""
    rows = done.store.quarantine().slice(0, most).to_pylist()
    for row in rows:
        err.print(f"  unreadable: {row['path']}: {row['reason']}", soft_wrap=True, markup=False)
    if done.num_quarantined > most:
        err.print(f"  and {done.num_quarantined - most:,} more in {done.store.path / 'quarantine.arrow'}")
