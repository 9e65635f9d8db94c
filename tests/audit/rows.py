"""Index tables made by hand."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from causal_tune.images.index import INDEX_SCHEMA


def digest(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def row(
    content: object, label: int, generator: str = "g", split: str = "", path: str = "", **facts: Any
) -> dict[str, Any]:
    """One row; `content` stands for the bytes, and its path is new unless one is given."""
    known = {"width": 300, "height": 300, "format": "PNG", "mode": "RGB", "bytes": 1000}
    path = path or f"/{generator}/{split}/{label}/{content}.png"
    return (
        {"path": path, "label": label, "generator": generator, "split": split, "sha256": digest(content)}
        | known
        | facts
    )


def index_of(rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA)


def fair_rows(seed: int, num_class: int, generator: str = "g") -> list[dict[str, Any]]:
    """Files whose properties do not depend on the label."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(2 * num_class):
        jpeg = rng.random() < 0.5
        rows.append(
            row(
                (seed, generator, number),
                number % 2,
                generator,
                width=int(rng.integers(224, 1000)),
                height=int(rng.integers(224, 1000)),
                format="JPEG" if jpeg else "PNG",
                jpeg_quality=int(rng.integers(70, 97)) if jpeg else None,
                mode="L" if rng.random() < 0.1 else "RGB",
                bytes=int(rng.lognormal(11, 0.6)),
            )
        )
    return rows
