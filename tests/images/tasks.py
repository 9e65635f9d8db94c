"""Decoding tasks as an extraction makes them."""

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from causal_tune.images.pieces import rows_to_bytes
from causal_tune.images.preprocessing import Preprocessing


def task(rows: pa.Table, views: Mapping[str, Sequence[tuple[int, object]]]) -> dict[str, object]:
    """For each view the positions in `rows` that are asked for, each with the source of its features or None."""
    asked = [
        {
            "name": name,
            "path": f"/{name}",
            "rows": [row for row, _ in chosen],
            "sources": [source for _, source in chosen],
        }
        for name, chosen in views.items()
    ]
    content = {"rows": rows_to_bytes(rows), "preprocessing": Preprocessing().name, "views": json.dumps(asked)}
    return {"piece": 7, **content}


def clean_task(rows: pa.Table) -> dict[str, object]:
    """To read all of `rows` as they are."""
    return task(rows, {"clean": [(row, None) for row in range(rows.num_rows)]})
