"""Features that are there already: of the same bytes, by the same encoder and preprocessing.

An image's features are a function of the image, the encoder and the preprocessing, not of the index that
lists it. So an index that has grown, or that lists one real image for several generators, takes from the
stores of its workspace what they hold.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from causal_tune.errors import StoreError
from causal_tune.features.shards import read_shard
from causal_tune.features.store import StoreSpec, read_description

__all__ = ["KnownFeatures", "Sources", "identity", "read_sources", "stores_of_the_same_features"]


def stores_of_the_same_features(workspace: Path, spec: StoreSpec) -> list[Path]:
    """Finished stores of the workspace that differ from `spec` in the index alone, in the order of names."""
    wanted = identity(json.loads(json.dumps(asdict(spec))))  # as it is read from a file: lists, not tuples
    found = []
    for path in sorted((workspace / "stores").glob("*/store.json")):
        try:
            description = read_description(path.parent)
        except StoreError:
            continue  # no store of this format: nothing can be taken from it
        if identity(description) == wanted and path.parent.name != spec.fingerprint:
            found.append(path.parent)
    return found


def identity(description: Mapping[str, Any]) -> dict[str, Any]:
    """What the features of one image are a function of, of a store's description.

    The encoder without its name, which only says where the weights were found.
    """
    encoder = {key: value for key, value in description["encoder"].items() if key != "name"}
    return {"encoder": encoder, "preprocessing": description["preprocessing"]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Where the features of each of some images lie already."""

    paths: Sequence[Path]
    files: NDArray[np.int32]
    """Of each image, a number in `paths`; -1 where it is not known."""
    positions: NDArray[np.int32]

    def of(self, row: int) -> tuple[str, int] | None:
        """The file and the position in it of an image; None where it is not known."""
        if self.files[row] < 0:
            return None
        return str(self.paths[self.files[row]]), int(self.positions[row])


def read_sources(
    sources: Sequence[Sequence[Any] | None],
) -> Iterator[tuple[pa.RecordBatch, NDArray[np.int64], NDArray[np.int64]]]:
    """Each file that sources (`Sources.of`) name, opened once: its rows, the places in `sources` of those that
    are there, and their positions in it."""
    places: dict[str, list[int]] = {}
    for place, source in enumerate(sources):
        if source is not None:
            places.setdefault(source[0], []).append(place)
    for path, mine in places.items():
        positions = [source[1] for place in mine if (source := sources[place]) is not None]
        yield read_shard(Path(path))[0], np.asarray(mine, np.int64), np.asarray(positions, np.int64)


class KnownFeatures:
    """Where the features of images lie, by the sha256 of their bytes."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Of all these shards and pieces; what is not there is passed over."""
        self.paths = [path for path in paths if path.exists()]
        digests = [read_shard(path)[0].column("sha256") for path in self.paths]
        self._starts = np.cumsum([0, *(len(column) for column in digests)])
        self._digests = pa.chunked_array(digests, pa.string()).combine_chunks()

    def find(self, digests: pa.ChunkedArray) -> Sources:
        """Where the features of each digest lie."""
        if not len(self._digests):
            none = np.full(len(digests), -1, dtype=np.int32)
            return Sources(paths=self.paths, files=none, positions=none)
        found = pc.index_in(digests, value_set=self._digests)
        found = pc.if_else(pc.is_valid(digests), found, None)
        places = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        files = np.searchsorted(self._starts, places, side="right") - 1
        positions = np.where(places < 0, -1, places - self._starts[files])
        files = np.where(places < 0, -1, files)
        return Sources(paths=self.paths, files=files.astype(np.int32), positions=positions.astype(np.int32))
