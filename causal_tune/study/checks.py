"""What a study may ask for, checked before anything is written: errors say what there is instead."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from causal_tune.errors import InvalidConfig, StudyError
from causal_tune.features import FeatureStore, partition
from causal_tune.images.views import augmented_view
from causal_tune.registry import look_up
from causal_tune.selection import CRITERIA, Roles
from causal_tune.study.pruning import PRUNER, PRUNERS
from causal_tune.study.space import SearchSpace
from causal_tune.study.suggestion import SAMPLERS

__all__ = [
    "check_classes",
    "check_leaks",
    "check_objectives",
    "check_pruner",
    "check_roles",
    "check_space",
]


def check_objectives(
    objectives: Mapping[str, Sequence[str]], roles: Roles, sampler: str, pruner: str
) -> None:
    """`InvalidConfig` where the sampler is unknown, or cannot look for the Pareto front of these objectives."""
    kind = look_up("sampler", SAMPLERS, sampler)
    if not objectives:
        return
    if len(objectives) == 1:
        raise InvalidConfig(
            f"One objective ({', '.join(objectives)}) was named; a Pareto front needs two or more. Name another "
            "with --objective, or leave it out: the criterion is the objective then."
        )
    for group, names in objectives.items():
        for name in names:
            if name not in roles.val_generators:
                raise InvalidConfig(
                    f"The objective {group!r} names {name!r}, which is no validation generator of the study: "
                    f"{', '.join(roles.val_generators) or 'it has none'}. Name it with --val-generators too."
                )
    if not kind.several_objectives:
        able = [name for name, other in SAMPLERS.items() if other.several_objectives]
        raise InvalidConfig(
            f"The sampler {sampler!r} knows one objective. For several choose {', '.join(able)}."
        )
    if pruner != PRUNER:
        raise InvalidConfig(
            f"With several objectives no trial is hopeless early, so they cannot go with the pruner {pruner!r}. "
            "Leave one of the two out."
        )


def check_pruner(pruner: str, criterion: str, grace_steps: int, reduction: int) -> None:
    """`InvalidConfig` where the pruner has nothing to go by, or its numbers make no rungs."""
    look_up("pruner", PRUNERS, pruner)
    if pruner != PRUNER and not CRITERIA[criterion].every_epoch:
        able = sorted(name for name, one in CRITERIA.items() if one.every_epoch and not one.uses_test_domain)
        raise InvalidConfig(
            f"The criterion {criterion!r} is known at the end of a trial only, so the pruner {pruner!r} has "
            f"nothing to go by. Choose one of {', '.join(able)}, or no pruner."
        )
    if grace_steps < 1 or reduction < 2:
        raise InvalidConfig(
            f"The pruner's grace period is {grace_steps} steps and its reduction {reduction}; at least 1 and 2 are "
            "needed."
        )


def check_leaks(store: FeatureStore, roles: Roles) -> None:
    """An image that trains, or stops training early, judges nothing: the same bytes on both sides are an error."""
    parts = partition(
        store.rows,
        train_generators=roles.train_generators,
        val_generators=roles.val_generators,
        test_generators=roles.test_generators,
    )
    digests = store.rows["sha256"].combine_chunks()
    seen = digests.take(np.concatenate([parts.train, parts.validation]))
    for generator, rows in parts.generators.items():
        shared = rows[pc.is_in(digests.take(rows), value_set=seen).to_numpy(zero_copy_only=False)]
        if len(shared):
            path = store.rows["path"][int(shared[0])].as_py()
            raise StudyError(
                f"{len(shared)} of the {len(rows)} images that judge {generator!r} are also training images, by their "
                f"sha256 (one is {path}): its figures would tell what the head remembers. `causal-tune audit` "
                "lists them; take them out of one side of the index, or name other generators."
            )


def check_roles(chosen: Mapping[str, Sequence[str]], known: Sequence[str], where: str) -> None:
    """`StudyError` where an option of `chosen` names what is not `known`, or a generator has two roles.

    `where` says in the message what was searched: the store, or the index before it is encoded.
    """
    if not chosen["--train-generator"]:
        raise StudyError(f"No --train-generator is named. In {where} there are: {', '.join(known)}.")
    seen: dict[str, str] = {}
    for option, names in chosen.items():
        for generator in names:
            if generator not in known:
                raise StudyError(
                    f"{option} names {generator!r}, which {where} does not have. It has: {', '.join(known)}."
                )
            if generator in seen:
                raise StudyError(
                    f"The generator {generator!r} is named by {seen[generator]} and by {option}; what trains "
                    "or chooses cannot judge. Name it once."
                )
            seen[generator] = option


def check_classes(store: FeatureStore, roles: Roles, criterion: str) -> None:
    """`StudyError` where a generator that chooses by `criterion` has images of one class only."""
    parts = partition(
        store.rows,
        train_generators=roles.train_generators,
        val_generators=roles.val_generators,
        test_generators=roles.test_generators,
    )
    labels = store.rows["label"].to_numpy()
    judges = {name: parts.generators[name] for name in roles.val_generators}
    if CRITERIA[criterion].trains_without:
        for name in roles.train_generators:
            others = [other for other in roles.train_generators if other != name]
            left_out = partition(store.rows, train_generators=others, val_generators=(name,))
            judges[name] = left_out.generators[name]
    for generator, rows in judges.items():
        present = set(np.unique(labels[rows]).tolist())
        if len(present) < 2 and generator in roles.train_generators:
            raise StudyError(
                f"The criterion {criterion!r} leaves out one training generator at a time, and the images of "
                f"{generator!r} are all {'generated' if present == {1} else 'real'}: its AP needs both classes. Add "
                "the other class to the index, or choose another --criterion."
            )
        if len(present) < 2:
            raise StudyError(
                f"The images that judge the validation generator {generator!r} are all "
                f"{'generated' if present == {1} else 'real'}; its AP needs both classes. Add the other "
                "class to the index, or name another of --val-generators."
            )


def check_space(space: SearchSpace, store: FeatureStore) -> None:
    """`InvalidConfig` where the space asks for layers or views that the store does not have."""
    layers = {space.defaults.get("layer", "proj")}
    if "layer" in space.distributions:
        layers = set(getattr(space.distributions["layer"], "choices", ()))
    if absent := sorted(layers - store.layers.keys()):
        raise InvalidConfig(
            f"The search space {space.name!r} asks for the layers {', '.join(absent)}, which the store "
            f"{store.path} does not have; it has {', '.join(store.layers)}. Extract again with "
            f"`--layers {','.join(sorted(layers | store.layers.keys()))}`, or search those that it has with "
            f"`causal-tune tune --layers {','.join(store.layers)}`."
        )
    searched = space.distributions.get("views")
    views = max(
        space.defaults.get("views", 0),
        *getattr(searched, "choices", [getattr(searched, "high", 0)]),
        *(entry.get("views", 0) for entry in space.enqueued),
    )
    if absent := [view for view in map(augmented_view, range(views)) if view not in store.views]:
        raise InvalidConfig(
            f"The search space {space.name!r} trains on {views} augmented views, and the store {store.path} lacks "
            f"{', '.join(absent)}. Make them with the same `causal-tune extract` and `--views {views}`, or "
            "lower `views` in the space."
        )
