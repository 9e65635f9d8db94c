"""How far a mean over repetitions, or a share of images, may be off: intervals of Student's t and of Wilson."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import norm, t

from causal_tune.errors import InvalidConfig

__all__ = ["Interval", "mean_interval", "paired_difference", "share_interval"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean, and the ends of its interval; those are None for a single value, which has none."""

    mean: float
    low: float | None
    high: float | None
    num: int
    """Values behind it."""

    @property
    def half_width(self) -> float | None:
        """What stands behind the ± sign."""
        return None if self.high is None else self.high - self.mean


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """The mean of `values` and its t interval, which covers the true mean with probability `level`.

    The values are taken as independent draws of one normal distribution: the seeds of one configuration are
    such draws, the generators that it is judged on are not.

    >>> interval = mean_interval([0.70, 0.72, 0.74])
    >>> f"{interval.mean:.2f}, from {interval.low:.4f} to {interval.high:.4f}"
    '0.72, from 0.6703 to 0.7697'
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise InvalidConfig(
            f"{list(values)} has no mean with an interval. Give finite numbers, two or more for an interval."
        )
    if not 0 < level < 1:
        raise InvalidConfig(f"The level of an interval is {level}; it must be above 0 and below 1.")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean=mean, low=None, high=None, num=1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(t.ppf((1 + level) / 2, count - 1)) * math.sqrt(variance / count)
    return Interval(mean=mean, low=mean - half, high=mean + half, num=count)


def paired_difference(values: Sequence[float], baseline: Sequence[float], *, level: float = 0.95) -> Interval:
    """`mean_interval` of `values` minus `baseline`, one by one: what both have in common cancels.

    >>> paired_difference([3.0, 5.0], [2.0, 4.0])
    Interval(mean=1.0, low=1.0, high=1.0, num=2)
    """
    if len(values) != len(baseline):
        raise InvalidConfig(
            f"{len(values)} values and {len(baseline)} of a baseline make no pairs. Give as many of each."
        )
    return mean_interval([value - other for value, other in zip(values, baseline, strict=True)], level=level)


def share_interval(count: int, num: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of a share, `count` of `num`: it is sound for few images and for shares of 0 and 1.

    >>> [round(end, 3) for end in share_interval(0, 20)]
    [0.0, 0.161]
    """
    if not 0 <= count <= num or num < 1:
        raise InvalidConfig(f"{count} of {num} is no share. Give a count from 0 to a number above 0.")
    z = float(norm.ppf((1 + level) / 2))
    share, spread = count / num, z * z / num
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / num + spread / (4 * num)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
