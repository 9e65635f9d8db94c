"""What a trial's head withstands: its scores of the judged images in every degraded view of the study's store.

The sweep of the paper's Figure 4: JPEG of falling quality, Gaussian blur of rising sigma (`images.views`).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from causal_tune.features import FeatureStore, partition
from causal_tune.images.views import CLEAN, is_augmented
from causal_tune.ledger import TrialRecord
from causal_tune.resampling import Scored
from causal_tune.study.scores import trial_head
from causal_tune.study.spec import StudySpec

__all__ = ["degraded_scores"]


def degraded_scores(
    study_path: Path, spec: StudySpec, record: TrialRecord
) -> Mapping[str, Mapping[str, Scored]]:
    """By view, `clean` first and each kind from mild to harsh, then by generator: the scored images.

    Only images that every view could be made of are scored, so that what differs between views is the view alone. A
    generator without such images (those of split train have no degraded views) is left out; empty where the store has
    no degraded view.
    """
    store = FeatureStore(spec.store_path)
    views = sorted((view for view in store.views if not is_augmented(view)), key=_by_kind_and_harshness)
    if not views:
        return {}
    head = trial_head(study_path, record)
    parts = partition(
        store.rows,
        train_generators=spec.train_generators,
        val_generators=spec.val_generators,
        test_generators=spec.test_generators,
    )
    numbers, labels = store.rows["row"].to_numpy(), store.rows["label"].to_numpy()
    complete = np.ones(len(numbers), dtype=bool)
    for view in views:
        complete &= np.isin(numbers, store.view_rows(view)["row"].to_numpy())
    judged = {name: rows[complete[rows]] for name, rows in parts.generators.items()}

    def scored(view: str) -> dict[str, Scored]:
        found = {}
        for name, rows in judged.items():
            if len(rows):
                features = torch.from_numpy(store.features(record.config["layer"], rows, view=view))
                with torch.no_grad():
                    found[name] = Scored.of(head.logits(features).numpy(), labels[rows])
        return found

    return {view: scored(view) for view in (CLEAN, *views)}


def _by_kind_and_harshness(view: str) -> tuple[int, float]:
    kind, _, amount = view.partition("-")
    rising = kind == "blur"
    return ("jpeg", "blur", "lr").index(kind), float(amount) if rising else -float(amount)
