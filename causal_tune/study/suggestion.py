"""What is tried next, as a function of what is known: `Suggester`, on the samplers of Optuna.

An Optuna study that lives as long as the search remembers more than its results: the state of its
random generator, and which results had arrived when each suggestion was made. Both are lost with the
process and depend on which trial happened to finish first. Here the suggestion for trial `number` is made from
the results of the trials up to `number - window` and the configurations of the `window - 1` trials after them,
whether those have finished by now or not, by a sampler that is seeded for that number. So one seed gives one list
of configurations, for any order of finishing, any number of workers and any number of interruptions.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from causal_tune.registry import look_up
from causal_tune.study.space import SearchSpace
from causal_tune.trial import TrialConfig, completed

__all__ = ["SAMPLER", "SAMPLERS", "Outcome", "Sampler", "Suggester", "calm", "same_trial", "trial_seed"]

SAMPLER = "tpe"

_SAMPLER_STREAM, _TRIAL_STREAM = 0, 1
_ATTEMPTS = 8
"""How often a point is drawn again that was tried before."""


def _stream(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def trial_seed(seed: int, number: int) -> int:
    """Seed of trial `number` in a study with `seed`; below 2^31.

    >>> trial_seed(0, 3) == trial_seed(0, 3) != trial_seed(0, 4)
    True
    """
    return _stream(seed, number, _TRIAL_STREAM) >> 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a sampler is told of a trial that has ended."""

    values: tuple[float, ...] | None
    """One value an objective, higher being better; None where there is no result."""
    rungs: Mapping[int, float] = field(default_factory=dict)
    """Of a pruned trial: its objective by gradient steps, as far as it came."""
    constraints: Mapping[str, float] = field(default_factory=dict)
    """What the study demands beside the objective; above 0 a demand is not met."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """One row of `SAMPLERS`."""

    summary: str
    make: Callable[[int, int, bool], BaseSampler]
    """From a seed of the suggestion's own, the study's seed, and whether the space has conditions."""
    replayed: bool = False
    """Its state lies in what it suggested: a continued study asks it for all of that again."""
    several_objectives: bool = True
    """Whether it can search for a Pareto front."""


def _random(seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "tpe": Sampler(
            summary="tree-structured Parzen estimator, multivariate, with constant liar",
            make=lambda own, study, conditional: optuna.samplers.TPESampler(
                seed=own, multivariate=True, group=conditional, constant_liar=True
            ),
        ),
        "gp": Sampler(
            summary="Gaussian process with expected improvement; 0.1 s and more a suggestion",
            make=lambda own, study, conditional: optuna.samplers.GPSampler(
                seed=own, independent_sampler=_random(own)
            ),
        ),
        "cmaes": Sampler(
            summary="covariance matrix adaptation; names among the fields are drawn at random",
            make=lambda own, study, conditional: optuna.samplers.CmaEsSampler(
                seed=own, independent_sampler=_random(own), warn_independent_sampling=False
            ),
            replayed=True,
            several_objectives=False,
        ),
        "qmc": Sampler(
            summary="scrambled Sobol points: even cover, no learning; names are drawn at random",
            make=lambda own, study, conditional: optuna.samplers.QMCSampler(
                qmc_type="sobol",
                scramble=True,
                seed=study,
                independent_sampler=_random(own),
                warn_independent_sampling=False,
            ),
            replayed=True,
        ),
        "random": Sampler(
            summary="independent draws: the baseline of every search",
            make=lambda own, study, conditional: _random(own),
        ),
    }
)
"""What suggests configurations, by name."""


class Suggester:
    """The configurations of a study, one number after the other.

    It keeps an Optuna study in memory, to which everything is told in the order of the numbers; a continued
    study builds it anew. `InvalidConfig` where the sampler cannot do what the study asks.
    """

    def __init__(
        self, space: SearchSpace, *, sampler: str, seed: int, window: int, num_objectives: int = 1
    ) -> None:
        self._space, self._seed, self._window = space, seed, window
        self._sampler = look_up("sampler", SAMPLERS, sampler)
        self._study = optuna.create_study(directions=["maximize"] * num_objectives, sampler=_random(0))
        self._pending: dict[int, Trial] = {}
        self._tried: set[str] = set()
        self._num_told = 0
        self._next = 0

    def suggest(
        self, number: int, configs: Mapping[int, Mapping[str, Any]], outcomes: Mapping[int, Outcome]
    ) -> dict[str, Any]:
        """The configuration of trial `number`, `seed` included. Numbers rise from call to call.

        `configs` holds those of all trials before `number`, `outcomes` what came out of all that are `window`
        and more before it; more of either changes nothing.
        """
        while self._next < number:
            self._advance(self._next, configs[self._next], outcomes)
        return self._advance(number, None, outcomes)

    def _advance(
        self, number: int, known: Mapping[str, Any] | None, outcomes: Mapping[int, Outcome]
    ) -> dict[str, Any]:
        while self._num_told <= number - self._window:
            self._tell(self._num_told, outcomes[self._num_told])
            self._num_told += 1
        self._next = number + 1
        trial = None
        if known is None or self._sampler.replayed:
            config, trial = self._sample(number)
        if known is not None:
            config = dict(known)
        if self._sampler.replayed and trial is not None:
            self._pending[number] = trial
        elif (point := self._space.searched(config)) is not None and same_trial(config) not in self._tried:
            self._pending[number] = self._asked_for(point)
        self._tried.add(same_trial(config))
        return config

    def _sample(self, number: int) -> tuple[dict[str, Any], Trial | None]:
        if number < len(self._space.enqueued):
            return self._complete(self._space.enqueued[number], number), None
        for attempt in range(_ATTEMPTS):
            own = _stream(self._seed, number, _SAMPLER_STREAM, *([attempt] if attempt else []))
            with calm():
                self._study.sampler = self._sampler.make(own, self._seed, bool(self._space.conditions))
                trial = self._study.ask()
                config = self._complete(self._draw(trial), number)
            is_new = same_trial(config) not in self._tried
            if is_new and self._sampler.replayed:
                return config, trial
            # known to the study as a failure, which no sampler reads; `_asked_for` makes the one that counts
            self._study.tell(trial, state=TrialState.FAIL)
            if is_new:
                break
        return config, None

    def _draw(self, trial: Trial) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in self._space.order:
            if self._space.is_active(name, values):
                values[name] = _suggest(trial, name, self._space.distributions[name])
        return values

    def _asked_for(self, point: Mapping[str, Any]) -> Trial:
        """A running trial at this point, the same whether it was suggested now or in an earlier process."""
        self._study.sampler = _random(0)  # enqueued values overrule it
        self._study.enqueue_trial(dict(point))
        trial = self._study.ask()
        self._draw(trial)
        return trial

    def _tell(self, number: int, outcome: Outcome) -> None:
        trial = self._pending.pop(number, None)
        if trial is None:
            return  # a baseline outside of the space, or a duplicate: no observation of its own
        for name, value in outcome.constraints.items():
            trial.set_constraint(name, value)
        with calm():
            if outcome.values is not None:
                self._study.tell(trial, list(outcome.values))
            elif outcome.rungs:
                for steps, value in outcome.rungs.items():
                    trial.report(value, steps)
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, state=TrialState.FAIL)

    def _complete(self, changes: Mapping[str, Any], number: int) -> dict[str, Any]:
        # every field spelled out, so that a record says what was run even after a default changes; an enqueued
        # entry may bring its seed
        values = {**self._space.defaults, "seed": trial_seed(self._seed, number), **changes}
        return TrialConfig.from_dict(values).to_dict()


def same_trial(config: Mapping[str, Any], *, with_seed: bool = False) -> str:
    """What two configurations have in common that are the same trial: all but the seed, or all.

    >>> same_trial({"tau": 0.5, "seed": 1}) == same_trial({"seed": 2, "tau": 0.5})
    True
    """
    return json.dumps(
        {key: value for key, value in sorted(completed(config).items()) if with_seed or key != "seed"}
    )


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    suggest = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    bounds: Any = distribution  # low, high, log and step are those of both numeric kinds
    return suggest(name, bounds.low, bounds.high, log=bounds.log, step=bounds.step)


@contextmanager
def calm() -> Iterator[None]:
    """Without Optuna's notes on what is new, experimental or drawn independently."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
