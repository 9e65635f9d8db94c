"""What a trial's mask does to the features of the images that judge it: E, Zc and Znc of Eq. (4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from causal_tune.causal.head import CausalHead
from causal_tune.causal.mask import split
from causal_tune.features import FeatureStore, partition
from causal_tune.heads import Scorer
from causal_tune.heads.normaliser import NormalisedHead
from causal_tune.ledger import TrialRecord
from causal_tune.study.scores import VALIDATION, trial_head
from causal_tune.study.spec import StudySpec

__all__ = ["Parts", "balanced_sample", "feature_parts"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Some images [n] with their features as the head sees them, and with its mask."""

    generators: NDArray[np.str_]
    """The set of each image; real images have that of the generated ones which they are paired with."""
    labels: NDArray[np.int64]
    """0 real, 1 generated; of each set as many of either."""
    features: Floats
    """E [n, d], normalised where the head normalises."""
    mask: Floats | None
    """M [n, d], the mask of evaluation; None for a head without one."""

    @property
    def sets(self) -> list[str]:
        """The names among `generators`, in their order."""
        return list(dict.fromkeys(self.generators.tolist()))

    @property
    def by_name(self) -> Mapping[str, Floats]:
        """`E`, and where there is a mask `Zc` = M * E and `Znc` = (1 - M) * E."""
        if self.mask is None:
            return {"E": self.features}
        zc, znc = split(torch.from_numpy(self.features), torch.from_numpy(self.mask))
        return {"E": self.features, "Zc": zc.numpy(), "Znc": znc.numpy()}


def feature_parts(study_path: Path, spec: StudySpec, record: TrialRecord, *, most: int) -> Parts | None:
    """Images of the test generators, at most `most`, in the parts that a finished trial's head makes of them.

    Without test generators with both classes those of the validation generators, else of the validation split; they
    chose. None where a class has fewer than two images in every set. `StudyError` where the checkpoint is gone,
    `StoreError` where the features are.
    """
    store = FeatureStore(spec.store_path)
    parts = partition(
        store.rows,
        train_generators=spec.train_generators,
        val_generators=spec.val_generators,
        test_generators=spec.test_generators,
    )
    chosen: Mapping[str, NDArray[np.int64]] = {}
    for names in (spec.test_generators, spec.val_generators, (VALIDATION,)):
        sets = {name: parts.validation if name == VALIDATION else parts.generators[name] for name in names}
        if chosen := balanced_sample(store.rows, sets, most=most, seed=spec.seed):
            break
    else:
        return None
    rows = np.concatenate(list(chosen.values()))
    features = torch.from_numpy(store.features(record.config["layer"], rows))
    with torch.no_grad():
        seen, mask = _seen_and_mask(trial_head(study_path, record), features)
    return Parts(
        generators=np.repeat(list(chosen), [len(mine) for mine in chosen.values()]),
        labels=store.rows["label"].to_numpy()[rows].astype(np.int64),
        features=seen.numpy(),
        mask=None if mask is None else mask.numpy(),
    )


def balanced_sample(
    rows: pa.Table, sets: Mapping[str, NDArray[np.int64]], *, most: int, seed: int
) -> dict[str, NDArray[np.int64]]:
    """At most `most` of `rows` in all, of every set as many real images as generated ones, drawn by `seed`.

    No picture is drawn twice, whatever number of sets list it. Sets with fewer than two of a class are left out.
    """
    labels, contents = rows["label"].to_numpy(), rows["sha256"].to_numpy()
    rng = np.random.default_rng(seed)
    quota = most // (2 * max(1, len(sets)))
    drawn: set[str] = set()
    found = {}
    for name, members in sets.items():
        _, first = np.unique(contents[members], return_index=True)
        fresh = [row for row in members[np.sort(first)] if contents[row] not in drawn]
        classes = [np.array([row for row in fresh if labels[row] == value], np.int64) for value in (0, 1)]
        num = min(quota, *map(len, classes))
        if num >= 2:
            chosen = [np.sort(rng.choice(mine, num, replace=False)) for mine in classes]
            found[name] = np.concatenate(chosen)
            drawn.update(contents[found[name]])
    return found


def _seen_and_mask(head: Scorer, features: Tensor) -> tuple[Tensor, Tensor | None]:
    if isinstance(head, NormalisedHead):
        return _seen_and_mask(head.head, head.normaliser(features))
    if isinstance(head, CausalHead) and head.mask_network is not None:
        return features, head.mask(features)
    return features, None
