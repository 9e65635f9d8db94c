"""What a study is, frozen when it is created: `StudySpec`, in `studies/<name>/study.json`.

A study is continued by its name. Everything that its trials are a function of is compared with the
frozen spec, and a difference is an error; the number of trials is no part of it, so a study can be
extended. Where the store lies and which library versions run may change; both are written down.
"""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from causal_tune import __version__
from causal_tune.atomic import write_json
from causal_tune.errors import InvalidConfig, StudyError
from causal_tune.features import FeatureStore
from causal_tune.images.views import is_augmented
from causal_tune.ledger import wrong_kind
from causal_tune.selection import Roles, check_objective, default_criterion
from causal_tune.study.checks import (
    check_classes,
    check_leaks,
    check_objectives,
    check_pruner,
    check_roles,
    check_space,
)
from causal_tune.study.pruning import GRACE_STEPS, PRUNER, REDUCTION
from causal_tune.study.space import SEARCHED_PARTS, SearchSpace, load_space
from causal_tune.study.suggestion import SAMPLER

__all__ = [
    "SPEC_FORMAT",
    "StudySpec",
    "freeze",
    "library_versions",
    "make_spec",
    "read_spec",
    "study_path",
    "study_space",
]

SPEC_FORMAT = 1

_LIBRARIES = ("ray", "optuna", "torch", "numpy", "mlflow")

# Not compared when a study is continued: they do not change what a trial is.
_MAY_DIFFER = {
    "uid",
    "name",
    "store_path",
    "space_name",
    "space_sha256",
    "space",
    "versions",
    "max_concurrent",
    "window",
}

# Of studies that are older than the field.
_BEFORE: dict[str, Any] = {
    "degraded_views": (),
    "objectives": {},
    "pruner": PRUNER,
    "grace_steps": GRACE_STEPS,
    "reduction": REDUCTION,
    "threads_per_trial": 1,
    "gpus_per_trial": 0.0,
}


def library_versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that a result may depend on.

    `commit` is the package's own, where it runs from a git checkout, and ends in `-dirty` where that was edited.
    """
    commit = _commit(Path(__file__).parents[2])
    return {
        "python": sys.version.split()[0],
        "causal_tune": __version__,
        **({"commit": commit} if commit else {}),
        **{name: metadata.version(name) for name in _LIBRARIES},
    }


@functools.cache
def _commit(checkout: Path) -> str:
    """The commit that the folder `checkout` is at; empty where it is no checkout, or there is no git."""
    # without it: installed, or uploaded with a job; a repository around that is not ours
    if not (checkout / ".git").exists():
        return ""
    words = ["git", "--no-optional-locks", "-C", str(checkout)]
    words += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySpec:
    """All that the trials of a study are a function of, beside the number of trials."""

    name: str
    uid: str
    """Random, made with the study: what MLflow knows it by."""
    store_path: str
    """Where the feature store lies; may move."""
    store_fingerprint: str
    space_name: str
    space_sha256: str
    space: dict[str, Any]
    """`SearchSpace.to_json()`: the study does not need the file again."""
    train_generators: tuple[str, ...]
    val_generators: tuple[str, ...]
    test_generators: tuple[str, ...]
    degraded_views: tuple[str, ...] = ()
    """Views that the store had when the study was created: the trials' `perturbed` metrics."""
    criterion: str
    """The objective, a name of `selection.CRITERIA`."""
    seed: int
    max_concurrent: int
    """Trials at a time when the study was created; a later run may choose another number up to `window`."""
    window: int
    """A suggestion waits for the results of all trials but the last `window - 1` (`suggestion`)."""
    sampler: str = SAMPLER
    """A name of `suggestion.SAMPLERS`."""
    objectives: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Where there are any, the sampler looks for the Pareto front of the mean AP of these groups of validation
    generators; the criterion then only names one winner among all."""
    pruner: str = PRUNER
    """A name of `pruning.PRUNERS`."""
    grace_steps: int = GRACE_STEPS
    """Gradient steps before the first rung of the pruner."""
    reduction: int = REDUCTION
    """The pruner lets the best 1 / `reduction` go on from rung to rung."""
    threads_per_trial: int = 1
    """CPUs of a trial; the last digits of a result depend on it."""
    gpus_per_trial: float = 0.0
    """Share of a GPU that a trial has; with any it trains there."""
    format: int = SPEC_FORMAT
    versions: dict[str, str]
    """Library versions when the study was created."""

    @property
    def roles(self) -> Roles:
        """Which generator trains, which chooses and which judges."""
        return Roles(
            train_generators=self.train_generators,
            val_generators=self.val_generators,
            test_generators=self.test_generators,
            degraded_views=self.degraded_views,
        )

    def search_space(self) -> SearchSpace:
        """The frozen search space."""
        return SearchSpace.from_json(self.space)

    def command(self, store: str, num_trials: int | str) -> str:
        """The `causal-tune tune` that makes this study again, on the store at `store`."""
        words = ["causal-tune", "tune", "--store", store, "--space", self.space_name, "--study", self.name]
        words += ["--trials", str(num_trials), "--seed", str(self.seed), "--criterion", self.criterion]
        words += ["--sampler", self.sampler, "--max-concurrent", str(self.max_concurrent)]
        if self.pruner != PRUNER:
            words += ["--pruner", self.pruner, "--grace-steps", str(self.grace_steps)]
        words += [word for name in self.train_generators for word in ("--train-generator", name)]
        for option, names in (
            ("--val-generators", self.val_generators),
            ("--test-generators", self.test_generators),
        ):
            words += [option, ",".join(names)] if names else []
        for name, group in self.objectives.items():
            words += ["--objective", f"{name}={','.join(group)}"]
        if layer := self.space["distributions"].get("layer"):
            words += ["--layers", ",".join(map(str, layer["attributes"]["choices"]))]
        if self.threads_per_trial != 1:
            words += ["--threads-per-trial", str(self.threads_per_trial)]
        if self.gpus_per_trial:
            words += ["--gpus-per-trial", f"{self.gpus_per_trial:g}"]
        return shlex.join(words)

    def to_json(self) -> dict[str, Any]:
        """As it lies in study.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "StudySpec":
        """The inverse of `to_json`; `StudyError` for another format or other fields."""
        if not isinstance(content, dict) or content.get("format") != SPEC_FORMAT:
            raise StudyError(f"it is no study of format {SPEC_FORMAT}, which is what this release reads")
        content = {**_BEFORE, **content}
        if wrong := sorted({item.name for item in fields(cls)} ^ content.keys()):
            raise StudyError(f"its fields are not those of a study: {', '.join(wrong)}")
        if (wrong_one := wrong_kind(cls, content)) is not None:
            raise StudyError(f"its {wrong_one}")
        if lacking := sorted({"name", "question", "expected", *SEARCHED_PARTS[:3]} - content["space"].keys()):
            raise StudyError(f"its search space lacks {', '.join(lacking)}")
        tuples = {
            key: tuple(value) for key, value in content.items() if key.endswith(("_generators", "_views"))
        }
        objectives = {name: tuple(group) for name, group in content["objectives"].items()}
        return cls(**{**content, **tuples, "objectives": objectives})


def study_path(workspace: Path | str, name: str) -> Path:
    """The folder of a study; `StudyError` for a name that cannot be a folder's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise StudyError(
            f"{name!r} cannot be the name of a study, which is also its folder's: use letters, digits, "
            "dots, dashes and underscores, beginning with a letter or digit."
        )
    return Path(workspace).absolute() / "studies" / name


def read_spec(path: Path) -> StudySpec:
    """The frozen spec of the study in this folder; `StudyError` where there is none that can be read."""
    spec_path = path / "study.json"
    if not spec_path.is_file():
        others = sorted(item.parent.name for item in path.parent.glob("*/study.json"))
        there = f"There are: {', '.join(others)}." if others else "There is none yet."
        raise StudyError(
            f"There is no study {path.name!r} in {path.parent}. {there} "
            "`causal-tune tune --study NAME` makes one."
        )
    try:
        return StudySpec.from_json(json.loads(spec_path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # StudyError and JSONDecodeError are ValueErrors
        raise StudyError(
            f"{spec_path} cannot be read: {error}. Restore it from a copy, or begin a study under another "
            "--study name."
        ) from error


def study_space(workspace: Path | str, name: str, default: str | SearchSpace) -> SearchSpace:
    """What a study searches: the frozen space where the study exists, else `default`, a space or its name."""
    path = study_path(workspace, name)
    if (path / "study.json").exists():
        return read_spec(path).search_space()
    return default if isinstance(default, SearchSpace) else load_space(default)


def freeze(spec: StudySpec, workspace: Path | str, *, write: bool = True) -> StudySpec:
    """Create the study, or agree to continue it: the frozen spec, with the store's present path.

    Without `write` a new study is not created yet.

    `StudyError` where the study of that name is another one; it names every field that differs.
    """
    path = study_path(workspace, spec.name)
    if not (path / "study.json").exists():
        if write:
            write_json(path / "study.json", spec.to_json())
        return spec
    frozen = read_spec(path)
    old, new = frozen.to_json(), spec.to_json()
    differing = [
        f"{key} is {_shown(old[key])}, now asked: {_shown(new[key])}"
        for key in old
        if key not in _MAY_DIFFER and old[key] != new[key]
    ]
    if frozen.space_sha256 != spec.space_sha256:
        differing.append(_space_difference(frozen, spec))
    if differing:
        raise StudyError(
            f"The study {spec.name!r} exists and is another one: {'; '.join(differing)}. Ask for the same to "
            "continue it (without --space it searches what it did), or give this one another --study name."
        )
    return replace(
        frozen,
        store_path=spec.store_path,
        # more at a time than the window would only wait
        max_concurrent=min(spec.max_concurrent, frozen.window),
    )


def _space_difference(frozen: StudySpec, asked: StudySpec) -> str:
    parts = []
    for part in SEARCHED_PARTS:
        old, new = frozen.space.get(part, {}), asked.space.get(part, {})
        if isinstance(old, dict) and old != new:
            keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            parts.append(f"{part} of {', '.join(keys)}")
        elif old != new:
            parts.append(part)
    return (
        f"the search space is {frozen.space_name!r}, now asked: {asked.space_name!r} with other "
        f"{' and '.join(parts)}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return repr(value)


def make_spec(
    *,
    workspace: Path | str,
    name: str,
    store_path: Path | str,
    space: SearchSpace,
    train_generators: Sequence[str],
    val_generators: Sequence[str] = (),
    test_generators: Sequence[str] | None = None,
    criterion: str | None = None,
    seed: int = 0,
    max_concurrent: int | None = None,
    sampler: str = SAMPLER,
    objectives: Mapping[str, Sequence[str]] | None = None,
    pruner: str = PRUNER,
    grace_steps: int = GRACE_STEPS,
    reduction: int = REDUCTION,
    layers: Sequence[str] | None = None,
    threads_per_trial: int = 1,
    gpus_per_trial: float = 0.0,
) -> StudySpec:
    """A checked spec. Nothing is written.

    `test_generators` default to all that neither train nor choose; `criterion` to the existing study's, else to the
    best one that the roles allow; `max_concurrent` to the existing study's, else to the CPUs of this machine.
    `layers` are searched beside the fields of the space (`SearchSpace.over_layers`). Classes are balanced unless the
    space says otherwise, or the study is older than that choice.
    `StudyError` or `InvalidConfig` for generators that the store does not have, roles that overlap, a
    set without both classes, and a criterion that may not or cannot be optimised.
    """
    path = study_path(workspace, name)
    store = FeatureStore(store_path)
    known = sorted(set(store.rows["generator"].to_pylist()))
    chosen = {"--train-generator": tuple(train_generators), "--val-generators": tuple(val_generators)}
    if test_generators is None:
        test_generators = [item for item in known if not any(item in names for names in chosen.values())]
    chosen["--test-generators"] = tuple(test_generators)
    check_roles(chosen, known, f"the store {store.path}")
    earlier = read_spec(path) if (path / "study.json").exists() else None
    degraded = tuple(view for view in store.views if not is_augmented(view))
    if earlier:  # views that were added since are not what its trials were judged on
        degraded = tuple(view for view in earlier.degraded_views if view in degraded)
    roles = Roles(
        train_generators=chosen["--train-generator"],
        val_generators=chosen["--val-generators"],
        test_generators=chosen["--test-generators"],
        degraded_views=degraded,
    )
    if earlier is None or "class_balance" in earlier.space["defaults"]:
        space = space.balancing()
    criterion = criterion or (earlier.criterion if earlier else default_criterion(roles))
    check_objective(criterion, roles)
    check_classes(store, roles, criterion)
    check_leaks(store, roles)
    groups = {group: tuple(names) for group, names in (objectives or {}).items()}
    check_objectives(groups, roles, sampler, pruner)
    check_pruner(pruner, criterion, grace_steps, reduction)
    if layers:
        space = space.over_layers(list(dict.fromkeys(layers)))

    if threads_per_trial < 1 or gpus_per_trial < 0 or (gpus_per_trial > 1 and gpus_per_trial % 1):
        raise InvalidConfig(
            f"A trial was given {threads_per_trial} threads and {gpus_per_trial:g} GPUs; at least 1 thread, and no "
            "GPU, a share below 1 or a whole number of them was expected."
        )
    if max_concurrent is None:
        max_concurrent = (
            earlier.max_concurrent if earlier else max(1, (os.cpu_count() or 1) // threads_per_trial)
        )
    if max_concurrent < 1:
        raise InvalidConfig(f"{max_concurrent} trials at a time were asked for; at least 1 is needed.")
    if seed < 0:
        raise InvalidConfig(f"The seed is {seed}; a whole number from 0 was expected.")
    check_space(space, store)
    return StudySpec(
        name=name,
        uid=uuid.uuid4().hex,
        store_path=str(store.path),
        store_fingerprint=store.fingerprint,
        space_name=space.name,
        space_sha256=space.sha256,
        space=space.to_json(),
        train_generators=roles.train_generators,
        val_generators=roles.val_generators,
        test_generators=roles.test_generators,
        degraded_views=roles.degraded_views,
        criterion=criterion,
        seed=seed,
        max_concurrent=max_concurrent,
        # One at a time needs no slack; else half of the window may still be running while the
        # other half is being suggested, so that one slow trial does not idle the other workers.
        window=1 if max_concurrent == 1 else 2 * max_concurrent,
        sampler=sampler,
        objectives=groups,
        pruner=pruner,
        grace_steps=grace_steps,
        reduction=reduction,
        threads_per_trial=threads_per_trial,
        gpus_per_trial=gpus_per_trial,
        versions=library_versions(),
    )
