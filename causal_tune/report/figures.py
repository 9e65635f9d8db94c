"""Figures of a study as SVG: the same bytes for the same study, readable on paper and on light and dark screens."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from causal_tune.ledger import TrialRecord
from causal_tune.resampling import Scored
from causal_tune.selection import rank, score
from causal_tune.study.spec import StudySpec

__all__ = ["agreement", "heat_map", "history", "roc"]

# Okabe and Ito: told apart by colour-blind people, and as greys
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#808890"
_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00")
_STYLE = {
    "svg.hashsalt": "causal-tune",
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.2,
    "legend.frameon": False,
}


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def history(spec: StudySpec, records: Sequence[TrialRecord]) -> str:
    """The criterion of every trial, the best so far, and the linear probe that was tried first."""
    points = [(record, score(record, spec.criterion, spec.roles)) for record in records]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 3))
        axes = figure.subplots()
        for head, colour in zip(
            sorted({record.config["head"] for record in records}), _COLOURS, strict=False
        ):
            mine = [
                (one.number, 100 * v) for one, v in points if v is not None and one.config["head"] == head
            ]
            if mine:
                axes.plot(*zip(*mine, strict=True), "o", color=colour, markersize=3.5, alpha=0.8, label=head)
        best: list[tuple[int, float]] = []
        for record, value in points:
            if value is not None:
                best.append((record.number, max(100 * value, best[-1][1] if best else 0.0)))
        if best:
            axes.step(*zip(*best, strict=True), where="post", color=GREY, linewidth=1.2, label="best so far")
        probe = next((100 * v for one, v in points if v is not None and one.config["head"] == "linear"), None)
        if probe is not None:
            axes.axhline(probe, color=ORANGE, linestyle="--", linewidth=1, label="linear probe, first")
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{spec.criterion}, %")
        axes.legend(loc="lower right", fontsize=8, ncols=2)
        return _svg(figure)


def agreement(spec: StudySpec, records: Sequence[TrialRecord]) -> str:
    """The criterion against the mean AP of the test generators, a point a trial: does it choose what generalises?"""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 3.4))
        axes = figure.subplots()
        layers = sorted({record.config.get("layer", "proj") for record in records})
        markers = "os^Dv<>Ph*X"
        for place, layer in enumerate(layers):
            pairs = [
                (100 * a, 100 * b)
                for record in records
                if record.config.get("layer", "proj") == layer
                and (a := score(record, spec.criterion, spec.roles)) is not None
                and (b := score(record, "oracle", spec.roles)) is not None
            ]
            if pairs:
                axes.plot(
                    *zip(*pairs, strict=True),
                    markers[place % len(markers)],
                    color=_COLOURS[place % len(_COLOURS)],
                    markersize=4,
                    alpha=0.8,
                    label=layer,
                )
        axes.set_xlabel(f"{spec.criterion}, %")
        axes.set_ylabel("mean test AP, % (never chooses)")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), title="layer")
        return _svg(figure)


def heat_map(spec: StudySpec, records: Sequence[TrialRecord], most: int = 12) -> str:
    """The AP of the best trials on every generator."""
    top = [record for record, _ in rank(records, spec.criterion, spec.roles)][:most]
    names = list(dict.fromkeys(name for record in top for name in record.generators))
    values: list[list[Any]] = [
        [record.generators.get(name, {}).get("ap") for name in names] for record in top
    ]
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.6 + 0.9 * len(names), 0.8 + 0.3 * len(top)))
        axes = figure.subplots()
        numbers = [[100 * value if value is not None else float("nan") for value in row] for row in values]
        axes.imshow(numbers, cmap="cividis", vmin=50, vmax=100, aspect="auto")
        for y, row in enumerate(numbers):
            for x, value in enumerate(row):
                known = value == value
                axes.text(
                    x,
                    y,
                    f"{value:.1f}" if known else "-",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=GREY if not known else "black" if value > 78 else "white",
                )
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        labels = [f"{one.number:03d} {one.config['head']} {one.config.get('layer', '')}" for one in top]
        axes.set_yticks(range(len(top)), labels)
        return _svg(figure)


def roc(scored: dict[str, Scored]) -> str:
    """The share of generated images found against that of real ones mistaken, for each set with both classes."""
    from sklearn.metrics import roc_curve

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 3.6))
        axes = figure.subplots()
        for place, (name, one) in enumerate(scored.items()):
            if one.has_both:
                mistaken, found, _ = roc_curve(one.labels, one.logits)
                line = ("-", "--", "-.", ":")[place % 4]
                axes.plot(
                    mistaken, found, line, color=_COLOURS[place % len(_COLOURS)], linewidth=1.5, label=name
                )
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        axes.set_xlabel("real images called generated")
        axes.set_ylabel("generated images found")
        axes.legend(fontsize=8, loc="lower right")
        return _svg(figure)
