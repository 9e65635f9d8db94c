"""From a head's scores to probabilities and verdicts, by images that neither trained the head nor judge it.

**Probabilities** are Platt's: sigmoid(slope * logit + offset), fitted by cross-entropy to the smoothed targets
of Platt, "Probabilistic outputs for support vector machines" (1999). A temperature (Guo et al., ICML 2017, arXiv
1706.04599) is the slope alone. The offset is needed here because the margins of `svm` and the distances of
`nearest` are no log odds; the smoothed targets because a validation split of the training generator is often
separated without a mistake, where the best temperature is 0 and every probability would be 0 or 1.

**Verdicts** follow Sadinle, Lei and Wasserman, "Least ambiguous set-valued classifiers with bounded error levels"
(JASA 2019, arXiv 1609.00451): one cut keeps the share of real images above it at the wished rate, another the share
of generated images below it. Above both an image is generated, below both real, and between them unsure: there
either both classes are common, or neither is. The cuts are the conformal quantiles, whose rate is meant for new
images of the same kind, not for the images that it was read off.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit

from causal_tune.errors import InvalidConfig

__all__ = [
    "IDENTITY",
    "Cuts",
    "Platt",
    "choose_cuts",
    "cross_fitted",
    "ece",
    "fit_platt",
    "images_needed",
    "reliability",
]

NUM_BINS = 15
"""Of equal width, as in Guo et al."""
_NUM_FOLDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Platt:
    """Logits to calibrated probabilities of *generated*; never decreasing."""

    slope: float
    """>= 0; 0 where the scores did not rank the images that it was fitted on."""
    offset: float

    def probabilities(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Of logits of any shape.

        >>> IDENTITY.probabilities([0.0]).tolist()
        [0.5]
        """
        values: NDArray[np.float64] = expit(self.slope * np.asarray(logits, np.float64) + self.offset)
        return values


IDENTITY = Platt(slope=1.0, offset=0.0)


def fit_platt(logits: ArrayLike, labels: ArrayLike) -> Platt:
    """Slope and offset for `logits` [N] of images with `labels` [N] (1 generated); both classes are needed.

    The probabilities hold for the share of generated images that `labels` has.

    >>> fitted = fit_platt([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
    >>> round(fitted.probabilities(0.0).item(), 6)
    0.5
    """
    scores, truth = _both_classes(logits, labels)
    num_generated = int(truth.sum())
    num_real = len(truth) - num_generated
    targets = np.where(truth, (num_generated + 1) / (num_generated + 2), 1 / (num_real + 2))
    # the distances of `nearest` lie within 0.01 of each other: without a common scale the search would stop early
    centre, scale = float(scores.mean()), float(scores.std())
    standard = (scores - centre) / scale if scale > 0 else np.zeros_like(scores)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = parameters[0] * standard + parameters[1]
        errors = expit(z) - targets
        value = float((np.logaddexp(0, z) - targets * z).mean())
        return value, np.array([(errors * standard).mean(), errors.mean()])

    start = np.array([1.0, math.log((num_generated + 1) / (num_real + 1))])
    slope, offset = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x.tolist()
    if scale == 0 or slope <= 0:  # no order to keep: every image gets the share of generated ones
        return Platt(slope=0.0, offset=math.log(targets.mean() / (1 - targets.mean())))
    return Platt(slope=slope / scale, offset=offset - slope * centre / scale)


def cross_fitted(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Calibrated probabilities [N], each by a `fit_platt` of the four fifths that its image is not in.

    Judged on the images that it was fitted on, every calibration looks better than it is.
    """
    scores, truth = _both_classes(logits, labels)
    folds = np.empty(len(truth), np.int64)
    for members in (np.flatnonzero(truth), np.flatnonzero(~truth)):
        folds[members] = np.arange(len(members)) % _NUM_FOLDS
    probabilities = np.empty(len(truth))
    for fold in range(_NUM_FOLDS):
        inside, outside = folds == fold, folds != fold
        if not inside.any():
            continue
        one_class = truth[outside].all() or not truth[outside].any()  # a class of a single image
        fitted = fit_platt(scores, truth) if one_class else fit_platt(scores[outside], truth[outside])
        probabilities[inside] = fitted.probabilities(scores[inside])
    return probabilities


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = NUM_BINS) -> list[dict[str, float]]:
    """Bins of equal width that hold images: `num`, mean `probability`, and `generated`, the share that is.

    >>> reliability([0.1, 0.1, 0.9], [0, 1, 1], bins=2)
    [{'num': 2, 'probability': 0.1, 'generated': 0.5}, {'num': 1, 'probability': 0.9, 'generated': 1.0}]
    """
    values = np.asarray(probabilities, np.float64)
    truth = np.asarray(labels, np.float64)
    places = np.minimum((values * bins).astype(np.int64), bins - 1)
    return [
        {
            "num": int((places == place).sum()),
            "probability": float(values[places == place].mean()),
            "generated": float(truth[places == place].mean()),
        }
        for place in np.unique(places)
    ]


def ece(bins: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error of `reliability`: how far probability and share lie apart, in the mean.

    >>> ece([{"num": 2, "probability": 0.1, "generated": 0.5}, {"num": 2, "probability": 0.9, "generated": 1.0}])
    0.25
    """
    num = sum(one["num"] for one in bins)
    return min(1.0, math.fsum(one["num"] * abs(one["probability"] - one["generated"]) for one in bins) / num)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuts:
    """On logits: where the verdicts change."""

    generated_from: float
    """At most the wished share of real images reaches it."""
    real_below: float
    """At most the wished share of generated images lies below it."""
    wished: float
    """The rate that was asked for."""
    bound_real: float
    """What `num_real` images can promise of `generated_from`: the wished rate, or more where they are too few."""
    bound_generated: float
    """The same of `real_below`."""
    num_real: int
    num_generated: int

    @property
    def unsure(self) -> tuple[float, float]:
        """Ends of the band: from the upper one on generated, below the lower one real."""
        return min(self.real_below, self.generated_from), max(self.real_below, self.generated_from)


def choose_cuts(logits: ArrayLike, labels: ArrayLike, rate: float) -> Cuts:
    """The cuts at which at most `rate` of either class gets the other's verdict, in (0, 0.5).

    The logits are taken as float32, as heads give them. A rate below 1 / (n + 1) cannot be promised by n images
    of a class: the cut is then beyond the last of them, and the bound is 1 / (n + 1).

    >>> cuts = choose_cuts([0.0, 1.0, 2.0, 3.0, 2.0, 4.0, 5.0, 6.0], [0, 0, 0, 0, 1, 1, 1, 1], rate=0.4)
    >>> f"{cuts.generated_from:.3f} {cuts.real_below:.3f} {cuts.bound_real:.1f}"
    '2.000 4.000 0.4'
    """
    if not 0 < rate < 0.5:
        raise InvalidConfig(
            f"The wished rate of false verdicts is {rate:g}; it must be above 0 and below 0.5."
        )
    scores, truth = _both_classes(logits, labels)
    highest, bound_real = _quantile(scores[~truth], rate)
    lowest, bound_generated = _quantile(-scores[truth], rate)
    return Cuts(
        generated_from=float(np.nextafter(np.float32(highest), np.float32(np.inf))),
        real_below=float(np.float32(-lowest)),
        wished=rate,
        bound_real=bound_real,
        bound_generated=bound_generated,
        num_real=int((~truth).sum()),
        num_generated=int(truth.sum()),
    )


def images_needed(rate: float) -> int:
    """The fewest images of a class that can promise a rate of false verdicts (`choose_cuts`).

    >>> images_needed(0.05), images_needed(0.01)
    (19, 99)
    """
    return math.ceil(1 / rate - 1e-9) - 1


def _quantile(scores: NDArray[np.float64], rate: float) -> tuple[float, float]:
    """The conformal quantile: with exchangeable images a new one is above it at most at this rate; and that rate."""
    num = len(scores)
    rank = min(math.ceil((num + 1) * (1 - rate) - 1e-9), num)
    return float(np.sort(scores)[rank - 1]), max(rate, 1 / (num + 1))


def _both_classes(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores = np.asarray(logits, np.float64)
    truth: NDArray[np.bool_] = np.asarray(labels, np.float64) > 0.5
    if scores.shape != truth.shape or truth.all() or not truth.any() or not np.isfinite(scores).all():
        raise InvalidConfig(
            f"{len(scores)} scores and {len(truth)} labels, {int(truth.sum())} of them generated, cannot be "
            "calibrated: one finite score a label and both classes are needed."
        )
    return scores, truth
