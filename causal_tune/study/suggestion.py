"""What is tried next, as a pure function of what is known: `suggest_config`.

An Optuna study that lives as long as the search remembers more than its results: the state of its
random generator, and which results had arrived when each suggestion was made. Both are lost with the
process and depend on which trial happened to finish first. Here every suggestion is made by a study
built for it alone, from the results of the trials up to `number - window` and the configurations of the
`window - 1` trials after them, whether those have finished by now or not. So one seed gives one list of
configurations, for any order of finishing, any number of workers and any number of interruptions.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from causal_tune.study.space import SearchSpace
from causal_tune.trial import TrialConfig

__all__ = ["SAMPLER", "suggest_config", "trial_seed"]

SAMPLER = "tpe"

_SAMPLER_STREAM, _TRIAL_STREAM = 0, 1


def _stream(seed: int, number: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, number, stream]).generate_state(1)[0])


def trial_seed(seed: int, number: int) -> int:
    """Seed of trial `number` in a study with `seed`; below 2^31.

    >>> trial_seed(0, 3) == trial_seed(0, 3) != trial_seed(0, 4)
    True
    """
    return _stream(seed, number, _TRIAL_STREAM) >> 1


def suggest_config(
    space: SearchSpace,
    *,
    seed: int,
    number: int,
    known: Mapping[int, tuple[Mapping[str, Any], float | None]],
    pending: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """The configuration of trial `number`, `seed` included.

    `known` holds, for every trial up to `number - window`, its configuration and objective (None for a
    failed one); `pending` the configurations of the trials after those. The first trials are
    `space.enqueued`; then an Optuna TPE sampler, which takes `pending` for poor results so that it does
    not try the same place twice (constant liar).
    """
    if number < len(space.enqueued):
        return _complete(space, space.enqueued[number], seed, number)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=_stream(seed, number, _SAMPLER_STREAM), multivariate=True, constant_liar=True
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = dict(space.distributions)

    def tell(config: Mapping[str, Any], state: TrialState, value: float | None = None) -> None:
        point = space.searched(config)
        if point is not None:
            study.add_trial(
                optuna.trial.create_trial(state=state, value=value, params=point, distributions=distributions)
            )

    for _, (config, value) in sorted(known.items()):
        tell(config, TrialState.FAIL if value is None else TrialState.COMPLETE, value)
    for _, config in sorted(pending.items()):
        tell(config, TrialState.RUNNING)
    suggested = study.ask(fixed_distributions=distributions).params
    return _complete(space, suggested, seed, number)


def _complete(space: SearchSpace, changes: Mapping[str, Any], seed: int, number: int) -> dict[str, Any]:
    # every field spelled out, so that a record says what was run even after a default changes; an enqueued
    # entry may bring its seed
    values = {**space.defaults, "seed": trial_seed(seed, number), **changes}
    return TrialConfig.from_dict(values).to_dict()
