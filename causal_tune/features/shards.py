"""Shards, the files of a store: which rows each covers, how one is written, read, and put together.

A shard covers a fixed range of index rows, in one view, and is whole or absent. An extraction works in
pieces of a shard, each a file of the same form in `pieces/` until all of the shard's are there and become
the shard. The reasons of unreadable images are carried in the schema's metadata, so that a file alone
accounts for all its rows. Files are Arrow IPC, uncompressed, one record batch, memory-mapped: what is not
asked for is not read.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from causal_tune.atomic import atomic_path
from causal_tune.errors import StoreError
from causal_tune.images.views import CLEAN

__all__ = [
    "ROW_COLUMNS",
    "STORE_FORMAT",
    "VIEW_COLUMNS",
    "Piece",
    "ShardReport",
    "merge_pieces",
    "piece_path",
    "pieces",
    "read_shard",
    "read_shard_report",
    "shard_path",
    "shard_ranges",
    "write_shard",
]

STORE_FORMAT = 1

ROW_COLUMNS = ("row", "path", "label", "generator", "split", "sha256")
"""Columns of every shard beside its layers: position in the index, and what the index says of the image."""

VIEW_COLUMNS = ("operation", "parameters")
"""Further columns of the shards of a view: what was done to the image, and the numbers as JSON."""


def shard_ranges(num_indexed: int) -> list[range]:
    """The index rows of every shard: a function of the count alone, so a store's bytes are too.

    Small shards for small indexes (progress and resumption every few seconds on a CPU), large ones
    for large indexes (a million images stay under 300 files).

    >>> [len(rows) for rows in shard_ranges(100)]
    [64, 36]
    """
    size = 64 if num_indexed <= 4_096 else 512 if num_indexed <= 131_072 else 4_096
    return [range(start, min(start + size, num_indexed)) for start in range(0, num_indexed, size)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Some index rows of one shard: what an extraction decodes and encodes at a time."""

    shard: int
    number: int
    """Place within the shard."""
    rows: range
    is_shard: bool
    """Whether it is all of its shard."""


def pieces(num_indexed: int) -> list[Piece]:
    """The pieces of all shards, in the order of their rows.

    A piece is what an interruption loses and progress counts: 16 images of small indexes. Crops of 64 images
    are 10 MB, so that what is on its way from the decoders to the encoders stays small however large the
    shards; above 131,072 images they are 256, which halves what Ray has to schedule.

    >>> [len(piece.rows) for piece in pieces(100)]
    [16, 16, 16, 16, 16, 16, 4]
    >>> [(piece.shard, piece.number, len(piece.rows)) for piece in pieces(5_000)][6:10]
    [(0, 6, 64), (0, 7, 64), (1, 0, 64), (1, 1, 64)]
    """
    size = 16 if num_indexed <= 4_096 else 64 if num_indexed <= 131_072 else 256
    return [
        Piece(
            shard=shard,
            number=number,
            rows=range(start, min(start + size, rows.stop)),
            is_shard=len(rows) <= size,
        )
        for shard, rows in enumerate(shard_ranges(num_indexed))
        for number, start in enumerate(range(rows.start, rows.stop, size))
    ]


def shard_path(store_path: Path, shard: int, view: str = CLEAN) -> Path:
    """Where shard number `shard` of a view lies once it is done."""
    folder = store_path / "shards" if view == CLEAN else store_path / "views" / view
    return folder / f"{shard:05d}.arrow"


def piece_path(store_path: Path, piece: Piece, view: str = CLEAN) -> Path:
    """Where a piece lies until its shard is put together; a piece that is a shard lies there at once."""
    if piece.is_shard:
        return shard_path(store_path, piece.shard, view)
    return store_path / "pieces" / view / f"{piece.shard:05d}-{piece.number:03d}.arrow"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What became of the index rows of one shard or piece."""

    num_stored: int
    num_quarantined: int


def write_shard(
    path: Path,
    rows: pa.Table,
    features: Mapping[str, NDArray[np.float32]],
    quarantine: Sequence[Mapping[str, str]],
) -> ShardReport:
    """Write one shard or piece, whole or not at all.

    `rows` has `ROW_COLUMNS` (of a view also `VIEW_COLUMNS`) of the images that were encoded, in index
    order; `features` one array [len(rows), d] a layer, in the same order; `quarantine` one {path, reason}
    for each image of the range that could not be read. `StoreError` for features that are not finite numbers.
    """
    names = [*ROW_COLUMNS, *(name for name in VIEW_COLUMNS if name in rows.column_names)]
    columns = {name: rows[name].combine_chunks() for name in names}
    for layer, values in features.items():
        if not np.isfinite(values).all():
            place = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise StoreError(
                f"The features of {rows['path'][place]} are not finite numbers (layer {layer}), and nothing of its "
                "shard was stored. Check the encoder's weights with `causal-tune fetch ENCODER`; if they are sound, "
                "encode with --dtype float32. What was stored before is kept."
            )
        width = values.shape[1]
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
        columns[layer] = pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [width]), pa.FixedSizeListArray.from_arrays(flat, width)
        )
    _write(path, pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), quarantine)
    return ShardReport(num_stored=len(rows), num_quarantined=len(quarantine))


def merge_pieces(store_path: Path, parts: Sequence[Piece], view: str = CLEAN) -> None:
    """Put the pieces of one shard together to its file, and remove theirs. Done twice it does nothing."""
    path = shard_path(store_path, parts[0].shard, view)
    part_paths = [piece_path(store_path, piece, view) for piece in parts]
    if not path.exists():
        read = [read_shard(part_path) for part_path in part_paths]
        table = pa.Table.from_batches([batch.replace_schema_metadata() for batch, _ in read])
        arrays = [column.combine_chunks() for column in table.columns]
        batch = pa.RecordBatch.from_arrays(arrays, names=table.column_names)
        _write(path, batch, [item for _, quarantine in read for item in quarantine])
    for part_path in part_paths:
        part_path.unlink(missing_ok=True)


def _write(path: Path, batch: pa.RecordBatch, quarantine: Sequence[Mapping[str, str]]) -> None:
    metadata = {"format": str(STORE_FORMAT), "quarantine": json.dumps(list(quarantine))}
    batch = batch.replace_schema_metadata(metadata)
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def read_shard(path: Path) -> tuple[pa.RecordBatch, list[dict[str, str]]]:
    """The memory-mapped rows of a shard or piece, and its quarantine; `StoreError` where it is damaged.

    What the index says of the images is checked, features are not read.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = reader.get_batch(0)
        quarantine: list[dict[str, str]] = json.loads(reader.schema.metadata[b"quarantine"])
        _check_rows(batch.select(list(ROW_COLUMNS)))
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(
            f"{path} is not a whole shard ({' '.join(str(error).split())}). Delete that file and run the same "
            "`causal-tune extract` again: it makes this shard again and keeps the others."
        ) from error
    return batch, quarantine


def _check_rows(rows: pa.RecordBatch) -> None:
    """`ValueError` for rows that no index has: blocks of a file that was not written to the disk are zeros."""
    rows.validate(full=True)
    if not rows.num_rows:
        return
    numbers, labels = rows.column("row").to_numpy(), rows.column("label").to_numpy()
    texts = [rows.column(name) for name in ("path", "generator", "sha256")]
    if (
        (np.diff(numbers) <= 0).any()
        or not np.isin(labels, (0, 1)).all()
        or any(pc.any(pc.match_substring(text, "\0")).as_py() for text in texts)
    ):
        raise ValueError("its rows are damaged")


def read_shard_report(path: Path) -> ShardReport:
    """The counts of a shard or piece that is done."""
    batch, quarantine = read_shard(path)
    return ShardReport(num_stored=batch.num_rows, num_quarantined=len(quarantine))
