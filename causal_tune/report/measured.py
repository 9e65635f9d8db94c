"""The sections of a report that say what the recommended head does to images: all that needs their features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from causal_tune.calibration import fit_platt
from causal_tune.errors import StoreError
from causal_tune.judgement import judge
from causal_tune.ledger import TrialRecord
from causal_tune.report import feature_map, figures
from causal_tune.report.mistakes import mistakes
from causal_tune.report.paper import OwnHead, paper_tables
from causal_tune.report.section import Section
from causal_tune.report.tables import Table, percent, signed, with_ends
from causal_tune.resampling import NUM_DRAWS, Scored, draw, interval_of, resampled_ap
from causal_tune.selection import rank
from causal_tune.study.parts import feature_parts
from causal_tune.study.recommended import Chosen
from causal_tune.study.robustness import degraded_scores
from causal_tune.study.scores import VALIDATION, fitted_on, trial_scores
from causal_tune.study.spec import StudySpec

__all__ = ["beside_paper", "measured", "remembered"]

_ACCURACIES = ("accuracy", "real acc.", "gen. acc.", "acc. at val. threshold")
_AGAINST = "Against the linear probe"
_MASK_BY_EPOCH = "The mask on the validation split, epoch by epoch."


def measured(
    study_path: Path, spec: StudySpec, records: Sequence[TrialRecord], chosen: Chosen, probe: Chosen | None
) -> list[Section]:
    """What the recommended head says of images, and the `tuned_probe` beside it: all that needs the features."""
    scored = trial_scores(chosen.path, chosen.spec, chosen.record)
    return [
        _generators(spec, chosen, scored),
        *mistakes(spec, scored),
        _against_probe(spec, chosen, scored, probe),
        *beside_paper(
            spec.train_generators,
            [OwnHead(f"{spec.name} ({chosen.record.config['head']})", spec.val_generators, scored)],
        ),
        *_robustness(spec, chosen, probe),
        *_features(study_path, spec, records, chosen),
    ]


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
        columns=["set", "role<", "AP", *_ACCURACIES, "AUC", "TPR at 5 % FPR", "ECE", "n real", "n gen."],
        rows=rows,
    )
    shown = {name: one for name, one in scored.items() if not name.startswith("view/")}
    return Section(
        title="Generator by generator",
        text="Accuracy is at probability 0.5, and beside it at the threshold that is best on the validation split. A "
        "set with one class has no AP and no AUC: they are undefined, not 0. ECE is after Platt scaling on validation "
        "data. Figures on sets that trained or chose the head are optimistic.",
        tables=[table],
        figures={
            "roc": ("ROC: true-positive against false-positive rate.", figures.roc(shown)),
            "calibration": (
                "Reliability on the validation data that the scaling was fitted to: expect it to be worse elsewhere.",
                figures.calibration(fitted, calibration),
            ),
        },
    )


def _against_probe(
    spec: StudySpec, chosen: Chosen, scored: Mapping[str, Scored], probe: Chosen | None
) -> Section:
    if probe is None:
        return Section(
            title=_AGAINST,
            text="Left out: the recommended head is itself a linear probe."
            if chosen.record.config["head"] == "linear"
            else "Left out: the search has no linear probe that was tuned with as many trials on the same layers. "
            f"`causal-tune finalists {spec.name}` tunes one, and the next report compares it.",
        )
    theirs = trial_scores(probe.path, probe.spec, probe.record)
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
        caption=f"The recommended head on {chosen.record.config['layer']} minus the tuned linear probe on "
        f"{probe.record.config['layer']} (trial {probe.record.id} of {probe.spec.name}), on the same images.",
        columns=["set", "role<", "AP, points", "p", "right only it / only the probe", "McNemar p"],
        rows=rows,
    )
    return Section(
        title=_AGAINST,
        text="The probe was tuned with as many trials as the search had, on the layers that were searched. AP: paired "
        "bootstrap over images. Accuracy at 0.5: McNemar's exact test on the images that only one of the two gets "
        "right. One training of each, the best by the criterion: the spread over seeds is not in these figures, and no "
        "correction is made for the number of rows.",
        tables=[table],
    )


def _discordant(one: Scored, other: Scored) -> tuple[int, int]:
    mine = (one.logits > 0) == (one.labels == 1)
    theirs = (other.logits > 0) == (other.labels == 1)
    return int((mine & ~theirs).sum()), int((~mine & theirs).sum())


def _mcnemar(right: int, wrong: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(right, right + wrong).pvalue) if right + wrong else 1.0


def _robustness(spec: StudySpec, chosen: Chosen, probe: Chosen | None) -> list[Section]:
    """What the recommended head and the tuned probe withstand; nothing where the store has no degraded views."""
    heads = {"recommended": degraded_scores(chosen.path, chosen.spec, chosen.record)}
    if probe is not None:
        heads["tuned linear probe"] = degraded_scores(probe.path, probe.spec, probe.record)
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
                else "These generators were used to choose the head: the store has no degraded view of test images."
            ),
            tables=[
                Table(
                    name="robustness",
                    caption="Mean AP in per cent with 95 % intervals over images; the recommended head's AP on each.",
                    columns=["view", *curves, *(f"{name}>" for name in judged)],
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


def _features(
    study_path: Path, spec: StudySpec, records: Sequence[TrialRecord], chosen: Chosen
) -> list[Section]:
    """What the mask lets through, of the recommended head or, where it has no mask, of the best trial with one."""
    one, said = chosen, "The mask is that of the recommended head."
    if chosen.record.mask is None:
        masked = [record for record, _ in rank(records, spec.criterion, spec.roles) if record.mask]
        said = "No head of this study has a mask, so there is nothing but E."
        if masked:
            one = Chosen(study_path, spec, masked[0])
            said = f"The recommended head has no mask: this is trial {masked[0].id}, the best of the search with one."
    parts = feature_parts(one.path, one.spec, one.record, most=feature_map.MOST_IMAGES)
    if parts is None:
        return []
    record, sets = one.record, parts.sets
    if record.collapsed:
        said += f" It has collapsed to all {record.collapsed}: it selects nothing."
    if not set(sets) <= set(spec.test_generators):
        said += " The images chose it or stopped its training: no test generator has images of both classes."
    elif missing := [name for name in spec.test_generators if name not in sets]:
        said += f" Left out, without images of both classes: {', '.join(missing)}."
    if record.config["normalisation"] != "none":
        said += f" E is normalised ({record.config['normalisation']}), as the head sees it."
    shown = {}
    if record.mask and record.epochs:
        shown["mask"] = (_MASK_BY_EPOCH, figures.mask(record))
    if parts.mask is not None:
        shown["mask_dimensions"] = (
            "Left, every dimension of the mask by its mean, with the middle 90 % of images: a wide band is a mask that "
            "depends on the image. Right, each dimension's mean over real and over generated images: away from the "
            "line, the mask itself separates the classes.",
            feature_map.mask_by_dimension(parts.mask, parts.labels),
        )
    shown["features"] = (
        "The same images in two dimensions (t-SNE, each part by itself), as in the paper's Figure 3, which is UMAP. "
        "Near neighbours are near here too; distances, sizes and gaps between groups mean nothing. How well a part "
        "separates the classes is the AP above each, the first of the table of neighbours: 50 % by chance.",
        feature_map.feature_map(parts),
    )
    return [
        Section(
            title="What the mask lets through" if parts.mask is not None else "The features",
            text=f"{said} Shown are {len(parts.labels)} images of {', '.join(sets)}, of each as many real as generated "
            f"ones, drawn by the study's seed, on the layer {record.config['layer']}.",
            tables=[
                *([feature_map.mask_table(parts)] if parts.mask is not None else []),
                feature_map.neighbours_table(parts, spec.seed),
            ],
            figures=shown,
        )
    ]


def remembered(spec: StudySpec, chosen: Chosen, error: StoreError) -> Section:
    """What the ledger kept of the recommended head, where its features are gone."""
    sets = {VALIDATION: chosen.record.validation, **chosen.record.generators}
    shares = ("ap", "accuracy", "accuracy_real", "accuracy_generated", "accuracy_val_threshold")
    rows = [
        [
            name,
            _role(name, spec),
            *(percent(one.get(share), 1) for share in shares),
            *(str(one[key]) for key in ("num_real", "num_generated")),
        ]
        for name, one in sets.items()
    ]
    record = chosen.record
    return Section(
        title="Generator by generator",
        text=f"The features of this study cannot be read: {error}\n\nThe figures are those that the ledger kept. Left "
        "out is what needs the features: intervals, ROC curves, calibration, the comparisons with the linear probe and "
        "with the paper, degraded views, the mask by dimension, the map of E, Zc and Znc, and the audit.",
        tables=[
            Table(
                name="generators",
                caption="The recommended head on each set, in per cent, as it was judged when it was trained.",
                columns=["set", "role<", "AP", *_ACCURACIES, "n real", "n gen."],
                rows=rows,
            )
        ],
        figures={"mask": (_MASK_BY_EPOCH, figures.mask(record))} if record.mask and record.epochs else {},
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
            "this study also has. It is a reference, not a test: the paper's images, splits and encoder differ, it "
            "gives no intervals, and generators are matched by name. Means are of the cells shown.",
            tables=tables,
        )
    ]


def _role(name: str, spec: StudySpec) -> str:
    """What a set was to the study: `validation`, `trained on`, `chosen by` or `test`."""
    return "validation" if name == VALIDATION or name.startswith("view/") else spec.roles.role_of(name)
