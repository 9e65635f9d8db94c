"""Which hyperparameters mattered for a criterion: PED-ANOVA, with what chance alone would give.

PED-ANOVA (Watanabe, Bansal and Hutter, arXiv 2304.10255) asks of every hyperparameter how differently the best
trials lie from all trials along it: the Pearson divergence of the two densities. Optuna estimates it, conditional
hyperparameters included (arXiv 2601.20800). One estimate from a hundred trials is noise in good part, so it comes
with an interval over resampled trials, and with a test: the same estimate after the scores were dealt out to the
trials anew at random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from causal_tune.ledger import TrialRecord
from causal_tune.resampling import interval_of
from causal_tune.selection import plain, score
from causal_tune.study.spec import StudySpec
from causal_tune.study.suggestion import calm

__all__ = ["MIN_TRIALS", "Importance", "importance"]

MIN_TRIALS = 20
"""Trials with a score below which nothing is said: a quarter of them has to be five at least."""

_MIN_DRAWS = 200
_DRAWS_EACH = 25  # the least p is one in as many for each: below 5 % when it is shared among them


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """How much one hyperparameter tells the best trials from all of them."""

    name: str
    share: float
    """Of the sum over all hyperparameters, 0 to 1."""
    low: float
    high: float
    """95 % interval of `share` over resamples of the trials."""
    p: float
    """How often dealing the scores out at random gives at least this divergence."""
    num_trials: int
    """Trials in which it was searched."""


def importance(
    records: Sequence[TrialRecord], spec: StudySpec, *, num_draws: int | None = None
) -> list[Importance]:
    """The searched hyperparameters, the most important first; empty below `MIN_TRIALS` trials with a score.

    `num_draws` resamples and as many deals; as many by default as a p needs that is shared among the hyperparameters.
    The best trials are the best tenth by the study's criterion, or as many more as make five. The draws follow the
    study's seed: the same records give the same figures.
    """
    space, criterion = spec.search_space(), plain(spec.criterion)
    scored = [
        (record, value)
        for record in records
        if record.finished and (value := score(record, criterion, spec.roles)) is not None
    ]
    if len(scored) < MIN_TRIALS:
        return []
    values = np.array([value for _, value in scored])
    trials = []
    for record, value in scored:
        distributions = space.axes(record.config)
        parameters = {key: record.config[key] for key in distributions}
        trials.append(create_trial(params=parameters, distributions=distributions, value=value))
    names = sorted({key for trial in trials for key in trial.params})
    num_draws = num_draws or max(_MIN_DRAWS, _DRAWS_EACH * len(names))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(values)))

    def study_of(places: np.ndarray) -> optuna.Study:
        with calm():
            study = optuna.create_study(direction="maximize")
            study.add_trials([trials[place] for place in places])  # copies them: most of the time goes there
            return study

    def divergences(study: optuna.Study, dealt: np.ndarray) -> np.ndarray:
        with calm():
            found = get_param_importances(
                study,
                evaluator=evaluator,
                target=lambda trial: -float(dealt[trial.number]),  # a target is taken for a loss
                normalize=False,
            )
        # a hyperparameter that no drawn trial has is not among them
        return np.array([found.get(name, 0.0) for name in names])

    everything = np.arange(len(values))
    rng = np.random.default_rng(spec.seed)
    undrawn = study_of(everything)
    whole = divergences(undrawn, values)
    resampled, shuffled = [], []
    for _ in range(num_draws):
        places = rng.choice(everything, len(everything))
        resampled.append(_shares(divergences(study_of(places), values[places])))
        shuffled.append(divergences(undrawn, rng.permutation(values)))
    reached = (np.array(shuffled) >= whole).sum(axis=0)
    found = []
    for place, (name, share) in enumerate(zip(names, _shares(whole), strict=True)):
        low, high = interval_of(np.array(resampled)[:, place])
        found.append(
            Importance(
                name=name,
                share=float(share),
                low=min(low, float(share)),
                high=max(high, float(share)),
                p=float(reached[place] + 1) / (num_draws + 1),
                num_trials=sum(name in trial.params for trial in trials),
            )
        )
    return sorted(found, key=lambda one: (-one.share, one.name))


def _shares(divergences: np.ndarray) -> np.ndarray:
    total = math.fsum(divergences)
    return divergences / total if total > 0 else np.full(len(divergences), 1 / len(divergences))
