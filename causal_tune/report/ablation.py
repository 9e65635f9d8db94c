"""The ablation: the four arms of the paper's Table 5 over seeds, and a winner's terms switched off one at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from causal_tune.intervals import Interval, mean_interval, paired_difference
from causal_tune.ledger import TrialRecord
from causal_tune.report.paper import plain_name
from causal_tune.report.section import Section
from causal_tune.report.tables import Table, over_seeds, percent, signed
from causal_tune.selection import Roles
from causal_tune.study.finalists import NO_SHARES, gain_over_probe
from causal_tune.study.spec import StudySpec
from causal_tune.trial import TrialConfig

__all__ = [
    "ARMS",
    "BASELINE",
    "PAPER",
    "PAPER_NOTE",
    "Averages",
    "ablation",
    "ablation_tables",
    "arm_of",
    "averages",
    "generator_rows",
    "is_ablation",
    "summarise",
]

ARMS: Mapping[str, str] = {
    "neither": "UnivFD, a linear probe",
    "factorisation": "mask, adversary, HSIC and L1; beta = 0, so no counterfactuals",
    "masking": "no mask; the probe, consistent under Bernoulli counterfactuals",
    "both": "CausalCLIP",
}
"""The arms in the paper's order."""
BASELINE = "neither"

# Table 5 of arXiv 2512.13285, per cent, trained on Stable Diffusion 1.4. For `both` the paper's text has 89.64
# (OP) and 88.45 (GP) accuracy where its table, and so this one, has 90.45 and 89.95.
PAPER: Mapping[str, Mapping[str, float]] = {
    "neither": {"op_accuracy": 65.37, "op_ap": 75.31, "gp_accuracy": 60.42, "gp_ap": 67.09},
    "factorisation": {"op_accuracy": 79.42, "op_ap": 89.53, "gp_accuracy": 75.91, "gp_ap": 87.78},
    "masking": {"op_accuracy": 70.73, "op_ap": 82.13, "gp_accuracy": 65.94, "gp_ap": 79.28},
    "both": {"op_accuracy": 90.45, "op_ap": 96.92, "gp_accuracy": 89.95, "gp_ap": 95.25},
}
PAPER_NOTE = (
    "The paper's: Table 5 of arXiv 2512.13285, trained on Stable Diffusion 1.4; for both modules its text has "
    "89.64 (OP) and 88.45 (GP) accuracy. Other images, encoders and settings: a reference, no target."
)

GANS = ("progan", "cyclegan", "biggan", "stylegan", "stylegan2", "gaugan", "stargan")
"""What counts as GAN-based, unless --gan-generators says otherwise; case, dots, dashes and spaces aside."""
_ALSO_IN_THE_PAPERS_GP = ("deepfake", "san")

_METRICS = {"accuracy": "ACC", "ap": "AP"}
_AVERAGES = {"op": "OP", "gp": "GP", "gp_computed": "GP*"}


def arm_of(config: Mapping[str, Any]) -> str:
    """Which arm a trial's configuration is.

    >>> arm_of({"head": "causal", "mask_scope": "instance", "beta": 0.0, "p": 0.2})
    'factorisation'
    """
    if config["head"] != "causal":
        return BASELINE
    consistent = config["beta"] > 0 and config["p"] > 0
    if config["mask_scope"] == "none":
        return "masking" if consistent else BASELINE
    return "both" if consistent else "factorisation"


def is_ablation(spec: StudySpec) -> bool:
    """Whether a study is of the four arms on the same seeds, and searches nothing."""
    space = spec.search_space()
    if not space.enqueued or not all("seed" in entry for entry in space.enqueued):
        return False
    base = TrialConfig.from_dict({**space.defaults, "seed": 0}).to_dict()
    by_seed: dict[int, list[str]] = {}
    for entry in space.enqueued:
        by_seed.setdefault(entry["seed"], []).append(arm_of({**base, **entry}))
    return all(sorted(arms) == sorted(ARMS) for arms in by_seed.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Averages:
    """Which generators each average runs over."""

    op: tuple[str, ...]
    """Overall performance: all that judge, the training generator's test split included."""
    gp: tuple[str, ...]
    """Generalisation performance as the paper defines it: the GAN-based ones of them."""
    gp_computed: tuple[str, ...]
    """As the paper's numbers are computed: those, DeepFake and SAN."""
    chosen_by: tuple[str, ...]
    """Validation generators: in no average, since they may have chosen."""
    one_class: tuple[str, ...]
    """Generators whose judged images are of one class: in no average, since their AP is undefined."""


def averages(spec: StudySpec, records: Sequence[TrialRecord], gans: Sequence[str] = ()) -> Averages:
    """The generators of each average; `gans` are exact names, and take the place of the table `GANS`."""
    finished = next((record for record in records if record.finished), None)
    measured = finished.generators if finished else {}
    judged = [name for name in measured if name not in spec.val_generators]
    op = tuple(name for name in judged if measured[name]["ap"] is not None)
    gp = tuple(name for name in op if (name in gans if gans else plain_name(name) in GANS))
    return Averages(
        op=op,
        gp=gp,
        gp_computed=tuple(name for name in op if name in gp or plain_name(name) in _ALSO_IN_THE_PAPERS_GP),
        chosen_by=tuple(name for name in measured if name in spec.val_generators),
        one_class=tuple(name for name in judged if name not in op),
    )


def summarise(records: Sequence[TrialRecord], over: Averages) -> dict[str, dict[str, Any]]:
    """Each arm: its trials, and its metrics as mean, interval and paired difference over seeds.

    The keys of `metrics` and `differences` are `op_accuracy`, `gp_ap` and so on; a value is None where no
    generator or no seed is behind it.
    """
    by_arm: dict[str, dict[int, TrialRecord]] = {arm: {} for arm in ARMS}
    for record in records:
        by_arm[arm_of(record.config)][record.seed] = record
    finished = {
        arm: {seed: record for seed, record in mine.items() if record.finished}
        for arm, mine in by_arm.items()
    }
    baseline = finished[BASELINE]
    summary: dict[str, dict[str, Any]] = {}
    for arm, mine in finished.items():
        shared = [seed for seed in mine if seed in baseline]
        metrics: dict[str, Interval | None] = {}
        differences: dict[str, Interval | None] = {}
        for average in _AVERAGES:
            for metric in _METRICS:
                generators = getattr(over, average)
                values = {seed: _mean(record, generators, metric) for seed, record in mine.items()}
                metrics[f"{average}_{metric}"] = (
                    mean_interval(list(values.values())) if generators and mine else None
                )
                differences[f"{average}_{metric}"] = (
                    paired_difference(
                        [values[seed] for seed in shared],
                        [_mean(baseline[seed], generators, metric) for seed in shared],
                    )
                    if generators and shared and arm != BASELINE
                    else None
                )
        every = [*over.op, *over.chosen_by]
        summary[arm] = {
            "what": ARMS[arm],
            "num_finished": len(mine),
            "num_failed": len(by_arm[arm]) - len(mine),
            "num_collapsed": sum(record.collapsed is not None for record in mine.values()),
            "seeds": list(mine),
            "num_pairs": len(shared),
            "metrics": metrics,
            "differences": differences,
            "generators": {
                name: {metric: _over_seeds(mine.values(), name, metric) for metric in _METRICS}
                for name in every
            },
            "trials": [record.id for record in by_arm[arm].values()],
        }
    return summary


def _mean(record: TrialRecord, generators: Sequence[str], metric: str) -> float:
    values = [float(record.generators[name][metric]) for name in generators]
    return sum(values) / len(values) if values else float("nan")


def _over_seeds(records: Any, generator: str, metric: str) -> Interval | None:
    values = [record.generators[generator][metric] for record in records]
    return mean_interval(values) if values and None not in values else None


def _cell(interval: Interval | None, *, signed: bool = False) -> str:
    return "-" if interval is None else over_seeds(asdict(interval), signed=signed)


def ablation_tables(
    summary: Mapping[str, Mapping[str, Any]], over: Averages, *, width: int
) -> list[tuple[list[str], list[list[str]]]]:
    """Columns and rows: each arm, and under it its paired difference from `neither`.

    The paper's numbers stand beside ours, or in a table of their own where `width` has no room for both.
    """
    shown = ["op", "gp", *(["gp_computed"] if over.gp_computed != over.gp else [])]
    keys = [f"{average}_{metric}" for average in shown for metric in _METRICS]
    paper_keys = list(PAPER[BASELINE])
    ours, papers = [], []
    for arm, values in summary.items():
        ours.append([arm, *(_cell(values["metrics"][key]) for key in keys)])
        papers.append([arm, *(f"{PAPER[arm][key]:.2f}" for key in paper_keys)])
        if arm != BASELINE:
            label = f"  - {BASELINE}"
            ours.append([label, *(_cell(values["differences"][key], signed=True) for key in keys)])
            gains = (PAPER[arm][key] - PAPER[BASELINE][key] for key in paper_keys)
            papers.append([label, *(f"{gain:+.2f}" for gain in gains)])
    columns, paper_columns = [*map(_title, keys)], [f"paper's {_title(key)}" for key in paper_keys]
    if width >= 140:
        both = [own + paper[1:] for own, paper in zip(ours, papers, strict=True)]
        return [(["arm", *columns, *paper_columns], both)]
    return [(["arm", *columns], ours), (["arm", *paper_columns], papers)]


def _title(key: str) -> str:
    average, metric = key.rsplit("_", 1)
    return f"{_AVERAGES[average]} {_METRICS[metric]}"


def generator_rows(summary: Mapping[str, Mapping[str, Any]], over: Averages, roles: Roles) -> list[list[str]]:
    """Rows generator, role, and the AP of every arm."""
    return [
        [name, roles.role_of(name), *(_cell(summary[arm]["generators"][name]["ap"]) for arm in ARMS)]
        for name in (*over.op, *over.chosen_by)
    ]


# --- the sections ------------------------------------------------------------------------------------------


def ablation(
    spec: StudySpec, records: Sequence[TrialRecord], finalists: Mapping[str, Any] | None
) -> list[Section]:
    """What the winner's terms bring, where the finalists say it; in a study of the paper's arms what its modules do."""
    return [
        *([_terms(spec, finalists)] if finalists and finalists["terms"] else []),
        *([_arms(spec, records)] if is_ablation(spec) else []),
    ]


def _terms(spec: StudySpec, document: Mapping[str, Any]) -> Section:
    has_gain = gain_over_probe(document, document["terms_of"]) is not None
    columns = ["term", "switched off<", "without it", "gain", "p", "covers<"]
    columns += ["of the gain over the probe"] if has_gain else []
    columns.append("in mean test AP")
    rows = [_term_cells(row, has_gain) for row in document["terms"]]
    return Section(
        title="Ablation",
        text=f"Each term of {document['terms_of']} switched off alone, on the same {len(document['seeds'])} seeds and "
        f"the same images: {spec.criterion} with the term minus without it, in points. A term whose interval holds 0 "
        "may contribute nothing. The intervals are not corrected for the number of terms."
        + ("" if has_gain else f" {NO_SHARES}"),
        tables=[
            Table(
                name="terms",
                caption=f"Gain from each term of {document['terms_of']}, with 95 % intervals; test AP chose nothing.",
                columns=columns,
                rows=[row + ["-"] * (len(columns) - len(row)) for row in rows],
            )
        ],
    )


def _term_cells(row: Mapping[str, Any], has_gain: bool) -> list[str]:
    off = ", ".join(f"{key} {value}" for key, value in row["off"].items())
    if "failed" in row:
        return [row["term"], off, "failed"]
    return [
        row["term"],
        off,
        percent(row["mean"]),
        signed(row["difference"], row["interval"]),
        "-" if row["p"] is None else f"{row['p']:.3f}",
        row["covers"],
        *(["-" if row["share"] is None else f"{100 * row['share']:.0f} %"] if has_gain else []),
        "-" if row["test_difference"] is None else over_seeds(row["test_difference"], signed=True),
    ]


def _arms(spec: StudySpec, records: Sequence[TrialRecord]) -> Section:
    over = averages(spec, records)
    summary = summarise(records, over)
    (columns, rows), (paper_columns, paper_rows) = ablation_tables(summary, over, width=0)
    counts = [
        [arm, one["what"], *(str(one[f"num_{key}"]) for key in ("finished", "failed", "collapsed"))]
        for arm, one in summary.items()
    ]
    text = f"OP is the mean over {', '.join(over.op) or 'no generator'}; GP over {', '.join(over.gp) or 'no GAN'}."
    if over.gp_computed != over.gp:
        text += f" GP* is the paper's own reckoning: over {', '.join(over.gp_computed)}."
    if over.chosen_by:
        text += f" In no average, since they may choose: {', '.join(over.chosen_by)}."
    return Section(
        title="The paper's ablation",
        text=f"What each module adds to a linear probe on the same features and seeds. {text}\n\n{PAPER_NOTE}",
        tables=[
            Table(
                name="ablation",
                caption=f"Per cent, mean over seeds ± half of its 95 % t interval; under each arm its difference "
                f"from {BASELINE}, paired by seed. It is about training, not about other test images.",
                columns=columns,
                rows=_named(rows),
            ),
            Table(
                name="ablation_paper",
                caption="The same as the paper printed it.",
                columns=[" ".join(column.split()) for column in paper_columns],
                rows=_named(paper_rows),
            ),
            Table(
                name="ablation_arms",
                caption="The arms.",
                columns=["arm", "what<", "seeds", "failed", "collapsed masks"],
                rows=counts,
            ),
            Table(
                name="ablation_generators",
                caption="AP of every arm on each generator, in per cent.",
                columns=["generator", "role<", *ARMS],
                rows=generator_rows(summary, over, spec.roles),
            ),
        ],
    )


def _named(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Rows of `ablation_tables` whose differences name the arm that stands above them."""
    found: list[Sequence[str]] = []
    for row in rows:
        is_difference = row[0].startswith(" ")
        found.append([f"{found[-1][0]} {row[0].strip()}", *row[1:]] if is_difference else row)
    return found
