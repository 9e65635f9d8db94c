"""The numbers that the paper printed, as a marked reference beside a study's own (arXiv 2512.13285, Tables 1 to 4).

They are the paper's claims on the paper's images, not results of this package.
"""

import csv
import functools
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

from causal_tune.images.places import genimage_name
from causal_tune.metrics import score_metrics
from causal_tune.report.tables import Table, percent
from causal_tune.resampling import Scored

__all__ = ["OwnHead", "paper_tables", "plain_name", "printed_name"]

_COPIED = ("1", "BigGAN")
"""Cells of the baselines that cannot be: they repeat the SAN accuracies of Table 2."""
_OURS = "CausalCLIP"


def printed_name(generator: str) -> str | None:
    """What the paper calls a generator; None for one that it does not have.

    >>> printed_name("stable_diffusion_v_1_4"), printed_name("cyclegan"), printed_name("flux")
    ('SD1.4', 'CycleGAN', None)
    """
    known = {plain_name(name): name for name in _generators()}
    return known.get(genimage_name(generator) or plain_name(generator))


def plain_name(name: str) -> str:
    """A generator's name without case and signs, by which it is matched with the paper's.

    >>> plain_name("Big-GAN")
    'biggan'
    """
    return "".join(letter for letter in name.lower() if letter.isalnum())


class OwnHead(NamedTuple):
    """A head of ours that stands above the paper's rows."""

    name: str
    val_generators: Sequence[str]
    """Generators that chose it."""
    scored: Mapping[str, Scored]


def paper_tables(train_generators: Sequence[str], heads: Sequence[OwnHead]) -> list[Table]:
    """AP and accuracy of `heads` on the generators that the paper and all of them have, above what the paper printed.

    Empty unless they trained on one of the paper's two sources, SD1.4 or ProGAN, and on nothing else: a row of
    another source would compare training data. Means are of the cells that are shown; the paper's own are not used,
    since most of those in its Table 1 are not the means of its cells. Generators that chose a head are marked.
    """
    sources = {printed_name(generator) for generator in train_generators}
    shown = {
        generator: printed
        for generator in heads[0].scored
        if (printed := printed_name(generator)) is not None
        and all(generator in head.scored and head.scored[generator].has_both for head in heads)
    }
    if len(sources) != 1 or not shown:
        return []
    tables = []
    for metric, title in (("AP", "AP"), ("ACC", "Accuracy")):
        reference = [row for row in _rows() if {row["trained_on"]} == sources and row["metric"] == metric]
        if not reference:
            return []
        number = reference[0]["table"]
        chose = {head.name: [generator in head.val_generators for generator in shown] for head in heads}
        rows = [
            [
                head.name,
                *_marked([_measured(head.scored[name], metric) for name in shown], chose[head.name], "*"),
            ]
            for head in heads
        ]
        for row in reference:
            values = [float(row[printed]) / 100 for printed in shown.values()]
            wrong = [row["method"] != _OURS and (number, printed) == _COPIED for printed in shown.values()]
            rows.append([f"{row['method']} †", *_marked(values, wrong, "‡")])
        caption = f"{title} in per cent beside the paper's Table {number}. † as the paper printed it, on its images."
        if any(map(any, chose.values())):
            caption += " * chose the head, which flatters it."
        if any("‡" in cell for row in rows for cell in row):
            caption += " ‡ the paper repeats the SAN accuracies of its Table 2 here; these are not AP."
        columns = ["head", *(f"{name}>" for name in shown), "mean"]
        tables.append(Table(name=f"paper_table_{number}", caption=caption, columns=columns, rows=rows))
    return tables


def _measured(one: Scored, metric: str) -> float:
    ap = one.ap
    assert ap is not None  # both classes are there
    return ap if metric == "AP" else float(score_metrics(one.logits, one.labels)["accuracy"])


def _marked(values: Sequence[float], marked: Sequence[bool], mark: str) -> list[str]:
    """Cells of the values and of their mean, which has the mark where any of them has."""
    mean = sum(values) / len(values)
    pairs = zip((*values, mean), (*marked, any(marked)), strict=True)
    return [percent(value) + mark * one for value, one in pairs]


@functools.cache
def _rows() -> list[dict[str, str]]:
    text = (files("causal_tune.report") / "paper.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _generators() -> list[str]:
    return list(_rows()[0])[4:]
