"""The stores of a workspace: which there are, two put together, and what nothing needs any more."""

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from causal_tune.errors import CausalTuneError, StoreError
from causal_tune.features.known import KnownFeatures, identity, read_sources
from causal_tune.features.shards import ROW_COLUMNS, shard_path, shard_ranges, write_shard
from causal_tune.features.store import FeatureStore, StoreSpec, finish_store, shard_paths
from causal_tune.images.index import index_sha256, read_index
from causal_tune.lock import owned

__all__ = [
    "Leftover",
    "StoreSummary",
    "index_file_of_store",
    "index_of_store",
    "leftovers",
    "list_stores",
    "merge_stores",
    "remove",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSummary:
    """One store of a workspace, or the beginning of one."""

    path: Path
    state: str
    """`finished`, `unfinished`, or `unreadable` with the `reason`."""
    reason: str = ""
    num_bytes: int
    """Of all its files."""
    description: dict[str, Any]
    """Its store.json; empty where it is not finished."""


def index_of_store(store: FeatureStore, index: Path | None = None) -> pa.Table | None:
    """The image index that a store was made from: the file `index`, or of its workspace; None where none is at hand.

    `StoreError` where `index` lists other images.
    """
    found = index_file_of_store(store, index)
    return found[1] if found else None


def index_file_of_store(store: FeatureStore, index: Path | None = None) -> tuple[Path, pa.Table] | None:
    """`index_of_store`, with the file that it is in."""
    wanted = store.description["index_sha256"]
    for path in (index,) if index else sorted((store.path.parent.parent / "index").glob("*.parquet")):
        try:
            table = read_index(path)
        except CausalTuneError:  # an index of a newer release, or a file that is none
            if index:
                raise
            continue
        if index_sha256(table) == wanted:
            return path, table
    if index:
        raise StoreError(
            f"The index {index} lists other images than the store {store.path} was made from. Give the one that "
            "was extracted, or none."
        )
    return None


def list_stores(workspace: Path) -> list[StoreSummary]:
    """The stores of a workspace in the order of their names."""
    found = []
    for path in sorted((workspace / "stores").glob("*/")):
        state, reason, description = "finished", "", {}
        try:
            description = FeatureStore(path).description
        except (StoreError, ValueError) as error:
            unfinished = not (path / "store.json").exists()
            state, reason = ("unfinished", "") if unfinished else ("unreadable", str(error))
        found.append(
            StoreSummary(
                path=path, state=state, reason=reason, num_bytes=_num_bytes(path), description=description
            )
        )
    return found


def merge_stores(paths: Sequence[Path], workspace: Path) -> FeatureStore:
    """One store with the images of several of the same encoder and preprocessing; nothing is encoded.

    Rows are in the order of an index: by generator, split, label, path; a row that several have is taken once.
    Views and quarantined images stay behind. `StoreError` where the stores are not of the same features.
    """
    stores = [FeatureStore(path) for path in paths]
    first = stores[0].description
    for store in stores[1:]:
        for key, wanted in identity(first).items():
            if identity(store.description)[key] != wanted:
                raise StoreError(
                    f"{stores[0].path} and {store.path} differ in {key}: {first[key]} and "
                    f"{store.description[key]}. Only features that were made alike can be one store; extract one "
                    "of them again."
                )
    order = ["generator", "split", "label", "path"]
    rows = pa.concat_tables([store.rows.drop_columns("row") for store in stores])
    rows = rows.group_by(rows.column_names, use_threads=False).aggregate([])
    rows = rows.sort_by([(name, "ascending") for name in order])
    rows = rows.append_column("row", pa.array(range(rows.num_rows), pa.int64())).select(list(ROW_COLUMNS))
    spec = StoreSpec(
        encoder=first["encoder"],
        preprocessing=first["preprocessing"],
        index_sha256=index_sha256(rows),
        num_indexed=rows.num_rows,
    )
    store_path = (workspace / "stores" / spec.fingerprint).absolute()
    with owned(store_path, "merge"):
        found = KnownFeatures(path for store in stores for path in shard_paths(store.path)).find(
            rows["sha256"]
        )
        for shard, members in enumerate(shard_ranges(rows.num_rows)):
            if shard_path(store_path, shard).exists():
                continue
            features = {
                layer: np.empty((len(members), width), dtype=np.float32)
                for layer, width in first["layers"].items()
            }
            for batch, places, positions in read_sources([found.of(row) for row in members]):
                for layer, values in features.items():
                    values[places] = batch.column(layer).to_numpy_ndarray()[positions]
            write_shard(shard_path(store_path, shard), rows.slice(members.start, len(members)), features, [])
        return finish_store(store_path, spec)


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """Files of a workspace that nothing needs."""

    path: Path
    reason: str
    num_bytes: int


def leftovers(workspace: Path, used: Collection[str]) -> list[Leftover]:
    """What can be removed from the stores; `used` holds the fingerprints that studies were made on.

    Stores that no study uses, beginnings of stores, and files that are made again when they are needed.
    """
    found = []
    for store in list_stores(workspace):
        if store.state == "unfinished":
            reason = "an extraction that did not end; its command would continue it"
        elif store.path.name not in used:
            reason = "a store that no study of this workspace was made on"
        else:
            kept = [path for path in (store.path / "sets", store.path / "pieces") if path.is_dir()]
            found += [
                Leftover(path=path, reason="made again when it is needed", num_bytes=_num_bytes(path))
                for path in kept
            ]
            continue
        found.append(Leftover(path=store.path, reason=reason, num_bytes=store.num_bytes))
    return found


def remove(leftover: Leftover, workspace: Path) -> None:
    """Remove it; `StudyError` while another process is writing that store."""
    store_path = workspace / "stores" / leftover.path.relative_to(workspace / "stores").parts[0]
    with owned(store_path, "removal"):
        shutil.rmtree(leftover.path)


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
