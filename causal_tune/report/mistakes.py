"""The section of a report that shows what the recommended head gets most wrong, as pictures."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import expit

from causal_tune.errors import UnreadableImage
from causal_tune.features import FeatureStore, partition
from causal_tune.images.decode import decode_crop
from causal_tune.images.files import is_remote, read_image_bytes
from causal_tune.images.isolated import isolated
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.report.section import Picture, Section
from causal_tune.report.tables import Table
from causal_tune.resampling import Scored
from causal_tune.study.spec import StudySpec
from causal_tune.wording import plural

__all__ = ["mistakes"]

MOST_SHOWN = 8
"""Pictures of each kind."""
_SIDE = 144  # pixels of a picture on the page

_TITLE = "Worst errors"
_KINDS = ("false alarm", "miss")
"""By label: a real image that is called generated, and a generated one that is called real."""
_GROUPS = (
    "False alarms: the real images with the highest scores",
    "Misses: the generated images with the lowest scores",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mistake:
    """An image on the wrong side of probability 0.5."""

    label: int
    score: float
    generator: str
    path: str
    sha256: str


def mistakes(spec: StudySpec, scored: Mapping[str, Scored]) -> list[Section]:
    """The worst false alarms and misses of the head whose scores these are; nothing where it judged no generator."""
    store = FeatureStore(spec.store_path)
    judged = [name for name in scored if name in (*spec.val_generators, *spec.test_generators)]
    if not judged:
        return []
    found = [list(_worst(store, spec, {name: scored[name] for name in judged}, label)) for label in (0, 1)]
    worst = [one for kind in found for one in kind[:MOST_SHOWN]]
    counted = f"{plural(len(found[0]), 'false alarm')} and {plural(len(found[1]), 'miss', 'misses')}"
    where = f"On {', '.join(judged)} there are {counted} at probability 0.5"
    if not worst:
        return [Section(title=_TITLE, text=f"{where}.")]
    pictures = list(_pictures(worst, Preprocessing.parse(store.description["preprocessing"])))
    reasons = [one.missing for one in pictures if one.missing]
    text = (
        f"{where}. Shown are the {MOST_SHOWN} worst of each at most, as the crop that was scored. A real image that "
        "several generators are compared with counts once."
    )
    if reasons:
        told = "; ".join(f"{reasons.count(one)} x {one}" for one in dict.fromkeys(reasons))
        text += f" Without a picture: {told}."
    return [
        Section(
            title=_TITLE,
            text=text,
            pictures=pictures,
            tables=[
                Table(
                    name="mistakes",
                    caption="The same images. The score is the head's, from 0 (real) to 1 (generated).",
                    columns=["error", "score", "generator<", "path<"],
                    rows=[[_KINDS[one.label], f"{one.score:.4f}", one.generator, one.path] for one in worst],
                )
            ],
        )
    ]


def _worst(
    store: FeatureStore, spec: StudySpec, scored: Mapping[str, Scored], label: int
) -> Iterator[_Mistake]:
    """The images of one class on the wrong side, the worst first, each content once."""
    members = partition(
        store.rows,
        train_generators=spec.train_generators,
        val_generators=spec.val_generators,
        test_generators=spec.test_generators,
    ).generators
    rows = np.concatenate([members[name] for name in scored])
    logits = np.concatenate([one.logits for one in scored.values()]).astype(np.float64)
    labels = np.concatenate([one.labels for one in scored.values()])
    wrong = np.flatnonzero((labels == label) & ((logits > 0) != (label == 1)))
    order = wrong[np.argsort(logits[wrong] if label else -logits[wrong], kind="stable")]
    seen = set()
    for place, row in zip(order, store.rows.take(rows[order]).to_pylist(), strict=True):
        if row["sha256"] not in seen:
            seen.add(row["sha256"])
            yield _Mistake(
                label=label,
                score=float(expit(logits[place])),
                generator=row["generator"],
                path=row["path"],
                sha256=row["sha256"],
            )


def _pictures(worst: Sequence[_Mistake], preprocessing: Preprocessing) -> Iterator[Picture]:
    """What was scored of each image; without the picture where its file is not the one that was encoded."""
    read = [_read(one) for one in worst]
    calls: list[tuple[Any, ...]] = [(data, preprocessing) for data in read if isinstance(data, bytes)]
    crops = iter(isolated(decode_crop, calls))
    for one, data in zip(worst, read, strict=True):
        missing, jpeg = ("", b"") if isinstance(data, bytes) else (data, b"")
        if isinstance(data, bytes):
            crop = next(crops)
            if isinstance(crop, UnreadableImage):
                missing = str(crop)
            else:
                file = io.BytesIO()
                small = Image.fromarray(crop).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
                small.save(file, "JPEG", quality=80)
                jpeg = file.getvalue()
        yield Picture(
            group=_GROUPS[one.label],
            title=f"{one.score:.3f} {one.generator}",
            detail=one.path,
            jpeg=jpeg,
            missing=missing,
        )


def _read(one: _Mistake) -> bytes | str:
    """The bytes of an image, or why there are none to show."""
    if is_remote(one.path):
        return "on a remote file system"
    try:
        data = read_image_bytes(one.path)
    except UnreadableImage:
        return "the file is gone or cannot be read"
    return (
        data
        if hashlib.sha256(data).hexdigest() == one.sha256
        else "the file has changed since it was encoded"
    )
