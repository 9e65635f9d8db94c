"""The sets of features that a trial is trained and judged on, and which image belongs to which."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from causal_tune.atomic import atomic_path
from causal_tune.errors import InvalidConfig
from causal_tune.features.store import FeatureStore
from causal_tune.images.views import CLEAN, augmented_view

__all__ = ["FeatureSet", "Partition", "StudyData", "load_study_data", "partition"]

VALIDATION_FRACTION = 0.2
"""Share of the training generator's images that validates, where the index names no `val` rows."""

_IN_MEMORY_BYTES = 2**30
"""Sets larger than this are gathered into a memory-mapped file of the store, shared by all trials and studies."""


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
    perturbed: Mapping[str, FeatureSet] = field(default_factory=dict)
    """The validation images in degraded views (`images.views`), by view; what `perturbed_val` reads."""


def _is_validation(sha256: str) -> bool:
    return int(sha256[:8], 16) < VALIDATION_FRACTION * 2**32


def _are(column: pa.ChunkedArray, *values: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.is_in(column, value_set=pa.array(values, pa.string())).to_numpy()
    return found


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
    label = rows["label"].to_numpy()
    known = sorted(pc.unique(rows["generator"]).to_pylist())
    for name in (*train_generators, *val_generators, *test_generators):
        if name not in known:
            raise InvalidConfig(
                f"No generator is called {name!r} in this store. There are: {', '.join(known)}."
            )

    seen = _are(rows["generator"], *train_generators)
    of_val, of_test, of_train = (_are(rows["split"], name) for name in ("val", "test", "train"))
    if (seen & of_val).any():
        validation = seen & of_val
        train = seen & ~of_val & ~of_test
    else:
        pool = np.flatnonzero(seen & ~of_test)
        chosen = pool[[_is_validation(digest) for digest in rows["sha256"].take(pool).to_pylist()]]
        validation, train = np.zeros_like(seen), np.zeros_like(seen)
        train[pool], train[chosen], validation[chosen] = True, False, True
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
        mine = _are(rows["generator"], name)
        held_out = mine & of_test if name in train_generators else mine & ~of_train
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
    views: int = 0,
    degraded_views: Sequence[str] = (),
) -> StudyData:
    """The sets of a study (`partition`), gathered from the store's memory map.

    `views` augmented views of each training image train beside the image itself; validation and judgement
    see images as they are, and `perturbed` the validation images in these degraded views.
    """
    store = FeatureStore(store_path)
    parts = partition(
        store.rows,
        train_generators=train_generators,
        val_generators=val_generators,
        test_generators=test_generators,
    )
    labels = store.rows["label"].to_numpy()

    def gather(rows: NDArray[np.int64], *names: str) -> FeatureSet:
        return FeatureSet(
            features=_gather(store, layer, rows, names or (CLEAN,)),
            labels=torch.from_numpy(np.tile(labels[rows].astype(np.float32), len(names) or 1)),
        )

    return StudyData(
        train=gather(parts.train, CLEAN, *(augmented_view(number) for number in range(views))),
        validation=gather(parts.validation),
        generators={name: gather(rows) for name, rows in parts.generators.items()},
        val_generators=tuple(val_generators),
        perturbed={view: gather(parts.validation, view) for view in degraded_views},
    )


def _gather(store: FeatureStore, layer: str, rows: NDArray[np.int64], views: Sequence[str]) -> Tensor:
    """Features [len(views) * len(rows), d], view by view; above `_IN_MEMORY_BYTES` a memory-mapped file."""
    shape = (len(views) * len(rows), store.layers.get(layer, 0))

    def fill(values: NDArray[np.float32]) -> None:
        for number, view in enumerate(views):
            part = values[number * len(rows) : (number + 1) * len(rows)]
            store.features(layer, rows, view=view, out=part)

    if shape[0] * shape[1] * 4 <= _IN_MEMORY_BYTES:
        values = np.empty(shape, dtype=np.float32)
        fill(values)
        return torch.from_numpy(values)
    key = hashlib.sha256(rows.tobytes() + f"{layer} {' '.join(views)}".encode()).hexdigest()[:16]
    path = store.path / "sets" / f"{layer}-{key}.f32"
    num_bytes = shape[0] * shape[1] * 4
    if not path.exists() or path.stat().st_size != num_bytes:
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                file.truncate(num_bytes)
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    # the kernel ends a process that writes to a map which the disk has no room for
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
            mapped = np.memmap(temporary, dtype=np.float32, mode="r+", shape=shape)
            fill(mapped)
            mapped.flush()
    # copy on write: torch wants what it could write to, and nothing ever does
    return torch.from_numpy(np.memmap(path, dtype=np.float32, mode="c", shape=shape))
