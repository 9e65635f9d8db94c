"""How well scores tell generated images from real ones, on one set."""

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from causal_tune.errors import CausalTuneError
from causal_tune.resampling import Scored

__all__ = ["Metrics", "average_precision", "best_threshold", "score_metrics"]


class Metrics(TypedDict):
    """The measures of one set; None where they are not defined because a class is missing."""

    ap: float | None
    """Average precision, generated images being the positives; depends on their share."""
    accuracy: float
    """Share of right verdicts at probability 0.5."""
    accuracy_val_threshold: float | None
    """Share of right verdicts at a threshold that was chosen on other images; None where none was given."""
    accuracy_real: float | None
    accuracy_generated: float | None
    loss: float
    """Mean binary cross-entropy."""
    num_real: int
    num_generated: int


def average_precision(logits: ArrayLike, labels: ArrayLike) -> float | None:
    """Average precision of scores `logits` [N] for `labels` [N] (1 generated); None when a class is missing.

    The precision at each recall step, weighted by the step, not interpolated; equal scores are one step. With one class
    there is nothing to rank; None, and never 0 or 1, keeps such a set out of every mean.

    >>> average_precision([3.0, 2.0, 1.0], [1, 0, 1])
    0.8333333333333333
    >>> average_precision([3.0, 2.0, 1.0], [1, 1, 1]) is None
    True
    """
    return Scored.of(*_checked(logits, labels)).ap


def best_threshold(logits: ArrayLike, labels: ArrayLike) -> float:
    """The threshold on `logits` [N] with the highest balanced accuracy on `labels` [N]; above it is generated.

    It lies halfway between two neighbouring scores; of several the one nearest to 0 (probability 1/2), so that
    scores which separate the classes at 0 keep it. With one class there is nothing to choose: 0.

    >>> best_threshold([2.0, 1.0, 0.5, -1.0], [1, 1, 0, 0])
    0.75
    >>> best_threshold([1.0, -1.0], [1, 0])
    0.0
    """
    scores, truth = _checked(logits, labels)
    if truth.all() or not truth.any():
        return 0.0
    order = np.argsort(scores)
    scores, truth = scores[order], truth[order]
    distinct = np.flatnonzero(np.diff(scores) > 0)
    if not len(distinct):
        return 0.0
    real_below = np.cumsum(~truth)[distinct] / (~truth).sum()
    generated_above = 1 - np.cumsum(truth)[distinct] / truth.sum()
    balanced = real_below + generated_above
    low, high = scores[distinct], scores[distinct + 1]
    # 0 itself where it parts the same scores: a verdict then means what the probability says
    cuts = np.where((low < 0) & (high > 0), 0.0, low / 2 + high / 2)
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best]))]])


def score_metrics(logits: ArrayLike, labels: ArrayLike, *, threshold: float | None = None) -> Metrics:
    """All measures of `logits` [N] (before the sigmoid) for `labels` [N] (0 real, 1 generated).

    `threshold` is a threshold on logits that was chosen elsewhere, `best_threshold` on the validation split.
    An empty set, or a score that is not finite, raises `CausalTuneError`.

    >>> metrics = score_metrics([2.0, -1.0, 1.0], [1, 0, 0])
    >>> metrics["ap"], metrics["accuracy_real"], metrics["num_real"]
    (1.0, 0.5, 2)
    """
    scores, truth = _checked(logits, labels)
    right = (scores > 0) == truth
    # log(1 + exp(-z)) for generated and log(1 + exp(z)) for real images, without overflow
    loss = np.logaddexp(0, np.where(truth, -scores, scores)).mean()
    num_generated = int(truth.sum())
    num_real = len(truth) - num_generated
    return {
        "ap": average_precision(scores, truth),
        "accuracy": float(right.mean()),
        "accuracy_val_threshold": (
            None if threshold is None else float(((scores > threshold) == truth).mean())
        ),
        "accuracy_real": float(right[~truth].mean()) if num_real else None,
        "accuracy_generated": float(right[truth].mean()) if num_generated else None,
        "loss": float(loss),
        "num_real": num_real,
        "num_generated": num_generated,
    }


def _checked(logits: ArrayLike, labels: ArrayLike) -> "tuple[np.ndarray, np.ndarray]":
    scores = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(labels).astype(np.float64)
    if scores.ndim != 1 or scores.shape != truth.shape:
        raise CausalTuneError(
            f"Scores of shape {scores.shape} and labels of shape {truth.shape} do not belong together. "
            "Give one score and one label for each image."
        )
    if not len(scores):
        raise CausalTuneError("There are no scores to measure. Give at least one image.")
    num_bad = int((~np.isfinite(scores)).sum())
    if num_bad:
        raise CausalTuneError(
            f"{num_bad} of {len(scores)} scores are not finite, so they have no order. "
            "Look for non-finite features, or for a head that diverged in training."
        )
    if not np.isin(truth, (0, 1)).all():
        raise CausalTuneError("Labels other than 0 (real) and 1 (generated) were found. Mend the index.")
    return scores, truth > 0.5
