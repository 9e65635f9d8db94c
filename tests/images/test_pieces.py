"""Decoding a piece, as a Ray task does it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from causal_tune.images.decode import read_crop
from causal_tune.images.layouts import build_index
from causal_tune.images.pieces import decode_piece, rows_from_bytes
from tests.conftest import draw, write_images
from tests.images import misbehaving
from tests.images.tasks import clean_task, task


@pytest.fixture
def rows(tmp_path: Path) -> pa.Table:
    return build_index([write_images(tmp_path, {"alpha": 2})], "csv")


def test_only_what_has_no_source_is_read(rows: pa.Table) -> None:
    source = ["/elsewhere.arrow", 5]
    result = decode_piece(
        task(rows, {"clean": [(0, None), (1, source), (2, None)], "blur-2": [(3, None), (2, None)]})
    )
    assert result["piece"] == 7
    assert rows_from_bytes(result["rows"]) == rows.replace_schema_metadata()
    clean, blurred = json.loads(result["views"])
    assert (clean["kept"], clean["sources"]) == ([0, 1, 2], [None, source, None])
    assert (blurred["kept"], blurred["operations"]) == ([3, 2], ["blur", "blur"])
    assert json.loads(blurred["parameters"][0]) == {"sigma": 2.0}
    paths = rows["path"].to_pylist()
    assert len(result["crops"]) == 4
    assert np.array_equal(result["crops"][0], read_crop(paths[0]))
    assert np.array_equal(result["crops"][1], read_crop(paths[2]))


def test_a_changed_file_is_quarantined_in_every_view(rows: pa.Table) -> None:
    draw(99, generated=True).save(rows["path"][0].as_py())
    result = decode_piece(task(rows, {"clean": [(0, None), (1, None)], "jpeg-50": [(0, None)]}))
    clean, compressed = json.loads(result["views"])
    assert clean["kept"] == [1]
    assert compressed["kept"] == []
    for view in (clean, compressed):
        ((reason),) = view["quarantine"]
        assert "changed since it was indexed" in reason["reason"]


@pytest.mark.ray
def test_files_that_end_their_decoder_cost_themselves_only_in_a_ray_task(
    tmp_path: Path, ray_local: None
) -> None:
    csv = write_images(tmp_path, {"alpha": 2})
    for name in ("crash.png", "hunger.png"):
        (tmp_path / name).write_bytes((tmp_path / "alpha/real/000.png").read_bytes())
    with csv.open("a") as file:
        file.write("crash.png,real,alpha,\nhunger.png,real,alpha,\n")
    index = build_index([csv], "csv")
    remote = ray.remote(decode_piece)
    result = ray.get(remote.remote(clean_task(index), read=misbehaving.read))
    assert len(result["crops"]) == 4
    (view,) = json.loads(result["views"])
    reasons = {Path(row["path"]).name: row["reason"] for row in view["quarantine"]}
    assert reasons == {
        "crash.png": "the decoder crashed (signal 11)",
        "hunger.png": "decoding needs more than 4 GiB of memory",
    }
