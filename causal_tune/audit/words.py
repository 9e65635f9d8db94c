"""An audit in words and rows: which property of the files gives the classes away, what removes it, and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causal_tune.audit.findings import Audit, Finding, Matches, Probe, Score, listed
from causal_tune.images.decode import CROP_SIZE
from causal_tune.wording import plural

__all__ = [
    "bias_finding",
    "count_rows",
    "describe",
    "method_name",
    "number_text",
    "resized_note",
    "score_rows",
]

_NAMES = {
    "format": "file format",
    "jpeg_quality": "JPEG quality",
    "mode": "pixel mode",
    "width": "width",
    "height": "height",
    "bytes": "file size in bytes",
}
_PHRASES = {
    "jpeg_quality": "have JPEG quality {}",
    "width": "are {} pixels wide",
    "height": "are {} pixels high",
    "bytes": "have {} bytes",
}
_SHORT = {"jpeg_quality": "JPEG quality"}

_IN_PIXELS = ("format", "jpeg_quality", "mode")
"""Properties that leave traces in the decoded pixels wherever the crop is taken."""

_SIZES = ("width", "height")

_RECOMPRESS = (
    "Remove it: `causal-tune extract ... --recompress 90` compresses both classes to one JPEG quality before the "
    "crop."
)
_WINDOW = (
    f"`causal-tune index ... --min-side {CROP_SIZE}` leaves out what would be resized; with `--max-side` it keeps a "
    "window of sizes that both classes have."
)
_NO_WINDOW = (
    f"No window of sizes mends the resizing: all images of one class are smaller than {CROP_SIZE}. Keep the generator "
    "out of averages, or bring larger images."
)


def bias_finding(
    result: Probe,
    values: Mapping[str, NDArray[np.float64]],
    labels: NDArray[np.int8],
    names: Mapping[str, Sequence[Any]],
) -> Finding | None:
    """What the probe of one scope found; None where nothing is alarming.

    `values` and `labels` are what `probe` was given; `names` turns the numbers of `format` and `mode` into
    their names. A note, not a finding, where it is certain that the crop does not show the property: sizes
    where as many real images as generated ones are resized, and the number of bytes at equal formats and
    qualities, which then says how busy the pictures are.
    """
    assert result.joint is not None
    alarming = [score.feature for score in result.alarming]
    if not alarming and not result.joint.is_alarming:
        return None
    shares = _resized_shares(result)
    sizes_show = abs(shares[0] - shares[1]) > 0.05
    in_pixels = [name for name in alarming if name in _IN_PIXELS or (name in _SIZES and sizes_show)]
    where = result.scope or "all generators together"
    best = (in_pixels or alarming or [""])[0]
    if not best:
        what = (
            f"{where}: no property of the files alone tells real from generated, all together do: a detector can "
            f"score {result.joint.ap_balanced:.2f} by them."
        )
    else:
        score = next(item for item in result.alarming if item.feature == best)
        what = (
            f"{where}: {describe(best, values[best], labels, names.get(best))}: a detector can score "
            f"{score.ap_balanced:.2f} by the {_NAMES[best]}."
        )
        if others := [_NAMES[name] for name in alarming if name != best]:
            what += f" So do: {', '.join(others)}."
    if any(shares):
        what += (
            f" Their shorter side is below {CROP_SIZE}, so that they are resized: "
            f"{_resized(result.num_real_resized, result.num_real, 'real')}, "
            f"{_resized(result.num_generated_resized, result.num_generated, 'generated')}."
        )
    return Finding(
        severity="finding" if in_pixels or not best else "note",
        kind="bias",
        subject=result.scope,
        what=what,
        next_step=_next_step(best, in_pixels, shares),
        num_images=result.num_real + result.num_generated,
    )


def _next_step(best: str, in_pixels: Sequence[str], shares: tuple[float, float]) -> str:
    """What removes a shortcut: `best` is the property that is named, `shares` the resized of each class."""
    if not best:
        return f"{_RECOMPRESS} {_WINDOW}"
    steps = [_RECOMPRESS] if set(in_pixels) - set(_SIZES) else []
    if set(in_pixels) & set(_SIZES):
        steps.append(_WINDOW if 1 not in shares else _NO_WINDOW)
    if steps:
        return " ".join(steps)
    if best in _SIZES:
        return (
            "As many images of both classes are resized, so the crop does not show the size itself, but how much of "
            "the scene it holds. `--min-side` and `--max-side` of `causal-tune index` keep sizes that both have."
        )
    return (
        "Formats and JPEG qualities do not tell the classes apart, so this is how busy the pictures are, or how they "
        "were compressed before: look at a few. `--recompress 90` of `causal-tune extract` gives both classes the "
        "same last compression."
    )


def resized_note(probes: Sequence[Probe]) -> Finding | None:
    """Which generators have images that are resized up before they are cropped, and how many of each class."""
    some = [item for item in probes if item.num_real_resized + item.num_generated_resized]
    if not some:
        return None
    parts = [
        f"{item.scope} ({_resized(item.num_real_resized, item.num_real, 'real')}, "
        f"{_resized(item.num_generated_resized, item.num_generated, 'generated')})"
        for item in some
    ]
    return Finding(
        severity="note",
        kind="resized",
        subject="",
        what=f"Images whose shorter side is below {CROP_SIZE} pixels are resized before the crop: "
        f"{listed(parts, most=12)}. All others are cropped as they are.",
        next_step=f"Resampling weakens the traces of a generator. `--min-side {CROP_SIZE}` of `causal-tune index` "
        "leaves such images out.",
        num_images=sum(item.num_real_resized + item.num_generated_resized for item in some),
    )


def describe(
    feature: str, values: NDArray[np.float64], labels: NDArray[np.int8], names: Sequence[Any] | None = None
) -> str:
    """How the values of one property differ between the classes.

    >>> labels = np.repeat([0, 1], 3).astype(np.int8)
    >>> describe("format", np.array([0, 0, 0, 1, 1, 1.0]), labels, ["JPEG", "PNG"])
    'all 3 real images are JPEG, all 3 generated ones are PNG'
    >>> describe("width", np.array([500, 640, 333, 512, 512, 512.0]), labels)
    'the 3 real images are 333 to 640 (median 500) pixels wide, all 3 generated ones are 512 pixels wide'
    """
    parts = []
    for label, noun in ((0, "real images"), (1, "generated ones")):
        mine = values[labels == label]
        found, numbers = np.unique(mine, return_counts=True)  # NaN counts as one value
        top = int(numbers.argmax())
        share = numbers[top] / len(mine)
        value = _value(feature, found[top], names)
        if len(found) == 1:
            parts.append(f"all {len(mine):,} {noun} {value}")
        elif share >= 0.8 or names is not None:
            percent = f"{min(99, round(100 * share))}%"
            parts.append(f"{percent} of {len(mine):,} {noun} {value}")
        elif np.isnan(mine).all():
            parts.append(f"all {len(mine):,} {noun} {value}")
        else:
            known = mine[~np.isnan(mine)]
            low, middle, high = np.quantile(known, [0, 0.5, 1])
            span = f"{low:,.0f} to {high:,.0f} (median {middle:,.0f})"
            parts.append(f"the {len(mine):,} {noun} {_PHRASES[feature].format(span)}")
    return ", ".join(parts)


def _value(feature: str, value: float, names: Sequence[Any] | None) -> str:
    if names is not None:
        return f"are {names[int(value)]}"
    if np.isnan(value):
        return f"have no {_NAMES[feature]}"
    return _PHRASES[feature].format(f"{value:,.0f}")


def _resized_shares(result: Probe) -> tuple[float, float]:
    return (
        result.num_real_resized / max(1, result.num_real),
        result.num_generated_resized / max(1, result.num_generated),
    )


def _resized(number: int, total: int, noun: str) -> str:
    if number == total:
        return f"all {total:,} {noun} images"
    return f"{number:,} of {plural(total, f'{noun} image')}" if number else f"no {noun} image"


# --- rows of tables, for the terminal and the page ----------------------------------------------------------


def count_rows(audit: Audit) -> list[list[str]]:
    """Rows generator, split, class, format, images."""
    return [
        [
            item.generator,
            item.split or "-",
            "generated" if item.label else "real",
            item.format or "unreadable",
            f"{item.num_images:,}",
        ]
        for item in audit.counts
    ]


def score_rows(probes: Sequence[Probe]) -> tuple[list[str], list[list[Score | None]]]:
    """The names of what was probed, and for each probe its scores in that order; None where there is none."""
    names = [
        name for name in _NAMES if any(score.feature == name for item in probes for score in item.scores)
    ]
    rows: list[list[Score | None]] = []
    for item in probes:
        by_name = {score.feature: score for score in item.scores}
        rows.append([*(by_name.get(name) for name in names), item.joint])
    return [*(_SHORT.get(name, name) for name in names), "together"], rows


def number_text(score: Score | None) -> str:
    """An average precision, or a dash where the property is the same everywhere or nothing was scored."""
    return "-" if score is None else f"{score.ap_balanced:.2f}"


def method_name(matches: Matches) -> str:
    """How the images were compared."""
    return {
        "sha256": "bytes",
        "phash": f"perceptual hash, at most {matches.threshold} of 64 bits",
        "cosine": f"features, cosine at least {matches.threshold}",
    }[matches.method]
