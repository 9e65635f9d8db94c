"""One trial inside a Ray worker: train, keep the head, report the record."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from ray import tune
from safetensors.torch import save_file

from causal_tune.atomic import atomic_path
from causal_tune.errors import TrialFailed
from causal_tune.features import StudyData, load_study_data
from causal_tune.ledger import FAILED, FINISHED, TrialRecord, non_finite, trial_id
from causal_tune.study.spec import StudySpec, library_versions
from causal_tune.training import TrialResult, train
from causal_tune.trial import TrialConfig

__all__ = ["TrialWorker", "Work", "failed_record", "run_trial", "train_on_store"]

Work = Callable[[StudySpec, TrialConfig], TrialResult]
"""What a trial does; `train_on_store` unless a caller brings another (a benchmark, a test)."""


@lru_cache(maxsize=2)  # a space may search over layers; each is gathered into memory of its own
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


def train_on_store(spec: StudySpec, config: TrialConfig) -> TrialResult:
    """Train on the study's store, which a worker opens once however many trials it runs."""
    data = _study_data(
        spec.store_path,
        spec.train_generators,
        spec.val_generators,
        spec.test_generators,
        config.layer,
        config.views,
        spec.degraded_views,
    )
    return train(config, data)


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


def run_trial(
    spec: StudySpec, number: int, config: Mapping[str, Any], checkpoints_path: Path, work: Work
) -> TrialRecord:
    """One trial, from its configuration to its record; whatever goes wrong becomes a failed record.

    The head's state is on the disk before this returns, so a record never names a missing file.
    """
    started = time.time()
    try:
        result = work(spec, TrialConfig.from_dict(config))
        record = _finished_record(number, config, result, checkpoints_path, started)
    except TrialFailed as error:
        return failed_record(number, config, str(error))
    except Exception as error:  # noqa: BLE001  the study goes on; the reason is in the ledger
        return failed_record(number, config, f"{type(error).__name__}: {error}")
    if where := non_finite(record.to_json()):
        return failed_record(number, config, f"{where} of its result is not a finite number")
    return record


def _finished_record(
    number: int, config: Mapping[str, Any], result: TrialResult, checkpoints_path: Path, started: float
) -> TrialRecord:
    name = trial_id(number, config)
    checkpoint_path = checkpoints_path / f"{name}.safetensors"
    state = {key: value.detach().cpu().contiguous() for key, value in result.head_state.items()}
    with atomic_path(checkpoint_path) as temporary:
        save_file(state, str(temporary))
    return TrialRecord(
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
        mask=dict(result.mask) if result.mask is not None else None,
        collapsed=result.collapsed,
        stopped_by=result.stopped_by,
        steps=result.num_steps,
        timings={**result.timings, "trial_s": time.time() - started},
        versions=library_versions(),
        head_config=dict(result.head_config),
        checkpoint=checkpoint_path.name,
        checkpoint_sha256=hashlib.sha256(checkpoint_path.read_bytes()).hexdigest(),
        ended_at=time.time(),
    )


class TrialWorker(tune.Trainable):  # type: ignore[misc]  # ray ships no types
    """Ray Tune's trainable: one step is one whole trial, and the process is reused for the next."""

    def setup(
        self,
        config: dict[str, Any],
        spec: StudySpec | None = None,
        checkpoints_path: str = "",
        work: Work = train_on_store,
    ) -> None:
        """Called once a process."""
        assert spec is not None
        self._spec, self._checkpoints_path, self._work = spec, Path(checkpoints_path), work
        # Ray sets OMP_NUM_THREADS too late for a torch that is imported already
        torch.set_num_threads(1)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Nothing of the last trial is kept, so any configuration can follow."""
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial."""
        record = run_trial(
            self._spec, self.config["number"], self.config["config"], self._checkpoints_path, self._work
        )
        # as text: Ray Tune flattens nested results, and a generator's name may hold its separator
        return {"done": True, "record": json.dumps(record.to_json())}
