"""Decoding a piece of a shard: index rows in, uint8 crops of every view out. Knows neither Ray nor torch.

Everything that passes between processes is plain: Arrow bytes, JSON, one array of crops.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from causal_tune.errors import UnreadableImage
from causal_tune.images.decode import CROP_SIZE, read_sized
from causal_tune.images.isolated import isolated
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.images.views import ViewCrop, read_views

__all__ = ["decode_piece", "read_piece", "rows_from_bytes", "rows_to_bytes"]


def decode_piece(
    task: dict[str, Any], read: Callable[..., list[ViewCrop | str]] = read_views
) -> dict[str, Any]:
    """Read and decode the images of one piece.

    `task` holds `piece` (its place in the list of all), `rows` (index rows as Arrow bytes), `preprocessing`
    (a name) and `views`: JSON, for each view that is asked for its `name`, the `path` of the file to write,
    the positions of the `rows` that it applies to, and for each of these the `source` of its features, a
    file and a position in it, or null where the image is to be read.

    The result holds `piece` and `rows` as they were, `crops` (uint8 [n, 224, 224, 3], view by view) and
    `views`: of each its `name` and `path`, the positions `kept`, in which every image was read or has a
    source, with `sources`, `operations` and `parameters` of these, and the `quarantine` of the others.
    `read` reads the views of one image, in a child process.
    """
    rows = rows_from_bytes(task["rows"])
    preprocessing = Preprocessing.parse(task["preprocessing"])
    asked = json.loads(task["views"])
    wanted = _views_to_read(rows.num_rows, asked)
    paths, digests = rows["path"].to_pylist(), rows["sha256"].to_pylist()
    calls = [
        (paths[position], digests[position], preprocessing, [asked[number]["name"] for number in numbers])
        for position, numbers in wanted.items()
    ]
    found: list[dict[int, ViewCrop | str]] = [{} for _ in asked]
    for (position, numbers), crops in zip(wanted.items(), isolated(read, calls), strict=True):
        for place, number in enumerate(numbers):
            found[number][position] = str(crops) if isinstance(crops, UnreadableImage) else crops[place]
    results, stacked = [], []
    for view, made in zip(asked, found, strict=True):
        result: dict[str, Any] = {"name": view["name"], "path": view["path"], "quarantine": []}
        result |= {"kept": [], "sources": [], "operations": [], "parameters": []}
        for position, source in zip(view["rows"], view["sources"], strict=True):
            image = made.get(position)
            if isinstance(image, str):
                result["quarantine"].append({"path": paths[position], "reason": image})
                continue
            if image is not None:
                stacked.append(image.crop)
            result["kept"].append(position)
            result["sources"].append(source)
            result["operations"].append(image.operation if image else "")
            result["parameters"].append(json.dumps(image.parameters if image else {}))
        results.append(result)
    return {
        "piece": task["piece"],
        "rows": task["rows"],
        "views": json.dumps(results),
        "crops": np.stack(stacked) if stacked else np.empty((0, CROP_SIZE, CROP_SIZE, 3), dtype=np.uint8),
    }


def read_piece(task: dict[str, Any]) -> dict[str, Any]:
    """Read and decode files that are in no index: `paths` (JSON, for a name need not be UTF-8) by `preprocessing`.

    The result has `crops` of those that were read (uint8 [n, 224, 224, 3]), their images' `sizes` (JSON, width and
    height) and `reasons` (JSON): one for each path, null where it was read; the rest of `task` is as it was.
    """
    preprocessing = Preprocessing.parse(task["preprocessing"])
    found = list(isolated(read_sized, [(path, preprocessing) for path in json.loads(task["paths"])]))
    images = [one for one in found if not isinstance(one, UnreadableImage)]
    reasons = [str(one) if isinstance(one, UnreadableImage) else None for one in found]
    empty = np.empty((0, CROP_SIZE, CROP_SIZE, 3), dtype=np.uint8)
    return {
        **task,
        "reasons": json.dumps(reasons),
        "sizes": json.dumps([one.size for one in images]),
        "crops": np.stack([one.pixels for one in images]) if images else empty,
    }


def _views_to_read(num_rows: int, asked: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Position of each row that is to be read -> numbers of the views that are to be made of it."""
    wanted: dict[int, list[int]] = {}
    for number, view in enumerate(asked):
        for position, source in zip(view["rows"], view["sources"], strict=True):
            if source is None:
                wanted.setdefault(position, []).append(number)
    return {position: wanted[position] for position in range(num_rows) if position in wanted}


def rows_to_bytes(rows: pa.Table) -> bytes:
    """Some index rows as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def rows_from_bytes(data: bytes) -> pa.Table:
    """The inverse of `rows_to_bytes`."""
    return pa.ipc.open_stream(data).read_all()
