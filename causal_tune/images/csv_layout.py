"""The `csv` layout: a list of images that the user wrote.

Columns `path` (relative to the CSV, or absolute), `label` (`real` or `0`; `fake`, `generated` or `1`; any
case), `generator` (real images carry the generator that they are compared with) and optionally `split`
(`train`, `val`, `test` or empty). Other columns are ignored. Every row becomes a row of the index,
whatever its suffix and whether its file can be read or not.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from causal_tune.errors import IndexingError
from causal_tune.images.entries import GENERATED, REAL, SPLITS, Entry, Listing

__all__ = ["list_csv"]

_COLUMNS = ("path", "label", "generator")

_LABELS: Mapping[str, int] = MappingProxyType(
    {"real": REAL, "0": REAL, "fake": GENERATED, "generated": GENERATED, "1": GENERATED}
)


def list_csv(roots: Sequence[Path]) -> Listing:
    """The entries of one or several CSV files; see the module for their columns."""
    return Listing(entries=[entry for root in roots for entry in _read(root)])


def _read(path: Path) -> list[Entry]:
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix.lower() == ".csv")
        step = (
            f"It holds {', '.join(inside[:3])}: name that file." if inside else "It holds no CSV file either."
        )
        raise IndexingError(f"The csv layout reads a CSV file, but {str(path)!r} is a folder. {step}")
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front
        with path.open(encoding="utf-8-sig", newline="") as file:
            entries = list(_rows(path, file))
    except FileNotFoundError:
        raise IndexingError(f"There is no CSV file {str(path)!r}. Check the path.") from None
    except UnicodeDecodeError as error:
        raise IndexingError(
            f"{str(path)!r} is not UTF-8 text (byte {error.start}). Save it as UTF-8 CSV and try again."
        ) from error
    except OSError as error:
        raise IndexingError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except csv.Error as error:
        raise IndexingError(f"{str(path)!r} is not well-formed CSV: {error}.") from error
    if not entries:
        raise IndexingError(f"{str(path)!r} has a header but no rows. Expected one row for each image.")
    if not any(os.path.lexists(entry.path) for entry in entries):
        raise IndexingError(
            f"None of the {len(entries):,} files in {str(path)!r} exists; the first would be "
            f"{entries[0].path!r}. Paths are relative to the folder of the CSV file: move the CSV, or write "
            f"absolute paths."
        )
    return entries


def _rows(path: Path, file: Iterator[str]) -> Iterator[Entry]:
    reader = csv.reader(file, strict=True)
    header = [name.strip().lower() for name in next(reader, [])]
    if not header:
        raise IndexingError(
            f"{str(path)!r} is empty. Expected a header with the columns {', '.join(_COLUMNS)}."
        )
    if missing := [name for name in _COLUMNS if name not in header]:
        raise IndexingError(
            f"{str(path)!r} has no column {', '.join(missing)} in line 1; found {', '.join(header)}. "
            f"Expected path, label, generator and optionally split, separated by commas."
        )
    if twice := [name for name in (*_COLUMNS, "split") if header.count(name) > 1]:
        raise IndexingError(f"{str(path)!r} has the column {twice[0]} more than once in line 1. Keep one.")
    positions = {name: header.index(name) for name in (*_COLUMNS, "split") if name in header}
    first_lines: dict[tuple[str, str], int] = {}
    labels: dict[str, tuple[int, int]] = {}
    for row in reader:
        line = reader.line_num
        if not row:  # an empty line, as many editors leave at the end
            continue
        where = f"{str(path)!r}, line {line}"
        if len(row) != len(header):
            raise IndexingError(
                f"{where} has {len(row)} columns, the header has {len(header)}. "
                f"Put values that contain commas in double quotes."
            )
        entry = _entry(path, where, {name: row[position] for name, position in positions.items()})
        if (first := first_lines.setdefault((entry.path, entry.generator), line)) != line:
            raise IndexingError(
                f"{where} lists {entry.path!r} for the generator {entry.generator!r} again; "
                f"it is there in line {first}. Remove one of the two rows."
            )
        label, first = labels.setdefault(entry.path, (entry.label, line))
        if label != entry.label:
            raise IndexingError(
                f"{where} gives {entry.path!r} the label {_name(entry.label)}, line {first} {_name(label)}. "
                f"One image is either real or generated: correct one of the two rows."
            )
        yield entry


def _entry(path: Path, where: str, row: Mapping[str, str]) -> Entry:
    label = row["label"].strip().lower()
    generator = row["generator"].strip()
    split = row.get("split", "").strip().lower()
    if not row["path"]:
        raise IndexingError(f"{where} has no path. Every row needs the path of an image.")
    if label not in _LABELS:
        raise IndexingError(f"{where} has the label {row['label']!r}. Expected real or fake (or 0 or 1).")
    if not generator:
        raise IndexingError(
            f"{where} has no generator. Give real images the generator that they are compared with."
        )
    if split not in SPLITS:
        raise IndexingError(f"{where} has the split {row['split']!r}. Expected train, val, test or nothing.")
    absolute = os.path.normpath(path.parent / row["path"])
    return Entry(path=absolute, label=_LABELS[label], generator=generator, split=split)


def _name(label: int) -> str:
    return "generated" if label == GENERATED else "real"
