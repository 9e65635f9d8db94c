"""What a report says, as tables, figures and sentences: a function of the study's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from causal_tune.errors import StoreError, StudyError
from causal_tune.features import FeatureStore
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.report import figures
from causal_tune.report.ablation import ablation
from causal_tune.report.audited import audited
from causal_tune.report.measured import measured, remembered
from causal_tune.report.recipe import recipe
from causal_tune.report.section import Report, Section
from causal_tune.report.tables import Table, over_seeds, percent, signed, with_ends
from causal_tune.selection import (
    CRITERIA,
    FEWEST_TO_JUDGE,
    oracle_gap,
    rank,
    saturated,
    score,
    undefined_note,
)
from causal_tune.study.finalists import PROBE, read_finalists
from causal_tune.study.importance import Importance, importance
from causal_tune.study.recommended import Chosen, recommended, tuned_probe
from causal_tune.study.spec import StudySpec, read_spec

__all__ = ["build"]


def build(study_path: Path, index: Path | None = None) -> Report:
    """The report of a study; `index` is that of its images, where it is not in the workspace.

    Where the features are gone it is of what the ledger kept, and says so. `StudyError` where the study has no trial
    that can be chosen, or a checkpoint is gone; `StoreError` where `index` lists other images.
    """
    spec = read_spec(study_path)
    records = Ledger(study_path / "trials").records()
    finalists = read_finalists(study_path, len(records))
    chosen = recommended(study_path, spec, records, finalists)
    store = None
    try:
        judged = measured(study_path, spec, records, chosen, tuned_probe(study_path, finalists, chosen))
        store = FeatureStore(spec.store_path)
    except StoreError as error:
        judged = [remembered(spec, chosen, error)]
    sections = [
        *judged,
        *([_finalists(spec, finalists)] if finalists else []),
        *ablation(spec, records, finalists),
        _search(spec, records),
        *([_importance(spec, records, found)] if (found := importance(records, spec)) else []),
        _criteria(spec, records),
        *([audited(spec, store, index)] if store else []),
        recipe(store, spec, records, finalists, index),
    ]
    return Report(
        title=f"Study {spec.name}", verdict=_verdict(spec, records, finalists, chosen), sections=sections
    )


def _verdict(
    spec: StudySpec,
    records: Sequence[TrialRecord],
    finalists: Mapping[str, Any] | None,
    chosen: Chosen,
) -> list[str]:
    config = chosen.record.config
    what = f"the {config['head']} head on layer {config['layer']}"
    if finalists:
        first = f"{finalists['verdict']['reason']} Recommended: {what}."
    else:
        value = score(chosen.record, spec.criterion, spec.roles)
        sound = " without a collapsed mask" if chosen.passed_over else ""
        first = (
            f"The best of {len(records)} trials by {spec.criterion}{sound} is trial {chosen.record.id}, {what}, with "
            f"{percent(value)} %. That score is optimistic, because it was used to choose; "
            f"`causal-tune finalists {spec.name}` measures it on fresh seeds."
        )
    if chosen.passed_over:
        passed = chosen.passed_over
        names = ", ".join(record.id for record in passed)
        names = names if len(passed) <= 3 else f"{len(passed)} trials with a higher score"
        first += f" A collapsed mask is no causal head, so it is recommended instead of {names}."
    elif chosen.record.collapsed:
        first += f" Its mask has collapsed to all {chosen.record.collapsed}: it is no causal head."
    test = score(chosen.record, "oracle", spec.roles) if spec.test_generators else None
    second = (
        f"On the test generators {', '.join(spec.test_generators)}, which took no part in choosing, its mean AP is "
        f"{percent(test)} %."
        if spec.test_generators
        else "The study has no test generators, so it says nothing about unseen ones."
    )
    if note := undefined_note(chosen.record, spec.roles):
        second += f" {note}"
    warning = saturated(records, spec.criterion, spec.roles)
    collapsed = sum(record.collapsed is not None for record in records)
    few = len(rank(records, spec.criterion, spec.roles)) < FEWEST_TO_JUDGE
    apart = (
        f"Fewer than {FEWEST_TO_JUDGE} trials have a score, too few to say whether the criterion tells trials apart."
        if few
        else "The criterion could tell trials apart."
    )
    third = f"{collapsed} of {len(records)} trials have a collapsed mask. {warning or apart}"
    return [first, second, third]


def _finalists(spec: StudySpec, document: Mapping[str, Any]) -> Section:
    rows = []
    for row in [*document["finalists"], *([document["probe"]] if document["probe"] else [])]:
        over = row["over_seeds"]
        ends = row["interval"] or ([over["low"], over["high"]] if over["low"] is not None else None)
        test = row["test_mean"]
        rows.append(
            [
                "tuned linear probe" if row["name"] == PROBE else row["name"],
                f"{row['config']['head']}, {row['config']['layer']}",
                percent(row["search_score"]),
                with_ends(row["mean"], ends),
                "undefined" if test is None else over_seeds(test),
                str(row["num_collapsed"]),
            ]
        )
    seeds = len(document["seeds"])
    tables = [
        Table(
            name="finalists",
            caption=f"The best configurations, trained again on {seeds} fresh seeds: {spec.criterion} in per cent.",
            columns=[
                "configuration",
                "head, layer<",
                "in the search",
                "mean, 95 %",
                "mean test AP",
                "collapsed",
            ],
            rows=rows,
        ),
        Table(
            name="finalists_paired",
            caption="Differences in points, paired by seed and image; the level is shared among the comparisons.",
            columns=["pair", "difference", "p", "covers<"],
            rows=[
                [
                    f"{pair['a']} - {pair['b']}",
                    signed(pair["difference"], pair["interval"]),
                    "-" if pair["p"] is None else f"{pair['p']:.3f}",
                    pair["covers"],
                ]
                for pair in document["paired"]
            ],
        ),
    ]
    return Section(
        title="Finalists",
        text="The scores of the search are optimistic, because the best of many was taken. Test AP is reported only.",
        tables=tables,
    )


def _search(spec: StudySpec, records: Sequence[TrialRecord]) -> Section:
    ranked = rank(records, spec.criterion, spec.roles)
    space = spec.search_space()
    searched = [name for name in space.names if name not in ("head", "layer")]
    rows = [
        [
            record.id,
            record.config["head"],
            record.config["layer"],
            percent(value),
            percent(record.validation["ap"]),
            percent(score(record, "oracle", spec.roles)) if spec.test_generators else "-",
            "-" if record.mask is None else f"{record.mask['mean']:.3f}{'!' if record.collapsed else ''}",
            *(_short(value) for value in map(space.settings_of(record.config).get, searched)),
        ]
        for record, value in ranked[:15]
    ]
    states: dict[str, int] = {}
    for record in records:
        states[record.state] = states.get(record.state, 0) + 1
    reasons: dict[str, int] = {}
    for record in records:
        if record.failed:
            reasons[str(record.reason)] = reasons.get(str(record.reason), 0) + 1
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    text = (
        f"{len(records)} trials: {counted}; {sum(one.collapsed is not None for one in records)} collapsed masks "
        "(marked !)."
    )
    if reasons:
        text += (
            "\n\nFailed: "
            + "; ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
            + "."
        )
    return Section(
        title="The search",
        text=text,
        tables=[
            Table(
                name="trials",
                caption="The best trials of the search. The test AP is reported and chooses nothing.",
                columns=[
                    "trial",
                    "head<",
                    "layer<",
                    spec.criterion,
                    "validation AP",
                    "mean test AP",
                    "mask mean",
                    *searched,
                ],
                rows=rows,
            )
        ],
        figures={
            "history": ("The criterion of every trial, in their order.", figures.history(spec, records)),
            "heat_map": ("AP of the best trials on every generator.", figures.heat_map(spec, records)),
        },
    )


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _importance(spec: StudySpec, records: Sequence[TrialRecord], found: Sequence[Importance]) -> Section:
    clear = [one.name for one in found if one.p < 0.05 / len(found)]
    said = (
        f"Distinguishable from chance (5 % level, shared among the {len(found)}): {', '.join(clear)}."
        if clear
        else f"None of the {len(found)} is distinguishable from chance: the order below may be noise."
    )
    numbers = [one.name for one in found if _is_number(spec, one.name)]
    shown = {
        "importance": (
            "Share of the importance with 95 % intervals; blue where p < 0.05.",
            figures.importance(found),
        ),
        "parallel": (
            "Every trial through its hyperparameters to its score.",
            figures.parallel(spec, records, [one.name for one in found]),
        ),
    }
    if len(numbers) >= 2 and (drawing := figures.landscape(spec, records, *numbers[:2])):
        shown["landscape"] = (
            f"{spec.criterion} over the two most important numbers, between the trials (dots; the best is a star). "
            "The other hyperparameters differ from dot to dot.",
            drawing,
        )
    return Section(
        title="What mattered",
        text=f"PED-ANOVA: how differently the best trials by {spec.criterion} lie from all of them along each "
        f"hyperparameter. p is the share of random permutations of the scores whose importance is as large. {said}",
        tables=[
            Table(
                name="importance",
                caption="Share of the importance in per cent, with 95 % intervals over resampled trials.",
                columns=["hyperparameter", "share", "p", "trials"],
                rows=[
                    [one.name, with_ends(one.share, (one.low, one.high)), f"{one.p:.3f}", str(one.num_trials)]
                    for one in found
                ],
            )
        ],
        figures=shown,
    )


def _is_number(spec: StudySpec, name: str) -> bool:
    value = spec.search_space().defaults[name]
    return isinstance(value, int | float) and not isinstance(value, bool)


def _criteria(spec: StudySpec, records: Sequence[TrialRecord]) -> Section:
    rows = []
    for name, rule in CRITERIA.items():
        if rule.skips_collapsed:
            continue
        try:
            ranked = rank(records, name, spec.roles)
        except StudyError:
            continue  # the study lacks what this criterion reads
        if not ranked:
            continue
        winner, value = ranked[0]
        gap = oracle_gap(records, name, spec.roles)
        test = score(winner, "oracle", spec.roles) if spec.test_generators else None
        warning = saturated(records, name, spec.roles)
        rows.append(
            [
                name + (" (not allowed)" if rule.uses_test_domain else ""),
                winner.id,
                winner.config["head"],
                winner.config["layer"],
                percent(value),
                "-" if test is None else percent(test),
                "-" if gap is None else f"{100 * gap[2]:.2f}",
                "-" if len(ranked) < FEWEST_TO_JUDGE else "yes" if warning else "no",
            ]
        )
    tables = [
        Table(
            name="criteria",
            caption="What each rule would have chosen, and what the oracle gains over it (the oracle gap, in points).",
            columns=[
                "rule",
                "trial<",
                "head<",
                "layer<",
                "its value",
                "mean test AP",
                "oracle gap",
                "saturated<",
            ],
            rows=rows,
        )
    ]
    shown = {}
    if spec.test_generators:
        shown["agreement"] = (
            "Does the criterion choose what generalises? One point a trial.",
            figures.agreement(spec, records),
        )
    return Section(
        title="Rules of selection",
        text=f"The study chose by {spec.criterion}: {CRITERIA[spec.criterion].summary}.",
        tables=tables,
        figures=shown,
    )
