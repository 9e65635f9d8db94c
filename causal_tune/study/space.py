"""Search spaces: Python files with data only, written in Optuna's distributions.

A file holds QUESTION (what the study asks), EXPECTED (time and result), SPACE (Optuna distribution of
each searched field of `TrialConfig`), DEFAULTS (value of every searched field in the default
configuration, and of any other field) and ENQUEUED (changes to DEFAULTS that are tried first; only such an
entry may name a `seed`, which its trial then has instead of one of its own).
"""

import hashlib
import json
import runpy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import optuna

from causal_tune.errors import InvalidConfig, UnknownName
from causal_tune.registry import look_up
from causal_tune.trial import TrialConfig

__all__ = ["SearchSpace", "load_space", "space_paths"]

_NAMES = ("QUESTION", "EXPECTED", "SPACE", "DEFAULTS", "ENQUEUED")


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What may be tried. Checked when made: `InvalidConfig` says which entry is wrong and why."""

    name: str
    question: str
    """What a study over this space asks."""
    expected: str
    """Time and result to expect."""
    distributions: Mapping[str, optuna.distributions.BaseDistribution]
    """Distribution of each searched field of `TrialConfig`."""
    defaults: Mapping[str, Any]
    """The default configuration: every searched field, and others where `TrialConfig` has no default."""
    enqueued: tuple[Mapping[str, Any], ...] = ()
    """Changes to `defaults` that are the first trials of every study; they may fix the trial's `seed`."""

    def __post_init__(self) -> None:
        every = [item.name for item in fields(TrialConfig)]
        searchable = [name for name in every if name != "seed"]
        if not self.distributions:
            raise self._wrong("SPACE is empty; it needs at least one distribution")
        for part, names, known in (
            ("SPACE", self.distributions, searchable),
            ("DEFAULTS", self.defaults, searchable),
            *((f"ENQUEUED[{index}]", entry, every) for index, entry in enumerate(self.enqueued)),
        ):
            if unknown := sorted(names.keys() - set(known)):
                raise self._wrong(
                    f"{part} names {', '.join(unknown)}, which a trial does not have. Its fields are "
                    f"{', '.join(known)}"
                )
        for key, distribution in self.distributions.items():
            if not isinstance(distribution, optuna.distributions.BaseDistribution):
                raise self._wrong(
                    f"SPACE[{key!r}] is {distribution!r}; an Optuna distribution was expected, for example "
                    "optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)"
                )
            if key not in self.defaults:
                raise self._wrong(f"DEFAULTS has no value for {key}; every searched field needs one")
            self._check_value("DEFAULTS", key, self.defaults[key])
        for index, entry in enumerate(self.enqueued):
            for key in entry.keys() & self.distributions.keys():
                if entry[key] != 0:  # 0 switches a term off: a baseline, and not a point of a log range
                    self._check_value(f"ENQUEUED[{index}]", key, entry[key])
        for index, entry in enumerate(({}, *self.enqueued)):
            where = "DEFAULTS" if index == 0 else f"ENQUEUED[{index - 1}]"
            try:
                TrialConfig.from_dict({**self.defaults, "seed": 0, **entry})
            except (InvalidConfig, UnknownName) as error:
                raise self._wrong(f"{where} is no valid configuration: {error}") from error

    def _wrong(self, what: str) -> InvalidConfig:
        return InvalidConfig(
            f"The search space {self.name!r} cannot be used: {what.rstrip('.')}. Mend that file."
        )

    def _check_value(self, part: str, key: str, value: Any) -> None:
        if not contains(self.distributions[key], value):
            raise self._wrong(f"{part}[{key!r}] is {value!r}, outside of {self.distributions[key]}")

    def fixed(self, **changes: Any) -> "SearchSpace":
        """This space with `changes` to its defaults and nothing to search: fields keep the values that are named.

        Only the distributions go, so that values outside of their ranges can be given too.
        """
        defaults = {**self.defaults, **changes}
        distributions = {
            key: optuna.distributions.CategoricalDistribution(
                list(dict.fromkeys([defaults[key], *(entry[key] for entry in self.enqueued if key in entry)]))
            )
            for key in self.distributions
        }
        return replace(self, distributions=distributions, defaults=defaults)

    @property
    def sha256(self) -> str:
        """Over what is searched; the prose and the comments of the file do not count."""
        content = {key: self.to_json()[key] for key in ("distributions", "defaults", "enqueued")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As it is frozen in a study."""
        return {
            "name": self.name,
            "question": self.question,
            "expected": self.expected,
            "distributions": {
                key: json.loads(optuna.distributions.distribution_to_json(distribution))
                for key, distribution in sorted(self.distributions.items())
            },
            "defaults": dict(self.defaults),
            "enqueued": [dict(entry) for entry in self.enqueued],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SearchSpace":
        """The inverse of `to_json`."""
        return cls(
            name=content["name"],
            question=content["question"],
            expected=content["expected"],
            distributions={
                key: optuna.distributions.json_to_distribution(json.dumps(value))
                for key, value in content["distributions"].items()
            },
            defaults=content["defaults"],
            enqueued=tuple(content["enqueued"]),
        )

    def searched(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The configuration as a point of the space; None for one that lies outside of it.

        A baseline that changes a field which is not searched (the head, say) or switches a term off
        is no observation about the space, and the sampler is not told of it.
        """
        fixed = {**_field_defaults(), **self.defaults}
        for key, value in config.items():
            if key == "seed":
                continue
            if key in self.distributions:
                if not contains(self.distributions[key], value):
                    return None
            elif key not in fixed or fixed[key] != value:
                return None
        return {key: config[key] for key in self.distributions}


@cache  # asked for once a known trial in every suggestion
def _field_defaults() -> dict[str, Any]:
    # what TrialConfig itself fills in; `seed` is the trial's own
    config = TrialConfig.from_dict({"seed": 0}).to_dict()
    return {key: value for key, value in config.items() if key != "seed"}


def contains(distribution: optuna.distributions.BaseDistribution, value: Any) -> bool:
    """Whether the distribution can give this value.

    >>> contains(optuna.distributions.FloatDistribution(0.05, 0.5), 0.6)
    False
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number and not isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # off-grid values warn; _contains answers for them
            return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:
        return False


def space_paths() -> dict[str, Path]:
    """The search spaces that can be named: those of the source checkout, else of the installed package."""
    package = Path(__file__).parents[1]
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")}
    return {}


def load_space(name_or_path: str | Path) -> SearchSpace:
    """The search space of that name (`sd14`), or in that file (anything with a `/` or ending in `.py`).

    `UnknownName` lists the names there are; `InvalidConfig` says what is wrong in a file.
    """
    text = str(name_or_path)
    path = Path(text) if "/" in text or text.endswith(".py") else look_up("search space", space_paths(), text)
    if not path.is_file():
        raise InvalidConfig(
            f"There is no search space file {path}. Give a path to a Python file with {', '.join(_NAMES)}, "
            f"or a name: {', '.join(space_paths())}."
        )
    try:
        values = runpy.run_path(str(path))
    except Exception as error:  # a user's file can raise anything
        raise InvalidConfig(
            f"The search space file {path} cannot be run: {type(error).__name__}: {error}."
        ) from error
    if missing := [name for name in _NAMES if name not in values]:
        raise InvalidConfig(
            f"The search space file {path} does not define {', '.join(missing)}; copy search_spaces/demo.py "
            "and change it."
        )
    return SearchSpace(
        name=path.stem,
        question=str(values["QUESTION"]).strip(),
        expected=str(values["EXPECTED"]).strip(),
        distributions=values["SPACE"],
        defaults=values["DEFAULTS"],
        enqueued=tuple(values["ENQUEUED"]),
    )
