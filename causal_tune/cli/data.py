"""`index`, `encoders`, `fetch`: what is there to be encoded, and by what."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import pyarrow as pa

from causal_tune.cli.output import (
    emit,
    json_option,
    out,
    progress_bar,
    table,
)
from causal_tune.encoders import ENCODERS
from causal_tune.images.index import counts, skipped_files, write_index
from causal_tune.images.layouts import LAYOUTS, build_index
from causal_tune.weights import fetch, is_fetched

__all__ = [
    "encoders_command",
    "fetch_command",
    "index_command",
    "make_index",
]


def make_index(roots: Sequence[Path], layout: str, path: Path) -> pa.Table:
    """Index `roots` with a progress bar and write the index to `path`."""
    with progress_bar("Indexing", 0, "images") as bar:
        index = build_index(roots, layout, progress=bar.follow)
    write_index(index, path)
    return index


def counts_table(index: pa.Table) -> list[list[str]]:
    """Rows generator, split, real, generated, unreadable of an index, as text."""
    return [
        [
            row.generator,
            row.split or "-",
            f"{row.num_real:,}",
            f"{row.num_generated:,}",
            f"{row.num_unreadable:,}",
        ]
        for row in counts(index)
    ]


@click.command("index", epilog="Example: causal-tune index GenImage --layout genimage -o genimage.parquet")
@click.argument("roots", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--layout", required=True, type=click.Choice(sorted(LAYOUTS)), help="How the images lie on disk."
)
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The index."
)
@json_option
def index_command(roots: tuple[Path, ...], layout: str, output: Path, as_json: bool) -> None:
    """Make the image index (Parquet) of ROOTS: one row an image, with label, generator, split and hash."""
    index = make_index(roots, layout, output)

    def show() -> None:
        columns = ["generator", "split<", "real", "generated", "unreadable"]
        out.print(table(f"{index.num_rows:,} images in {output}", columns, counts_table(index)))
        for what, number in skipped_files(index).items():
            out.print(f"Left out: {number:,} files ({what}).", markup=False)
        out.print(f"Next: causal-tune extract {output} --encoder vit-b-16-int8", soft_wrap=True)

    emit(
        as_json,
        {
            "index": str(output),
            "num_images": index.num_rows,
            "counts": [asdict(row) for row in counts(index)],
            "skipped": skipped_files(index),
        },
        show,
    )


@click.command("encoders", epilog="Example: causal-tune encoders")
@json_option
def encoders_command(as_json: bool) -> None:
    """List the encoders: names of the table, and how to name others."""
    rows = [
        {
            "name": name,
            "architecture": encoder.architecture,
            "source": encoder.source,
            "fetched": is_fetched(name),
        }
        for name, encoder in ENCODERS.items()
    ]

    def show() -> None:
        text = [
            [name, encoder.architecture or "", encoder.source, "yes" if is_fetched(name) else "no"]
            for name, encoder in ENCODERS.items()
        ]
        out.print(table("Encoders", ["name", "architecture<", "weights<", "fetched<"], text))
        out.print("Also: MODEL:TAG of open_clip, or the path of a .safetensors or .pt file of weights.")

    emit(as_json, {"encoders": rows}, show)


@click.command("fetch", epilog="Example: causal-tune fetch vit-b-16-int8")
@click.argument("encoder")
@json_option
def fetch_command(encoder: str, as_json: bool) -> None:
    """Bring the weights of ENCODER, verify them by hash and convert them once."""
    path = fetch(encoder)
    emit(
        as_json,
        {"encoder": encoder, "weights": str(path)},
        lambda: out.print(f"{encoder}: {path}", soft_wrap=True),
    )
