"""Features that are there already: of the same bytes, by the same encoder and preprocessing.

An image's features are a function of the image, the encoder and the preprocessing, not of the index that
lists it. So an index that has grown, or that lists one real image for several generators, takes from the
stores of its workspace what they hold.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from causal_tune.features.shards import STORE_FORMAT, read_shard
from causal_tune.features.store import StoreSpec

__all__ = ["KnownFeatures", "stores_of_the_same_features"]


def stores_of_the_same_features(workspace: Path, spec: StoreSpec) -> list[Path]:
    """Finished stores of the workspace that differ from `spec` in the index alone, in the order of names."""
    wanted = json.loads(json.dumps({"encoder": _identity(spec.encoder), "preprocessing": spec.preprocessing}))
    found = []
    for path in sorted((workspace / "stores").glob("*/store.json")):
        try:
            description = json.loads(path.read_text())
            same = {
                "encoder": _identity(description["encoder"]),
                "preprocessing": description["preprocessing"],
            } == wanted and description["format"] == STORE_FORMAT
        except (OSError, json.JSONDecodeError, KeyError):
            continue  # no store of this format: nothing can be taken from it
        if same and path.parent.name != spec.fingerprint:
            found.append(path.parent)
    return found


def _identity(encoder: Mapping[str, object]) -> dict[str, object]:
    """All but the name, which only says where the weights were found."""
    return {key: value for key, value in encoder.items() if key != "name"}


class KnownFeatures:
    """Where the features of images lie, by the sha256 of their bytes."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Of all these shards and pieces; what is not there is passed over."""
        self.paths = [path for path in paths if path.exists()]
        digests = [read_shard(path)[0].column("sha256") for path in self.paths]
        self._starts = np.cumsum([0, *(len(column) for column in digests)])
        self._digests = pa.chunked_array(digests, pa.string()).combine_chunks()

    def find(self, digests: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Number in `self.paths` and position in that file of each digest; -1 and -1 where it is not known."""
        none = np.full(len(digests), -1, dtype=np.int32)
        if not len(self._digests):
            return none, none.copy()
        found = pc.index_in(digests, value_set=self._digests)
        found = pc.if_else(pc.is_valid(digests), found, None)
        places = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        files = np.searchsorted(self._starts, places, side="right") - 1
        positions = np.where(places < 0, -1, places - self._starts[files])
        return np.where(places < 0, -1, files).astype(np.int32), positions.astype(np.int32)
