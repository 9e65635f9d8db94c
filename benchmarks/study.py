"""What does a study cost beside its training, against the obvious wiring of Ray Tune and MLflow?

    python benchmarks/study.py [--store STORE --train-generator G --val-generators H] [--trials 40] [--epochs 6]

The same features, the same configurations, seeds and steps, on two CPUs of one Ray, one after the other in one run:

- `textbook`: a Ray Tune function trainable with its defaults, a `DataLoader`, the plain step of
  `training_step.py`, an evaluation and a report an epoch, `MLflowLoggerCallback` on sqlite;
- `ours`: `run_study` with MLflow on sqlite.

`speedup_over_textbook` is the ratio of their wall times. `overhead_s_per_trial` is what a slot spends on a trial
outside of its training. `mlflow_share` is the part of our wall time that MLflow takes: what the study waits for it, at
its start and end, and of what is delivered beside the trials the processor time, shared among the CPUs that it is
taken from. `do_nothing` runs trials whose training costs nothing, and compares the first hundred with the last. `asha`
runs the same configurations in full and with the pruner, and says when each first had the best score of the full run.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import pyarrow as pa
import ray
import torch
import training_step
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from torch.utils.data import DataLoader, TensorDataset

from causal_tune.features import (
    StoreSpec,
    finish_store,
    load_study_data,
    shard_path,
    shard_ranges,
    write_shard,
)
from causal_tune.ledger import TrialRecord
from causal_tune.selection import Roles, score
from causal_tune.study.delivery import Delivery
from causal_tune.study.run import StudyEvent, StudyResult, run_study
from causal_tune.study.space import SearchSpace, load_space
from causal_tune.study.spec import StudySpec, make_spec
from causal_tune.tracking import Tracker, default_uri
from causal_tune.training import TrialResult
from causal_tune.trial import TrialConfig

NUM_CPUS = 2
WIDTH = 768
GENERATORS = ("alpha", "beta", "gamma", "delta")


def make_store(path: Path, per_class: int) -> None:
    """Random features in which generated images are shifted along a few directions, some of them shared."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.repeat([0, 1], per_class), len(GENERATORS))
    names = np.repeat(GENERATORS, 2 * per_class)
    features = rng.normal(size=(len(labels), WIDTH)).astype(np.float32)
    features[:, 0] += 0.6 * labels
    for place, name in enumerate(GENERATORS):
        features[names == name, 1 + place] += 2.0 * labels[names == name]
    for shard, span in enumerate(shard_ranges(len(labels))):
        rows = np.asarray(span)
        table = pa.table(
            {
                "row": pa.array(rows, pa.int64()),
                "path": [f"/{row}.png" for row in rows],
                "label": pa.array(labels[rows], pa.int8()),
                "generator": names[rows].tolist(),
                "split": ["" for _ in rows],
                "sha256": [hashlib.sha256(b"%d" % row).hexdigest() for row in rows],
            }
        )
        write_shard(shard_path(path, shard), table, {"proj": features[rows]}, [])
    spec = StoreSpec(
        encoder={"name": "random", "layers": ["proj"]},
        preprocessing="none",
        index_sha256="00",
        num_indexed=len(labels),
    )
    finish_store(path, spec)


def fixed_trials(space: SearchSpace, num_trials: int, epochs: int) -> SearchSpace:
    """The space with `num_trials` random points of it tried first, each trained for all of `epochs`."""
    points = []
    for number in range(num_trials):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        points.append(dict(study.ask(dict(space.distributions)).params))
    short = {"max_epochs": epochs, "patience": epochs}
    return replace(space, defaults={**space.defaults, **short}, enqueued=tuple(points))


class Timed:
    """The tracker, with the processor time that is spent in it beside the trials."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.cpu_s = 0.0

    @property
    def spec(self) -> StudySpec:
        return self.tracker.spec

    @spec.setter
    def spec(self, spec: StudySpec) -> None:
        self.tracker.spec = spec

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            return call(*arguments)  # the study waits, which `timed_study` counts
        begin = time.thread_time()
        try:
            return call(*arguments)
        finally:
            self.cpu_s += time.thread_time() - begin

    def connect(self) -> None:
        self._timed(self.tracker.connect)

    def start(self) -> None:
        self._timed(self.tracker.start)

    def sync(self, records: Iterable[TrialRecord]) -> int:
        return int(self._timed(self.tracker.sync, records))

    def log_trial(self, record: TrialRecord, roles: Roles) -> None:
        self._timed(self.tracker.log_trial, record, roles)

    def watched(self) -> AbstractContextManager[None]:
        return self.tracker.watched()

    def finish(self, best: TrialRecord | None) -> None:
        self._timed(self.tracker.finish, best)

    def stop(self) -> None:
        self._timed(self.tracker.stop)


def tracked(workspace: Path, spec: StudySpec) -> Timed:
    return Timed(Tracker(default_uri(workspace), "benchmark", spec))


def nothing(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """A trial without training."""
    metrics = {"ap": 0.5, "accuracy": 0.5, "num_real": 10, "num_generated": 10}
    return TrialResult(
        best_epoch=1,
        num_steps=0,
        stopped_by="max_epochs",
        epochs=[{"epoch": 1, "kept": 1, "steps": 0, "time_s": 0.0, "validation/ap": 0.5}],
        validation=metrics,
        threshold=0.0,
        generators=dict.fromkeys((*spec.val_generators, *spec.test_generators), metrics),
        perturbed={},
        mask=None,
        collapsed=None,
        head_state={"weight": torch.zeros(1)},
        head_config={},
        timings={"training_s": 0.0, "evaluation_s": 0.0, "total_s": 0.0},
    )


def textbook_trial(config: Mapping[str, Any]) -> None:
    """One trial as the documentation of the libraries leads one to write it."""
    trial = TrialConfig.from_dict(config["configs"][config["trial"]])
    torch.manual_seed(trial.seed)
    data = load_study_data(config["store"], **config["roles"])
    size = len(data.train) // -(-len(data.train) // trial.batch_size)
    loader = DataLoader(
        TensorDataset(data.train.features, data.train.labels), batch_size=size, shuffle=True, drop_last=True
    )
    plain = training_step.Plain(data.train.features.shape[1], trial)
    steps, per_epoch = 0, max(trial.min_epoch_steps, len(loader))
    for _ in range(trial.max_epochs):
        done = 0
        while done < per_epoch:
            for x, y in loader:
                plain.step(x, y)
                done += 1
                if done == per_epoch:
                    break
        steps += done
        results = plain.evaluate(data)
        metrics = {f"ap_{place}": ap for place, (ap, _) in enumerate(results)}
        tune.report({"objective": results[0][0], "steps": steps, **metrics})


def run_textbook(
    workspace: Path, store: Path, roles: Mapping[str, Any], configs: list[dict[str, Any]]
) -> float:
    param_space = {"trial": tune.grid_search(list(range(len(configs))))}
    constants = {"configs": configs, "store": str(store), "roles": dict(roles)}
    begin = time.perf_counter()
    results = tune.Tuner(
        lambda config: textbook_trial({**constants, **config}),
        param_space=param_space,
        tune_config=tune.TuneConfig(metric="objective", mode="max"),
        run_config=tune.RunConfig(
            storage_path=str(workspace / "textbook"),
            verbose=0,
            callbacks=[
                MLflowLoggerCallback(
                    tracking_uri=f"sqlite:///{workspace / 'textbook.db'}", experiment_name="textbook"
                )
            ],
        ),
    ).fit()
    seconds = time.perf_counter() - begin
    if results.errors:
        raise SystemExit(f"The textbook's trials failed: {results.errors[0]}")
    return seconds


def timed_study(
    workspace: Path,
    spec: StudySpec,
    num_trials: int,
    **options: Any,
) -> tuple[StudyResult, float, float, list[tuple[float, TrialRecord]]]:
    """The study, its wall time, the part of it that MLflow takes, and when each trial ended."""
    ends: list[tuple[float, TrialRecord]] = []
    tracker = tracked(workspace, spec)
    waited = []

    def waits(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = call(*arguments)
            waited.append(time.perf_counter() - begin)
            return result

        return timed

    begin = time.perf_counter()

    def on_event(event: StudyEvent) -> None:
        if event.record:
            ends.append((time.perf_counter() - begin, event.record))

    with (
        patch.object(Delivery, "ready", waits(Delivery.ready)),
        patch.object(Delivery, "wait", waits(Delivery.wait)),
        patch.object(Delivery, "finish", waits(Delivery.finish)),
    ):
        result = run_study(
            spec, num_trials=num_trials, workspace=workspace, on_event=on_event, tracker=tracker, **options
        )
    seconds = time.perf_counter() - begin
    if result.num_failed:
        raise SystemExit(
            f"A trial failed: {next(record.reason for record in result.records if record.failed)}"
        )
    return result, seconds, sum(waited) + tracker.cpu_s / NUM_CPUS, ends


def against_textbook(make: Callable[..., StudySpec], workspace: Path, options: Any) -> dict[str, Any]:
    space = fixed_trials(load_space("sd14"), options.trials, options.epochs)
    spec = make(name="ours", space=space)
    result, seconds, in_mlflow, _ = timed_study(workspace, spec, options.trials)
    training = sum(record.timings["total_s"] for record in result.records)
    roles = {
        "train_generators": spec.train_generators,
        "val_generators": spec.val_generators,
        "test_generators": spec.test_generators,
        "layer": options.layer,
    }
    textbook = run_textbook(
        workspace, Path(spec.store_path), roles, [dict(record.config) for record in result.records]
    )
    return {
        "speedup_over_textbook": round(textbook / seconds, 3),
        "overhead_s_per_trial": round((seconds * NUM_CPUS - training) / options.trials, 3),
        "mlflow_share": round(in_mlflow / seconds, 4),
        "textbook_s": round(textbook, 1),
        "ours_s": round(seconds, 1),
        "training_s_per_trial": round(training / options.trials, 3),
        "steps_per_trial": result.records[0].steps,
    }


def do_nothing(make: Callable[..., StudySpec], workspace: Path, num_trials: int) -> dict[str, Any]:
    spec = make(name="nothing", sampler="random")
    _, seconds, in_mlflow, ends = timed_study(workspace, spec, num_trials, work=nothing)
    times = [at for at, _ in ends]
    part = min(100, num_trials // 4)
    first, last = times[2 * part] - times[part], times[-1] - times[-1 - part]
    return {
        "num_trials": num_trials,
        "s_per_trial": round(seconds / num_trials, 4),
        "mlflow_s_per_trial": round(in_mlflow / num_trials, 4),
        "s_per_trial_early": round(first / part, 4),
        "s_per_trial_last": round(last / part, 4),
        "growth": round(last / first, 3),
    }


def asha(make: Callable[..., StudySpec], workspace: Path, options: Any) -> dict[str, Any]:
    space = load_space("sd14")
    space = replace(space, defaults={**space.defaults, "max_epochs": 4 * options.epochs})
    found: dict[str, Any] = {}
    target: float | None = None
    for pruner in ("none", "asha"):
        spec = make(name=f"pruner-{pruner}", space=space, sampler="random", pruner=pruner, grace_steps=50)
        result, seconds, _, ends = timed_study(workspace, spec, options.trials)
        scored = [
            (at, value)
            for at, record in ends
            if (value := score(record, spec.criterion, spec.roles)) is not None
        ]
        top = max(value for _, value in scored)
        target = top if target is None else target
        found[pruner] = {
            "wall_s": round(seconds, 1),
            "steps": sum(record.steps or 0 for record in result.records),
            "num_pruned": sum(record.state == "pruned" for record in result.records),
            "best": round(top, 5),
            "s_to_best_of_the_full_run": next(
                (round(at, 1) for at, value in scored if value >= target), None
            ),
        }
    return found


def told(part: str, measured: dict[str, Any]) -> dict[str, Any]:
    """Tell a part when it ends: they are minutes apart, and whoever interrupts the run keeps what was measured."""
    print(f"{part}: {json.dumps(measured)}", file=sys.stderr, flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="a feature store [default: random features]")
    parser.add_argument("--train-generator", default=GENERATORS[0])
    parser.add_argument("--val-generators", default=GENERATORS[1], help="comma-separated")
    parser.add_argument("--layer", default="proj")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--nothing", type=int, default=500, help="trials that do nothing")
    parser.add_argument("--per-class", type=int, default=200, help="images of a generator and class")
    options = parser.parse_args()

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.cloudpickle.register_pickle_by_value(training_step)
    ray.init("local", num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory(prefix="causal-tune-study-") as folder:
        workspace = Path(folder)
        store = options.store
        if store is None:
            store = workspace / "store"
            make_store(store, options.per_class)

        def make(*, name: str, space: SearchSpace | None = None, **changes: Any) -> StudySpec:
            return make_spec(
                workspace=workspace,
                name=name,
                store_path=store,
                space=space or load_space("sd14"),
                train_generators=[options.train_generator],
                val_generators=options.val_generators.split(","),
                max_concurrent=NUM_CPUS,
                layers=[options.layer],
                **changes,
            )

        result = {
            "question": "what a study costs beside its training, against the obvious wiring",
            "num_trials": options.trials,
            **told("textbook", against_textbook(make, workspace, options)),
            "do_nothing": told("do_nothing", do_nothing(make, workspace, options.nothing)),
            "asha": told("asha", asha(make, workspace, options)),
            "processor": platform.processor() or platform.machine(),
            "num_cpus": NUM_CPUS,
            "versions": {name: version(name) for name in ("ray", "optuna", "mlflow", "torch")},
        }
    ray.shutdown()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
