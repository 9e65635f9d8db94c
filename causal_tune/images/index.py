"""The image index: one row an image, in Parquet, with its version in the schema's metadata."""

import functools
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from causal_tune.atomic import atomic_path
from causal_tune.errors import IndexingError
from causal_tune.images.entries import GENERATED, REAL, SPLITS
from causal_tune.wording import plural

__all__ = [
    "INDEX_SCHEMA",
    "INDEX_VERSION",
    "GeneratorCounts",
    "counts",
    "generators",
    "index_sha256",
    "is_index",
    "origin",
    "read_index",
    "skipped_files",
    "summarise",
    "with_origin",
    "with_skipped",
    "write_index",
]

INDEX_VERSION = 1
"""Version of the format that is written; older ones keep opening."""

_VERSION_KEY = b"causal_tune.index.version"
_SKIPPED_KEY = b"causal_tune.index.skipped"
_ORIGIN_KEY = b"causal_tune.index.origin"

INDEX_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("generator", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("jpeg_quality", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
    ],
    metadata={_VERSION_KEY: str(INDEX_VERSION).encode()},
)
"""Columns of an index: path absolute or a URI, label 0 real or 1 generated, split train, val, test or empty.

Facts of the file are null where it, or its header, could not be read; such rows stay, so that images in
= stored + quarantined. Rows are sorted by (generator, split, label, path).
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorCounts:
    """Images of one generator in one split."""

    generator: str
    split: str
    num_real: int
    num_generated: int
    num_unreadable: int
    """How many of the real and generated ones have no readable header."""


def write_index(table: pa.Table, path: Path) -> None:
    """Write an index, whole or not at all; `table` has the columns of `INDEX_SCHEMA`."""
    table = _validated(table, "the table to write")
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def is_index(path: Path) -> bool:
    """Whether a file is an index, by its metadata; a list of images in Parquet is none."""
    try:
        with path.open("rb") as file:
            metadata = pq.ParquetFile(file).schema_arrow.metadata
    except (pa.ArrowException, OSError):
        return False
    return _VERSION_KEY in (metadata or {})


def read_index(path: Path) -> pa.Table:
    """Read an index and check it; IndexingError says what is wrong and what to do."""
    if not path.exists():
        raise IndexingError(
            f"There is no index {str(path)!r}. Make one with `causal-tune index ROOT -o {shlex.quote(str(path))}`."
        )
    if path.is_dir():
        raise IndexingError(
            f"{str(path)!r} is a folder, an index is a Parquet file. "
            f"Make one of the images in it with `causal-tune index {shlex.quote(str(path))} -o INDEX`."
        )
    try:
        with path.open("rb") as file:  # pyarrow takes no path that is not UTF-8
            table = pq.ParquetFile(file).read()
    except (pa.ArrowException, OSError) as error:
        raise IndexingError(
            f"{str(path)!r} cannot be read as Parquet ({_first_line(error)}). "
            f"Expected a file that `causal-tune index` wrote; make it again."
        ) from error
    found = (table.schema.metadata or {}).get(_VERSION_KEY, b"").decode(errors="replace")
    if not found.isdecimal():
        raise IndexingError(
            f"{str(path)!r} is Parquet, but not an image index: its metadata has no format version. "
            f"Expected a file that `causal-tune index` wrote."
        )
    if int(found) > INDEX_VERSION:
        raise IndexingError(
            f"{str(path)!r} has index format {found}; this causal-tune reads up to {INDEX_VERSION}. "
            f"Upgrade causal-tune, or make the index again."
        )
    return _validated(table, repr(str(path)))


def index_sha256(table: pa.Table) -> str:
    """Hash of what an index holds wherever it lies: sha256, label, generator and split, in row order.

    Equal for the same images under another root; different as soon as an image, a label or the order
    changes.
    """
    digest = hashlib.sha256(b"causal-tune index 1\n")
    quoted = functools.lru_cache(maxsize=None)(json.dumps)  # of few names, on many rows
    for batch in table.select(["sha256", "label", "generator", "split"]).to_batches(max_chunksize=65536):
        columns = [column.to_pylist() for column in batch.columns]
        digest.update(
            "".join(
                f"[{_quoted_digest(sha256)}, {label}, {quoted(generator)}, {quoted(split)}]\n"
                for sha256, label, generator, split in zip(*columns, strict=True)
            ).encode()
        )
    return digest.hexdigest()


def _quoted_digest(sha256: str | None) -> str:
    return "null" if sha256 is None else f'"{sha256}"'  # hexadecimal digits: nothing to escape


def counts(table: pa.Table) -> list[GeneratorCounts]:
    """How many images each generator has in each split, sorted by (generator, split)."""
    unreadable = pc.is_null(table["width"])
    columns = (table["generator"], table["split"], table["label"], unreadable)
    found = Counter(zip(*(column.to_pylist() for column in columns), strict=True))
    return [
        GeneratorCounts(
            generator=generator,
            split=split,
            num_real=sum(found[generator, split, REAL, bad] for bad in (False, True)),
            num_generated=sum(found[generator, split, GENERATED, bad] for bad in (False, True)),
            num_unreadable=sum(found[generator, split, label, True] for label in (REAL, GENERATED)),
        )
        for generator, split in sorted({key[:2] for key in found})
    ]


def generators(table: pa.Table) -> list[str]:
    """Names of the generators in an index, sorted."""
    return sorted(table["generator"].unique().to_pylist())


def skipped_files(table: pa.Table) -> dict[str, int]:
    """Files under the roots that are no row, by reason; kept in the index beside its version."""
    text = (table.schema.metadata or {}).get(_SKIPPED_KEY, b"{}")
    return {str(reason): int(number) for reason, number in json.loads(text).items()}


def with_skipped(table: pa.Table, skipped: Mapping[str, int]) -> pa.Table:
    """The same table, carrying the numbers of files that were skipped, by reason."""
    text = json.dumps(dict(sorted(skipped.items()))).encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _SKIPPED_KEY: text})


def origin(table: pa.Table) -> dict[str, Any]:
    """How an index was made: roots, layout, notes, choice; empty where an older index does not say."""
    found: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_ORIGIN_KEY, b"{}"))
    return found


def with_origin(table: pa.Table, made: Mapping[str, Any]) -> pa.Table:
    """The same table, carrying how it was made."""
    text = json.dumps(made, sort_keys=True).encode()
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _ORIGIN_KEY: text})


def summarise(table: pa.Table) -> str:
    """One line for people: how many images there are, of what, and what was left out."""
    rows = counts(table)
    num_real = sum(row.num_real for row in rows)
    num_generated = sum(row.num_generated for row in rows)
    num_unreadable = sum(row.num_unreadable for row in rows)
    num_generators = len(generators(table))
    text = (
        f"{plural(table.num_rows, 'image')} of {plural(num_generators, 'generator')}: "
        f"{num_real:,} real, {num_generated:,} generated; {num_unreadable:,} unreadable"
    )
    if skipped := skipped_files(table):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in skipped.items())
        text += f"; skipped {sum(skipped.values()):,} ({reasons})"
    return text


def _validated(table: pa.Table, name: str) -> pa.Table:
    missing = [column for column in INDEX_SCHEMA.names if column not in table.column_names]
    if missing:
        raise IndexingError(
            f"{name} has no column {', '.join(missing)}; found {', '.join(table.column_names) or 'none'}. "
            f"Make the index again with `causal-tune index`."
        )
    metadata = {**(table.schema.metadata or {}), **INDEX_SCHEMA.metadata}
    table = table.select(INDEX_SCHEMA.names)
    try:
        table = table.cast(INDEX_SCHEMA)
    except (pa.ArrowException, ValueError) as error:  # a wrong type, or a null where none may be
        raise IndexingError(
            f"{name} does not have the columns of an image index ({_first_line(error)}). "
            f"Make the index again with `causal-tune index`."
        ) from error
    _check_values(table, "label", [REAL, GENERATED], name)
    _check_values(table, "split", list(SPLITS), name)
    return table.replace_schema_metadata(metadata)


def _check_values(table: pa.Table, column: str, allowed: list[int] | list[str], name: str) -> None:
    if wrong := [value for value in table[column].unique().to_pylist() if value not in allowed]:
        raise IndexingError(
            f"{name} has the {column} {wrong[0]!r}; expected one of {', '.join(map(repr, allowed))}. "
            f"Make the index again with `causal-tune index`."
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
