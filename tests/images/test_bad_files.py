"""A folder of bad files through the real pipeline: each is stored or has a reason, and nothing stops."""

import csv
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from causal_tune.images.decode import read_crop
from causal_tune.images.index import read_index, skipped_files
from causal_tune.images.pieces import decode_piece
from tests.conftest import Finished, run_cli
from tests.images import misbehaving
from tests.images.bad_files import READ, write_bad_files
from tests.images.tasks import clean_task

pytestmark = pytest.mark.slow


def is_readable(reason: str) -> bool:
    """One short line for people: no traceback, no address, no dump of bytes."""
    return 0 < len(reason) < 200 and not re.search(r"\n|Traceback|0x[0-9a-f]|\\x|b'|Error\b", reason)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    root = tmp_path_factory.mktemp("bad")
    return (root, *write_bad_files(root))


def decode_all(index_path: Path, **options: object) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Crops and reasons by file name, from the tasks that an extraction runs."""
    index = read_index(index_path)
    crops: dict[str, np.ndarray] = {}
    reasons: dict[str, str] = {}
    for start in range(0, index.num_rows, 64):
        rows = index.slice(start, 64)
        result = decode_piece(clean_task(rows), **options)
        (view,) = json.loads(result["views"])
        names = [Path(rows["path"][place].as_py()).name for place in view["kept"]]
        crops |= dict(zip(names, result["crops"], strict=True))
        reasons |= {Path(row["path"]).name: row["reason"] for row in view["quarantine"]}
    return crops, reasons


def test_every_file_is_indexed_and_then_stored_or_quarantined(folder, tmp_path: Path) -> None:
    root, expected, left_out = folder
    assert len(expected) > 60
    output = tmp_path / "index.parquet"
    result = run_cli("index", root, "--layout", "folders", "-o", output)
    assert result.exit_code == 0, result.output
    index = read_index(output)
    assert skipped_files(index) == left_out
    names = [Path(path).name for path in index["path"].to_pylist()]
    assert sorted(names) == sorted(expected)

    begin = time.monotonic()
    crops, reasons = decode_all(output)
    assert time.monotonic() - begin < 60
    assert sorted([*crops, *reasons]) == sorted(expected)
    for name, reason in reasons.items():
        assert is_readable(reason), (name, reason)
        assert expected[name] != READ, (name, reason)
        assert re.search(expected[name] or "", reason, re.IGNORECASE), (name, reason)
    for name, crop in crops.items():
        assert not expected[name], (name, "was read")
        assert crop.shape == (224, 224, 3)
        if expected[name] is None:  # cut behind the last pixel
            whole = re.sub(r".*\.", "whole.", name)
            np.testing.assert_array_equal(crop, crops[whole], err_msg=name)


def test_metadata_bombs_do_not_change_the_pixels(folder) -> None:
    real = folder[0] / "odd/real"
    whole = read_crop(real / "whole.png")
    for name in ("long text.png", "bomb zTXt.png", "bomb iTXt.png", "bomb iCCP.png", "many texts.png"):
        np.testing.assert_array_equal(read_crop(real / name), whole, err_msg=name)


def test_files_that_end_their_decoder_cost_themselves_only(folder, tmp_path: Path) -> None:
    root, *_ = folder
    picture = (root / "odd/fake/sound.png").read_bytes()
    for label in ("real", "fake"):
        (tmp_path / "images/odd" / label).mkdir(parents=True)
        for name in ("a.png", "crash.png", "d.png", "hunger.png", "z.png"):
            (tmp_path / "images/odd" / label / f"{label} {name}").write_bytes(picture)
    output = tmp_path / "index.parquet"
    assert run_cli("index", tmp_path / "images", "--layout", "folders", "-o", output).exit_code == 0
    crops, reasons = decode_all(output, read=misbehaving.read)
    assert sorted(crops) == [f"{label} {name}.png" for label in ("fake", "real") for name in "adz"]
    assert reasons == {
        f"{label} {name}": reason
        for label in ("real", "fake")
        for name, reason in {
            "crash.png": "the decoder crashed (signal 11)",
            "hunger.png": "decoding needs more than 4 GiB of memory",
        }.items()
    }


def test_predict_gives_each_file_a_score_or_a_reason(folder, finished: Finished, tmp_path: Path) -> None:
    root, expected, _ = folder
    output = tmp_path / "scores.csv"
    result = run_cli("predict", finished.detector, root, "-o", output)
    assert result.exit_code == 1
    flat = " ".join(result.output.split())
    assert "Traceback" not in flat
    with output.open(newline="", encoding="utf-8") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    not_utf8 = {"latin-\\xe9.png", "a.png", "b.png"}  # the last two in a folder of such a name
    assert set(rows) == set(expected) | not_utf8
    assert rows["a.png"]["path"].endswith("folder-\\xe9/a.png")
    assert "3 other files in the folders left out: 1 hidden, 1 .txt, 1 link back" in flat
    for name, row in rows.items():
        assert bool(row["score"]) != bool(row["reason"]), name
        if name in not_utf8:
            assert row["score"]
            continue
        if row["reason"]:
            assert is_readable(row["reason"])
            assert expected[name] != READ
        else:
            assert not expected[name]
    num_scored = sum(bool(row["score"]) for row in rows.values())
    assert f"{len(rows) - num_scored} of {len(rows)} images could not be scored" in flat


def test_predict_writes_names_that_are_not_text(finished: Finished, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"latin-\xe9.png")
    path.write_bytes((finished.images.parent / "alpha/real/000.png").read_bytes())
    output = tmp_path / "scores.parquet"
    result = run_cli("predict", finished.detector, path, "-o", output)
    assert result.exit_code == 0
    (row,) = pq.read_table(output).to_pylist()
    assert row["path"].endswith("latin-\\xe9.png")


def test_a_root_whose_name_is_not_text_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"latin-\xe9")
    for label in ("real", "fake"):
        (root / label).mkdir(parents=True)
        (root / label / "a.png").write_bytes(b"")
    result = run_cli("index", root, "--layout", "folders", "-o", tmp_path / "index.parquet")
    assert result.exit_code == 2
    assert "is not UTF-8, and an index holds text" in " ".join(result.output.split())
    assert not (tmp_path / "index.parquet").exists()
