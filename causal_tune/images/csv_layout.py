"""The `csv` layout: lists of images, as CSV or Parquet, in the dialects that people of the field write.

The header says which dialect a file is; upper case, spaces around names and other columns do not matter.

`path, label, generator[, split]`   labels `real` or `0`, and `fake`, `generated` or `1`; for them also what programs
    make of numbers (`0.0`, `False`) and the names of class folders (`nature`, `ai`, ...). Real images carry the
    generator that they are compared with. An index of this package is such a list too.
`filename, typ[, split]`            the lists of Cozzolino and others: `typ` is `real`, or the generator. The
    real images of a file are compared with every generator in it.
`path, generator, mode`             `metadata.csv` of UnbiasedGenImage: generator `nature` is real, `mode` is the
    split, further columns (class, width, height, compression_rate) are read from the images themselves. A real
    image belongs to the generator of the file that its path names, as GenImage's folders do, else to all.

Paths are relative to the folder of the list, or absolute, or URIs. Where none of the files exists as it is
written, but some do with `/` for the backslash, that is what is read. Splits are `train`, `val`, `test` or
empty. `causal_tune.images.tables` says which forms of CSV are read. What was taken for something else is said.
Every row becomes a row of the index for each of its generators, whatever its suffix and whether its file can
be read or not.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from causal_tune.errors import IndexingError
from causal_tune.images.entries import GENERATED, REAL, SPLITS, Entry, Listing
from causal_tune.images.files import any_exists, below, is_remote, kind_of, parent, pure_path, relative_to
from causal_tune.images.places import genimage_name
from causal_tune.images.tables import Table, is_list, read_table

__all__ = ["list_csv", "lists_in"]

_COLUMNS = ("path", "label", "generator")

_LABELS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("real", "0", "0.0", "false", "nature", "0_real"), REAL),
        **dict.fromkeys(("fake", "generated", "1", "1.0", "true", "ai", "1_fake"), GENERATED),
    }
)
_PLAIN_LABELS = frozenset({"real", "fake", "generated", "0", "1"})

_OTHER_SPLITS: Mapping[str, str] = MappingProxyType(
    {"training": "train", "validation": "val", "valid": "val"}
)

_MISSING = frozenset({"", "nan", "none", "null"})
"""What stands where a program had no value, in lower case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Dialect:
    columns: tuple[str, ...]
    """What its header must have; the first one holds the paths."""
    optional: tuple[str, ...]
    name: str
    entry: Callable[["_Row"], Entry]
    """The entry of a row. An empty generator: shared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    where: str
    """The words for where it stands."""
    values: Mapping[str, str]
    read_as: dict[str, str]
    """What values were taken for, where they are not the documented ones: filled by the dialects."""


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
            else "It holds no list either: name a layout of folders, or auto."
        )
        raise IndexingError(f"The csv layout reads a list of images, but {path!r} is a folder. {step}")
    table = read_table(path, lambda header: _fitting(header) is not None, _KNOWN)
    dialect = _dialect(path, table)
    rows = list(table.rows)
    if not rows:
        raise IndexingError(f"{path!r} has a header but no rows. Expected one row for each image.")
    read = _Entries(path=path, table=table, dialect=dialect)
    entries = list(read.of(rows))
    recognised = [*table.recognised]
    if not any_exists([entry.path for entry in entries]):
        entries = _with_slashes(read, rows, entries)
        recognised.append("backslashes as the slashes of paths")
    recognised += [f"{word} as {meaning}" for word, meaning in read.read_as.items()]
    shared, note = _share(path, entries)
    columns = ", ".join(dialect.columns)
    also = f" Recognised: {', '.join(recognised)}." if recognised else ""
    return Listing(
        entries=shared,
        notes=(f"csv: {pure_path(path).name} has the columns {columns}: {dialect.name}{note}.{also}",),
    )


def _with_slashes(
    read: "_Entries", rows: Sequence[tuple[int, list[str]]], entries: Sequence[Entry]
) -> list[Entry]:
    """The entries with `/` for `\\` in paths, where that names files that exist and the paths as written do not."""
    place = read.table.columns.index(read.dialect.columns[0])
    paths = [row[place] for _, row in rows]
    if any("\\" in path for path in paths):
        slashed = [
            (line, [*row[:place], row[place].replace("\\", "/"), *row[place + 1 :]]) for line, row in rows
        ]
        result = list(read.of(slashed))
        if any_exists([entry.path for entry in result]):
            return result
    step = "Paths are relative to the folder of the list: move the list, or write absolute paths."
    if re.match(r"[A-Za-z]:[\\/]", paths[0]):
        step = f"{paths[0]!r} is a path of Windows: write paths relative to the folder of the list."
    elif paths[0].startswith("~"):
        step = "A list takes `~` for a name: write absolute paths, or paths relative to its folder."
    raise IndexingError(
        f"None of the {len(entries):,} files in {read.path!r} exists; the first would be {entries[0].path!r}. {step}"
    )


def _fitting(header: Collection[str]) -> _Dialect | None:
    return next((one for one in _DIALECTS if all(name in header for name in one.columns)), None)


def _dialect(path: str, table: Table) -> _Dialect:
    header = table.columns
    where = " in its first line" if table.counted == "line" else ""
    between = " there, with commas, semicolons or tabs between them" if where else ""
    dialect = _fitting(header)
    if dialect is None:
        if "filename" in header:
            raise IndexingError(
                f"{path!r} has the column filename but none that says which images are real: {', '.join(header)}. "
                f"Add a column typ: real, or the name of the generator."
            )
        missing = [name for name in _COLUMNS if name not in header]
        if "image" in header and "path" in missing:
            raise IndexingError(
                f"{path!r} has no column path, but a column image: a list names files. Write the images to files, and "
                f"their paths to the column path."
            )
        raise IndexingError(
            f"{path!r} has no column {', '.join(missing)}{where}; found {', '.join(header)}. "
            f"Expected path, label, generator and optionally split{between}."
        )
    if twice := [name for name in (*dialect.columns, *dialect.optional) if header.count(name) > 1]:
        raise IndexingError(f"{path!r} has the column {twice[0]} more than once{where}. Keep one.")
    return dialect


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entries:
    """The entries of the rows of one list, checked against each other."""

    path: str
    table: Table
    dialect: _Dialect
    read_as: dict[str, str] = field(default_factory=dict)

    def of(self, rows: Sequence[tuple[int, list[str]]]) -> Iterator[Entry]:
        """One entry for each row."""
        path, dialect, counted = self.path, self.dialect, self.table.counted
        folder = parent(path)
        read = [name for name in (*dialect.columns, *dialect.optional) if name in self.table.columns]
        positions = {name: self.table.columns.index(name) for name in read}
        first_lines: dict[tuple[str, str], int] = {}
        labels: dict[str, tuple[int, int]] = {}
        for line, row in rows:
            where = f"{path!r}, {counted} {line}"
            values = {name: row[position] for name, position in positions.items()}
            if not values[dialect.columns[0]]:
                raise IndexingError(f"{where} has no path. Every row needs the path of an image.")
            found = dialect.entry(_Row(where=where, values=values, read_as=self.read_as))
            try:
                absolute = below(folder, found.path)
            except IndexingError as error:  # a URI that cannot be read
                raise IndexingError(f"{where}: {error}") from error
            entry = replace(found, path=absolute, name=relative_to(absolute, folder))
            label, first = labels.setdefault(entry.path, (entry.label, line))
            if label != entry.label:
                raise IndexingError(
                    f"{where} gives {entry.path!r} the label {_name(entry.label)}, {counted} {first} "
                    f"{_name(label)}. One image is either real or generated: correct one of the two rows."
                )
            if (first := first_lines.setdefault((entry.path, entry.generator), line)) != line:
                generator = f" for the generator {entry.generator!r}" if entry.generator else ""
                raise IndexingError(
                    f"{where} lists {entry.path!r}{generator} again; "
                    f"it is there in {counted} {first}. Remove one of the two rows."
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


def _plain(row: _Row) -> Entry:
    word = row.values["label"].strip()
    label = _LABELS.get(word.lower())
    if label is None:
        raise IndexingError(
            f"{row.where} has the label {row.values['label']!r}. Expected real or fake (or 0 or 1)."
        )
    if word.lower() not in _PLAIN_LABELS:
        row.read_as[f"the label {word}"] = _name(label)
    generator = row.values["generator"].strip()
    if generator.lower() in _MISSING:
        found = f"the generator {generator!r}" if generator else "no generator"
        raise IndexingError(
            f"{row.where} has {found}. Give real images the generator that they are compared with."
        )
    return Entry(path=row.values["path"], label=label, generator=generator, split=_split(row, "split"))


def _by_type(row: _Row) -> Entry:
    kind = row.values["typ"].strip()
    if not kind:
        raise IndexingError(f"{row.where} has no typ. Expected real, or the name of the generator.")
    real = kind.lower() == "real"
    return Entry(
        path=row.values["filename"],
        label=REAL if real else GENERATED,
        generator="" if real else kind,
        split=_split(row, "split"),
    )


def _of_genimage(row: _Row) -> Entry:
    generator = row.values["generator"].strip()
    if not generator:
        raise IndexingError(f"{row.where} has no generator. Expected nature, or the name of the generator.")
    real = generator.lower() == "nature"
    return Entry(
        path=row.values["path"],
        label=REAL if real else GENERATED,
        generator="" if real else genimage_name(generator) or generator,
        split=_split(row, "mode"),
    )


def _split(row: _Row, column: str) -> str:
    value = row.values.get(column, "")
    word = value.strip().lower()
    split = _OTHER_SPLITS.get(word, word)
    if split not in SPLITS:
        raise IndexingError(f"{row.where} has the split {value!r}. Expected train, val, test or nothing.")
    if split != word:
        row.read_as[f"the split {word}"] = split
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
_KNOWN = frozenset(name for dialect in _DIALECTS for name in (*dialect.columns, *dialect.optional))
