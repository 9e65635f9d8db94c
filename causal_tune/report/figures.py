"""Figures of a study as SVG, each with the points that it shows as a table.

The same study gives the same bytes, readable on paper and on light and dark screens.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from causal_tune.calibration import IDENTITY, Platt, reliability
from causal_tune.images.views import CLEAN
from causal_tune.ledger import TrialRecord
from causal_tune.resampling import Scored
from causal_tune.selection import rank, score
from causal_tune.study.importance import Importance
from causal_tune.study.space import SearchSpace
from causal_tune.study.spec import StudySpec
from causal_tune.wording import shortened, visible

__all__ = [
    "BLUE",
    "COLOURS",
    "GREY",
    "ORANGE",
    "STYLE",
    "Drawing",
    "agreement",
    "calibration",
    "compared",
    "drawing",
    "heat_map",
    "history",
    "importance",
    "label",
    "landscape",
    "mask",
    "parallel",
    "robustness",
    "roc",
]

# Okabe and Ito: told apart by colour-blind people, and as greys
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#808890"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00")
STYLE = {
    "svg.hashsalt": "causal-tune",
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # and a dollar in a name is a dollar
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A figure, and what stands in it."""

    svg: str
    data: pa.Table
    """A row a point."""

    @property
    def width(self) -> float:
        """In points, of which a letter has 9."""
        found = re.search(r'viewBox="0 0 ([\d.]+) ', self.svg)
        return float(found[1]) if found else 0.0


def drawing(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """The SVG of a figure, with its points as `rows`."""
    text = io.StringIO()
    with warnings.catch_warnings():
        # letters that the font lacks are the browser's business: text stays text
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    svg = text.getvalue()
    return Drawing(svg=svg[svg.index("<svg") :], data=pa.Table.from_pylist([dict(row) for row in rows]))


def label(name: str) -> str:
    """A name from outside as a label: short, and shown by legends, which leave out what begins with a `_`."""
    text = shortened(visible(name), 28)
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def history(spec: StudySpec, records: Sequence[TrialRecord]) -> Drawing:
    """The criterion of every trial, the best so far, and the linear probe that was tried first."""
    points = [(record, score(record, spec.criterion, spec.roles)) for record in records]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 3))
        axes = figure.subplots()
        for head, colour in zip(sorted({record.config["head"] for record in records}), COLOURS, strict=False):
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
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, ncols=4)
        return drawing(
            figure,
            [
                {"trial": one.number, "head": one.config["head"], spec.criterion: value}
                for one, value in points
            ],
        )


def agreement(spec: StudySpec, records: Sequence[TrialRecord]) -> Drawing:
    """The criterion against the mean AP of the test generators, a point a trial: does it choose what generalises?"""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.4))
        axes = figure.subplots()
        rows = [
            {"trial": record.number, "layer": record.config["layer"], spec.criterion: a, "test_ap": b}
            for record in records
            if (a := score(record, spec.criterion, spec.roles)) is not None
            and (b := score(record, "oracle", spec.roles)) is not None
        ]
        markers = "os^Dv<>Ph*X"
        for place, layer in enumerate(sorted({row["layer"] for row in rows})):
            pairs = [
                (100 * row[spec.criterion], 100 * row["test_ap"]) for row in rows if row["layer"] == layer
            ]
            if pairs:
                axes.plot(
                    *zip(*pairs, strict=True),
                    markers[place % len(markers)],
                    color=COLOURS[place % len(COLOURS)],
                    markersize=4,
                    alpha=0.8,
                    label=layer,
                )
        axes.set_xlabel(f"{spec.criterion}, %")
        axes.set_ylabel("mean test AP, % (never chooses)")
        if len({row["layer"] for row in rows}) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="layer")
        return drawing(figure, rows)


def heat_map(spec: StudySpec, records: Sequence[TrialRecord], most: int = 12) -> Drawing:
    """The AP of the best trials on every generator."""
    top = [record for record, _ in rank(records, spec.criterion, spec.roles)][:most]
    names = list(dict.fromkeys(name for record in top for name in record.generators))
    values: list[list[Any]] = [
        [record.generators.get(name, {}).get("ap") for name in names] for record in top
    ]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(2.4 + 0.9 * len(names), 0.8 + 0.3 * len(top)))
        axes = figure.subplots()
        numbers = [[100 * value if value is not None else float("nan") for value in row] for row in values]
        shown = axes.imshow(numbers, cmap="cividis", vmin=50, vmax=100, aspect="auto")
        figure.colorbar(shown, ax=axes, label="AP, %", extend="min")
        for y, row in enumerate(numbers):
            for x, value in enumerate(row):
                known = value == value
                axes.text(
                    x,
                    y,
                    f"{value:.1f}" if known else "-",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=GREY if not known else "black" if value > 78 else "white",
                )
        axes.set_xticks(range(len(names)), [*map(label, names)], rotation=30, ha="right")
        labels = [f"{one.number:03d} {one.config['head']} {one.config.get('layer', '')}" for one in top]
        axes.set_yticks(range(len(top)), labels)
        return drawing(
            figure,
            [
                {"trial": record.number, "generator": name, "ap": value}
                for record, row in zip(top, values, strict=True)
                for name, value in zip(names, row, strict=True)
            ],
        )


def roc(scored: Mapping[str, Scored]) -> Drawing:
    """The share of generated images found against that of real ones mistaken, for each set with both classes."""
    from sklearn.metrics import roc_curve

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.6))
        axes = figure.subplots()
        rows = []
        for place, (name, one) in enumerate(scored.items()):
            if one.has_both:
                mistaken, found, _ = roc_curve(one.labels, one.logits)
                axes.plot(mistaken, found, **_line(place), label=label(name))
                rows += [
                    {"set": name, "false_positive_rate": x, "true_positive_rate": y}
                    for x, y in zip(mistaken.tolist(), found.tolist(), strict=True)
                ]
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        axes.set_xlabel("false-positive rate (FPR)")
        axes.set_ylabel("true-positive rate (TPR)")
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return drawing(figure, rows)


def calibration(scored: Scored, fitted: Platt) -> Drawing:
    """How often images of a probability are generated, before and after Platt scaling; larger dots are more of them."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.6))
        axes = figure.subplots()
        rows = []
        for place, (name, platt) in enumerate((("sigmoid of the logit", IDENTITY), ("Platt", fitted))):
            bins = reliability(platt.probabilities(scored.logits), scored.labels)
            rows += [{"probabilities": name, **one} for one in bins]
            x, y = ([one[key] for one in bins] for key in ("probability", "generated"))
            axes.plot(x, y, **_line(place), label=name)
            sizes = [4 + 60 * math.sqrt(one["num"] / len(scored.labels)) for one in bins]
            axes.scatter(x, y, s=sizes, color=COLOURS[place], zorder=3)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        axes.set_xlabel("mean probability of the bin")
        axes.set_ylabel("share that is generated")
        axes.legend(fontsize=9, loc="lower right")
        return drawing(figure, rows)


def mask(record: TrialRecord) -> Drawing:
    """The statistics of a trial's mask after every epoch, and which epoch was kept."""
    shown = {
        "mask/mean": "mean",
        "mask/std_images": "spread over images",
        "mask/std_dimensions": "spread over dimensions",
        "mask/entropy": "entropy",
        "mask/adversary_accuracy": "adversary's accuracy",
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3))
        axes = figure.subplots()
        epochs = [one["epoch"] for one in record.epochs]
        for place, (key, name) in enumerate(shown.items()):
            axes.plot(epochs, [one.get(key, math.nan) for one in record.epochs], **_line(place), label=name)
        if record.best_epoch is not None:
            axes.axvline(record.best_epoch, color=GREY, linewidth=0.8, linestyle=":")
            axes.text(
                record.best_epoch, 1.02, "kept", ha="center", fontsize=9, transform=axes.get_xaxis_transform()
            )
        axes.set_xlabel("epoch")
        axes.set_ylim(-0.02, 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return drawing(
            figure,
            [{"epoch": one["epoch"], **{key: one.get(key) for key in shown}} for one in record.epochs],
        )


def robustness(curves: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Drawing:
    """The AP of each head over JPEG quality and over blur; `curves` holds mean and ends by head and view.

    Views of another kind (`lr-64`) stand in the table alone.
    """
    kinds = {"jpeg": "JPEG quality", "blur": "blur, sigma in pixels"}
    points = {
        kind: {
            head: sorted(
                (float(view.split("-")[1]) if view != CLEAN else 0.0, *value)
                for view, value in curve.items()
                # the image itself has no blur; what its quality would be is not known
                if view.startswith(f"{kind}-") or (kind == "blur" and view == CLEAN)
            )
            for head, curve in curves.items()
        }
        for kind in kinds
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.2))
        rows = []
        every = figure.subplots(1, 2, sharey=True)
        for axes, (kind, title) in zip(every, kinds.items(), strict=True):
            for place, (head, curve) in enumerate(points[kind].items()):
                x, *ends = zip(*curve, strict=True) if curve else ((),) * 4
                mean, low, high = ([100 * value for value in values] for values in ends)
                axes.plot(x, mean, **_line(place), marker="os"[place % 2], markersize=4, label=head)
                axes.fill_between(x, low, high, color=COLOURS[place % len(COLOURS)], alpha=0.15, linewidth=0)
                rows += [
                    {"head": head, "kind": kind, "amount": at, "ap": ap, "low": bottom, "high": top}
                    for at, ap, bottom, top in curve
                ]
            axes.set_xlabel(title)
        every[0].invert_xaxis()  # worse to the right in both
        every[0].set_ylabel("mean AP, %")
        every[1].legend(fontsize=9)
        return drawing(figure, rows)


def compared(
    points: Mapping[str, Mapping[str, tuple[float, float, float]]], generators: Sequence[str]
) -> Drawing:
    """The AP of each head on each generator; `points` holds value and ends by head and generator."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.9 + len(generators) * (0.2 + 0.16 * len(points))))
        axes = figure.subplots()
        rows = []
        for place, (head, by_generator) in enumerate(points.items()):
            shift = 0.7 * ((place + 0.5) / len(points) - 0.5)
            known = [(y, name) for y, name in enumerate(generators) if name in by_generator]
            values = np.array([by_generator[name] for _, name in known]).reshape(-1, 3) * 100
            axes.errorbar(
                values[:, 0],
                [y + shift for y, _ in known],
                xerr=np.abs(values[:, 1:] - values[:, :1]).T,
                fmt="os^Dv<>Ph*X"[place % 11],
                color=COLOURS[place % len(COLOURS)],
                markersize=4.5,
                linewidth=1.2,
                label=label(head),
            )
            rows += [
                {"head": head, "generator": name, "ap": ap, "low": low, "high": high}
                for _, name in known
                for ap, low, high in (by_generator[name],)
            ]
        axes.axvline(50, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(generators)), [*map(label, generators)])
        axes.invert_yaxis()
        axes.set_xlabel("AP, %")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        return drawing(figure, rows)


def importance(found: Sequence[Importance]) -> Drawing:
    """The share of every hyperparameter with its interval; grey where chance alone reaches it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 0.7 + 0.28 * len(found)))
        axes = figure.subplots()
        for place, one in enumerate(found):
            colour = BLUE if one.p < 0.05 else GREY
            axes.barh(place, 100 * one.share, color=colour, alpha=0.55, height=0.6)
            axes.plot([100 * one.low, 100 * one.high], [place, place], color=colour, linewidth=1.5)
        axes.set_yticks(range(len(found)), [one.name for one in found])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("share of the importance, %")
        rows = [
            {"name": one.name, "share": one.share, "low": one.low, "high": one.high, "p": one.p}
            for one in found
        ]
        return drawing(figure, rows)


def parallel(spec: StudySpec, records: Sequence[TrialRecord], names: Sequence[str]) -> Drawing:
    """A line a trial through its hyperparameters and its score; a gap where one was not searched."""
    space = spec.search_space()
    scored = sorted(_scored(spec, records), key=lambda pair: pair[1])
    points = [
        {name: record.config[name] for name in names if name in space.axes(record.config)}
        for record, _ in scored
    ]
    axis = {
        name: _Axis([point[name] for point in points if name in point], log=_is_log(space, name))
        for name in names
    }
    score_axis = _Axis([100 * value for _, value in scored], log=False)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.2 + 1.05 * (len(names) + 1), 3.6))
        axes = figure.subplots()
        lines = [
            [
                *(
                    (x, axis[name].place(point[name]) if name in point else math.nan)
                    for x, name in enumerate(names)
                ),
                (len(names), score_axis.place(100 * value)),
            ]
            for point, (_, value) in zip(points, scored, strict=True)
        ]
        drawn = LineCollection(lines, cmap="cividis", linewidths=1, alpha=0.7)
        drawn.set_array(np.array([100 * value for _, value in scored]))
        axes.add_collection(drawn)
        axes.set_xlim(-0.1, len(names) + 0.1)
        axes.set_ylim(-0.06, 1.06)
        for x, one in enumerate([*axis.values(), score_axis]):
            axes.axvline(x, color=GREY, linewidth=0.8)
            for value, text in one.marks():
                if one.is_number:
                    axes.text(x, value + 0.03 * (2 * value - 1), text, fontsize=8, ha="center", va="center")
                else:
                    axes.text(x + 0.04, value, text, fontsize=8, va="center")
        titles = [*names, f"{spec.criterion}, %"]
        axes.set_xticks(range(len(titles)), titles, rotation=20, ha="right")
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        rows = [
            {
                "trial": record.number,
                **{name: _text_or_number(point.get(name)) for name in names},
                "score": value,
            }
            for point, (record, value) in zip(points, scored, strict=True)
        ]
        return drawing(figure, rows)


def landscape(spec: StudySpec, records: Sequence[TrialRecord], x: str, y: str) -> Drawing | None:
    """The score over two numbers that were searched, between its trials; None where they span no area."""
    space = spec.search_space()
    points = [
        (float(record.config[x]), float(record.config[y]), value)
        for record, value in _scored(spec, records)
        if {x, y} <= space.axes(record.config).keys()
    ]
    logs = {x: _is_log(space, x), y: _is_log(space, y)}
    xs, ys, values = (
        (np.array(column) for column in zip(*points, strict=True)) if points else (np.empty(0),) * 3
    )
    flat = [np.log(column) if logs[name] else column for name, column in ((x, xs), (y, ys))]
    if len({*zip(*flat, strict=True)}) < 4 or any(np.ptp(column) == 0 for column in flat):
        return None
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(5.0, 3.8))
        axes = figure.subplots()
        _scale(axes, logs[x], logs[y])
        drawn = axes.tricontourf(
            xs, ys, 100 * values, levels=_steps(100 * values), cmap="cividis", alpha=0.85
        )
        axes.plot(xs, ys, "o", color="white", markeredgecolor="black", markeredgewidth=0.5, markersize=3)
        best = int(values.argmax())
        axes.plot(
            xs[best], ys[best], "*", color=ORANGE, markeredgecolor="black", markersize=11, clip_on=False
        )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        figure.colorbar(drawn, ax=axes, label=f"{spec.criterion}, %")
        return drawing(figure, [{x: a, y: b, "score": value} for a, b, value in points])


class _Axis:
    """A vertical axis of parallel coordinates: values between 0 and 1; texts in equal steps."""

    def __init__(self, values: Sequence[Any], *, log: bool) -> None:
        self.is_number = not any(isinstance(value, str | bool) for value in values)
        self._log = log
        names = values if self.is_number else map(str, values)
        self._values = sorted(set(names))

    def place(self, value: Any) -> float:
        """Where a value stands."""
        if not self.is_number:
            return self._values.index(str(value)) / max(1, len(self._values) - 1)
        ends = (self._values[0], self._values[-1], value)
        low, high, here = map(math.log, ends) if self._log else ends
        return (here - low) / (high - low) if high > low else 0.5

    def marks(self) -> list[tuple[float, str]]:
        """What is written beside it: every text, or the ends of the numbers."""
        if not self.is_number:
            return [(self.place(name), name) for name in self._values]
        ends = dict.fromkeys((*self._values[:1], *self._values[-1:]))
        return [(self.place(value), f"{value:.3g}") for value in ends]


def _scored(spec: StudySpec, records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, float]]:
    return [(one, value) for one in records if (value := score(one, spec.criterion, spec.roles)) is not None]


def _is_log(space: SearchSpace, name: str) -> bool:
    return bool(getattr(space.distributions[name], "log", False))


def _scale(axes: Axes, log_x: bool, log_y: bool) -> None:
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    for axis, is_log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
        if is_log:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())


def _steps(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high, 9) if high > low else np.array([low - 0.5, high + 0.5])


def _text_or_number(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _line(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": ("-", "--", "-.", ":")[place % 4],
        "linewidth": 1.5,
    }
