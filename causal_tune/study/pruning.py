"""Which trials are stopped early, as a pure function of the trials before them.

Successive halving (ASHA, Li et al., arXiv 1810.05934) compares a trial at rungs, 1, eta, eta^2, ... times a grace
period of gradient steps, with what other trials had there, and stops it where it is not among the best 1 / eta.
Which others have come that far depends on the clock, so the same study would prune other trials each time.
Here the cut-offs of trial `number` come from the trials up to `number - window`, those that its suggestion was made
from: they are known when the trial starts, a worker needs nobody to decide, and a continued study prunes as an
undisturbed one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from causal_tune.ledger import TrialRecord

__all__ = ["PRUNER", "PRUNERS", "Pruner", "cutoffs", "hopeless", "rung_scores"]

PRUNER = "none"
GRACE_STEPS = 100
REDUCTION = 3
_MOST_RUNGS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruner:
    """One row of `PRUNERS`."""

    summary: str
    num_brackets: int
    """Trials are dealt to brackets in turn; bracket s has its first rung at eta^s times the grace period."""


PRUNERS: Mapping[str, Pruner] = MappingProxyType(
    {
        "none": Pruner(summary="every trial runs to its end", num_brackets=0),
        "asha": Pruner(summary="successive halving in one bracket", num_brackets=1),
        "hyperband": Pruner(
            summary="successive halving in three brackets, of which two grant longer grace periods",
            num_brackets=3,
        ),
    }
)
"""What stops trials early, by name."""

EpochScore = Callable[[Mapping[str, Any]], float | None]


def rung_scores(
    epochs: Sequence[Mapping[str, Any]], rungs: Sequence[int], score: EpochScore, *, ended: bool
) -> dict[int, float]:
    """By rung, the score of the epoch that was the kept one when the rung was reached.

    A trial that `ended` by itself has its last score at the rungs beyond.

    >>> epochs = [{"steps": 50, "kept": 1, "ap": 0.6}, {"steps": 100, "kept": 2, "ap": 0.8}]
    >>> rung_scores(epochs, [50, 300], lambda epoch: epoch["ap"], ended=True)
    {50: 0.6, 300: 0.8}
    """
    scores: dict[int, float] = {}
    for rung in rungs:
        reached = next((epoch for epoch in epochs if epoch["steps"] >= rung), None)
        if reached is None and not ended:
            break
        at = reached or epochs[-1]
        value = score(epochs[at["kept"] - 1])
        if value is not None:
            scores[rung] = value
    return scores


def cutoffs(
    number: int,
    settled: Mapping[int, TrialRecord],
    score: EpochScore,
    *,
    pruner: str,
    grace_steps: int = GRACE_STEPS,
    reduction: int = REDUCTION,
) -> dict[int, float]:
    """By rung, the score below which trial `number` is stopped.

    It is the lowest score among the best 1 / `reduction` of the `settled` trials of the same bracket that came
    to the rung, and there is none where these are fewer than `reduction`.
    """
    num_brackets = PRUNERS[pruner].num_brackets
    if not num_brackets:
        return {}
    bracket = number % num_brackets
    rungs = [grace_steps * reduction ** (bracket + k) for k in range(_MOST_RUNGS)]
    others = [
        record
        for other, record in settled.items()
        if other % num_brackets == bracket and record.epochs and "kept" in record.epochs[-1]
    ]
    farthest = max((record.steps for record in others), default=0)
    rungs = [rung for rung in rungs if rung <= farthest]
    columns: dict[int, list[float]] = {rung: [] for rung in rungs}
    for record in others:
        for rung, value in rung_scores(record.epochs, rungs, score, ended=record.finished).items():
            columns[rung].append(value)
    return {
        rung: sorted(values, reverse=True)[len(values) // reduction - 1]
        for rung, values in columns.items()
        if len(values) >= reduction
    }


def hopeless(
    epochs: Sequence[Mapping[str, Any]], limits: Mapping[int, float], score: EpochScore
) -> str | None:
    """Why a trial with these epochs is to be stopped at the last of them; None: it goes on."""
    before = epochs[-2]["steps"] if len(epochs) > 1 else 0
    for rung, limit in limits.items():
        if before < rung <= epochs[-1]["steps"]:
            value = score(epochs[epochs[-1]["kept"] - 1])
            if value is not None and value < limit:
                return (
                    f"its {value:.4f} at step {rung} is below {limit:.4f}, the least of the best among the "
                    "trials before it"
                )
    return None
