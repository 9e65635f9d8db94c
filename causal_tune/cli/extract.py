"""`extract`: the images of an index into the feature store."""

from dataclasses import asdict, fields
from pathlib import Path

import click
import pyarrow as pa

from causal_tune.cli.encoding import Encoding, encoding_options
from causal_tune.cli.output import emit, err, json_option, out, progress_bar, workspace_option
from causal_tune.errors import WorkFailed
from causal_tune.extraction import Extraction, Progress, extract
from causal_tune.images.index import read_index

__all__ = [
    "describe_extraction",
    "extract_command",
    "run_extract",
    "show_quarantine",
]


def run_extract(
    index: pa.Table, encoding: Encoding, *, workspace: Path, address: str | None = None
) -> Extraction:
    """`extraction.extract` with a progress bar."""
    with progress_bar(f"Encoding with {encoding.encoder}", index.num_rows, "images") as bar:

        def on_progress(progress: Progress) -> None:
            if progress.stage:
                bar.stage(progress.stage, progress.num_done)
                return
            note = f"{progress.num_quarantined:,} unreadable" if progress.num_quarantined else ""
            bar.update(progress.num_done, note)

        options = {field.name: getattr(encoding, field.name) for field in fields(encoding)}
        return extract(index, workspace=workspace, address=address, on_progress=on_progress, **options)


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
        text += f"; {done.num_encoded_now:,} encoded now in {done.elapsed_s:.0f} s ({rate:.1f} images/s)"
        text += f", {done.num_taken:,} taken from earlier work." if done.num_taken else "."
    elif done.num_taken:
        text += f"; nothing was encoded, {done.num_taken:,} were taken from earlier work."
    else:
        text += "; all were stored before, nothing was encoded."
    return text + note


@click.command(
    "extract",
    epilog="Example: causal-tune extract genimage.parquet --encoder vit-b-16-int8 --layers proj,cls@7",
)
@click.argument("index", type=click.Path(path_type=Path))
@encoding_options()
@click.option("--address", help="A Ray cluster. [default: $RAY_ADDRESS, or a local Ray]")
@workspace_option
@json_option
def extract_command(
    index: Path, encoding: Encoding, address: str | None, workspace: Path, as_json: bool
) -> None:
    """Encode the images of INDEX into the feature store; a second run does only what is missing."""
    done = run_extract(read_index(index), encoding, workspace=workspace, address=address)
    document = {
        "store": str(done.store.path),
        "preprocessing": encoding.preprocessing.name,
        "num_indexed": done.num_indexed,
        "num_stored": done.num_stored,
        "num_quarantined": done.num_quarantined,
        "num_encoded_now": done.num_encoded_now,
        "num_taken": done.num_taken,
        "views": list(done.store.views),
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
        err.print(f"  unreadable: {row['path']}: {row['reason']}", soft_wrap=True)
    if done.num_quarantined > most:
        err.print(f"  and {done.num_quarantined - most:,} more in {done.store.path / 'quarantine.arrow'}")
