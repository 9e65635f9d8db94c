"""One trial inside a Ray worker: train, and report the record with the head's bytes."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from ray import tune
from safetensors.torch import save

from causal_tune.errors import DiskError, StoreError, TrialFailed, TrialPruned
from causal_tune.features import StudyData, load_study_data
from causal_tune.ledger import DUPLICATE, FAILED, FINISHED, PRUNED, TrialRecord, non_finite, trial_id
from causal_tune.selection import CRITERIA, epoch_score
from causal_tune.study.node_store import local_store
from causal_tune.study.pruning import hopeless
from causal_tune.study.spec import StudySpec, library_versions
from causal_tune.training import Stop, TrialResult, train
from causal_tune.trial import TrialConfig

__all__ = ["TrialWorker", "Work", "duplicate_record", "failed_record", "run_trial", "train_on_store"]

Work = Callable[..., TrialResult]
"""What a trial does, from a `StudySpec` and a `TrialConfig`; `train_on_store` unless a caller brings another (a
benchmark, a test). Where the study prunes it is given `stop` as well."""


@lru_cache(maxsize=12)  # a space may search over layers; what is large is a memory map that workers share
def _study_data(
    store_path: str, train: Any, val: Any, test: Any, layer: str, views: int, degraded: Any
) -> StudyData:
    return load_study_data(
        store_path,
        train_generators=train,
        val_generators=val,
        test_generators=test,
        layer=layer,
        views=views,
        degraded_views=degraded,
    )


def train_on_store(spec: StudySpec, config: TrialConfig, *, stop: Stop | None = None) -> TrialResult:
    """Train on the study's store, which a worker opens once however many trials it runs."""

    def data(seen: tuple[str, ...], test: tuple[str, ...], degraded: tuple[str, ...] = ()) -> StudyData:
        return _study_data(
            spec.store_path, seen, spec.val_generators, test, config.layer, config.views, degraded
        )

    device = "cuda" if spec.gpus_per_trial and torch.cuda.is_available() else "cpu"
    judged = data(spec.train_generators, spec.test_generators, spec.degraded_views)
    result = train(config, judged, device=device, stop=stop)
    if not CRITERIA[spec.criterion].trains_without:
        return result
    left_out = {}
    for name in spec.train_generators:
        others = tuple(other for other in spec.train_generators if other != name)
        left_out[name] = train(config, data(others, (name,)), device=device).generators[name]
    return replace(result, left_out=left_out)


def failed_record(number: int, config: Mapping[str, Any], reason: str) -> TrialRecord:
    """The record of a trial that ended without a result."""
    return TrialRecord(
        number=number,
        id=trial_id(number, config),
        state=FAILED,
        reason=reason,
        config=dict(config),
        seed=config["seed"],
        versions=library_versions(),
        ended_at=time.time(),
    )


def duplicate_record(number: int, config: Mapping[str, Any], earlier: int) -> TrialRecord:
    """The record of a trial that was not run, because an earlier one had its configuration."""
    reason = f"its configuration is that of trial {earlier}"
    return replace(failed_record(number, config, reason), state=DUPLICATE)


def run_trial(
    spec: StudySpec,
    number: int,
    config: Mapping[str, Any],
    work: Work,
    limits: Mapping[int, float] | None = None,
) -> tuple[TrialRecord, bytes | None]:
    """One trial, from its configuration to its record and the bytes of its checkpoint (safetensors).

    Whatever goes wrong becomes a failed record, except that the store is gone (`StoreError`) or a disk is full
    (`DiskError`), which is no fault of the configuration. `limits` are those of the pruner (`pruning.cutoffs`).
    """
    started = time.time()
    options: dict[str, Any] = {}
    if limits:

        def tells(epoch: Mapping[str, Any]) -> float | None:
            return epoch_score(epoch, spec.criterion, spec.roles)

        options["stop"] = lambda epochs: hopeless(epochs, limits, tells)
    try:
        result = work(spec, TrialConfig.from_dict(config), **options)
        record, checkpoint = _finished_record(number, config, result, started)
    except (StoreError, DiskError):
        raise
    except TrialPruned as error:
        pruned = replace(
            failed_record(number, config, str(error)),
            state=PRUNED,
            epochs=[dict(epoch) for epoch in error.epochs],
            steps=error.epochs[-1]["steps"],
            timings={"trial_s": time.time() - started},
        )
        return pruned, None
    except TrialFailed as error:
        return failed_record(number, config, str(error)), None
    except Exception as error:  # noqa: BLE001  the study goes on; the reason is in the ledger
        return failed_record(number, config, f"{type(error).__name__}: {error}"), None
    if where := non_finite(record.to_json()):
        return failed_record(number, config, f"{where} of its result is not a finite number"), None
    return record, checkpoint


def _finished_record(
    number: int, config: Mapping[str, Any], result: TrialResult, started: float
) -> tuple[TrialRecord, bytes]:
    name = trial_id(number, config)
    checkpoint = save({key: value.detach().cpu().contiguous() for key, value in result.head_state.items()})
    record = TrialRecord(
        number=number,
        id=name,
        state=FINISHED,
        config=dict(config),
        seed=config["seed"],
        epochs=[dict(epoch) for epoch in result.epochs],
        best_epoch=result.best_epoch,
        validation=dict(result.validation),
        threshold=result.threshold,
        generators={generator: dict(metrics) for generator, metrics in result.generators.items()},
        perturbed={view: dict(metrics) for view, metrics in result.perturbed.items()},
        left_out={name: dict(metrics) for name, metrics in result.left_out.items()},
        mask=dict(result.mask) if result.mask is not None else None,
        collapsed=result.collapsed,
        stopped_by=result.stopped_by,
        steps=result.num_steps,
        timings={**result.timings, "trial_s": time.time() - started},
        versions=library_versions(),
        head_config=dict(result.head_config),
        checkpoint=f"{name}.safetensors",
        checkpoint_sha256=hashlib.sha256(checkpoint).hexdigest(),
        ended_at=time.time(),
    )
    return record, checkpoint


class TrialWorker(tune.Trainable):  # type: ignore[misc]  # ray ships no types
    """Ray Tune's trainable: one step is one whole trial, and the process is reused for the next."""

    def setup(
        self,
        config: dict[str, Any],
        spec: StudySpec | None = None,
        store_files: Any | None = None,
        work: Work = train_on_store,
    ) -> None:
        """Called once a process."""
        assert spec is not None
        self._spec, self._store_files, self._work = spec, store_files, work
        # Ray sets OMP_NUM_THREADS too late for a torch that is imported already
        torch.set_num_threads(spec.threads_per_trial)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Nothing of the last trial is kept, so any configuration can follow."""
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial. The head travels with the record: the driver alone writes to the workspace."""
        try:
            here = local_store(self._spec.store_path, self._spec.store_fingerprint, self._store_files)
            spec = replace(self._spec, store_path=str(here))
            record, checkpoint = run_trial(
                spec, self.config["number"], self.config["config"], self._work, self.config["limits"]
            )
        except (StoreError, DiskError) as error:
            return {"done": True, "broken": str(error)}
        # as text: Ray Tune flattens nested results, and a generator's name may hold its separator; as an array: Ray
        # Tune spells out every result for a log that nobody reads, and the bytes of a head take it 50 ms
        return {
            "done": True,
            "record": json.dumps(record.to_json()),
            "checkpoint": None if checkpoint is None else np.frombuffer(checkpoint, np.uint8),
        }
