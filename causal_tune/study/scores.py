"""What a trial's head says of the images that it was judged on: from its checkpoint and the study's store."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_safetensors

from causal_tune.errors import StudyError
from causal_tune.features import StudyData, load_study_data
from causal_tune.heads import Scorer, load_head
from causal_tune.ledger import TrialRecord
from causal_tune.resampling import Scored
from causal_tune.study.spec import StudySpec

__all__ = ["VALIDATION", "checkpoint_bytes", "fitted_on", "judged_sets", "trial_head", "trial_scores"]

VALIDATION = "validation split"
"""Name of the validation split of the training generators among the sets of a trial."""


def checkpoint_bytes(study_path: Path, record: TrialRecord) -> bytes:
    """The checkpoint of a finished trial, checked by its hash; `StudyError` where it is gone or another file."""
    path = study_path / "checkpoints" / str(record.checkpoint)
    again = (
        f"Delete {study_path / 'trials' / (record.id + '.json')} and run the same `causal-tune tune`: the trial is "
        "run again."
    )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StudyError(f"The checkpoint of trial {record.id} cannot be read: {error}. {again}") from error
    if hashlib.sha256(data).hexdigest() != record.checkpoint_sha256:
        raise StudyError(f"{path} is not the file that trial {record.id} wrote (its sha256 differs). {again}")
    return data


def trial_head(study_path: Path, record: TrialRecord) -> Scorer:
    """The head that a finished trial trained."""
    return load_head(record.head_config, load_safetensors(checkpoint_bytes(study_path, record)))


@lru_cache(maxsize=4)
def _data(spec_key: tuple[object, ...], layer: str) -> StudyData:
    store_path, train, val, test, degraded = spec_key
    return load_study_data(
        str(store_path),
        train_generators=train,  # type: ignore[arg-type]
        val_generators=val,  # type: ignore[arg-type]
        test_generators=test,  # type: ignore[arg-type]
        layer=layer,
        degraded_views=degraded,  # type: ignore[arg-type]
    )


def judged_sets(spec: StudySpec, layer: str) -> StudyData:
    """The sets that the study's trials on this layer are judged on."""
    key = (
        spec.store_path,
        spec.train_generators,
        spec.val_generators,
        spec.test_generators,
        spec.degraded_views,
    )
    return _data(key, layer)


def trial_scores(study_path: Path, spec: StudySpec, record: TrialRecord) -> Mapping[str, Scored]:
    """By set, the scored images of a finished trial: `VALIDATION`, each generator, and each degraded view of the
    validation split as `view/<name>`."""
    head = trial_head(study_path, record)
    data = judged_sets(spec, record.config["layer"])
    sets = {VALIDATION: data.validation, **data.generators}
    sets.update({f"view/{view}": one for view, one in data.perturbed.items()})
    with torch.no_grad():
        return {
            name: Scored.of(head.logits(one.features).numpy(), one.labels.numpy())
            for name, one in sets.items()
        }


def fitted_on(spec: StudySpec, scored: Mapping[str, Scored]) -> Scored:
    """The images that calibration is fitted on: the validation split and the validation generators."""
    names = [VALIDATION, *(name for name in spec.val_generators if name in scored)]
    return Scored.of(
        np.concatenate([scored[name].logits for name in names]),
        np.concatenate([scored[name].labels for name in names]),
    )
