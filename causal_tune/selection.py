"""Which trial is the best: selection criteria as pure functions of trial records.

The names are those of domain generalisation (DomainBed, Gulrajani and Lopez-Paz, arXiv 2007.01434):
a training-domain criterion sees only the generator that was trained on, a validation-generator
criterion sees generators that are declared for choosing, and the oracle sees the test generators;
what the oracle wins over a criterion is that criterion's oracle gap. The oracle is reported and
never optimised.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from causal_tune.errors import StudyError
from causal_tune.ledger import TrialRecord
from causal_tune.registry import look_up

__all__ = [
    "CRITERIA",
    "FEWEST_TO_JUDGE",
    "Criterion",
    "Roles",
    "best",
    "check_objective",
    "default_criterion",
    "epoch_score",
    "objective_values",
    "oracle_gap",
    "pareto_front",
    "plain",
    "rank",
    "saturated",
    "score",
    "simplicity",
    "undefined_note",
    "undefined_tests",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """Which generator trains, which chooses and which judges."""

    train_generators: tuple[str, ...]
    val_generators: tuple[str, ...] = ()
    test_generators: tuple[str, ...] = ()
    degraded_views: tuple[str, ...] = ()
    """Views of the validation split that the store has."""

    def role_of(self, generator: str) -> str:
        """`trained on`, `chosen by` or `test`; only the last is unseen.

        >>> Roles(train_generators=("sd14",), val_generators=("cyclegan",)).role_of("cyclegan")
        'chosen by'
        """
        if generator in self.train_generators:
            return "trained on"
        return "chosen by" if generator in self.val_generators else "test"


Sets = Callable[[TrialRecord, Roles], list[dict[str, Any]]]


def _named(record: TrialRecord, names: Sequence[str]) -> list[dict[str, Any]]:
    return [record.generators.get(name, {}) for name in names]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Criterion:
    """A rule that gives a finished trial one number, higher being better."""

    summary: str
    """What it is, for tables."""
    sets: Sets
    """The metrics that it reads, one dict a set of images."""
    combine: Callable[[Sequence[float]], float]
    """From the AP of each set to the score."""
    needs: str = ""
    """The role that must not be empty: `val_generators`, `test_generators`, `degraded_views` or nothing."""
    at_least: int = 1
    """How many names that role needs."""
    every_epoch: bool = True
    """Whether it can be told after each epoch: it then can prune trials."""
    trains_without: bool = False
    """It reads heads that were trained without one of the training generators each."""
    uses_test_domain: bool = False
    """It reads test generators: reported as the oracle, never a study's objective."""
    skips_collapsed: bool = False
    """Trials whose mask has collapsed have no score."""
    leaves_out_undefined: bool = False
    """Sets of one class, whose AP is undefined, are left out (`undefined_tests` names them). Without it one such set
    leaves the trial without a score: a study refuses to choose by such a set before it starts."""


_PLAIN: Mapping[str, Criterion] = MappingProxyType(
    {
        "train_domain": Criterion(
            summary="AP on the validation split of the training generators",
            sets=lambda record, roles: [record.validation],
            combine=_mean,
        ),
        "val_generators": Criterion(
            summary="mean AP over the validation generators",
            sets=lambda record, roles: _named(record, roles.val_generators),
            combine=_mean,
            needs="val_generators",
        ),
        "worst_generator": Criterion(
            summary="lowest AP of a validation generator",
            sets=lambda record, roles: _named(record, roles.val_generators),
            combine=min,
            needs="val_generators",
        ),
        "perturbed_val": Criterion(
            summary="lowest AP on the validation split of the training generators in a degraded view",
            sets=lambda record, roles: list(record.perturbed.values()),
            combine=min,
            needs="degraded_views",
            every_epoch=False,
        ),
        "leave_one_generator_out": Criterion(
            summary="mean AP on each training generator of a head that was trained on the others",
            sets=lambda record, roles: [record.left_out.get(name, {}) for name in roles.train_generators],
            combine=_mean,
            needs="train_generators",
            at_least=2,
            every_epoch=False,
            trains_without=True,
        ),
        "oracle": Criterion(
            summary="mean AP over the test generators (reported, never optimised)",
            sets=lambda record, roles: _named(record, roles.test_generators),
            combine=_mean,
            needs="test_generators",
            uses_test_domain=True,
            leaves_out_undefined=True,
        ),
    }
)

FEWEST_TO_JUDGE = 4
"""Scored trials from which on it can be said whether a criterion tells trials apart."""

_SUFFIX = "_uncollapsed"

CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        **_PLAIN,
        **{
            name + _SUFFIX: replace(
                criterion,
                summary=f"{criterion.summary}, without trials whose mask has collapsed",
                skips_collapsed=True,
            )
            for name, criterion in _PLAIN.items()
            if not criterion.uses_test_domain
        },
    }
)

# Of two heads with the same score the one with fewer parts is taken; heads not named here come last.
_SIMPLEST_FIRST = ("linear", "svm", "prototypes", "nearest", "mlp", "vib")


def default_criterion(roles: Roles) -> str:
    """`val_generators` where the study has some; else `leave_one_generator_out` where several generators train,
    `perturbed_val` where the store has degraded views, and without any of these `train_domain`, which saturates.

    >>> default_criterion(Roles(train_generators=("sd14",), val_generators=("cyclegan",)))
    'val_generators'
    """
    if roles.val_generators:
        return "val_generators"
    if len(roles.train_generators) > 1:
        return "leave_one_generator_out"
    return "perturbed_val" if roles.degraded_views else "train_domain"


def simplicity(config: Mapping[str, Any]) -> tuple[int, int]:
    """How simple a configuration is, for ties; lower is simpler: first the head, then the terms of CausalCLIP at work.

    >>> simplicity({"head": "linear"}) < simplicity({"head": "causal", "mask_scope": "none", "beta": 0})
    True
    """
    head = config.get("head")
    place = _SIMPLEST_FIRST.index(head) if head in _SIMPLEST_FIRST else len(_SIMPLEST_FIRST)
    masked = head == "causal" and config.get("mask_scope") != "none"
    weights = ("lambda1", "lambda2", "alpha") if masked else ()
    terms = [masked, head == "causal" and config.get("beta", 0) > 0 and config.get("p", 0) > 0]
    return place, sum(map(bool, terms)) + sum(config.get(name, 0) > 0 for name in weights)


def plain(name: str) -> str:
    """The criterion that lets collapsed trials in.

    >>> plain("val_generators_uncollapsed")
    'val_generators'
    """
    return name.removesuffix(_SUFFIX)


def check_objective(name: str, roles: Roles) -> Criterion:
    """The criterion, if a study with these roles may optimise it; else `StudyError` says why not."""
    criterion = look_up("criterion", CRITERIA, name)
    if criterion.uses_test_domain:
        allowed = sorted(key for key, value in CRITERIA.items() if not value.uses_test_domain)
        raise StudyError(
            f"The criterion {name!r} reads the test generators, so a study that optimised it would have "
            f"no test left. Optimise one of {', '.join(allowed)}; {name!r} is reported beside it."
        )
    _check_needs(name, criterion, roles)
    return criterion


def _check_needs(name: str, criterion: Criterion, roles: Roles) -> None:
    if criterion.needs and len(getattr(roles, criterion.needs)) < criterion.at_least:
        if criterion.at_least > 1:
            raise StudyError(
                f"The criterion {name!r} leaves out one training generator at a time, and the study has "
                f"{len(getattr(roles, criterion.needs))}. Name {criterion.at_least} or more with `--train-generator`, "
                "or choose another criterion."
            )
        option = "--" + criterion.needs.replace("_", "-")
        step = f"Name some with `{option}`"
        if criterion.needs == "degraded_views":
            step = "Make some with `causal-tune extract ... --degrade figure4`"
        raise StudyError(
            f"The criterion {name!r} needs {criterion.needs.replace('_', ' ')}, and the study has none. "
            f"{step}, or choose the criterion 'train_domain'."
        )


def score(record: TrialRecord, criterion: str, roles: Roles) -> float | None:
    """The criterion's value of a trial; None where it failed, a set lacks a class (unless the criterion leaves such
    sets out and there is another), or its mask has collapsed and the criterion skips such trials.

    >>> record = TrialRecord(
    ...     number=0, id="00000-x", state="finished", config={}, seed=0, validation={"ap": 0.9}
    ... )
    >>> score(record, "train_domain", Roles(train_generators=("sd14",)))
    0.9
    """
    rule = look_up("criterion", CRITERIA, criterion)
    if not record.finished or (rule.skips_collapsed and record.collapsed):
        return None
    values = [metrics.get("ap") for metrics in rule.sets(record, roles)]
    present = [
        min(1.0, float(value)) for value in values if value is not None
    ]  # old ledgers: a rounding above 1
    if not present or (len(present) < len(values) and not rule.leaves_out_undefined):
        return None
    return rule.combine(present)


def undefined_tests(record: TrialRecord, roles: Roles) -> list[str]:
    """The test generators that no mean over them includes, because they have images of one class only.

    >>> record = TrialRecord(
    ...     number=0, id="00000-x", state="finished", config={}, seed=0,
    ...     generators={"glide": {"ap": 0.9}, "ldm": {"ap": None}},
    ... )
    >>> undefined_tests(record, Roles(train_generators=("sd14",), test_generators=("glide", "ldm")))
    ['ldm']
    """
    return [name for name in roles.test_generators if record.generators.get(name, {}).get("ap") is None]


def undefined_note(record: TrialRecord, roles: Roles) -> str:
    """`undefined_tests` as a sentence that names and counts them; empty where there are none."""
    names = undefined_tests(record, roles)
    if not names:
        return ""
    num = len(roles.test_generators)
    return (
        f"Mean test AP is over {num - len(names)} of {num} test generators: AP is undefined for {', '.join(names)}, "
        "with images of one class only."
    )


def epoch_score(epoch: Mapping[str, Any], criterion: str, roles: Roles) -> float | None:
    """The criterion's value after one epoch (`TrialRecord.epochs`); None where that epoch does not tell it.

    >>> roles = Roles(train_generators=("sd14",), val_generators=("cyclegan",))
    >>> epoch_score({"validation/ap": 0.9, "generator_ap/cyclegan": 0.7}, "val_generators", roles)
    0.7
    """
    prefix = "generator_ap/"
    so_far = TrialRecord(
        number=0,
        id="",
        state="finished",
        config={},
        seed=0,
        validation={"ap": epoch.get("validation/ap")},
        generators={
            key[len(prefix) :]: {"ap": value} for key, value in epoch.items() if key.startswith(prefix)
        },
    )
    return score(so_far, criterion, roles)


def objective_values(
    record: TrialRecord, objectives: Mapping[str, Sequence[str]]
) -> tuple[float, ...] | None:
    """By objective, the mean AP over its generators; None where the trial lacks one.

    >>> record = TrialRecord(
    ...     number=0, id="00000-x", state="finished", config={}, seed=0,
    ...     generators={"progan": {"ap": 0.9}, "glide": {"ap": 0.6}, "ldm": {"ap": 0.8}},
    ... )
    >>> objective_values(record, {"gans": ["progan"], "diffusion": ["glide", "ldm"]})
    (0.9, 0.7)
    """
    if not record.finished:
        return None
    values = []
    for names in objectives.values():
        aps = [metrics.get("ap") for metrics in _named(record, names)]
        present = [float(ap) for ap in aps if ap is not None]
        if len(present) < len(aps):
            return None
        values.append(_mean(present))
    return tuple(values)


def pareto_front(
    records: Iterable[TrialRecord], objectives: Mapping[str, Sequence[str]]
) -> list[TrialRecord]:
    """The trials that no other one equals or betters in every objective and betters in one, by number.

    Of trials with the same values all stay.
    """
    valued = [
        (record, values) for record in records if (values := objective_values(record, objectives)) is not None
    ]

    def dominated(mine: tuple[float, ...]) -> bool:
        return any(
            other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for _, other in valued
        )

    return sorted(
        (record for record, mine in valued if not dominated(mine)), key=lambda record: record.number
    )


def oracle_gap(
    records: Iterable[TrialRecord], criterion: str, roles: Roles
) -> tuple[TrialRecord, float, float] | None:
    """The trial that the test generators would have chosen, its mean test AP, and what it wins over the
    criterion's choice. None without test generators, or where one of the two choices is none.

    It says how good the criterion is; nothing may be chosen by it.
    """
    records = list(records)
    if not roles.test_generators or CRITERIA[criterion].uses_test_domain:
        return None
    mine, oracle = rank(records, criterion, roles), rank(records, "oracle", roles)
    if not mine or not oracle or (own := score(mine[0][0], "oracle", roles)) is None:
        return None
    return oracle[0][0], oracle[0][1], oracle[0][1] - own


def rank(records: Iterable[TrialRecord], criterion: str, roles: Roles) -> list[tuple[TrialRecord, float]]:
    """The finished trials with their scores, best first; failed ones and those without a score left out.

    Ties: the simpler head first, then the lower number, so the order is a function of the records.
    """
    _check_needs(criterion, look_up("criterion", CRITERIA, criterion), roles)
    scored = [(record, score(record, criterion, roles)) for record in records]
    kept = [(record, value) for record, value in scored if value is not None]

    def order(item: tuple[TrialRecord, float]) -> tuple[float, int, int]:
        record, value = item
        return (-value, simplicity(record.config)[0], record.number)

    return sorted(kept, key=order)


def best(records: Iterable[TrialRecord], criterion: str, roles: Roles) -> TrialRecord:
    """The winner by `criterion`; `StudyError` counts the reasons where no trial can be chosen."""
    records = list(records)
    ranked = rank(records, criterion, roles)
    if ranked:
        return ranked[0][0]
    if not records:
        raise StudyError(
            "The study has no finished trial yet. Run the same `causal-tune tune` again: it continues."
        )
    unscored = f"no {criterion} score: a class is missing"
    if CRITERIA[criterion].skips_collapsed:
        unscored = f"no {criterion} score: its mask has collapsed, or a class is missing"
    reasons = Counter(
        unscored
        if record.finished
        else record.reason
        if record.state == "failed"
        else f"{record.state}, so without a result"
        for record in records
    )
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    raise StudyError(
        f"None of the {len(records)} trials can be chosen by {criterion!r}: {listed}. "
        "Mend the cause, or widen the search space, and run a study under another --study name."
    )


def saturated(records: Iterable[TrialRecord], criterion: str, roles: Roles) -> str | None:
    """A warning where the better half of the trials lies within the noise of the best one, else None.

    The variance of one set's AP is taken as that of a share of n images, n the smaller class, with Agresti and Coull's
    two added successes and failures ("Approximate is better than exact", The American Statistician 52, 1998): with
    p = (n AP + 2) / (n + 4) it is p (1 - p) / (n + 4), which is not 0 where AP is 1. Coarse, and enough to tell a
    criterion that ranks trials from one that draws lots. None, too, for fewer than `FEWEST_TO_JUDGE` scored trials.
    """
    ranked = rank(records, criterion, roles)
    if len(ranked) < FEWEST_TO_JUDGE:
        return None
    top, top_score = ranked[0]
    sets = look_up("criterion", CRITERIA, criterion).sets(top, roles)
    sets = [metrics for metrics in sets if metrics.get("ap") is not None]
    variances = [_variance(metrics) for metrics in sets]
    # A mean over k sets has the mean variance over k; a minimum is as noisy as one set.
    shared = len(sets) if look_up("criterion", CRITERIA, criterion).combine is _mean else 1
    noise = math.sqrt(_mean(variances) / shared)
    spread = top_score - ranked[len(ranked) // 2][1]
    if spread > 2 * noise:
        return None
    uses_test = CRITERIA[criterion].uses_test_domain
    advice = "" if uses_test else "; name (more) validation generators"
    return (
        f"The criterion {criterion!r} is saturated: half of the {len(ranked)} trials lie within "
        f"{100 * spread:.2f} points of the best ({100 * top_score:.2f} %), and its own noise is about "
        f"{100 * noise:.2f} points. It cannot tell these trials apart{advice}."
    )


def _variance(metrics: Mapping[str, Any]) -> float:
    """Of the AP of one set, as `saturated` takes it."""
    num = min(metrics["num_real"], metrics["num_generated"])
    share = (num * metrics["ap"] + 2) / (num + 4)
    return float(share * (1 - share) / (num + 4))
