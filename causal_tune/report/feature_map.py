"""What the mask lets through: by dimension, and as a map of E, Zc and Znc, the paper's Figure 3.

A map in two dimensions shows who is near whom and nothing else: distances, sizes and gaps between groups are the
method's own. So each part comes with what its nearest neighbours say in all of its dimensions.

The paper's map is UMAP. This one is t-SNE, which shows the same (van der Maaten and Hinton, 2008): it comes with
scikit-learn, where UMAP would bring a compiler (numba), and with a seed and one thread it is the same every time.
"""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from causal_tune.causal.mask import mask_statistics
from causal_tune.report.figures import BLUE, COLOURS, GREY, ORANGE, STYLE, Drawing, drawing, label
from causal_tune.report.tables import Table, percent, with_ends
from causal_tune.resampling import NUM_DRAWS, Scored, draw, interval_of, resampled_ap
from causal_tune.study.parts import Parts

__all__ = ["MOST_IMAGES", "feature_map", "mask_by_dimension", "mask_table", "neighbours_table", "votes"]

MOST_IMAGES = 600
"""On the map: a few seconds, and few enough to see."""
NUM_NEIGHBOURS = 10
_PERPLEXITY = 30.0
_NAMES = {
    "E": "all features, E",
    "Zc": "causal part, Zc",
    "Znc": "non-causal part, Znc",
    "M": "the mask alone, M",
}
_MARKERS = "os^Dv<>Ph*X"

Points = NDArray[np.float64]


def feature_map(parts: Parts) -> Drawing:
    """The images of `parts` in two dimensions, a panel a part, and above it the AP by neighbours in all dimensions."""
    names = parts.sets
    panels = parts.by_name
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3 * len(panels), 3.7), layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False).flatten()
        rows = []
        for axes, (name, values) in zip(every, panels.items(), strict=True):
            points = _placed(values)
            ap = _vote(parts, values).ap
            axes.set_title(f"{_NAMES[name]}\nAP by neighbours {percent(ap, 1)} %", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[["left", "bottom"]].set_visible(False)
            if points is None:
                axes.text(0.5, 0.5, "nothing is left in it", ha="center", transform=axes.transAxes)
                continue
            for place, generator in enumerate(names):
                for one in (0, 1):
                    mine = (parts.generators == generator) & (parts.labels == one)
                    axes.plot(*points[mine].T, **_dots(place, one))
            rows += [
                {"part": name, "set": generator, "label": one, "x": x, "y": y}
                for generator, one, (x, y) in zip(
                    parts.generators.tolist(), parts.labels.tolist(), points.tolist(), strict=True
                )
            ]
        handles = [
            *(
                Line2D([], [], label=label(generator), **_dots(place, 1))
                for place, generator in enumerate(names)
            ),
            *(
                Line2D([], [], label=text, **_dots(0, one, GREY))
                for one, text in ((1, "filled: generated"), (0, "hollow: real, of that set"))
            ),
        ]
        figure.legend(handles=handles, loc="outside lower center", fontsize=9, ncols=1 + len(panels))
        return drawing(figure, rows)


def _dots(place: int, of_class: int, colour: str = "") -> dict[str, Any]:
    colour = colour or COLOURS[place % len(COLOURS)]
    return {
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": "none",
        "color": colour,
        "markerfacecolor": colour if of_class else "none",
        "markeredgewidth": 0.9,
        "markersize": 3.6,
        "alpha": 0.9,
    }


def _placed(values: NDArray[np.float32]) -> Points | None:
    """t-SNE [n, 2] of features [n, d]; None where they are all the same."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    spread = float(values.std(axis=0).max())
    if spread < 1e-6:
        return None
    # the number of threads changes the order of sums, and t-SNE makes of a last digit another picture
    with threadpool_limits(limits=1):
        found: Points = TSNE(
            init="pca", perplexity=min(_PERPLEXITY, (len(values) - 1) / 3), random_state=0
        ).fit_transform(values / spread)
    return found


def votes(
    values: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.str_] | None = None
) -> Points:
    """The share of generated images among the nearest neighbours [n] of each image, itself left out.

    Euclidean, in all dimensions; with `groups` only images of other groups are asked.
    """
    distances = _distances(values)
    if groups is not None:
        distances[groups[:, None] == groups[None, :]] = np.inf
    shares: Points = labels[_nearest(distances)].mean(axis=1)
    return shares


def _distances(values: NDArray[np.float32]) -> Points:
    centred = np.asarray(values, np.float64)
    centred = centred - centred.mean(axis=0)
    squares = (centred**2).sum(axis=1)
    distances: Points = squares[:, None] + squares[None, :] - 2 * centred @ centred.T
    np.fill_diagonal(distances, np.inf)
    return distances


def _nearest(distances: Points) -> NDArray[np.int64]:
    allowed = int(np.isfinite(distances).sum(axis=1).min())
    return np.argsort(distances, axis=1, kind="stable")[:, : min(NUM_NEIGHBOURS, allowed)]


def _vote(parts: Parts, values: NDArray[np.float32], *, others: bool = True) -> Scored:
    """`votes` by images of other sets, where there are some; else, or without `others`, by any."""
    groups = parts.generators if others and len(parts.sets) > 1 else None
    return Scored.of(votes(values, parts.labels, groups), parts.labels)


def _generator_guessed(values: NDArray[np.float32], generators: NDArray[np.str_]) -> float:
    """How often most neighbours of an image are of its generator, averaged over generators; 1 / num is chance."""
    names, numbers = np.unique(generators, return_inverse=True)
    asked = numbers[_nearest(_distances(values))]
    counted = (asked[:, :, None] == np.arange(len(names))).sum(axis=1)
    right = counted.argmax(axis=1) == numbers
    return float(np.mean([right[numbers == place].mean() for place in range(len(names))]))


def neighbours_table(parts: Parts, seed: int) -> Table:
    """What the nearest neighbours in each part say of an image's class and generator."""
    generated, num = parts.labels == 1, len(parts.sets)
    rows = []
    for name, values in {**parts.by_name, **({} if parts.mask is None else {"M": parts.mask})}.items():
        cells = [_NAMES[name]]
        for others in (True, False)[num == 1 :]:
            scored = _vote(parts, values, others=others)
            drawn = resampled_ap(scored, draw(scored.labels, NUM_DRAWS, np.random.default_rng(seed)))
            cells.append(with_ends(scored.ap, interval_of(drawn)))
        if num > 1:
            cells.append(percent(_generator_guessed(values[generated], parts.generators[generated]), 1))
        rows.append(cells)
    caption = (
        f"Real or generated, by a vote of the {NUM_NEIGHBOURS} nearest neighbours in all dimensions: AP in per cent, "
        "50 by chance, with 95 % intervals over the images that are asked about."
    )
    columns = ["part", "AP, by any images"]
    if num > 1:
        caption += (
            " By images of other sets alone, what counts is what generators have in common. Last, how often the vote "
            f"names a generated image's generator: {percent(1 / num, 1)} by chance."
        )
        columns = ["part", "AP, by images of other sets", "AP, by any images", "generator guessed"]
    return Table(name="neighbours", caption=caption, columns=columns, rows=rows)


def mask_by_dimension(mask: NDArray[np.float32], labels: NDArray[np.int64]) -> Drawing:
    """The mask of every dimension: how open it is and how much images differ; and for real against generated ones."""
    mean = mask.mean(axis=0)
    low, high = np.quantile(mask, (0.05, 0.95), axis=0)
    real, generated = (mask[labels == label].mean(axis=0) for label in (0, 1))
    order = np.argsort(-mean, kind="stable")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3), layout="constrained")
        ranked, classes = figure.subplots(1, 2, width_ratios=(1.5, 1))
        places = np.arange(1, len(mean) + 1)
        ranked.fill_between(
            places, low[order], high[order], color=BLUE, alpha=0.25, linewidth=0, label="90 % of images"
        )
        ranked.plot(places, mean[order], color=BLUE, linewidth=1.5, label="mean over images")
        ranked.set_xlabel("dimensions, the most open first")
        ranked.set_ylabel("mask")
        ranked.set_ylim(-0.02, 1.02)
        ranked.legend(fontsize=9, loc="lower left")
        classes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        classes.plot(real, generated, "o", color=ORANGE, markersize=2, alpha=0.5)
        classes.set_xlabel("mean over real images")
        classes.set_ylabel("mean over generated images")
        classes.set_xlim(-0.02, 1.02)
        classes.set_ylim(-0.02, 1.02)
        classes.set_aspect("equal")
        columns = {"mean": mean, "low": low, "high": high, "real": real, "generated": generated}
        rows = [
            {"dimension": int(place), **{name: float(values[place]) for name, values in columns.items()}}
            for place in order
        ]
        return drawing(figure, rows)


def mask_table(parts: Parts) -> Table:
    """How open the mask is for the real and the generated images of each set."""
    import torch

    assert parts.mask is not None
    rows = []
    for name in parts.sets:
        mine = parts.generators == name
        found = mask_statistics(torch.from_numpy(parts.mask[mine]))
        means = (parts.mask[mine & (parts.labels == label)].mean() for label in (0, 1))
        rows.append(
            [
                name,
                *(f"{float(value):.3f}" for value in means),
                f"{found['std_images']:.3f}",
                f"{found['std_dimensions']:.3f}",
                f"{found['entropy']:.3f}",
                str(int(mine.sum())),
            ]
        )
    return Table(
        name="mask_by_set",
        caption="The mask that images are scored with, by set: its mean (1 lets everything through), its spread over "
        "images and over dimensions, its entropy (0.693 where it is undecided, 0 where it is 0 or 1).",
        columns=["set", "real", "generated", "spread over images", "over dimensions", "entropy", "n"],
        rows=rows,
    )
