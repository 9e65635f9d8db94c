"""Pictures that cannot be judged: black squares, noise, screenshots and thumbnails get a score too.

A head gives every point of feature space a score, and is as sure far from all data as anywhere. What is looked at
here is the crop itself, before any encoder: photographs, and what imitates them, have neighbouring pixels that are
alike but seldom equal. The limits are far from both: docs/detector.md and `benchmarks/guard.py` have the shares of
photographs, of 13 generators and of pictures of other kinds that they take. How far an image lies from the training
images in the features was tried too and is no guard: in deep layers noise and black lie among photographs of other
data sets.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Guard"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """The limits; a picture on the wrong side of one is `unsure` with a note, whatever its score."""

    min_deviation: float = 2.0
    """Standard deviation of the crop's values, of 255: below, it is of one colour."""
    min_correlation: float = 0.1
    """Of neighbouring pixels: below, it is noise."""
    max_equal: float = 0.7
    """Share of pixels that equal their neighbour in every channel: above, with few colours, it is a drawing."""
    min_colours: float = 0.015
    """Distinct colours, of the number of pixels."""
    max_enlargement: float | None = None
    """How many times an image may be enlarged to be judged; None: any."""

    def notes(
        self, crops: NDArray[np.uint8], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[str | None]:
        """Why each crop of uint8 [n, size, size, 3] cannot be judged; None where it can.

        `sizes` are width and height of the images that they are of, where they are known.
        """
        notes: list[str | None] = []
        for number, crop in enumerate(crops):
            width, height = sizes[number] if sizes is not None else crop.shape[:2]
            times = crop.shape[0] / min(width, height)
            if self.max_enlargement is not None and times > self.max_enlargement:
                notes.append(f"too small: {width} x {height} pixels, enlarged {times:.3g} times to be judged")
            else:
                notes.append(self._note(crop))
        return notes

    def _note(self, crop: NDArray[np.uint8]) -> str | None:
        if crop.std() < self.min_deviation:
            return "one colour: there is nothing to judge"
        green = crop[..., 1].astype(np.float32)
        pairs = ((green[:, :-1], green[:, 1:]), (green[:-1], green[1:]))
        if max(_correlation(*pair) for pair in pairs) < self.min_correlation:
            return "noise: neighbouring pixels have nothing in common"
        neighbours = ((crop[:, :-1], crop[:, 1:]), (crop[:-1], crop[1:]))
        if max(float((one == other).all(axis=-1).mean()) for one, other in neighbours) > self.max_equal:
            red, green_, blue = np.moveaxis(crop.astype(np.int32), 2, 0)
            if np.unique(red << 16 | green_ << 8 | blue).size < self.min_colours * red.size:
                return "a drawing, text or screenshot: most pixels equal their neighbours, in few colours"
        return None

    def to_dict(self) -> dict[str, Any]:
        """As plain values; `Guard(**values)` gives it back."""
        return asdict(self)

    def smallest_side(self, crop_size: int) -> int | None:
        """Pixels of the shorter side that an image has to have."""
        return None if self.max_enlargement is None else math.ceil(crop_size / self.max_enlargement - 1e-9)


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    return float((one * other).sum()) / norm if norm else 1.0
