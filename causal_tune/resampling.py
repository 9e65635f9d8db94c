"""How far a measure may be off because the images are a sample: the bootstrap over images.

Images are drawn anew with replacement, real and generated apart, so that their numbers stay (Efron and Tibshirani,
1993). What is compared is measured on the same draws: most of what one draw does to an AP it does to both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from causal_tune.errors import InvalidConfig

__all__ = ["Scored", "average_precision", "counts_above", "draw", "interval_of", "resampled_ap"]

NUM_DRAWS = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """The logits [n] of some images and their labels [n], 0 real and 1 generated."""

    logits: Floats
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, logits: ArrayLike, labels: ArrayLike) -> "Scored":
        """From anything like arrays; `InvalidConfig` where they do not belong together."""
        scores, truth = np.asarray(logits, np.float64), np.asarray(labels).astype(np.int64)
        if scores.ndim != 1 or scores.shape != truth.shape:
            raise InvalidConfig(f"Logits of shape {scores.shape} and labels of shape {truth.shape} differ.")
        return cls(scores, truth)

    @property
    def has_both(self) -> bool:
        """Whether both classes are there; else there is nothing to rank."""
        return bool(self.labels.any() and not self.labels.all())

    @property
    def ap(self) -> float | None:
        """The average precision; None where a class is missing.

        >>> Scored.of([3.0, 2.0, 1.0], [1, 0, 0]).ap
        1.0
        """
        return float(resampled_ap(self, np.ones((1, len(self.labels))))[0]) if self.has_both else None


def draw(labels: NDArray[np.int64], num_draws: int, rng: np.random.Generator) -> Floats:
    """How often each image is in each draw, [num_draws, n]; the number of either class stays.

    >>> counts = draw(np.array([0, 0, 1]), 4, np.random.default_rng(0))
    >>> counts.sum(axis=1).tolist(), counts[:, 2].tolist()
    ([3.0, 3.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0])
    """
    counts = np.zeros((num_draws, len(labels)))
    for value in (0, 1):
        members = np.flatnonzero(labels == value)
        if len(members):
            share = np.full(len(members), 1 / len(members))
            counts[:, members] = rng.multinomial(len(members), share, size=num_draws)
    return counts


def resampled_ap(scored: Scored, counts: Floats) -> Floats:
    """The average precision of each draw, [num_draws]: scikit-learn's, with `counts` [num_draws, n] as weights.

    >>> one = Scored.of([3.0, 2.0, 1.0], [1, 0, 1])
    >>> resampled_ap(one, np.ones((1, 3))).round(4).tolist()
    [0.8333]
    """
    if not scored.has_both:
        raise InvalidConfig("The average precision of images of one class is undefined: both are needed.")
    return average_precision(*counts_above(scored, counts))


def counts_above(scored: Scored, counts: Floats) -> tuple[Floats, Floats]:
    """How many generated and how many real images each draw has at or above each distinct logit, the highest first.

    Both [num_draws, logits], with `counts` [num_draws, n] as weights: what every ranking figure is made of.

    >>> hits, false = counts_above(Scored.of([3.0, 2.0, 2.0], [1, 0, 1]), np.ones((1, 3)))
    >>> hits.tolist(), false.tolist()
    ([[1.0, 2.0]], [[0.0, 1.0]])
    """
    order = np.argsort(-scored.logits, kind="stable")
    scores, positive = scored.logits[order], scored.labels[order] == 1
    # equal scores have one threshold: a step is counted at its last image
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    weights = counts[:, order]
    hits: Floats = np.cumsum(weights * positive, axis=1)[:, last]
    false: Floats = np.cumsum(weights * ~positive, axis=1)[:, last]
    return hits, false


def average_precision(hits: Floats, false: Floats) -> Floats:
    """The average precision of each draw, from its `counts_above`; at most 1, which a sum of steps can exceed by its
    rounding.

    Where each image counts once it is otherwise scikit-learn's `average_precision_score` to the bit, without the second
    that importing that takes every worker of a study.
    """
    precision = np.divide(hits, hits + false, out=np.zeros_like(hits), where=hits + false > 0)
    gained = np.diff(hits / hits[:, -1:], axis=1, prepend=0.0)
    found: Floats = (precision * gained)[:, ::-1].sum(axis=1)  # from the far end, as scikit-learn adds them
    return np.minimum(found, 1.0)


def interval_of(values: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled `values`.

    >>> [round(end, 6) for end in interval_of(np.arange(101.0), level=0.9)]
    [5.0, 95.0]
    """
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def measure_draws(
    sets: Sequence[Sequence[Scored]],
    combine: Callable[[Sequence[float]], float],
    rng: np.random.Generator,
    num_draws: int = NUM_DRAWS,
) -> Floats:
    """A criterion of several trainings on draws of images that they share, [trainings, num_draws].

    `sets[i]` are the scored sets of training i; set j holds the same images for all. `combine` makes one number of
    the APs of the sets.
    """
    columns = []
    for position in range(len(sets[0])):
        counts = draw(sets[0][position].labels, num_draws, rng)
        columns.append([resampled_ap(mine[position], counts) for mine in sets])
    found = np.asarray(columns)  # [sets, trainings, draws]
    combined: Floats = np.apply_along_axis(lambda values: combine(list(values)), 0, found)
    return combined
