"""The feature store on a node that lacks it: fetched there once, through Ray, from the driver's node.

A store may lie on the driver's disk only. Whatever node a trial is put on, its worker takes the store from the path
that the study names if it is there, and else from a cache of that node, which the first worker fills.
"""

import os
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from causal_tune.atomic import atomic_directory
from causal_tune.errors import StoreError
from causal_tune.features import FeatureStore
from causal_tune.weights import default_cache_dir

__all__ = ["StoreFiles", "local_store", "serve_store"]

_PIECE_BYTES = 64 * 2**20
_PARTS = ("store.json", "quarantine.arrow", "shards/*.arrow", "views/*/*.arrow")


class StoreFiles:
    """The files of a store, by name and in pieces: an actor on the node that has them."""

    def __init__(self, store_path: str) -> None:
        self._path = Path(store_path)

    def names(self) -> list[tuple[str, int]]:
        """Each file relative to the store's folder, with its bytes."""
        found = sorted(path for part in _PARTS for path in self._path.glob(part))
        return [(str(path.relative_to(self._path)), path.stat().st_size) for path in found]

    def read(self, name: str, offset: int, length: int) -> bytes:
        """A piece of a file."""
        with (self._path / name).open("rb") as file:
            file.seek(offset)
            return file.read(length)


def serve_store(store_path: Path | str) -> Any:
    """An actor `StoreFiles` on this node, for the workers of other nodes."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_concurrency=8)(StoreFiles)
    return actor.options(scheduling_strategy=here).remote(str(store_path))


def local_store(store_path: Path | str, fingerprint: str, files: Any | None) -> Path:
    """The folder in which this node has the store: `store_path` itself, or a copy that `files` gave.

    `StoreError` where the store is in neither place, or cannot be fetched.
    """
    path = Path(store_path)
    if _is(path, fingerprint):
        return path
    if files is None:
        raise StoreError(
            f"The store {path} is gone, or is not {fingerprint} any more. Bring it back, or encode the images again "
            "with the same `causal-tune extract`; then run the same command again: the study continues."
        )
    copy = default_cache_dir() / "node-stores" / fingerprint
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(copy.with_suffix(".lock"))):  # the node's other workers wait
            if not _is(copy, fingerprint):
                _fetch(copy, files)
    except (OSError, ray.exceptions.RayError) as error:
        raise StoreError(
            f"The store {fingerprint} could not be copied to {copy} on {os.uname().nodename}: {error}. Make room "
            "there, or put the store on storage that all nodes share, and run the same command again."
        ) from error
    if not _is(copy, fingerprint):
        raise StoreError(f"What the driver's node holds at {path} is not the store {fingerprint} any more.")
    return copy


def _is(path: Path, fingerprint: str) -> bool:
    try:
        return FeatureStore(path).fingerprint == fingerprint
    except StoreError:
        return False


def _fetch(copy: Path, files: Any) -> None:
    with atomic_directory(copy) as temporary:
        for name, size in ray.get(files.names.remote()):
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for offset in range(0, size, _PIECE_BYTES):
                    file.write(ray.get(files.read.remote(name, offset, _PIECE_BYTES)))
            if target.stat().st_size != size:
                raise OSError(f"{name} changed while it was copied")
