"""What a report says, as tables, figures and sentences: a function of the study's files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from causal_tune.calibration import fit_platt
from causal_tune.errors import StudyError
from causal_tune.features import FeatureStore
from causal_tune.judgement import judge
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.report import figures
from causal_tune.report.figures import Drawing
from causal_tune.report.paper import OwnHead, paper_tables
from causal_tune.report.recommended import Chosen, best_probe, recommended
from causal_tune.report.tables import Table, percent, signed, with_ends
from causal_tune.resampling import NUM_DRAWS, Scored, draw, interval_of, resampled_ap
from causal_tune.selection import CRITERIA, oracle_gap, rank, saturated, score
from causal_tune.study.finalists import PROBE, read_finalists
from causal_tune.study.importance import Importance, importance
from causal_tune.study.robustness import degraded_scores
from causal_tune.study.scores import VALIDATION, fitted_on, trial_scores
from causal_tune.study.spec import StudySpec, read_spec

__all__ = ["Report", "Section", "build"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report."""

    title: str
    text: str = ""
    """Paragraphs, parted by empty lines."""
    tables: Sequence[Table] = ()
    figures: Mapping[str, tuple[str, Drawing]] = field(default_factory=dict)
    """By file name, with the caption."""
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it."""

    title: str
    verdict: Sequence[str]
    """What the reader takes away, in three sentences."""
    sections: Sequence[Section]


def build(study_path: Path) -> Report:
    """The report of a study; `StudyError` where it has no trial that can be chosen or its files are gone."""
    spec = read_spec(study_path)
    records = Ledger(study_path / "trials").records()
    finalists = read_finalists(study_path, len(records))
    chosen = recommended(study_path, spec, records, finalists)
    probe = best_probe(spec, records)
    scored = trial_scores(chosen.path, chosen.spec, chosen.record)
    sections = [
        _generators(spec, chosen, scored),
        *([_against_probe(study_path, spec, chosen, scored, probe)] if probe else []),
        *beside_paper(
            spec.train_generators,
            [OwnHead(f"{spec.name} ({chosen.record.config['head']})", spec.val_generators, scored)],
        ),
        *_robustness(study_path, spec, chosen, probe),
        *([_finalists(spec, finalists)] if finalists else []),
        _search(spec, records),
        *([_importance(spec, records, found)] if (found := importance(records, spec)) else []),
        _criteria(spec, records),
        _recipe(study_path, spec, records, finalists),
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
    what = f"a {config['head']} head on the layer {config['layer']}"
    if finalists:
        first = f"{finalists['verdict']['reason']} What is recommended is {what}."
    else:
        value = score(chosen.record, spec.criterion, spec.roles)
        first = (
            f"The best of {len(records)} trials by {spec.criterion} is trial {chosen.record.id}, {what}, with "
            f"{percent(value)} %; that score chose it and flatters it, and `causal-tune finalists {spec.name}` says "
            "how sure it is."
        )
    test = score(chosen.record, "oracle", spec.roles) if spec.test_generators else None
    second = (
        f"On the test generators {', '.join(spec.test_generators)}, which chose nothing, its mean AP is "
        f"{percent(test)} %."
        if spec.test_generators
        else "The study has no test generators, so nothing is known of unseen ones."
    )
    warning = saturated(records, spec.criterion, spec.roles)
    collapsed = sum(record.collapsed is not None for record in records)
    third = (
        warning
        or f"{collapsed} of {len(records)} masks collapsed, and the criterion could tell trials apart."
    )
    return [first, second, third]


def _generators(spec: StudySpec, chosen: Chosen, scored: Mapping[str, Scored]) -> Section:
    fitted = fitted_on(spec, scored)
    calibration = fit_platt(fitted.logits, fitted.labels)
    threshold = chosen.record.threshold or 0.0
    rows = []
    for name, one in scored.items():
        found = judge(
            one, calibration=calibration, real_below=threshold, generated_from=threshold, threshold=threshold
        )
        intervals = found["intervals"]
        rows.append(
            [
                name,
                _role(name, spec),
                with_ends(found["ap"], intervals.get("ap")),
                with_ends(found["accuracy"], intervals.get("accuracy")),
                percent(found["accuracy_real"], 1),
                percent(found["accuracy_generated"], 1),
                percent(found["accuracy_val_threshold"], 1),
                with_ends(found["auc"], intervals.get("auc")),
                with_ends(found["tpr_at_5_fpr"], intervals.get("tpr_at_5_fpr")),
                percent(found["ece"], 1),
                str(found["num_real"]),
                str(found["num_generated"]),
            ]
        )
    table = Table(
        name="generators",
        caption="The recommended head on each set, in per cent with 95 % intervals of the bootstrap over images.",
        columns=[
            "set",
            "role<",
            "AP",
            "accuracy",
            "real acc.",
            "gen. acc.",
            "acc. at val. threshold",
            "AUC",
            "TPR at 5 % FPR",
            "ECE",
            "n real",
            "n gen.",
        ],
        rows=rows,
    )
    shown = {name: one for name, one in scored.items() if not name.startswith("view/")}
    return Section(
        title="Generator by generator",
        text="Accuracy is at probability 0.5, and beside it at the threshold that is best on the validation split. A "
        "set with one class has no AP and no AUC: they are undefined, not 0. ECE is after Platt scaling on validation "
        "data. Sets that trained or chose are optimistic.",
        tables=[table],
        figures={
            "roc": ("Generated images found against real ones mistaken.", figures.roc(shown)),
            "calibration": (
                "Reliability on the validation data, which fitted the scaling: it looks better here than elsewhere.",
                figures.calibration(fitted, calibration),
            ),
            **(
                {"mask": ("The mask of the recommended head, epoch by epoch.", figures.mask(chosen.record))}
                if chosen.record.mask and chosen.record.epochs
                else {}
            ),
        },
    )


def beside_paper(train_generators: Sequence[str], heads: Sequence[OwnHead]) -> list[Section]:
    """The paper's numbers below those of heads that were trained on the same; empty where it has none."""
    tables = paper_tables(train_generators, heads)
    if not tables:
        return []
    return [
        Section(
            title="Beside the paper",
            text="What the paper printed for its own head and for others (arXiv 2512.13285), on the generators that "
            "are here, too. It is a reference and no test: the paper's images, splits and encoder are its own, "
            "it gives no intervals, and generators are matched by name. Means are of the cells shown.",
            tables=tables,
        )
    ]


def _role(name: str, spec: StudySpec) -> str:
    if name == VALIDATION or name.startswith("view/"):
        return "validation"
    if name in spec.train_generators:
        return "trained on"
    return "chosen by" if name in spec.val_generators else "test"


def _against_probe(
    study_path: Path, spec: StudySpec, chosen: Chosen, scored: Mapping[str, Scored], probe: TrialRecord
) -> Section:
    theirs = trial_scores(study_path, spec, probe)
    rng = np.random.default_rng(spec.seed)
    rows = []
    for name, one in scored.items():
        if name.startswith("view/") or name not in theirs:
            continue
        other = theirs[name]
        right, wrong = _discordant(one, other)
        cells = [name, _role(name, spec)]
        if one.has_both:
            counts = draw(one.labels, NUM_DRAWS, rng)
            drawn = resampled_ap(one, counts) - resampled_ap(other, counts)
            assert one.ap is not None  # both hold the same images
            assert other.ap is not None
            mean = one.ap - other.ap
            below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
            p = min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))
            cells += [signed(mean, interval_of(drawn)), f"{p:.3f}"]
        else:
            cells += ["undefined", "-"]
        rows.append([*cells, f"{right} / {wrong}", f"{_mcnemar(right, wrong):.3f}"])
    table = Table(
        name="against_probe",
        caption=f"The recommended head minus the search's best linear probe (trial {probe.id}), on the same images.",
        columns=["set", "role<", "AP, points", "p", "right only it / only the probe", "McNemar p"],
        rows=rows,
    )
    return Section(
        title="Against the linear probe",
        text="AP: paired bootstrap over images. Accuracy at 0.5: McNemar's exact test on the images that only one of "
        "the two gets right. One training each: the spread over seeds is not in these figures, and no correction is "
        "made for the number of rows.",
        tables=[table],
    )


def _discordant(one: Scored, other: Scored) -> tuple[int, int]:
    mine = (one.logits > 0) == (one.labels == 1)
    theirs = (other.logits > 0) == (other.labels == 1)
    return int((mine & ~theirs).sum()), int((~mine & theirs).sum())


def _mcnemar(right: int, wrong: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(right, right + wrong).pvalue) if right + wrong else 1.0


def _robustness(
    study_path: Path, spec: StudySpec, chosen: Chosen, probe: TrialRecord | None
) -> list[Section]:
    """What the recommended head and the probe withstand; nothing where the store has no degraded views."""
    heads = {"recommended": degraded_scores(chosen.path, chosen.spec, chosen.record)}
    if probe is not None and chosen.record.config["head"] != "linear":
        heads["linear probe"] = degraded_scores(study_path, spec, probe)
    views = heads["recommended"]
    # generators that chose are no evidence, unless there are no others
    unseen = [
        name
        for name in spec.test_generators
        if any(one[name].has_both for one in views.values() if name in one)
    ]
    judged = unseen or [name for name in spec.val_generators if name in next(iter(views.values()), {})]
    if not views or not judged:
        return []
    curves = {
        name: {
            view: _mean_with_ends([scored[one] for one in judged], spec.seed)
            for view, scored in by_view.items()
        }
        for name, by_view in heads.items()
    }
    rows = [
        [
            view,
            *(with_ends(curve[view][0], curve[view][1:]) for curve in curves.values()),
            *(percent(views[view][name].ap, 1) for name in judged),
        ]
        for view in views
    ]
    return [
        Section(
            title="What it withstands",
            text=f"AP on {', '.join(judged)} after JPEG or blur before the crop. An image counts where every view "
            "could be made of it. "
            + (
                ""
                if unseen
                else "These generators chose the head: the store has no degraded view of test images."
            ),
            tables=[
                Table(
                    name="robustness",
                    caption="Mean AP in per cent with 95 % intervals over images; the recommended head's AP on each.",
                    columns=["view", *curves, *judged],
                    rows=rows,
                )
            ],
            figures={
                "robustness": (
                    "Mean AP with 95 % intervals, as in the paper's Figure 4; quality 100 is the best JPEG.",
                    figures.robustness(curves),
                )
            },
        )
    ]


def _mean_with_ends(sets: Sequence[Scored], seed: int) -> tuple[float, float, float]:
    rng = np.random.default_rng(seed)  # the same draws for every view and head: they hold the same images
    drawn = np.mean([resampled_ap(one, draw(one.labels, NUM_DRAWS, rng)) for one in sets], axis=0)
    whole = np.mean([one.ap for one in sets])
    return float(whole), *interval_of(drawn)


def _finalists(spec: StudySpec, document: Mapping[str, Any]) -> Section:
    rows = []
    for row in [*document["finalists"], document["probe"]]:
        over = row["over_seeds"]
        ends = row["interval"] or ([over["low"], over["high"]] if over["low"] is not None else None)
        test = row["test_mean"]
        rows.append(
            [
                "tuned linear probe" if row["name"] == PROBE else row["name"],
                f"{row['config']['head']}, {row['config']['layer']}",
                percent(row["search_score"]),
                with_ends(row["mean"], ends),
                "undefined" if test is None else _mean(test),
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
    if document["terms"]:
        tables.append(
            Table(
                name="terms",
                caption=f"What each term of {document['terms_of']} brings: with it minus without it, in points.",
                columns=[
                    "term",
                    "switched off<",
                    "it brings",
                    "of the gain over the probe",
                    "in mean test AP",
                ],
                rows=[
                    [
                        row["term"],
                        ", ".join(f"{key} {value}" for key, value in row["off"].items()),
                        "failed" if "failed" in row else signed(row["difference"], row["interval"]),
                        "-" if row.get("share") is None else f"{100 * row['share']:.0f} %",
                        "-"
                        if row.get("test_difference") is None
                        else _mean(row["test_difference"], signed=True),
                    ]
                    for row in document["terms"]
                ],
            )
        )
    return Section(
        title="Finalists",
        text="The search's own scores are optimistic: the best of many was taken. Test AP is reported only.",
        tables=tables,
    )


def _mean(interval: Mapping[str, Any], *, signed: bool = False) -> str:
    text = f"{100 * interval['mean']:+.2f}" if signed else f"{100 * interval['mean']:.2f}"
    return text if interval["high"] is None else f"{text} ± {100 * (interval['high'] - interval['mean']):.2f}"


def _search(spec: StudySpec, records: Sequence[TrialRecord]) -> Section:
    ranked = rank(records, spec.criterion, spec.roles)
    searched = sorted(spec.space["distributions"])
    rows = [
        [
            record.id,
            record.config["head"],
            record.config["layer"],
            percent(value),
            percent(record.validation["ap"]),
            percent(score(record, "oracle", spec.roles)) if spec.test_generators else "-",
            "-" if record.mask is None else f"{record.mask['mean']:.3f}{'!' if record.collapsed else ''}",
            *(_short(record.config[key]) for key in searched if key not in ("head", "layer")),
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
                    *(key for key in searched if key not in ("head", "layer")),
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
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _importance(spec: StudySpec, records: Sequence[TrialRecord], found: Sequence[Importance]) -> Section:
    clear = [one.name for one in found if one.p < 0.05 / len(found)]
    said = (
        f"Told from chance, with the level shared among the {len(found)}: {', '.join(clear)}."
        if clear
        else f"None of the {len(found)} is told from chance: what the order below says may be noise."
    )
    numbers = [one.name for one in found if _is_number(spec, one.name)]
    shown = {
        "importance": (
            "Share of the importance with 95 % intervals; blue where chance reaches it in less than 5 %.",
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
        f"hyperparameter. p is how often it comes out as large after the scores were dealt out at random. {said}",
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
                "yes" if warning else "no",
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


def _recipe(
    study_path: Path, spec: StudySpec, records: Sequence[TrialRecord], finalists: Mapping[str, Any] | None
) -> Section:
    store = FeatureStore(spec.store_path)
    encoder = store.description["encoder"]
    layers = ",".join(store.layers)
    code = [
        f"causal-tune extract INDEX --encoder {encoder['name']} --layers {layers}",
        spec.command(f"stores/{spec.store_fingerprint}", len(records)),
        *([finalists["command"]] if finalists else []),
        f"causal-tune report {spec.name} -o DIR",
    ]
    spent = sum(record.timings.get("trial_s", 0.0) for record in records)
    facts = [
        ["store", spec.store_fingerprint],
        ["index, sha256", store.description["index_sha256"]],
        [
            "encoder",
            f"{encoder['name']}, weights {encoder['weights_sha256']}" if "weights_sha256" in encoder else "?",
        ],
        ["preprocessing", str(store.description["preprocessing"])],
        ["images", str(store.description["num_stored"])],
        ["search space, sha256", spec.space_sha256],
        ["seed of the study", str(spec.seed)],
        ["time of all trials", f"{spent:.0f} s"],
        *([name, found] for name, found in sorted(spec.versions.items())),
    ]
    return Section(
        title="Making it again",
        text="The commands in order; INDEX is the index whose hash stands below.",
        code="\n".join(code),
        tables=[
            Table(
                name="provenance",
                caption="What the figures are a function of.",
                columns=["what", "value<"],
                rows=facts,
            )
        ],
    )
