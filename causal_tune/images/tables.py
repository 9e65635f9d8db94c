"""Lists of images as tables of text: CSV as spreadsheets and programs write it, and Parquet.

A CSV may have commas, semicolons or tabs between its columns, be UTF-8 or, with a byte order mark, UTF-16, begin with
the line `sep=;`, and have spaces behind its commas. What was recognised beyond plain CSV is said.
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from causal_tune.errors import IndexingError
from causal_tune.images.files import is_remote, pure_path, read_bytes

__all__ = ["LIST_SUFFIXES", "Table", "is_list", "read_table"]

LIST_SUFFIXES = (".csv", ".tsv", ".parquet")

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A list as text."""

    columns: list[str]
    """Names in lower case, without spaces around them."""
    rows: Iterator[tuple[int, list[str]]]
    """The values of `columns` of each row, with the number of its line or row."""
    counted: str
    """What is counted: `line` of a CSV, `row` of a Parquet."""
    recognised: Sequence[str] = ()
    """What was found beyond plain CSV: `semicolons between columns`, ..."""


def is_list(name: str) -> bool:
    """Whether a located file is called as a list of images is.

    >>> is_list("/data/images.CSV"), is_list("s3://bucket/list.parquet?region=x"), is_list("/data/images")
    (True, True, False)
    """
    return pure_path(name).suffix.lower() in LIST_SUFFIXES


def read_table(path: str, fits: Callable[[Collection[str]], bool], wanted: Collection[str]) -> Table:
    """The list in a located file.

    `fits` tells a header that has the columns of a list. Of Parquet only the columns `wanted` are read: others may
    hold the images themselves. Raises IndexingError, or FileNotFoundError.
    """
    kind = "Parquet" if pure_path(path).suffix.lower() == ".parquet" else "CSV"
    try:
        return _parquet(path, wanted) if kind == "Parquet" else _csv(path, fits)
    except FileNotFoundError:
        raise IndexingError(f"There is no {kind} file {path!r}. Check the path.") from None
    except OSError as error:
        raise IndexingError(f"{path!r} cannot be read: {error.strerror or error}.") from error


def _csv(path: str, fits: Callable[[Collection[str]], bool]) -> Table:
    text, recognised = _text(path)
    first_line = 1
    if separator := _SEPARATOR_LINE.match(text):  # as Excel writes and reads it
        text, first_line, candidates = text[separator.end() :], 2, [separator[1]]
    else:
        candidates = list(_DELIMITERS)
    headers = {delimiter: _header(path, text, delimiter) for delimiter in candidates}
    delimiter = next((one for one in candidates if fits(_names(headers[one]))), candidates[0])
    header = headers[delimiter]
    if not header:
        raise IndexingError(f"{path!r} is empty. Expected a header with the columns path, label, generator.")
    if delimiter != ",":
        recognised.append(f"{_words(delimiter)} between columns")
    spaced = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
    if spaced:
        recognised.append(f"spaces behind {_words(delimiter)}")
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced, strict=True
    )
    next(reader)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                line = reader.line_num + first_line - 1
                if not any(value.strip() for value in row):  # as editors and spreadsheets leave at the end
                    continue
                if len(row) != len(header):
                    raise IndexingError(
                        f"{path!r}, line {line} has {len(row)} columns, the header has {len(header)}. "
                        f"Put values that contain {_words(delimiter)} in double quotes."
                    )
                yield line, row
        except csv.Error as error:
            raise IndexingError(f"{path!r} is not well-formed CSV: {error}.") from error

    return Table(columns=_names(header), rows=rows(), counted="line", recognised=recognised)


def _text(path: str) -> tuple[str, list[str]]:
    data = read_bytes(path)
    if data.startswith(_UTF_16):
        name, encoding, recognised = "UTF-16", "utf-16", ["UTF-16 text"]
    elif b"\0" in data[:64]:
        raise IndexingError(
            f"{path!r} is no UTF-8 text: it has zero bytes, as UTF-16 without a byte order mark has. "
            f"Save it as UTF-8 CSV."
        )
    else:
        name, encoding, recognised = "UTF-8", "utf-8-sig", []  # spreadsheets put a byte order mark in front
    try:
        return data.decode(encoding), recognised
    except UnicodeDecodeError as error:
        raise IndexingError(
            f"{path!r} is not {name} text (byte {error.start}). Save it as UTF-8 CSV and try again."
        ) from error


def _header(path: str, text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise IndexingError(f"{path!r} is not well-formed CSV: {error}.") from error


def _names(header: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _words(delimiter: str) -> str:
    return _DELIMITERS.get(delimiter, repr(delimiter))


def _parquet(path: str, wanted: Collection[str]) -> Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(read_bytes(path)) if is_remote(path) else path)
        names = [name for name in file.schema_arrow.names if name.strip().lower() in wanted]
        columns = [column.cast(pa.string()).to_pylist() for column in file.read(columns=names).columns]
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise IndexingError(
            f"{path!r} cannot be read as Parquet with columns of text ({reason}). "
            f"Expected the columns path, label, generator and optionally split."
        ) from error
    others = [name for name in file.schema_arrow.names if name not in names]
    rows = ([value or "" for value in row] + [""] * len(others) for row in zip(*columns, strict=True))
    return Table(columns=_names([*names, *others]), rows=enumerate(rows, start=1), counted="row")
