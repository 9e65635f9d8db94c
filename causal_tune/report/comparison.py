"""Several studies side by side: the recommended head of each, and its linear probe, on every generator.

Rows and columns are those of the paper's Tables 1 to 4: heads by what trained them, generators, AP and accuracy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from causal_tune.errors import InvalidConfig
from causal_tune.features import FeatureStore
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.report import figures
from causal_tune.report.measured import beside_paper
from causal_tune.report.paper import OwnHead, printed_name
from causal_tune.report.section import Report, Section
from causal_tune.report.tables import Table, percent, signed, with_ends
from causal_tune.resampling import NUM_DRAWS, Scored, draw, interval_of, resampled_ap
from causal_tune.study.finalists import read_finalists
from causal_tune.study.recommended import recommended, tuned_probe
from causal_tune.study.scores import VALIDATION, trial_scores
from causal_tune.study.spec import StudySpec, read_spec
from causal_tune.wording import plural

__all__ = ["compare"]


@dataclass(frozen=True, kw_only=True)
class _Head:
    """One row: a trained head with what it says of each generator."""

    name: str
    spec: StudySpec
    record: TrialRecord
    encoder: str
    index_sha256: str
    scored: Mapping[str, Scored]

    def role(self, generator: str) -> str:
        """What the generator was to this study."""
        return self.spec.roles.role_of(generator)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """Two heads, by the mean AP of one minus that of the other."""

    one: str
    other: str
    difference: float
    ends: tuple[float, float]
    paired: bool
    """Whether both were drawn with the same images."""

    @property
    def better(self) -> str | None:
        """None for a tie: the interval holds 0."""
        if self.ends[0] <= 0 <= self.ends[1]:
            return None
        return self.one if self.difference > 0 else self.other


def compare(study_paths: Sequence[Path]) -> Report:
    """The comparison of two or more studies as a report; `InvalidConfig` for fewer, or for one that is there twice."""
    if len({path.resolve() for path in study_paths}) < len(study_paths) or len(study_paths) < 2:
        raise InvalidConfig(
            f"Named were: {', '.join(path.name for path in study_paths)}. A comparison is of two or more studies, "
            "each named once."
        )
    heads = [head for path in study_paths for head in _heads(path)]
    generators = list(dict.fromkeys(name for head in heads for name in head.scored))
    unseen = [
        name
        for name in generators
        if all(
            name in head.scored and head.role(name) == "test" and head.scored[name].has_both for head in heads
        )
    ]
    pairs = _compare_pairs(heads, unseen) if unseen else []
    return Report(
        title="Studies " + ", ".join(path.name for path in study_paths),
        verdict=_verdict(heads, unseen, pairs),
        sections=[
            _what(heads),
            _matrix(heads, generators, unseen),
            *([_pairs(pairs, unseen)] if pairs else []),
            *_beside_paper(heads),
        ],
    )


def _beside_paper(heads: Sequence[_Head]) -> list[Section]:
    """The paper's rows below the heads of each source that it trained on."""
    by_source: dict[frozenset[str], list[_Head]] = {}
    for head in heads:
        source = frozenset(printed_name(name) or name for name in head.spec.train_generators)
        by_source.setdefault(source, []).append(head)
    return [
        section
        for of_source in by_source.values()
        for section in beside_paper(
            of_source[0].spec.train_generators,
            [OwnHead(head.name, head.spec.val_generators, head.scored) for head in of_source],
        )
    ]


def _heads(path: Path) -> list[_Head]:
    """The recommended head of a study and, where finalists tuned one beside another head, the linear probe."""
    spec = read_spec(path)
    records = Ledger(path / "trials").records()
    finalists = read_finalists(path, len(records))
    chosen = recommended(path, spec, records, finalists)
    found = [(path.name, chosen)]
    if probe := tuned_probe(path, finalists, chosen):
        found.append((f"{path.name}, tuned linear probe", probe))
    store = FeatureStore(spec.store_path).description
    return [
        _Head(
            name=name,
            spec=one.spec,
            record=one.record,
            encoder=store["encoder"]["name"],
            index_sha256=store["index_sha256"],
            scored={
                key: value
                for key, value in trial_scores(one.path, one.spec, one.record).items()
                if key != VALIDATION and not key.startswith("view/")
            },
        )
        for name, one in found
    ]


def _verdict(heads: Sequence[_Head], unseen: Sequence[str], pairs: Sequence[_Pair]) -> list[str]:
    if not unseen:
        return [
            "No generator was judged by all of these studies and unseen by each, so no mean compares them fairly: read "
            "the table generator by generator."
        ]
    means = {head.name: _mean_ap(head, unseen) for head in heads}
    best = max(means, key=lambda name: means[name])
    ties = [
        pair.other if pair.one == best else pair.one
        for pair in pairs
        if pair.better is None and best in (pair.one, pair.other)
    ]
    behind = [head.name for head in heads if head.name not in (best, *ties)]
    where = (
        f"On the {plural(len(unseen), 'generator')} that every study judged and none trained on or chose by "
        f"({', '.join(unseen)})"
    )
    if ties:
        first = (
            f"A tie of {', '.join([best, *ties])}. {where} their mean APs differ by no more than these images alone "
            "produce."
        )
    else:
        first = f"{best} is better than {', '.join(behind)}. {where} the differences exceed what these images produce."
    second = f"{best} has the highest mean AP, {percent(means[best])} %."
    if ties and behind:
        second += f" Behind by more than these images produce: {', '.join(behind)}."
    return [
        first,
        second,
        "These are test data: they show which study's rule chose well. Choosing by them would spoil the test.",
    ]


def _mean_ap(head: _Head, unseen: Sequence[str]) -> float:
    return float(np.mean([head.scored[name].ap for name in unseen]))


def _what(heads: Sequence[_Head]) -> Section:
    rows = [
        [
            head.name,
            ", ".join(head.spec.train_generators),
            ", ".join(head.spec.val_generators) or "-",
            head.spec.criterion,
            head.encoder,
            head.record.config["layer"],
            head.record.config["head"],
            head.record.id,
            head.record.collapsed or "no",
        ]
        for head in heads
    ]
    columns = [
        "study",
        *(f"{name}<" for name in ("trained on", "chosen by", "criterion", "encoder", "layer", "head")),
    ]
    return Section(
        title="What is compared",
        text="Of each study the head that it recommends"
        + (
            ", and the linear probe that its `causal-tune finalists` tuned as long."
            if any(head.name.endswith("linear probe") for head in heads)
            else "."
        ),
        tables=[
            Table(
                name="studies",
                caption="The heads.",
                columns=[*columns, "trial<", "collapsed<"],
                rows=rows,
            )
        ],
    )


def _matrix(heads: Sequence[_Head], generators: Sequence[str], unseen: Sequence[str]) -> Section:
    marks = {"trained on": " †", "chosen by": " ‡", "test": ""}

    def cell(head: _Head, name: str, text: str) -> str:
        return "-" if name not in head.scored else text + marks[head.role(name)]

    aps, accuracies = [], []
    points: dict[str, dict[str, tuple[float, float, float]]] = {head.name: {} for head in heads}
    for head in heads:
        rng = np.random.default_rng(head.spec.seed)
        ap_row, accuracy_row, hits = [head.name], [head.name], []
        for name in generators:
            ap, accuracy = "undefined", ""
            if name in head.scored:
                one = head.scored[name]
                if one.has_both:
                    ends = interval_of(resampled_ap(one, draw(one.labels, NUM_DRAWS, rng)))
                    ap = with_ends(one.ap, ends)
                    if one.ap is not None:
                        points[head.name][name] = (one.ap, *ends)
                hit = float(((one.logits > 0) == (one.labels == 1)).mean())
                accuracy = percent(hit, 1)
                if name in unseen:
                    hits.append(hit)
            ap_row.append(cell(head, name, ap))
            accuracy_row.append(cell(head, name, accuracy))
        aps.append([*ap_row, percent(_mean_ap(head, unseen), 1) if unseen else "-"])
        accuracies.append([*accuracy_row, percent(float(np.mean(hits)), 1) if hits else "-"])
    mean = f"mean of {len(unseen)} unseen by all"
    counts = [[name, *(_count(head, name) for head in heads)] for name in generators]
    return Section(
        title="Generator by generator",
        text="† trained on, ‡ used to choose: both are left out of the mean. -: not judged by that study.",
        tables=[
            Table(
                name="ap",
                caption="AP in per cent, with 95 % intervals of the bootstrap over images.",
                columns=["head", *(f"{name}>" for name in generators), mean],
                rows=aps,
            ),
            Table(
                name="accuracy",
                caption="Accuracy in per cent at probability 0.5.",
                columns=["head", *(f"{name}>" for name in generators), mean],
                rows=accuracies,
            ),
            Table(
                name="counts",
                caption="Images, real + generated.",
                columns=["generator", *(f"{head.name}>" for head in heads)],
                rows=counts,
            ),
        ],
        figures={
            "compared": (
                "AP of every head on every generator, with 95 % intervals over images.",
                figures.compared(points, generators),
            )
        },
    )


def _count(head: _Head, name: str) -> str:
    if name not in head.scored:
        return "-"
    labels = head.scored[name].labels
    return f"{int((labels == 0).sum())} + {int((labels == 1).sum())}"


def _compare_pairs(heads: Sequence[_Head], unseen: Sequence[str]) -> list[_Pair]:
    pairs = list(combinations(heads, 2))
    level = 1 - 0.05 / len(pairs)
    found = []
    for one, other in pairs:
        rng = np.random.default_rng(one.spec.seed)
        paired = _same_images(one, other, unseen)
        drawn = np.zeros(NUM_DRAWS)
        for name in unseen:
            mine, theirs = one.scored[name], other.scored[name]
            counts = draw(mine.labels, NUM_DRAWS, rng)
            their_counts = counts if paired else draw(theirs.labels, NUM_DRAWS, rng)
            drawn += (resampled_ap(mine, counts) - resampled_ap(theirs, their_counts)) / len(unseen)
        found.append(
            _Pair(
                one=one.name,
                other=other.name,
                difference=_mean_ap(one, unseen) - _mean_ap(other, unseen),
                ends=interval_of(drawn, level=level),
                paired=paired,
            )
        )
    return found


def _pairs(pairs: Sequence[_Pair], unseen: Sequence[str]) -> Section:
    rows = [
        [
            f"{pair.one} - {pair.other}",
            signed(pair.difference, pair.ends),
            "the same" if pair.paired else "others",
            pair.better or "tie",
        ]
        for pair in pairs
    ]
    return Section(
        title="Pair by pair",
        text=f"Differences of the mean AP on {', '.join(unseen)}, by the bootstrap over images: paired where both "
        "studies judged the same index. One training each: these intervals leave out the spread over seeds, which "
        "`causal-tune finalists` measures.",
        tables=[
            Table(
                name="pairs",
                caption="In points, with 95 % intervals"
                + (f"; the level is shared among the {len(pairs)} pairs." if len(pairs) > 1 else "."),
                columns=["pair", "difference", "images<", "better<"],
                rows=rows,
            )
        ],
    )


def _same_images(one: _Head, other: _Head, unseen: Sequence[str]) -> bool:
    return one.index_sha256 == other.index_sha256 and all(
        np.array_equal(one.scored[name].labels, other.scored[name].labels) for name in unseen
    )
