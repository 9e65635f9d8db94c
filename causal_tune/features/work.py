"""What is left to be done of a store: which pieces are pending, and where their images come from."""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from causal_tune.features.known import KnownFeatures, Sources
from causal_tune.features.shards import merge_pieces, piece_path, pieces, read_shard_report, shard_path
from causal_tune.features.store import FeatureStore, shard_paths
from causal_tune.images.pieces import rows_to_bytes
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.images.views import CLEAN, view_applies

__all__ = ["Work"]


class Work:
    """Which pieces of a store there are, which are done, and what the others are made of."""

    def __init__(
        self, index: pa.Table, store_path: Path, views: Sequence[str], preprocessing: Preprocessing
    ) -> None:
        self.index = index
        self.store_path = store_path
        self.views = tuple(dict.fromkeys(views))
        self.preprocessing = preprocessing
        self.pieces = pieces(index.num_rows)
        self.pending: set[int] = set()
        """Places in `pieces` of those that lack a view."""
        self._uncounted: set[int] = set()
        self._parts: list[list[int]] = []
        """Places in `pieces` of those of each shard."""
        for place, piece in enumerate(self.pieces):
            if piece.number == 0:
                self._parts.append([])
            self._parts[-1].append(place)
        self.num_stored = self.num_quarantined = 0

    @property
    def num_done(self) -> int:
        """Indexed images that nothing is lacking of, in any view."""
        return int(self.index.num_rows) - sum(len(self.pieces[place].rows) for place in self.pending)

    def finished_store(self) -> FeatureStore | None:
        """The store, where nothing is left to do."""
        if not (self.store_path / "store.json").exists():
            return None
        store = FeatureStore(self.store_path)
        for view in self.views:
            if view != CLEAN and view not in store.views:
                return None
            if not all(path.exists() for path in shard_paths(self.store_path, view)):
                return None
        return store

    def find_done(self) -> None:
        """Look on the disk which pieces are pending, and count the others."""
        for parts in self._parts:
            shard = self.pieces[parts[0]].shard
            if (path := shard_path(self.store_path, shard)).exists():
                self._count(path)
            else:
                for place in parts:
                    if (path := piece_path(self.store_path, self.pieces[place])).exists():
                        self._count(path)
                    else:
                        self._uncounted.add(place)
            self.pending.update(place for place in parts if self._missing_views(place))
        self.merge()

    def next_tasks(self, siblings: Sequence[Path]) -> list[dict[str, Any]]:
        """Tasks for the pending pieces, but for those whose images others of them encode first."""
        first = self._first_rows
        has_shared = bool((first != np.arange(len(first))).any())
        sources = {view: self._sources(view, siblings, own=has_shared) for view in self.views}
        ready = sorted(self.pending)
        if has_shared:
            piece_of_row = np.repeat(np.arange(len(self.pieces)), [len(piece.rows) for piece in self.pieces])
            others = piece_of_row[first] != piece_of_row
            unmade = np.isin(piece_of_row[first], ready) & (sources[CLEAN].files < 0)
            waiting = set(piece_of_row[others & unmade].tolist())
            ready = [place for place in ready if place not in waiting]
        numbered = self.index.append_column(
            "row", pa.array(range(self.index.num_rows), pa.int64())
        ).replace_schema_metadata()
        return [self._task(place, numbered, sources) for place in ready]

    def take(self, place: int) -> None:
        """A piece is done."""
        self.pending.discard(place)
        if place in self._uncounted:
            self._uncounted.discard(place)
            self._count(piece_path(self.store_path, self.pieces[place]))

    def merge(self) -> None:
        """Make shards of pieces, where all of a shard are done.

        Between two rounds of tasks and not after each piece: a task may read another piece of this store.
        """
        for parts in self._parts:
            if not self.pieces[parts[0]].is_shard and not self.pending.intersection(parts):
                for view in self.views:
                    merge_pieces(self.store_path, [self.pieces[place] for place in parts], view)
        if not self.pending:
            shutil.rmtree(self.store_path / "pieces", ignore_errors=True)

    def _task(self, place: int, numbered: pa.Table, sources: Mapping[str, Sources]) -> dict[str, Any]:
        piece = self.pieces[place]
        rows = numbered.slice(piece.rows.start, len(piece.rows))
        splits = rows["split"].to_pylist()
        views = []
        for view in self._missing_views(place):
            positions = [position for position, split in enumerate(splits) if view_applies(view, split)]
            views.append(
                {
                    "name": view,
                    "path": str(piece_path(self.store_path, piece, view)),
                    "rows": positions,
                    "sources": [sources[view].of(piece.rows.start + position) for position in positions],
                }
            )
        return {
            "piece": place,
            "rows": rows_to_bytes(rows),
            "preprocessing": self.preprocessing.name,
            "views": json.dumps(views),
        }

    @cached_property
    def _first_rows(self) -> NDArray[np.int64]:
        """For each row the first one with the same bytes; itself where the file could not be read."""
        digests = self.index["sha256"].combine_chunks()
        found = pc.index_in(digests, value_set=digests.drop_null())
        first_of_valid = np.flatnonzero(pc.is_valid(digests).to_numpy(zero_copy_only=False))
        rows = np.arange(len(digests))
        valid = pc.is_valid(found).to_numpy(zero_copy_only=False)
        rows[valid] = first_of_valid[found.drop_null().to_numpy()]
        return rows

    def _sources(self, view: str, siblings: Sequence[Path], *, own: bool) -> Sources:
        paths = [path for sibling in siblings for path in shard_paths(sibling, view)]
        if own:
            paths += [shard_path(self.store_path, shard, view) for shard in range(len(self._parts))]
            paths += [piece_path(self.store_path, piece, view) for piece in self.pieces if not piece.is_shard]
        return KnownFeatures(paths).find(self.index["sha256"])

    def _missing_views(self, place: int) -> list[str]:
        piece = self.pieces[place]
        return [
            view
            for view in self.views
            if not shard_path(self.store_path, piece.shard, view).exists()
            and (piece.is_shard or not piece_path(self.store_path, piece, view).exists())
        ]

    def _count(self, path: Path) -> None:
        report = read_shard_report(path)
        self.num_stored += report.num_stored
        self.num_quarantined += report.num_quarantined
