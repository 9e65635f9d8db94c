"""What a detector is worth on one set of images, each figure with the interval that a sample of this size leaves."""

from typing import Any

import numpy as np

from causal_tune.calibration import Platt, ece, reliability
from causal_tune.intervals import share_interval
from causal_tune.metrics import score_metrics
from causal_tune.resampling import Floats, Scored, average_precision, counts_above, draw, interval_of

__all__ = ["FPR", "judge"]

FPR = 0.05
"""At which `tpr_at_5_fpr` is read off."""

_NUM_DRAWS = 1000
_AT_ONCE = 4_000_000
"""Numbers in memory at once while images are drawn."""


def judge(
    scored: Scored,
    *,
    calibration: Platt,
    real_below: float,
    generated_from: float,
    threshold: float | None = None,
) -> dict[str, Any]:
    """`metrics.score_metrics`, and beside it, None where a class is missing:

    `auc` (area under the ROC curve), `tpr_at_5_fpr` (share of generated images found where 5 % of these real ones are
    mistaken), `ece` (of the calibrated probabilities), `real_as` and `generated_as`: the share of either class by
    verdict, and `intervals`: 95 % intervals of figures by name, from the bootstrap over images, and Wilson's for
    the shares `false_positives` and `found`.

    >>> judged = judge(Scored.of([2.0, -1.0, 1.0, 0.0], [1, 0, 1, 0]), calibration=Platt(slope=1, offset=0),
    ...                real_below=0.0, generated_from=1.5)
    >>> judged["auc"], judged["generated_as"]
    (1.0, {'real': 0.0, 'unsure': 0.5, 'generated': 0.5})
    """
    labels = scored.labels == 1
    judged: dict[str, Any] = dict(score_metrics(scored.logits, scored.labels, threshold=threshold))
    judged["ece"] = ece(reliability(calibration.probabilities(scored.logits), labels))
    verdicts = np.where(
        scored.logits >= generated_from, "generated", np.where(scored.logits < real_below, "real", "unsure")
    )
    intervals: dict[str, tuple[float, float]] = {}
    for value, name, share in ((False, "real_as", "false_positives"), (True, "generated_as", "found")):
        mine = verdicts[labels == value]
        judged[name] = (
            {word: float((mine == word).mean()) for word in ("real", "unsure", "generated")}
            if len(mine)
            else None
        )
        if len(mine):
            intervals[share] = share_interval(int((mine == "generated").sum()), len(mine))
    judged |= {"auc": None, "tpr_at_5_fpr": None}
    if scored.has_both:
        figures = ("ap", "auc", "tpr_at_5_fpr", "accuracy")
        whole = _figures(scored, np.ones((1, len(labels))))[0]
        judged |= {"auc": float(whole[1]), "tpr_at_5_fpr": float(whole[2])}
        rng = np.random.default_rng(0)
        size = max(1, _AT_ONCE // len(labels))
        drawn = np.concatenate(
            [
                _figures(scored, draw(scored.labels, min(size, _NUM_DRAWS - begin), rng))
                for begin in range(0, _NUM_DRAWS, size)
            ]
        )
        intervals |= {name: interval_of(drawn[:, place]) for place, name in enumerate(figures)}
    judged["intervals"] = {name: list(ends) for name, ends in intervals.items()}
    return judged


def _figures(scored: Scored, counts: Floats) -> Floats:
    """AP, AUC, TPR at 5 % FPR and accuracy of each draw, [draws, 4]; `counts` [draws, n] say how often each image."""
    hits, false = counts_above(scored, counts)
    found, mistaken = hits / hits[:, -1:], false / false[:, -1:]
    step = np.diff(found, axis=1, prepend=0.0)
    width = np.diff(mistaken, axis=1, prepend=0.0)
    auc = np.minimum(
        (width * (found - step / 2)).sum(axis=1), 1.0
    )  # a sum of steps can exceed it by its rounding
    tpr = np.where(mistaken <= FPR + 1e-12, found, 0.0).max(axis=1)
    right = (scored.logits > 0) == (scored.labels == 1)
    return np.stack([average_precision(hits, false), auc, tpr, (counts * right).mean(axis=1)], axis=1)
