"""The `csv` layout: lists of images, as CSV or Parquet, in the dialects that people of the field write.

The header says which dialect a file is; upper case, spaces around names and other columns do not matter.

`path, label, generator[, split]`   labels `real` or `0`, and `fake`, `generated` or `1`. Real images carry the
    generator that they are compared with. An index of this package is such a list too.
`filename, typ[, split]`            the lists of Cozzolino and others: `typ` is `real`, or the generator. The
    real images of a file are compared with every generator in it.
`path, generator, mode`             `metadata.csv` of UnbiasedGenImage: generator `nature` is real, `mode` is the
    split, further columns (class, width, height, compression_rate) are read from the images themselves. A real
    image belongs to the generator of the file that its path names, as GenImage's folders do, else to all.

Paths are relative to the folder of the list, or absolute, or URIs; splits are `train`, `val`, `test` or empty.
Every row becomes a row of the index for each of its generators, whatever its suffix and whether its file can
be read or not.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from causal_tune.errors import IndexingError
from causal_tune.images.entries import GENERATED, REAL, SPLITS, Entry, Listing
from causal_tune.images.files import (
    any_exists,
    below,
    is_remote,
    kind_of,
    parent,
    pure_path,
    read_bytes,
    relative_to,
)
from causal_tune.images.places import genimage_name

__all__ = ["is_list", "list_csv", "lists_in"]

_COLUMNS = ("path", "label", "generator")

_LABELS: Mapping[str, int] = MappingProxyType(
    {"real": REAL, "0": REAL, "fake": GENERATED, "generated": GENERATED, "1": GENERATED}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """A list as text: the values of `columns` of each row, with the number of its line or row."""

    columns: list[str]
    rows: Iterator[tuple[int, list[str]]]
    counted: str
    """What is counted: `line` of a CSV, `row` of a Parquet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Dialect:
    columns: tuple[str, ...]
    """What its header must have; the first one holds the paths."""
    optional: tuple[str, ...]
    name: str
    entry: Callable[[str, Mapping[str, str]], Entry]
    """The entry of a row, from the words for where it stands and its values. An empty generator: shared."""


def is_list(name: str) -> bool:
    """Whether a located file is called as a list of images is.

    >>> is_list("/data/images.CSV"), is_list("s3://bucket/list.parquet?region=x"), is_list("/data/images")
    (True, True, False)
    """
    return pure_path(name).suffix.lower() in (".csv", ".parquet")


def lists_in(folder: str) -> list[str]:
    """Names of the lists that a folder holds itself, sorted; none of one behind a URI."""
    return (
        []
        if is_remote(folder)
        else sorted(file.name for file in Path(folder).iterdir() if is_list(file.name))
    )


def list_csv(roots: Sequence[str]) -> Listing:
    """The entries of one or several lists; see the module for their columns."""
    listings = [_read(root) for root in roots]
    return Listing(
        entries=[entry for listing in listings for entry in listing.entries],
        notes=tuple(note for listing in listings for note in listing.notes),
    )


def _read(path: str) -> Listing:
    if kind_of(path) == "folder":
        inside = lists_in(path)
        step = (
            f"It holds {', '.join(inside[:3])}: name that file."
            if inside
            else "It holds no CSV file either: name a layout of folders, or auto."
        )
        raise IndexingError(f"The csv layout reads a CSV file, but {path!r} is a folder. {step}")
    try:
        table = _parquet(path) if pure_path(path).suffix.lower() == ".parquet" else _csv(path)
        dialect = _dialect(path, table)
        entries = list(_entries(path, table, dialect))
    except FileNotFoundError:
        kind = "Parquet" if pure_path(path).suffix.lower() == ".parquet" else "CSV"
        raise IndexingError(f"There is no {kind} file {path!r}. Check the path.") from None
    except UnicodeDecodeError as error:
        raise IndexingError(
            f"{path!r} is not UTF-8 text (byte {error.start}). Save it as UTF-8 CSV and try again."
        ) from error
    except OSError as error:
        raise IndexingError(f"{path!r} cannot be read: {error.strerror or error}.") from error
    except csv.Error as error:
        raise IndexingError(f"{path!r} is not well-formed CSV: {error}.") from error
    if not entries:
        raise IndexingError(f"{path!r} has a header but no rows. Expected one row for each image.")
    if not any_exists([entry.path for entry in entries]):
        raise IndexingError(
            f"None of the {len(entries):,} files in {path!r} exists; the first would be "
            f"{entries[0].path!r}. Paths are relative to the folder of the CSV file: move the CSV, or write "
            f"absolute paths."
        )
    shared, note = _share(path, entries)
    return Listing(
        entries=shared,
        notes=(
            f"csv: {pure_path(path).name} has the columns {', '.join(dialect.columns)}: {dialect.name}{note}.",
        ),
    )


def _csv(path: str) -> _Table:
    # utf-8-sig: spreadsheets put a byte order mark in front
    reader = csv.reader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""), strict=True)
    header = [name.strip().lower() for name in next(reader, [])]
    if not header:
        raise IndexingError(f"{path!r} is empty. Expected a header with the columns {', '.join(_COLUMNS)}.")

    def rows() -> Iterator[tuple[int, list[str]]]:
        for row in reader:
            if not row:  # an empty line, as many editors leave at the end
                continue
            if len(row) != len(header):
                raise IndexingError(
                    f"{path!r}, line {reader.line_num} has {len(row)} columns, the header has {len(header)}. "
                    f"Put values that contain commas in double quotes."
                )
            yield reader.line_num, row

    return _Table(columns=header, rows=rows(), counted="line")


def _parquet(path: str) -> _Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(read_bytes(path)) if is_remote(path) else path)
        # only what a dialect reads: other columns may hold the images themselves
        known = {column for dialect in _DIALECTS for column in (*dialect.columns, *dialect.optional)}
        names = [name for name in file.schema_arrow.names if name.strip().lower() in known]
        columns = [column.cast(pa.string()).to_pylist() for column in file.read(columns=names).columns]
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise IndexingError(
            f"{path!r} cannot be read as Parquet with columns of text ({reason}). "
            f"Expected the columns {', '.join(_COLUMNS)} and optionally split."
        ) from error
    others = [name for name in file.schema_arrow.names if name not in names]
    rows = ([value or "" for value in row] + [""] * len(others) for row in zip(*columns, strict=True))
    return _Table(
        columns=[name.strip().lower() for name in (*names, *others)],
        rows=enumerate(rows, start=1),
        counted="row",
    )


def _dialect(path: str, table: _Table) -> _Dialect:
    header = table.columns
    where = " in line 1" if table.counted == "line" else ""
    for dialect in _DIALECTS:
        if all(name in header for name in dialect.columns):
            break
    else:
        if "filename" in header:
            raise IndexingError(
                f"{path!r} has the column filename but none that says which images are real: {', '.join(header)}. "
                f"Add a column typ: real, or the name of the generator."
            )
        missing = [name for name in _COLUMNS if name not in header]
        raise IndexingError(
            f"{path!r} has no column {', '.join(missing)}{where}; found {', '.join(header)}. "
            f"Expected path, label, generator and optionally split{', separated by commas' if where else ''}."
        )
    if twice := [name for name in (*dialect.columns, *dialect.optional) if header.count(name) > 1]:
        raise IndexingError(f"{path!r} has the column {twice[0]} more than once{where}. Keep one.")
    return dialect


def _entries(path: str, table: _Table, dialect: _Dialect) -> Iterator[Entry]:
    folder = parent(path)
    read = [name for name in (*dialect.columns, *dialect.optional) if name in table.columns]
    positions = {name: table.columns.index(name) for name in read}
    first_lines: dict[tuple[str, str], int] = {}
    labels: dict[str, tuple[int, int]] = {}
    for line, row in table.rows:
        where = f"{path!r}, {table.counted} {line}"
        values = {name: row[position] for name, position in positions.items()}
        if not values[dialect.columns[0]]:
            raise IndexingError(f"{where} has no path. Every row needs the path of an image.")
        found = dialect.entry(where, values)
        try:
            absolute = below(folder, found.path)
        except IndexingError as error:  # a URI that cannot be read
            raise IndexingError(f"{where}: {error}") from error
        entry = replace(found, path=absolute, name=relative_to(absolute, folder))
        if (first := first_lines.setdefault((entry.path, entry.generator), line)) != line:
            generator = f" for the generator {entry.generator!r}" if entry.generator else ""
            raise IndexingError(
                f"{where} lists {entry.path!r}{generator} again; "
                f"it is there in {table.counted} {first}. Remove one of the two rows."
            )
        label, first = labels.setdefault(entry.path, (entry.label, line))
        if label != entry.label:
            raise IndexingError(
                f"{where} gives {entry.path!r} the label {_name(entry.label)}, {table.counted} {first} "
                f"{_name(label)}. One image is either real or generated: correct one of the two rows."
            )
        yield entry


def _share(path: str, entries: Sequence[Entry]) -> tuple[list[Entry], str]:
    """Real images without a generator, once for the one that their path names, else once for each."""
    generators = sorted({entry.generator for entry in entries if entry.generator})
    if not generators:
        raise IndexingError(
            f"All {len(entries):,} images in {path!r} are real, none is generated. A detector needs both: add "
            f"rows of generated images."
        )
    result: list[Entry] = []
    num_owned = num_shared = 0
    for entry in entries:
        if entry.generator:
            result.append(entry)
            continue
        owner = next((name for name in generators if name in _names(entry)), None)
        num_owned += owner is not None
        num_shared += owner is None
        result += [replace(entry, generator=name) for name in ([owner] if owner else generators)]
    note = ""
    if num_owned:
        note += f"; {_number(num_owned)} compared with the generator that their path names"
    if num_shared:
        note += f"; {_number(num_shared)} compared with each of {', '.join(generators)}"
    return result, note


def _number(number: int) -> str:
    return f"{number:,} real image{'s are' if number != 1 else ' is'}"


def _names(entry: Entry) -> set[str]:
    return {genimage_name(part) or part for part in re.split(r"[/\\]", entry.name)[:-1]}


def _plain(where: str, row: Mapping[str, str]) -> Entry:
    label = row["label"].strip().lower()
    generator = row["generator"].strip()
    if label not in _LABELS:
        raise IndexingError(f"{where} has the label {row['label']!r}. Expected real or fake (or 0 or 1).")
    if not generator:
        raise IndexingError(
            f"{where} has no generator. Give real images the generator that they are compared with."
        )
    split = _split(where, row.get("split", ""))
    return Entry(path=row["path"], label=_LABELS[label], generator=generator, split=split)


def _by_type(where: str, row: Mapping[str, str]) -> Entry:
    kind = row["typ"].strip()
    if not kind:
        raise IndexingError(f"{where} has no typ. Expected real, or the name of the generator.")
    real = kind.lower() == "real"
    return Entry(
        path=row["filename"],
        label=REAL if real else GENERATED,
        generator="" if real else kind,
        split=_split(where, row.get("split", "")),
    )


def _of_genimage(where: str, row: Mapping[str, str]) -> Entry:
    generator = row["generator"].strip()
    if not generator:
        raise IndexingError(f"{where} has no generator. Expected nature, or the name of the generator.")
    real = generator.lower() == "nature"
    return Entry(
        path=row["path"],
        label=REAL if real else GENERATED,
        generator="" if real else genimage_name(generator) or generator,
        split=_split(where, row["mode"]),
    )


def _split(where: str, value: str) -> str:
    split = value.strip().lower()
    if split not in SPLITS:
        raise IndexingError(f"{where} has the split {value!r}. Expected train, val, test or nothing.")
    return split


def _name(label: int) -> str:
    return "generated" if label == GENERATED else "real"


_DIALECTS = (
    _Dialect(
        columns=_COLUMNS, optional=("split",), name="one row for each image and generator", entry=_plain
    ),
    _Dialect(
        columns=("filename", "typ"), optional=("split",), name="typ is real or the generator", entry=_by_type
    ),
    _Dialect(
        columns=("path", "generator", "mode"),
        optional=(),
        name="metadata of UnbiasedGenImage, generator nature is real",
        entry=_of_genimage,
    ),
)
