"""The feature store: all shards of one index, encoder and preprocessing, and what they are a function of.

    stores/<fingerprint>/
        store.json         what the features are a function of, and the counts
        shards/00000.arrow row, path, label, generator, split, sha256 and one column of float32 a layer
        views/<view>/      shards of augmented or degraded views, with operation and parameters
        quarantine.arrow   path, reason: the images that could not be read

Shards are memory-mapped: opening a store reads no features, and a row's features are read when asked for.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from causal_tune.atomic import atomic_path, write_json
from causal_tune.errors import StoreError
from causal_tune.features.shards import (
    ROW_COLUMNS,
    STORE_FORMAT,
    VIEW_COLUMNS,
    read_shard,
    shard_path,
    shard_ranges,
)
from causal_tune.images.views import CLEAN

__all__ = ["FeatureStore", "StoreSpec", "finish_store", "read_description", "shard_paths"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSpec:
    """All that the bytes of a store are a function of; its hash names the store's folder."""

    encoder: Mapping[str, Any]
    """`EncoderDescription.values`: which bytes, dtype, runtime and layers."""
    preprocessing: str
    """`Preprocessing.name`: how files become crops."""
    index_sha256: str
    """Content hash of the image index (`images.index.index_sha256`)."""
    num_indexed: int
    """Images in the index; every one is stored or quarantined."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over every field and the store format."""
        content = json.dumps({"format": STORE_FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def finish_store(
    store_path: Path,
    spec: StoreSpec,
    views: Sequence[str] = (),
    *,
    fidelity: Mapping[str, Any] | None = None,
) -> "FeatureStore":
    """Check that every indexed image is stored or quarantined, write quarantine.arrow and the counts.

    `views` are those that have just been made; views of earlier extractions stay listed. `fidelity` is
    recorded and is no part of the fingerprint: it was measured, on one machine.
    `StoreError` where a shard is missing or the counts do not add up.
    """
    quarantine: list[dict[str, str]] = []
    num_stored = 0
    widths: dict[str, int] = {}
    for shard, rows in enumerate(shard_ranges(spec.num_indexed)):
        batch, reasons = _finished_shard(store_path, shard, CLEAN)
        if batch.num_rows + len(reasons) != len(rows):
            raise StoreError(
                f"{shard_path(store_path, shard)} accounts for {batch.num_rows} stored and {len(reasons)} "
                f"quarantined images; its range has {len(rows)}. Delete that file and run the same "
                "`causal-tune extract` again."
            )
        widths = {
            field.name: field.type.shape[0]
            for field in batch.schema
            if field.name not in (*ROW_COLUMNS, *VIEW_COLUMNS)
        }
        num_stored += batch.num_rows
        quarantine += reasons
    earlier: dict[str, Any] = {}
    if (store_path / "store.json").exists():
        earlier = FeatureStore(store_path).description.get("views", {})
    counted = dict(earlier)
    for view in views:
        shards = [_finished_shard(store_path, shard, view) for shard in range(shard + 1)]
        counted[view] = {
            "num_stored": sum(batch.num_rows for batch, _ in shards),
            "num_quarantined": sum(len(reasons) for _, reasons in shards),
        }
    table = _quarantine_table(quarantine)
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
            **({"views": counted} if counted else {}),
            **({"fidelity": fidelity} if fidelity else {}),
        },
    )
    return FeatureStore(store_path)


def _quarantine_table(reasons: Sequence[Mapping[str, str]]) -> pa.Table:
    return pa.Table.from_pylist(
        list(reasons), schema=pa.schema([("path", pa.string()), ("reason", pa.string())])
    )


def _finished_shard(store_path: Path, shard: int, view: str) -> tuple[pa.RecordBatch, list[dict[str, str]]]:
    path = shard_path(store_path, shard, view)
    if not path.exists():
        raise StoreError(f"Shard {path} is missing. Run the same `causal-tune extract` again.")
    return read_shard(path)


def shard_paths(store_path: Path, view: str = CLEAN) -> list[Path]:
    """The files of a view of a finished store, whether they are there or not."""
    num_indexed = read_description(store_path)["num_indexed"]
    return [shard_path(store_path, shard, view) for shard in range(len(shard_ranges(num_indexed)))]


def read_description(store_path: Path) -> dict[str, Any]:
    """The store.json of a finished store; `StoreError` where there is none, or it is damaged or of a newer format."""
    path = store_path / "store.json"
    if not path.exists():
        if (store_path / "shards").is_dir() or (store_path / "pieces").is_dir():
            raise StoreError(
                f"The store {store_path} is unfinished. Run the `causal-tune extract` that began it "
                "again: it continues where it stopped."
            )
        raise StoreError(
            f"There is no feature store at {store_path} (no store.json).{_others(store_path)} Make one with "
            "`causal-tune extract INDEX --encoder NAME`; it prints the store's path."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or "format" not in found:
            raise ValueError("it describes no store")
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if found["format"] != STORE_FORMAT:
        raise StoreError(
            f"The store {store_path} has format {found['format']}; this release reads "
            f"format {STORE_FORMAT}. Install the release that wrote it, or extract again."
        )
    try:
        spec = StoreSpec(**{field.name: found[field.name] for field in fields(StoreSpec)})
        counts = [found, *found.get("views", {}).values()]
        is_whole = spec.fingerprint == found["fingerprint"] and all(
            isinstance(one[name], int) for one in counts for name in ("num_stored", "num_quarantined")
        )
        is_whole &= len(found["layers"]) > 0 and all(width > 0 for width in found["layers"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{error} is not as expected") from error
    if not is_whole:
        raise _damaged(path, "what it says does not agree with its fingerprint")
    return found


def _others(store_path: Path) -> str:
    names = sorted(path.parent.name for path in store_path.parent.glob("*/store.json"))
    return f" There are: {', '.join(names)}." if names else ""


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} is damaged: {reason}. Delete that file and run the same `causal-tune extract` again: it is written "
        "from the shards, and nothing is encoded twice."
    )


class FeatureStore:
    """A finished store, memory-mapped.

    `StoreError` for a folder that is no store, one whose extraction has not finished, one of a newer format, and
    one whose files are damaged or do not agree with its counts.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.description = read_description(self.path)
        self._views: dict[str, list[pa.RecordBatch]] = {}

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

    @property
    def num_quarantined(self) -> int:
        """Images that have none."""
        return int(self.description["num_quarantined"])

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views that are stored beside the clean one."""
        return tuple(self.description.get("views", {}))

    @cached_property
    def rows(self) -> pa.Table:
        """One row an image, in index order: row, path, label, generator, split, sha256."""
        return pa.Table.from_batches([batch.select(list(ROW_COLUMNS)) for batch in self._batches(CLEAN)])

    def view_rows(self, view: str) -> pa.Table:
        """One row an image that has this view, in index order: row, ..., operation, parameters (JSON)."""
        names = [*ROW_COLUMNS, *VIEW_COLUMNS]
        return pa.Table.from_batches([batch.select(names) for batch in self._batches(view)])

    def quarantine(self) -> pa.Table:
        """The images without features: path, reason."""
        reasons = [item for path in shard_paths(self.path) for item in read_shard(path)[1]]
        return _quarantine_table(reasons)

    def features(
        self,
        layer: str,
        rows: NDArray[np.int64],
        *,
        view: str = CLEAN,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """The features [len(rows), d] of `layer` at these positions of `self.rows`, written to `out` if given.

        `StoreError` for a layer or view that the store does not have, or an image that has no such view.
        """
        if layer not in self.layers:
            raise StoreError(
                f"The store {self.path} has no layer {layer!r}; it has {', '.join(self.layers)}. "
                f"Extract again with `--layers {','.join([*self.layers, layer])}`."
            )
        positions = rows if view == CLEAN else self._positions_in_view(view, rows)
        batches = self._batches(view)
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        result = np.empty((len(rows), self.layers[layer]), dtype=np.float32) if out is None else out
        shards = np.searchsorted(starts, positions, side="right") - 1
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            values = batches[shard].column(layer).to_numpy_ndarray()
            result[chosen] = values[positions[chosen] - starts[shard]]
        self._check_values(layer, rows, result)
        return result

    def _check_values(self, layer: str, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """`StoreError` for features that no encoder with sound weights gives."""
        # a row's sum is finite only if all its terms are, and a lost block reaches an end of its row: only such rows
        # are looked at whole, so that nothing of the size of all features is made
        with np.errstate(over="ignore", invalid="ignore"):
            is_finite = np.isfinite(values.sum(axis=1))
        suspect = np.flatnonzero(~is_finite | (values[:, 0] == 0) | (values[:, -1] == 0))
        rows, values = rows[suspect], values[suspect]
        bad = ~np.isfinite(values).all(axis=1)
        what = "are not finite numbers: the encoder's weights were damaged"
        if not bad.any():
            # A block of 4,096 bytes that was not written to the disk reaches over a row's first or last half. Zeros
            # here and there are an encoder's own: after a ReLU most numbers are 0.
            half = min(values.shape[1], max(32, (values.shape[1] + 1) // 2))
            zeros = values == 0
            bad = zeros[:, :half].all(axis=1) | zeros[:, -half:].all(axis=1)
            what = "are zeros: a block of the store's files is lost"
        if not bad.any():
            return
        path = self.rows["path"][int(rows[np.flatnonzero(bad)[0]])]
        raise StoreError(
            f"The features of {int(bad.sum()):,} images in {self.path}, such as {path}, {what} (layer {layer}). "
            "Check the weights with `causal-tune fetch ENCODER`, delete the store's folder and extract again."
        )

    def _positions_in_view(self, view: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        there = self.view_rows(view)["row"].to_numpy()
        wanted = self.rows["row"].to_numpy()[rows]
        positions: NDArray[np.int64] = np.minimum(np.searchsorted(there, wanted), max(len(there) - 1, 0))
        found = there[positions] == wanted if len(there) else np.zeros(len(wanted), dtype=bool)
        if not found.all():
            path = self.rows["path"][int(rows[np.flatnonzero(~found)[0]])]
            raise StoreError(
                f"{int((~found).sum()):,} of {len(rows):,} images have no view {view!r} in {self.path}, such as "
                f"{path}. A training view is made of images that are not of split test, a degraded one of "
                "images that are not of split train."
            )
        return positions

    def _batches(self, view: str) -> list[pa.RecordBatch]:
        if view not in self._views:
            counts = self.description if view == CLEAN else self.description.get("views", {}).get(view)
            if counts is None:
                raise StoreError(
                    f"The store {self.path} has no view {view!r}; it has {', '.join((CLEAN, *self.views))}. "
                    "Make it with the same `causal-tune extract` and `--views K` or `--degrade NAMES`."
                )
            batches = [read_shard(path)[0] for path in shard_paths(self.path, view)]
            found = sum(batch.num_rows for batch in batches)
            if found != counts["num_stored"]:
                raise StoreError(
                    f"The shards of {self.path} hold {found} images of the view {view!r} and its store.json says "
                    f"{counts['num_stored']}. Delete the store's folder and extract again."
                )
            self._views[view] = batches
        return self._views[view]
