"""Search spaces: Python files with data only, written in Optuna's distributions.

A file holds QUESTION (what the study asks), EXPECTED (time and result), SPACE (Optuna distribution of
each searched field of `TrialConfig`), DEFAULTS (value of every searched field in the default
configuration, and of any other field) and ENQUEUED (changes to DEFAULTS that are tried first; only such an
entry may name a `seed`, which its trial then has instead of one of its own). It may hold CONDITIONS: for a searched
field, which values of others it is searched with, `{"lambda1": {"head": ["causal"]}}`; else it keeps its default.
"""

import hashlib
import json
import runpy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import optuna

from causal_tune.errors import InvalidConfig, UnknownName
from causal_tune.heads import reads
from causal_tune.registry import look_up
from causal_tune.trial import TrialConfig, completed
from causal_tune.wording import short_repr

__all__ = ["SEARCHED_PARTS", "SearchSpace", "load_space", "space_paths"]

SEARCHED_PARTS = ("distributions", "defaults", "enqueued", "conditions")
"""The parts of `SearchSpace.to_json` that decide what is tried; the rest is prose."""

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
    conditions: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    """Of a searched field: the values of other fields with which it is searched; else it has its default."""

    def __post_init__(self) -> None:
        self._check_kinds()
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
        self._check_conditions()
        for index, entry in enumerate(self.enqueued):
            for key in entry.keys() & self.distributions.keys():
                if entry[key] != 0:  # 0 switches a term off: a baseline, and not a point of a log range
                    self._check_value(f"ENQUEUED[{index}]", key, entry[key])
        for index, entry in enumerate(({}, *self.enqueued)):
            where = "DEFAULTS" if index == 0 else f"ENQUEUED[{index - 1}]"
            try:
                TrialConfig.from_dict({**self.defaults, "seed": 0, **entry})
            except (
                InvalidConfig,
                UnknownName,
                TypeError,
            ) as error:  # a list where a name belongs has no hash
                raise self._wrong(f"{where} is no valid configuration: {error}") from error

    def _check_kinds(self) -> None:
        """That each part is made of what it should be; the rest of the checks relies on it."""
        if not isinstance(self.enqueued, tuple):
            raise self._wrong(f"ENQUEUED is {short_repr(self.enqueued)}; a list of dicts was expected")
        dicts = {"SPACE": self.distributions, "DEFAULTS": self.defaults, "CONDITIONS": self.conditions}
        dicts |= {f"ENQUEUED[{index}]": entry for index, entry in enumerate(self.enqueued)}
        if isinstance(self.conditions, Mapping):
            dicts |= {f"CONDITIONS[{key!r}]": condition for key, condition in self.conditions.items()}
        for part, value in dicts.items():
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise self._wrong(f"{part} is {short_repr(value)}; a dict with names of fields was expected")
        for key, condition in self.conditions.items():
            for other, values in condition.items():
                if not isinstance(values, list | tuple):
                    raise self._wrong(
                        f"CONDITIONS[{key!r}][{other!r}] is {short_repr(values)}; a list of values was expected"
                    )

    def _check_conditions(self) -> None:
        for key, condition in self.conditions.items():
            for part in (key, *condition):
                if part not in self.distributions:
                    raise self._wrong(f"CONDITIONS names {part!r}, which SPACE does not search")
            for other, values in condition.items():
                for value in values:
                    self._check_value(f"CONDITIONS[{key!r}]", other, value)
        if len(self.order) < len(self.distributions):
            circle = sorted(self.distributions.keys() - set(self.order))
            raise self._wrong(f"CONDITIONS of {', '.join(circle)} depend on each other in a circle")

    @property
    def order(self) -> list[str]:
        """The searched fields, each after those that its conditions read."""
        ordered: list[str] = []
        waiting = sorted(self.distributions)
        while ready := [key for key in waiting if self.conditions.get(key, {}).keys() <= set(ordered)]:
            ordered += ready
            waiting = [key for key in waiting if key not in ready]
        return ordered

    def is_active(self, key: str, values: Mapping[str, Any]) -> bool:
        """Whether `key` is searched where the other fields have these values; a field without one has its default.

        What depends on a field that is itself not searched there is not searched either.
        """
        condition = self.conditions.get(key, {})
        return all(
            self.is_active(other, values) and values.get(other, self.defaults[other]) in allowed
            for other, allowed in condition.items()
        )

    def axes(self, config: Mapping[str, Any]) -> dict[str, optuna.distributions.BaseDistribution]:
        """The distributions in which a configuration is a point; a baseline may lie outside of some."""
        return {
            key: distribution
            for key, distribution in self.distributions.items()
            if self.is_active(key, config) and contains(distribution, config[key])
        }

    @property
    def names(self) -> list[str]:
        """The searched fields, in the order of `TrialConfig`."""
        return [item.name for item in fields(TrialConfig) if item.name in self.distributions]

    def settings_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The searched fields that a trial of this configuration read: not those of other heads."""
        return {
            name: config[name]
            for name in self.names
            if self.is_active(name, config) and reads(config["head"], name)
        }

    def over_layers(self, layers: Sequence[str]) -> "SearchSpace":
        """This space with the layer searched among `layers`, or fixed to it where it is one."""
        default = self.defaults.get("layer", "proj")
        if list(layers) == [default] and "layer" not in self.distributions:
            return self
        defaults = {**self.defaults, "layer": default if default in layers else layers[0]}
        distributions = {key: value for key, value in self.distributions.items() if key != "layer"}
        if len(layers) > 1:
            distributions["layer"] = optuna.distributions.CategoricalDistribution(list(layers))
        return replace(self, distributions=distributions, defaults=defaults)

    def balancing(self) -> "SearchSpace":
        """This space with balanced classes, unless it says itself what is done to them."""
        return replace(self, defaults={"class_balance": "balanced", **self.defaults})

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
        return replace(self, distributions=distributions, defaults=defaults, conditions={})

    @property
    def sha256(self) -> str:
        """Over what is searched; the prose and the comments of the file do not count."""
        every = self.to_json()
        content = {key: every[key] for key in SEARCHED_PARTS if key in every}
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
            "defaults": self._stored(self.defaults),
            "enqueued": [self._stored(entry) for entry in self.enqueued],
            **({"conditions": self._plain_conditions()} if self.conditions else {}),
        }

    def _stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Without what is as it was before there was a choice, so that a space of then keeps its hash."""
        chosen = "class_balance" in self.distributions or self.defaults.get("class_balance", "none") != "none"
        before = {} if chosen else {"class_balance": "none"}
        return {key: value for key, value in values.items() if (key, value) not in before.items()}

    def _plain_conditions(self) -> dict[str, dict[str, list[Any]]]:
        return {
            key: {other: list(values) for other, values in sorted(condition.items())}
            for key, condition in sorted(self.conditions.items())
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
            conditions=content.get("conditions", {}),
        )

    def searched(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The configuration as a point of the space, its active fields; None for one that lies outside of it.

        A baseline that changes a field which is not searched (the head, say) or switches a term off
        is no observation about the space, and the sampler is not told of it.
        """
        fixed = completed(self.defaults)
        for key, value in config.items():
            if key == "seed":
                continue
            if key in self.distributions and self.is_active(key, config):
                if not contains(self.distributions[key], value):
                    return None
            elif key not in fixed or fixed[key] != value:
                return None
        return {key: config[key] for key in self.distributions if self.is_active(key, config)}


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
    except (ValueError, TypeError):
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
            f"There is no search space file {path.absolute()}. Give a path to a Python file with {', '.join(_NAMES)}, "
            f"or a name: {', '.join(space_paths())}."
        )
    try:
        values = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # a user's file can raise anything
        raise InvalidConfig(
            f"The search space file {path} cannot be run: {type(error).__name__}: {error}."
        ) from error
    if missing := [name for name in _NAMES if name not in values]:
        raise InvalidConfig(
            f"The search space file {path} does not define {', '.join(missing)}; copy search_spaces/demo.py "
            "and change it."
        )
    enqueued = values["ENQUEUED"]
    return SearchSpace(
        name=path.stem,
        question=str(values["QUESTION"]).strip(),
        expected=str(values["EXPECTED"]).strip(),
        distributions=values["SPACE"],
        defaults=values["DEFAULTS"],
        enqueued=tuple(enqueued) if isinstance(enqueued, list) else enqueued,
        conditions=values.get("CONDITIONS", {}),
    )
