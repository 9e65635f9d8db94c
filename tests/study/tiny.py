"""A small feature store of synthetic features, and studies on it; run as a program, a driver."""

import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
import torch

from causal_tune.errors import TrialFailed
from causal_tune.features import FeatureStore, StoreSpec, finish_store, shard_path, shard_ranges, write_shard
from causal_tune.ledger import TrialRecord
from causal_tune.study.run import run_study
from causal_tune.study.space import SearchSpace, load_space
from causal_tune.study.spec import StudySpec, make_spec
from causal_tune.study.worker import train_on_store
from causal_tune.training import TrialResult
from causal_tune.trial import TrialConfig

WIDTH = 6
GENERATORS = ("latent", "cyclegan", "progan", "glide")


def make_store(
    path: Path,
    *,
    per_class: int = 24,
    seed: int = 0,
    index_sha256: str = "00",
    one_class: Mapping[str, int] | None = None,
    copied: tuple[str, str] | None = None,
) -> FeatureStore:
    """Real and generated images differ in one dimension that all generators share and one of their own.

    `one_class` names generators that only have images of that label; the first path of `copied` has the bytes of
    the second.
    """
    rng = np.random.default_rng(seed)
    rows, features = [], []
    for place, generator in enumerate(GENERATORS):
        only = (one_class or {}).get(generator)
        for label in (0, 1) if only is None else (only,):
            for image in range(per_class):
                value = rng.normal(size=WIDTH)
                value[0] += 0.8 * label
                value[1 + place] += 2.0 * label
                features.append(value)
                digest = f"{rng.integers(2**32):08x}{len(rows):056x}"
                rows.append((f"/{generator}/{label}/{image}.png", label, generator, digest))
    if copied:
        digests = {row[0]: row[3] for row in rows}
        rows = [(*row[:3], digests[copied[1]] if row[0] == copied[0] else row[3]) for row in rows]
    spec = StoreSpec(
        encoder={"name": "synthetic", "layers": ["proj"]},
        preprocessing="none",
        index_sha256=index_sha256,
        num_indexed=len(rows),
    )
    for shard, span in enumerate(shard_ranges(len(rows))):
        mine = [rows[row] for row in span]
        table = pa.table(
            {
                "row": pa.array(list(span), pa.int64()),
                "path": [row[0] for row in mine],
                "label": pa.array([row[1] for row in mine], pa.int8()),
                "generator": [row[2] for row in mine],
                "split": ["" for _ in mine],
                "sha256": [row[3] for row in mine],
            }
        )
        write_shard(
            shard_path(path, shard),
            table,
            {"proj": np.asarray([features[row] for row in span], np.float32)},
            [],
        )
    return finish_store(path, spec)


def small_space(**defaults: Any) -> SearchSpace:
    """`demo` with trials of a few steps."""
    space = load_space("demo")
    short = {"max_epochs": 2, "min_epoch_steps": 2, **defaults}
    return dataclasses.replace(space, defaults={**space.defaults, **short})


def make_tiny_spec(workspace: Path, **changes: Any) -> StudySpec:
    """A spec of a study on `make_store`'s store, which is made where it is not there yet."""
    store_path = workspace / "store"
    if not (store_path / "store.json").exists():
        make_store(store_path)
    values: dict[str, Any] = {
        "workspace": workspace,
        "name": "tiny",
        "store_path": store_path,
        "space": small_space(),
        "train_generators": ["latent"],
        "val_generators": ["cyclegan"],
        "max_concurrent": 2,
    }
    return make_spec(**{**values, **changes})


def substance(record: TrialRecord) -> dict[str, Any]:
    """All of a record that is a function of the study: no clock."""
    content = record.to_json()
    for key in ("timings", "ended_at"):
        content.pop(key)
    content["epochs"] = [
        {key: value for key, value in epoch.items() if key != "time_s"} for epoch in content["epochs"]
    ]
    return content


def uneven(spec: StudySpec, config: TrialConfig, **options: Any) -> TrialResult:
    """The real trial, ending after a time that differs from run to run."""
    time.sleep(random.random() * 0.4)
    return train_on_store(spec, config, **options)


def moody(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """A quarter of the trials diverges, a quarter raises, and a quarter has a result that is not finite."""
    mood = config.seed % 4
    if mood == 0:
        raise TrialFailed("the loss became nan")
    if mood == 1:
        raise ZeroDivisionError("division by zero")
    result = train_on_store(spec, config)
    if mood == 2:
        result.validation["loss"] = float("nan")
    return result


def deadly(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """The linear head's worker dies; once only where a file says that it has died before."""
    died = Path(spec.store_path).parent / "died"
    if config.head == "linear":
        died.write_text(died.read_text() + "x" if died.exists() else "x")
        os.kill(os.getpid(), signal.SIGKILL)
    if config.lambda1 == spec.space["defaults"]["lambda1"] and not (died.parent / "died-once").exists():
        (died.parent / "died-once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train_on_store(spec, config)


def lethal(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """Nothing survives here."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def crowded(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """Room for one, until two have died of it: whoever came later dies beside another one, as by the memory of both."""
    folder = Path(spec.store_path).parent / "at-work"
    died = folder.with_name("died")
    folder.mkdir(exist_ok=True)
    mine = folder / str(os.getpid())
    mine.touch()
    while not died.exists() or len(died.read_text()) < 2:
        before = [int(path.name) for path in folder.iterdir() if int(path.name) < os.getpid()]
        if any(map(psutil.pid_exists, before)):
            with died.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
    return train_on_store(spec, config)


def hungry(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """The linear head takes 6 GB, and keeps them."""
    if config.head == "linear":
        taken = [np.ones(2**27, np.uint8) for _ in range(48)]
        time.sleep(10)
        del taken
    return train_on_store(spec, config)


def vanishing(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """The real trial; the store is moved away after the second."""
    store = Path(spec.store_path)
    result = train_on_store(spec, config)
    if len(list((store.parent / "studies" / spec.name / "trials").glob("0*.json"))) == 1:
        store.rename(store.parent / "gone")
    return result


def threaded(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """Tells the threads that it has as its number of steps."""
    return dataclasses.replace(train_on_store(spec, config), num_steps=torch.get_num_threads())


def placed(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """The real trial, leaving the name of its node; once a node is lost it waits for a third one to be used."""
    folder = Path(spec.store_path).parent
    with (folder / "nodes").open("a") as file:
        file.write(ray.get_runtime_context().get_node_id() + "\n")
    time.sleep(1)
    deadline = time.monotonic() + 60
    while (folder / "lost").exists() and len(nodes_used(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    return train_on_store(spec, config)


def nodes_used(folder: Path) -> list[str]:
    """The nodes on which `placed` ran."""
    return sorted(set((folder / "nodes").read_text().split())) if (folder / "nodes").exists() else []


# Ray's workers do not have this folder on their path
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

if __name__ == "__main__":  # a driver of its own: WORKSPACE NUM_TRIALS WORK [CHANGES of the spec as JSON]
    run_study(
        make_tiny_spec(Path(sys.argv[1]), **json.loads(sys.argv[4] if len(sys.argv) > 4 else "{}")),
        num_trials=int(sys.argv[2]),
        workspace=sys.argv[1],
        work=globals()[sys.argv[3]],
    )
