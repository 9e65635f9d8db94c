"""The feature store on disk, and the sets of features that a trial is trained and judged on.

    stores/<fingerprint>/
        store.json         what the features are a function of, and the counts
        shards/00000.arrow Arrow IPC, one record batch: row, path, label, generator, split, sha256
                           and one fixed_shape_tensor column of float32 a layer
        quarantine.arrow   path, reason: the images that could not be read

A shard covers a fixed range of index rows and is whole or absent. The reasons of its unreadable
images are carried in its schema metadata, so that a shard alone accounts for all its rows. Shards
are memory-mapped: opening a store reads no features, and a row's features are read when asked for.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from causal_tune.atomic import atomic_path, write_json
from causal_tune.errors import InvalidConfig, StoreError

__all__ = [
    "STORE_FORMAT",
    "FeatureSet",
    "FeatureStore",
    "Partition",
    "ShardReport",
    "StoreSpec",
    "StudyData",
    "finish_store",
    "load_study_data",
    "partition",
    "read_shard_report",
    "shard_path",
    "shard_ranges",
    "write_shard",
]

STORE_FORMAT = 1

VALIDATION_FRACTION = 0.2
"""Share of the training generator's images that validates, where the index names no `val` rows."""

_ROW_COLUMNS = ("row", "path", "label", "generator", "split", "sha256")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSpec:
    """All that the bytes of a store are a function of; its hash names the store's folder."""

    encoder: Mapping[str, Any]
    """`EncoderDescription.values`: which bytes, dtype, runtime and layers."""
    preprocessing: str
    """Version tag of the decoding policy (`images.decode.PREPROCESSING`)."""
    index_sha256: str
    """Content hash of the image index (`images.index.index_sha256`)."""
    num_indexed: int
    """Images in the index; every one is stored or quarantined."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over every field and the store format."""
        content = json.dumps({"format": STORE_FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def shard_ranges(num_indexed: int) -> list[range]:
    """The index rows of every shard: a function of the count alone, so a store's bytes are too.

    Small shards for small indexes (progress and resumption every few seconds on a CPU), large ones
    for large indexes (a million images stay under 300 files).

    >>> [len(rows) for rows in shard_ranges(100)]
    [64, 36]
    """
    size = 64 if num_indexed <= 4_096 else 512 if num_indexed <= 131_072 else 4_096
    return [range(start, min(start + size, num_indexed)) for start in range(0, num_indexed, size)]


def shard_path(store_path: Path, shard: int) -> Path:
    """Where shard number `shard` lies once it is done."""
    return store_path / "shards" / f"{shard:05d}.arrow"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What became of the index rows of one shard."""

    shard: int
    num_stored: int
    num_quarantined: int


def write_shard(
    store_path: Path,
    shard: int,
    rows: pa.Table,
    features: Mapping[str, NDArray[np.float32]],
    quarantine: Sequence[Mapping[str, str]],
) -> ShardReport:
    """Write one shard, whole or not at all.

    `rows` has the columns row, path, label, generator, split, sha256 of the images that were
    encoded, in index order; `features` one array [len(rows), d] a layer, in the same order;
    `quarantine` one {path, reason} for each other image of the shard's range.
    """
    columns = {name: rows[name].combine_chunks() for name in _ROW_COLUMNS}
    for layer, values in features.items():
        width = values.shape[1]
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
        columns[layer] = pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), [width]), pa.FixedSizeListArray.from_arrays(flat, width)
        )
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    metadata = {"format": str(STORE_FORMAT), "quarantine": json.dumps(list(quarantine))}
    schema = batch.schema.with_metadata(metadata)
    with (
        atomic_path(shard_path(store_path, shard)) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(batch.replace_schema_metadata(metadata))
    return ShardReport(shard=shard, num_stored=len(rows), num_quarantined=len(quarantine))


def _read_shard(path: Path) -> tuple[pa.RecordBatch, list[dict[str, str]]]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = reader.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"{path} is not a whole shard ({error}). Delete that file and run the same "
            "`causal-tune extract` again: only this shard is made anew."
        ) from error
    return batch, json.loads(reader.schema.metadata[b"quarantine"])


def read_shard_report(store_path: Path, shard: int) -> ShardReport:
    """The counts of a shard that is done."""
    batch, quarantine = _read_shard(shard_path(store_path, shard))
    return ShardReport(shard=shard, num_stored=batch.num_rows, num_quarantined=len(quarantine))


def finish_store(
    store_path: Path, spec: StoreSpec, *, fidelity: Mapping[str, Any] | None = None
) -> "FeatureStore":
    """Check that every indexed image is stored or quarantined, write quarantine.arrow and the counts.

    `fidelity` is recorded and is no part of the fingerprint: it was measured, on one machine.

    `StoreError` where a shard is missing or the counts do not add up.
    """
    quarantine: list[dict[str, str]] = []
    num_stored = 0
    widths: dict[str, int] = {}
    for shard, rows in enumerate(shard_ranges(spec.num_indexed)):
        path = shard_path(store_path, shard)
        if not path.exists():
            raise StoreError(f"Shard {path} is missing. Run the same `causal-tune extract` again.")
        batch, reasons = _read_shard(path)
        if batch.num_rows + len(reasons) != len(rows):
            raise StoreError(
                f"{path} accounts for {batch.num_rows} stored and {len(reasons)} quarantined images; "
                f"its range has {len(rows)}. Delete that file and run the same `causal-tune extract` again."
            )
        widths = {field.name: field.type.shape[0] for field in batch.schema if field.name not in _ROW_COLUMNS}
        num_stored += batch.num_rows
        quarantine += reasons
    table = pa.table(
        {
            "path": pa.array([item["path"] for item in quarantine], pa.string()),
            "reason": pa.array([item["reason"] for item in quarantine], pa.string()),
        }
    )
    with (
        atomic_path(store_path / "quarantine.arrow") as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    write_json(
        store_path / "store.json",
        {
            "format": STORE_FORMAT,
            "fingerprint": spec.fingerprint,
            **asdict(spec),
            "layers": widths,
            "num_stored": num_stored,
            "num_quarantined": len(quarantine),
            **({"fidelity": fidelity} if fidelity else {}),
        },
    )
    return FeatureStore(store_path)


class FeatureStore:
    """A finished store, memory-mapped.

    `StoreError` for a folder that is no store, one whose extraction has not finished, one of a
    newer format, or one whose files do not agree with its counts.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        description_path = self.path / "store.json"
        if not description_path.exists():
            if (self.path / "shards").is_dir():
                raise StoreError(
                    f"The store {self.path} is unfinished. Run the `causal-tune extract` that began it "
                    "again: it continues where it stopped."
                )
            raise StoreError(
                f"There is no feature store at {self.path} (no store.json). Make one with "
                "`causal-tune extract INDEX --encoder NAME`; it prints the store's path."
            )
        self.description: dict[str, Any] = json.loads(description_path.read_text())
        if self.description.get("format") != STORE_FORMAT:
            raise StoreError(
                f"The store {self.path} has format {self.description.get('format')}; this release reads "
                f"format {STORE_FORMAT}. Install the release that wrote it, or extract again."
            )

    @property
    def fingerprint(self) -> str:
        """The hash that binds encoder, preprocessing and index."""
        return str(self.description["fingerprint"])

    @property
    def layers(self) -> dict[str, int]:
        """Width of the features of every layer."""
        return dict(self.description["layers"])

    @property
    def num_images(self) -> int:
        """Images that have features."""
        return int(self.description["num_stored"])

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        ranges = shard_ranges(int(self.description["num_indexed"]))
        batches = [_read_shard(shard_path(self.path, shard))[0] for shard in range(len(ranges))]
        found = sum(batch.num_rows for batch in batches)
        if found != self.num_images:
            raise StoreError(
                f"The shards of {self.path} hold {found} images and its store.json says {self.num_images}. "
                "Delete the store's folder and extract again."
            )
        return batches

    @cached_property
    def rows(self) -> pa.Table:
        """One row an image, in index order: row, path, label, generator, split, sha256."""
        return pa.Table.from_batches([batch.select(list(_ROW_COLUMNS)) for batch in self._batches])

    def quarantine(self) -> pa.Table:
        """The images without features: path, reason."""
        with pa.memory_map(str(self.path / "quarantine.arrow")) as source:
            return pa.ipc.open_file(source).read_all()

    def features(self, layer: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The features [len(rows), d] of `layer` at these positions of `self.rows`."""
        if layer not in self.layers:
            raise StoreError(
                f"The store {self.path} has no layer {layer!r}; it has {', '.join(self.layers)}. "
                f"Extract again with `--layers {','.join([*self.layers, layer])}`."
            )
        starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        result = np.empty((len(rows), self.layers[layer]), dtype=np.float32)
        shards = np.searchsorted(starts, rows, side="right") - 1
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            values = self._batches[shard].column(layer).to_numpy_ndarray()
            result[chosen] = values[rows[chosen] - starts[shard]]
        return result


@dataclass(frozen=True)
class FeatureSet:
    """Features of some images with their labels: what a head is trained or judged on."""

    features: Float[Tensor, "n d"]
    labels: Float[Tensor, " n"]
    """0 real, 1 generated."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_generated(self) -> int:
        """Images labelled 1."""
        return int(self.labels.sum())

    @property
    def num_real(self) -> int:
        """Images labelled 0."""
        return len(self) - self.num_generated


@dataclass(frozen=True)
class StudyData:
    """All that one trial sees: it learns from `train`, stops by `validation`, is judged on `generators`."""

    train: FeatureSet
    validation: FeatureSet
    generators: Mapping[str, FeatureSet]
    """Validation and test generators alike."""
    val_generators: tuple[str, ...] = ()
    """Those of `generators` that may choose: the epoch to keep, where early stopping asks for them."""


def _is_validation(sha256: str) -> bool:
    return int(sha256[:8], 16) < VALIDATION_FRACTION * 2**32


@dataclass(frozen=True)
class Partition:
    """Positions in `FeatureStore.rows` of every set of a study."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    generators: Mapping[str, NDArray[np.int64]]


def partition(
    rows: pa.Table,
    *,
    train_generators: Sequence[str],
    val_generators: Sequence[str] = (),
    test_generators: Sequence[str] = (),
) -> Partition:
    """Which images train, validate and judge.

    Training generators: rows of split `train` train and rows of split `val` validate; where the
    index names no `val` rows, a fifth of the others validates, chosen by the image's content hash
    (never by position, so that copies of one image stay on one side and the choice has no seed).
    Their rows of split `test` judge, under the generator's own name, as a seen generator.

    Every other generator: its rows that are not of split `train`, or all where it has no others.

    `InvalidConfig` where a generator is unknown or a set lacks a class.
    """
    generator = np.asarray(rows["generator"].to_pylist(), dtype=object)
    split = np.asarray(rows["split"].to_pylist(), dtype=object)
    label = rows["label"].to_numpy()
    known = sorted(set(generator.tolist()))
    for name in (*train_generators, *val_generators, *test_generators):
        if name not in known:
            raise InvalidConfig(
                f"No generator is called {name!r} in this store. There are: {', '.join(known)}."
            )

    seen = np.isin(generator, list(train_generators))
    if (seen & (split == "val")).any():
        validation = seen & (split == "val")
        train = seen & ((split == "train") | (split == ""))
    else:
        pool = seen & (split != "test")
        chosen = np.asarray([_is_validation(digest) for digest in rows["sha256"].to_pylist()], dtype=bool)
        validation, train = pool & chosen, pool & ~chosen
    for what, members in (("training", train), ("validation", validation)):
        for value, class_name in ((0, "real"), (1, "generated")):
            if not (members & (label == value)).any():
                raise InvalidConfig(
                    f"The {what} images of {', '.join(train_generators)} hold no {class_name} image "
                    f"({int(members.sum())} images in all). Both classes are needed: check the labels and "
                    "splits of the index, or name another --train-generator."
                )

    judged: dict[str, NDArray[np.int64]] = {}
    for name in (*train_generators, *val_generators, *test_generators):
        mine = generator == name
        held_out = mine & (split == "test") if name in train_generators else mine & (split != "train")
        if not held_out.any() and name not in train_generators:
            held_out = mine
        if held_out.any():
            judged[name] = np.flatnonzero(held_out)
    return Partition(train=np.flatnonzero(train), validation=np.flatnonzero(validation), generators=judged)


def load_study_data(
    store_path: Path | str,
    *,
    train_generators: Sequence[str],
    val_generators: Sequence[str] = (),
    test_generators: Sequence[str] = (),
    layer: str = "proj",
) -> StudyData:
    """The sets of a study (`partition`), gathered from the store's memory map."""
    store = FeatureStore(store_path)
    parts = partition(
        store.rows,
        train_generators=train_generators,
        val_generators=val_generators,
        test_generators=test_generators,
    )
    labels = store.rows["label"].to_numpy()

    def gather(rows: NDArray[np.int64]) -> FeatureSet:
        return FeatureSet(
            features=torch.from_numpy(store.features(layer, rows)),
            labels=torch.from_numpy(labels[rows].astype(np.float32)),
        )

    return StudyData(
        train=gather(parts.train),
        validation=gather(parts.validation),
        generators={name: gather(rows) for name, rows in parts.generators.items()},
        val_generators=tuple(val_generators),
    )
