"""Who won, and how sure that is: the best configurations of a search, trained again on fresh seeds.

The best of many trials owes part of its score to luck, so the search's own scores flatter it. Here its best
configurations and the linear probe, tuned with as many trials, are trained again with seeds that the search never
used, and judged by the study's criterion: never by the test generators. Configurations not significantly worse than
the best, given the spread over seeds and images, are tied with it, and the simplest of them is taken. A collapsed mask
is no causal head: such trials of the search are no finalists, and a finalist that collapses on every seed is not
chosen.

Everything is a function of ledgers, checkpoints and the store, so `finalists.json` comes out the same every time.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution

from causal_tune.errors import StudyError
from causal_tune.intervals import Interval, mean_interval, paired_difference
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.resampling import NUM_DRAWS, Floats, Scored, interval_of, measure_draws
from causal_tune.selection import CRITERIA, Roles, plain, rank, score, simplicity
from causal_tune.study.scores import VALIDATION, trial_scores
from causal_tune.study.space import SearchSpace, load_space
from causal_tune.study.spec import StudySpec, read_spec
from causal_tune.study.suggestion import same_trial, trial_seed
from causal_tune.study.verdicts import remedy
from causal_tune.trial import TrialConfig, completed

__all__ = [
    "FINALISTS",
    "MAX_SEEDS",
    "NO_SHARES",
    "PROBE",
    "TERMS",
    "Candidate",
    "Trained",
    "ahead_collapsed",
    "candidates_of",
    "choose",
    "chosen_training",
    "compare",
    "gain_over_probe",
    "probe_space",
    "read_finalists",
    "repeat_space",
    "representative",
    "searched_by",
    "terms_of",
]

FINALISTS = "finalists.json"
FORMAT = 1
PROBE = "probe"
MAX_SEEDS = 20
"""Seeds that a study of finalists is frozen with, so that it can be extended; each costs nothing until asked for."""
_FRESH = 1_000_000
"""The seeds are those of trials from this number on, which no search reaches."""
LEVEL = 0.95

TERMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mask": ("no mask: a probe with counterfactuals", {"mask_scope": "none"}),
    "adversary": ("alpha = 0", {"alpha": 0.0}),
    "hsic": ("lambda2 = 0", {"lambda2": 0.0}),
    "l1": ("lambda1 = 0", {"lambda1": 0.0}),
    "consistency": ("beta = 0", {"beta": 0.0}),
    "layer": ("the default layer", {}),
}
"""What of CausalCLIP is switched off alone, and how."""

NO_SHARES = "Shares of the gain over the probe are left out: that gain is not distinguishable from nothing."


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that is trained again."""

    name: str
    """The id of the search's trial, `probe`, or a term that is off."""
    config: Mapping[str, Any]
    search_score: float | None = None
    """What it had in the search: optimistic, since it was chosen for it."""

    @property
    def key(self) -> str:
        """What its trials have in common."""
        return same_trial(self.config)


# --- what is trained again -------------------------------------------------------------------------------


def candidates_of(spec: StudySpec, records: Sequence[TrialRecord], top: int) -> list[Candidate]:
    """The `top` best configurations of a search by its own criterion, each once, without trials whose mask has
    collapsed; `StudyError` where there is none."""
    found: dict[str, Candidate] = {}
    ranked = rank(records, spec.criterion, spec.roles)
    for record, value in ranked:
        if not record.collapsed:
            one = Candidate(record.id, completed(record.config), value)
            found.setdefault(one.key, one)
    if ranked and not found:
        raise StudyError(
            f"Every trial of the study {spec.name!r} that {spec.criterion!r} can choose has a collapsed mask, so it "
            f"has no finalists. {remedy(str(ranked[0][0].collapsed))} in the search space and run a study under "
            "another name."
        )
    if not found:
        raise StudyError(
            f"No trial of the study {spec.name!r} can be chosen by {spec.criterion!r}, so it has no finalists. "
            f"Look at `causal-tune leaderboard {spec.name}`."
        )
    return list(found.values())[:top]


def ahead_collapsed(
    spec: StudySpec, records: Sequence[TrialRecord], candidates: Sequence[Candidate]
) -> list[str]:
    """The trials that rank above the last of `candidates` and are none, because their masks have collapsed."""
    last = min(one.search_score for one in candidates if one.search_score is not None)
    ranked = rank(records, spec.criterion, spec.roles)
    return [record.id for record, value in ranked if record.collapsed and value >= last]


def searched_by(name: str) -> str:
    """The study whose finalists the study `name` trained, by its name; empty where it is none of these.

    >>> searched_by("real.probe"), searched_by("real.finalists-6ffd91"), searched_by("real.v2")
    ('real', 'real', '')
    """
    searched, _, kind = name.rpartition(".")
    return searched if kind == PROBE or kind.startswith(("finalists-", "terms-")) else ""


def probe_space(spec: StudySpec) -> SearchSpace:
    """The search space of the linear probe that the finalists are compared with, over the layers of the search.

    Classes are balanced as they are there.
    """
    own = spec.search_space()
    layers = own.distributions.get("layer")
    if isinstance(layers, CategoricalDistribution):
        names = [str(name) for name in layers.choices]
    else:
        names = [str(own.defaults.get("layer", "proj"))]
    balance = completed(own.defaults)["class_balance"]
    space = load_space("linear")
    return replace(space, defaults={**space.defaults, "class_balance": balance}).over_layers(names)


def repeat_space(name: str, candidates: Sequence[Candidate], seed: int) -> SearchSpace:
    """Nothing is searched: each candidate once for each of `MAX_SEEDS` fresh seeds, all of one seed together."""
    heads = sorted({str(one.config["head"]) for one in candidates})
    seeds = [trial_seed(seed, _FRESH + number) for number in range(MAX_SEEDS)]
    return SearchSpace(
        name=name,
        question="Which of these configurations is the best, on seeds that no search has seen?",
        expected="As many trials as configurations times seeds; a mean with its interval for each.",
        distributions={"head": CategoricalDistribution(heads)},
        defaults={key: value for key, value in candidates[0].config.items() if key != "seed"},
        enqueued=tuple({**one.config, "seed": value} for value in seeds for one in candidates),
    )


def terms_of(winner: Candidate, default_layer: str) -> list[Candidate]:
    """The winner with each of its terms switched off alone; those that it does not have are left out."""
    config = dict(winner.config)
    if config["head"] != "causal":
        return []
    found = []
    for name, (_, changes) in TERMS.items():
        off = {**config, **({"layer": default_layer} if name == "layer" else changes)}
        if off != config and not (name == "consistency" and config["p"] == 0):
            found.append(Candidate(name, TrialConfig.from_dict(off).to_dict()))
    return found


# --- what was found --------------------------------------------------------------------------------------


def read_finalists(study_path: Path, num_trials: int) -> dict[str, Any] | None:
    """`finalists.json` of a study; None where there is none, or where the search has gone on since.

    `StudyError` for a file that is something else.
    """
    path = study_path / FINALISTS
    if not path.is_file():
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise StudyError(
                f"{path} has format {document['format']}; this release reads format {FORMAT}. Delete it and run "
                f"`causal-tune finalists {study_path.name}` again."
            )
        return document if document["budget"]["search_trials"] == num_trials else None
    except StudyError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{path} is damaged ({error}). Delete it and run `causal-tune finalists {study_path.name}` again: "
            "nothing is trained twice."
        ) from error


def representative(
    document: Mapping[str, Any], records: Sequence[TrialRecord], spec: StudySpec, name: str
) -> TrialRecord:
    """Of the trainings of the finalist `name` the best by the criterion, those without a collapsed mask first.

    `records` and `spec` are those of the study that trained the finalists; `StudyError` where it has gone.
    """
    rows = [*document["finalists"], document["probe"]]
    trials = next(row["trials"] for row in rows if row and row["name"] == name)
    ranked = rank([record for record in records if record.id in trials], spec.criterion, spec.roles)
    if not ranked:
        raise StudyError(
            f"The trials of {name} are not in the study {spec.name!r} any more. Run `causal-tune finalists "
            f"{document['study']}` again."
        )
    return min((record for record, _ in ranked), key=lambda record: record.collapsed is not None)


def chosen_training(
    study_path: Path, document: Mapping[str, Any], name: str | None = None
) -> tuple[Path, StudySpec, TrialRecord]:
    """The `representative` of the finalist `name` (default: the chosen one) with the study that trained it, which lies
    beside the one that was searched."""
    path = study_path.parent / document["study_of_finalists"]
    spec = read_spec(path)
    records = Ledger(path / "trials").records()
    return path, spec, representative(document, records, spec, name or document["verdict"]["chosen"])


# --- what they come to -----------------------------------------------------------------------------------


def criterion_sets(criterion: str, roles: Roles) -> list[str] | None:
    """The sets of `trial_scores` that a criterion reads; None where they are of heads that are not kept."""
    name = plain(criterion)
    if name == "train_domain":
        return [VALIDATION]
    if name == "perturbed_val":
        return [f"view/{view}" for view in roles.degraded_views]
    return None if CRITERIA[name].trains_without else list(roles.val_generators)


@dataclass(frozen=True)
class Trained:
    """A candidate with its trials: by seed the value of the criterion, and on draws of images."""

    candidate: Candidate
    values: dict[int, float]
    records: dict[int, TrialRecord]
    draws: Floats | None
    """[seeds, draws] in the order of `values`; None where the criterion's scores are not kept."""

    @property
    def always_collapsed(self) -> bool:
        """Whether no seed gave it a sound mask, so that there is nothing to export."""
        return bool(self.records) and all(record.collapsed for record in self.records.values())


Scores = Callable[[TrialRecord], Mapping[str, Scored]]


def train_results(
    candidates: Sequence[Candidate],
    records: Sequence[TrialRecord],
    spec: StudySpec,
    scores: Scores,
) -> list[Trained]:
    """The candidates with what their trials came to, on the seeds that all of them finished; those that finished
    none are left out."""
    by_key: dict[str, dict[int, TrialRecord]] = {}
    for record in records:
        if record.finished and score(record, plain(spec.criterion), spec.roles) is not None:
            by_key.setdefault(same_trial(record.config), {})[record.seed] = record
    present = [one for one in candidates if one.key in by_key]
    if not present:
        return []
    shared = set.intersection(*(set(by_key[one.key]) for one in present))
    seeds = [seed for seed in by_key[present[0].key] if seed in shared]
    names = criterion_sets(spec.criterion, spec.roles)
    rows: list[list[Scored]] = []
    if names and seeds:
        for one in present:
            for seed in seeds:
                sets = scores(by_key[one.key][seed])
                rows.append([sets[name] for name in names])
    draws = (
        measure_draws(rows, CRITERIA[plain(spec.criterion)].combine, np.random.default_rng(spec.seed))
        if rows
        else None
    )
    found = []
    for place, one in enumerate(present):
        mine = {seed: by_key[one.key][seed] for seed in seeds}
        values = {seed: _value(record, spec) for seed, record in mine.items()}
        part = None if draws is None else draws[place * len(seeds) : (place + 1) * len(seeds)]
        found.append(Trained(one, values, mine, part))
    return found


def _value(record: TrialRecord, spec: StudySpec) -> float:
    value = score(record, plain(spec.criterion), spec.roles)
    assert value is not None
    return float(value)


def difference(a: Trained, b: Trained, *, level: float = LEVEL, seed: int = 0) -> dict[str, Any]:
    """`a` minus `b` in the criterion, paired by seed and by image, with its interval and two-sided p.

    Draws images, the same for both and for all seeds, and R - 1 of the R seeds (so that their spread is not taken too
    small). Where the images' scores are not kept, or there is one seed, the interval covers less, and says what.
    """
    pairs = [(a.values[key], b.values[key]) for key in a.values]
    mean = math.fsum(x - y for x, y in pairs) / len(pairs)
    if a.draws is None or b.draws is None:
        over = paired_difference([x for x, _ in pairs], [y for _, y in pairs], level=level)
        return {
            "difference": mean,
            "interval": None if over.low is None else [over.low, over.high],
            "p": None,
            "covers": "seeds",
        }
    drawn = _over_seeds(a.draws - b.draws, seed)
    below = int((drawn <= 0).sum())
    above = int((drawn >= 0).sum())
    return {
        "difference": mean,
        "interval": list(interval_of(drawn, level=level)),
        "p": min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1)),
        "covers": "seeds and images" if len(pairs) > 1 else "images",
    }


def _over_seeds(draws: Floats, seed: int) -> Floats:
    """The mean over drawn seeds of [seeds, draws], one a draw."""
    count, num_draws = draws.shape
    if count == 1:
        only: Floats = draws[0]
        return only
    chosen = np.random.default_rng([seed, 1]).integers(0, count, (num_draws, count - 1))
    picked: Floats = draws[chosen, np.arange(num_draws)[:, None]]
    return np.asarray(np.mean(picked, axis=1), np.float64)


def choose(trained: Sequence[Trained], *, seed: int = 0) -> dict[str, Any]:
    """The verdict: `best` by the mean, the `tied` with it, the `chosen` of them, and the comparisons behind it.

    A candidate is tied where the interval of its difference from the best holds 0; the level is shared among the
    comparisons (Bonferroni), so that together they err in 5 % of studies. Of the tied the simplest is chosen: the
    linear probe before other heads, then fewer terms, then the higher mean. What collapsed on every seed takes part
    only where there is nothing else.
    """
    sound = [one for one in trained if not one.always_collapsed]
    left_out = [one.candidate.name for one in trained if one.always_collapsed] if sound else []
    order = sorted(sound or trained, key=lambda one: (-_mean(one), simplicity(one.candidate.config)))
    best, others = order[0], order[1:]
    level = 1 - (1 - LEVEL) / max(1, len(others))
    pairs, tied = [], [best]
    for other in others:
        found = difference(best, other, level=level, seed=seed)
        interval = found["interval"]
        if interval is None or interval[0] <= 0:
            tied.append(other)
        pairs.append({"a": best.candidate.name, "b": other.candidate.name, "level": level, **found})
    chosen = min(tied, key=lambda one: (simplicity(one.candidate.config), -_mean(one)))
    names = [one.candidate.name for one in tied]
    if len(tied) == 1:
        reason = (
            f"{_spoken(names[0])} is better than every other; the differences exceed what seeds and images alone "
            "produce."
        )
        if not others:
            reason = f"{_spoken(names[0])} is the only one that can be chosen."
    else:
        reason = (
            f"a tie of {', '.join(map(_spoken, names))}: their differences are within what seeds and images alone "
            f"produce. {_spoken(chosen.candidate.name)} is the simplest of them.".replace(". the ", ". The ")
        )
    if left_out:
        verb = "is" if len(left_out) == 1 else "are"
        reason += f" {', '.join(left_out)} {verb} left out: the mask collapsed on every seed."
    return {
        "winner": names[0] if len(tied) == 1 else None,
        "tie": names if len(tied) > 1 else [],
        "chosen": chosen.candidate.name,
        "reason": reason[0].upper() + reason[1:],
        "paired": pairs,
    }


def _spoken(name: str) -> str:
    return "the tuned linear probe" if name == PROBE else name


def _mean(one: Trained) -> float:
    return math.fsum(one.values.values()) / len(one.values)


def compare(
    spec: StudySpec,
    candidates: Sequence[Candidate],
    *,
    repeats: tuple[Path, StudySpec, Sequence[TrialRecord]],
    probe: Mapping[str, Any],
) -> tuple[dict[str, Any], list[Trained]]:
    """The finalists of `spec`, as they lie in finalists.json, from the study that trained them again.

    `StudyError` where none of them finished a trial.
    """
    path, repeated, records = repeats
    trained = train_results(
        candidates, records, repeated, lambda record: trial_scores(path, repeated, record)
    )
    if not trained or not trained[0].values:
        reasons = sorted({str(record.reason) for record in records if record.failed})
        raise StudyError(
            f"No seed has a result for every finalist of {spec.name!r}: {'; '.join(reasons) or 'none ended'}. "
            f"Look at `causal-tune leaderboard {repeated.name}`."
        )
    verdict = choose(trained, seed=spec.seed)
    pairs = verdict.pop("paired")
    rows = [_row(one, spec) for one in trained]
    document = {
        "format": FORMAT,
        "study": spec.name,
        "criterion": spec.criterion,
        "seeds": list(trained[0].values),
        "num_draws": NUM_DRAWS,
        "finalists": [row for row in rows if row["name"] != PROBE],
        "probe": next((row for row in rows if row["name"] == PROBE), None),
        "budget": dict(probe),
        "paired": pairs,
        "verdict": verdict,
        "failed": [one.name for one in candidates if one.name not in {row["name"] for row in rows}],
        "study_of_finalists": repeated.name,
    }
    return document, trained


def gain_over_probe(document: Mapping[str, Any], name: str) -> float | None:
    """By how much the finalist `name` is better than the probe; None where the interval does not lie above 0: a gain
    that is not distinguishable from nothing has no parts.
    """
    for pair in document["paired"]:
        if (pair["a"], pair["b"]) == (name, PROBE) and pair["interval"] and pair["interval"][0] > 0:
            return float(pair["difference"])
    return None


def compare_terms(
    spec: StudySpec,
    winner: Trained,
    terms: Sequence[Candidate],
    *,
    repeats: tuple[Path, StudySpec, Sequence[TrialRecord]],
    gain: float | None,
) -> list[dict[str, Any]]:
    """The gain from each term of the winner: the winner minus itself without that term, on the same seeds and images.

    `gain` is the winner's own (`gain_over_probe`); `share` is a term's part of it, None where there is none.
    """
    path, repeated, records = repeats
    rows: list[dict[str, Any]] = []
    for term in terms:
        (off,) = train_results(
            [term], records, repeated, lambda record: trial_scores(path, repeated, record)
        ) or (None,)
        if off is None or off.values.keys() != winner.values.keys():
            reasons = sorted(
                {str(item.reason) for item in records if item.failed and same_trial(item.config) == term.key}
            )
            rows.append({"term": term.name, "off": _off(term, winner), "failed": reasons})
            continue
        found = difference(winner, off, seed=spec.seed)
        rows.append(
            {
                "term": term.name,
                "off": _off(term, winner),
                **found,
                "share": found["difference"] / gain if gain else None,
                "mean": _mean(off),
                "scores": list(off.values.values()),
                "test_difference": _plain(
                    paired_difference(_tests(winner, spec), _tests(off, spec))
                    if spec.test_generators
                    else None
                ),
            }
        )
    return rows


def _off(term: Candidate, winner: Trained) -> dict[str, Any]:
    mine = winner.candidate.config
    return {key: value for key, value in term.config.items() if key != "seed" and mine.get(key) != value}


def _row(one: Trained, spec: StudySpec) -> dict[str, Any]:
    records = list(one.records.values())
    tests: dict[str, list[Any]] = {
        name: [record.generators.get(name, {}).get("ap") for record in records]
        for name in spec.test_generators
    }
    means = _tests(one, spec) if spec.test_generators else []
    own = one.draws
    return {
        "name": one.candidate.name,
        "config": {key: value for key, value in one.candidate.config.items() if key != "seed"},
        "search_score": one.candidate.search_score,
        "scores": list(one.values.values()),
        "mean": _mean(one),
        "interval": list(interval_of(_over_seeds(own, spec.seed))) if own is not None else None,
        "over_seeds": _plain(mean_interval(list(one.values.values()))),
        "num_collapsed": sum(record.collapsed is not None for record in records),
        "trials": [record.id for record in records],
        "test": {
            name: {"ap": values, "mean": _plain(mean_interval(values)) if None not in values else None}
            for name, values in tests.items()
        },
        "test_mean": _plain(mean_interval(means)) if means and all(map(math.isfinite, means)) else None,
    }


def _tests(one: Trained, spec: StudySpec) -> list[float]:
    values = [score(record, "oracle", spec.roles) for record in one.records.values()]
    return [math.nan if value is None else value for value in values]


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "num": interval.num}
