"""Scores of many images: one row each, in order, whatever ends the run in between."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from causal_tune.detector import load_detector
from causal_tune.errors import IndexingError, InvalidConfig
from causal_tune.guard import Guard
from causal_tune.images.index import write_index
from causal_tune.images.layouts import build_index
from causal_tune.prediction import image_paths, predict
from tests.conftest import Finished, draw, run_cli, write_images

pytestmark = pytest.mark.slow

DETECTOR = Path(__file__).parent / "stored" / "detector-format-1"


def write_pictures(folder: Path, num: int, bad: set[int]) -> list[Path]:
    """`num` files, of which those in `bad` are damaged in one of four ways; few pictures, many names."""
    folder.mkdir(parents=True)
    kinds = []
    for seed in range(8):
        path = folder.parent / f"kind-{seed}.jpg"
        draw(seed, generated=bool(seed % 2), size=230).save(path, quality=90)
        kinds.append(path.read_bytes())
    paths = []
    for number in range(num):
        path = folder / f"{number:05d}.jpg"
        if number in bad:
            damaged = (b"", b"these are words", kinds[0][:500], None)[number % 4]
            if damaged is not None:
                path.write_bytes(damaged)
            else:
                path.symlink_to(folder / "gone")
        else:
            path.write_bytes(kinds[number % 8])
        paths.append(path)
    return paths


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_rows(rows: list[dict[str, str]], paths: list[Path], bad: set[int]) -> None:
    """One row each, in order, and the same score for the same picture."""
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    by_kind: dict[int, set[tuple[str, str]]] = {}
    for number, row in enumerate(rows):
        if number in bad:
            assert row["reason"]
            assert [row[name] for name in ("score", "probability", "verdict")] == [""] * 3
        else:
            assert not row["reason"]
            by_kind.setdefault(number % 8, set()).add((f"{float(row['score']):.5f}", row["verdict"]))
    assert all(len(found) == 1 for found in by_kind.values())
    detector = load_detector(DETECTOR)
    expected = detector.score_batch([next(p for n, p in enumerate(paths) if n not in bad)])[0]
    first = next(row for row in rows if row["score"])
    assert float(first["score"]) == pytest.approx(expected.score, abs=1e-6)


def command(folder: Path, output: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "causal_tune",
        "predict",
        str(DETECTOR),
        str(folder),
        "-o",
        str(output),
        "--json",
    ]


def kill_after(words: list[str], parts: Path, num_parts: int) -> None:
    """Start the command in a group of its own, and kill the driver once there are so many parts."""
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while driver.poll() is None:
        if len(list(parts.glob("parts/*.arrow"))) >= num_parts:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait(timeout=60)
            return
        time.sleep(0.002)
    raise AssertionError(f"it ended before it had {num_parts} parts: {driver.returncode}")


def test_killed_once_every_image_has_one_row_in_order(tmp_path: Path) -> None:
    bad = {3, 60, 61, 62, 63, 64, 130, 199, 255, 299}
    paths = write_pictures(tmp_path / "images", 300, bad)
    output = tmp_path / "scores.csv"
    words = command(tmp_path / "images", output)
    parts = tmp_path / ".scores.csv.parts"
    kill_after(words, parts, 1)
    assert not output.exists()
    num_before = len(list(parts.glob("parts/*.arrow")))
    assert 1 <= num_before < 19
    done = subprocess.run(words, capture_output=True, text=True, timeout=250)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["num_done_before"] >= 16
    assert document["num_scored"] == 290
    check_rows(read_rows(output), paths, bad)
    assert not parts.exists()


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_killed_twice_20_000_images_have_one_row_each_in_order(tmp_path: Path) -> None:
    bad = set(random.Random(0).sample(range(20_000), 200))
    paths = write_pictures(tmp_path / "images", 20_000, bad)
    output = tmp_path / "scores.csv"
    words = command(tmp_path / "images", output)
    parts = tmp_path / ".scores.csv.parts"
    for num_parts in (60, 200):
        kill_after(words, parts, num_parts)
    begin = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, timeout=5000)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["num_done_before"] >= 200 * 64 - 64
    assert document["num_images"] - document["num_scored"] == 200
    check_rows(read_rows(output), paths, bad)
    print(f"{document['num_done_before']} before, the rest in {time.monotonic() - begin:.0f} s")


def test_formats_hold_the_same(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "images", 6, {2})
    names = [str(path) for path in paths]
    for suffix in (".csv", ".jsonl", ".parquet"):
        done = predict(DETECTOR, names, tmp_path / f"scores{suffix}")
        assert (done.num_images, done.num_unreadable) == (6, 1)
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert pq.read_table(tmp_path / "scores.parquet").to_pylist() == lines
    for row, line in zip(read_rows(tmp_path / "scores.csv"), lines, strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in line.items()}


def test_rows_carry_the_id_and_the_note_of_the_detector(tmp_path: Path) -> None:
    folder = tmp_path / "detector"
    shutil.copytree(DETECTOR, folder)
    description = json.loads((folder / "detector.json").read_text())
    guard = Guard(max_enlargement=2.0).to_dict()
    (folder / "detector.json").write_text(json.dumps({**description, "guard": guard}))
    draw(1, generated=True, size=240).save(tmp_path / "a.png")
    Image.new("RGB", (300, 300)).save(tmp_path / "b.png")
    draw(1, generated=True, size=60).save(tmp_path / "c.png")
    names = [str(tmp_path / f"{name}.png") for name in "abcd"]
    output = tmp_path / "scores.csv"
    result = run_cli("predict", folder, *names, "-o", output)
    assert result.exit_code == 1  # d.png is not there
    assert "2 unsure (2 cannot be judged), " in " ".join(result.output.split())
    assert "each probability is its score" in " ".join(result.output.split())
    rows = read_rows(output)
    assert [row["note"].split(":")[0] for row in rows] == ["", "one colour", "too small", ""]
    assert [row["verdict"] for row in rows][1:] == ["unsure", "unsure", ""]
    assert {row["model"] for row in rows} == {load_detector(folder).id}
    assert load_detector(folder).id != load_detector(DETECTOR).id
    found = json.loads(run_cli("predict", folder, *names[:3], "--json").stdout)
    assert (found["num_unsure"], found["num_noted"], found["model"]) == (2, 2, load_detector(folder).id)
    assert [one["note"] for one in found["scores"]] == [row["note"] or None for row in rows[:3]]


def test_rows_repeat_where_inputs_do_and_names_need_not_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    draw(0, generated=False, size=230).save(path)
    done = predict(DETECTOR, [str(path), "missing.png", str(path)], tmp_path / "scores.csv", num_first=9)
    rows = read_rows(tmp_path / "scores.csv")
    assert [row["path"] for row in rows] == [str(tmp_path) + "/caf\\xe9.png", "missing.png", rows[0]["path"]]
    assert rows[0] == rows[2]
    assert done.first[1].reason == "no such file"


def test_parts_of_other_images_are_not_taken(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "images", 70, set())
    other = tmp_path / ".scores.csv.parts"
    predict(DETECTOR, [str(paths[1])] * 64, tmp_path / "other.csv")
    (other / "parts").mkdir(parents=True)
    (other / "task.json").write_text('{"format": 1, "images": "of another run"}')
    (other / "parts" / "00000.arrow").write_bytes(b"not read")
    notes: list[str] = []
    predict(DETECTOR, [str(path) for path in paths], tmp_path / "scores.csv", on_note=notes.append)
    assert "made anew" in notes[0]
    check_rows(read_rows(tmp_path / "scores.csv"), paths, set())


def test_an_index_is_scored_in_its_order(finished: Finished, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"alpha": 2})
    index = tmp_path / "index.parquet"
    table = build_index([images], "csv")
    write_index(table, index)
    output = tmp_path / "scores.jsonl"
    result = run_cli("predict", finished.detector, "--index", index, "-o", output)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["path"] for line in lines] == table["path"].to_pylist()
    assert "4 scored" in result.output


def test_inputs_that_cannot_be_taken(tmp_path: Path) -> None:
    with pytest.raises(IndexingError, match="neither a local path nor a URI"):
        image_paths(["ftp://host/a.png"])
    with pytest.raises(InvalidConfig, match="should end in"):
        predict(DETECTOR, ["a.png"], tmp_path / "scores.txt")
    with pytest.raises(InvalidConfig, match="1 is the least"):
        predict(DETECTOR, [], tmp_path / "scores.csv")
    assert image_paths(["a.png", f"file://{tmp_path}"]) == (["a.png"], {})


def test_names_of_every_kind_below_a_folder(tmp_path: Path) -> None:
    folder = os.fsdecode(b"folder-\xe9")
    for name in (
        "b.PNG",
        "d41d8cd9",
        os.fsdecode(b"latin-\xe9.jpg"),
        f"{folder}/c.webp",
        f"{folder}/LICENSE",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("notes.txt", "a.json", "b.json", ".hidden.png", "photo.png.part"):
        (tmp_path / name).touch()
    images, skipped = image_paths([str(tmp_path)])
    assert [os.path.relpath(image, tmp_path) for image in images] == [
        "b.PNG", "d41d8cd9", os.fsdecode(b"latin-\xe9.jpg"), f"{folder}/LICENSE", f"{folder}/c.webp",
    ]  # fmt: skip
    assert skipped == {".txt": 1, ".json": 2, "hidden": 1, ".part": 1}


def test_a_finished_output_is_made_anew_and_that_is_said(tmp_path: Path) -> None:
    (path,) = write_pictures(tmp_path / "images", 1, set())
    output = tmp_path / "scores.csv"
    notes: list[str] = []
    predict(DETECTOR, [str(path)], output, on_note=notes.append)
    assert notes == []
    predict(DETECTOR, [str(path)], output, on_note=notes.append)
    assert notes == [
        f"{output} is there from an earlier run; all images are scored again and it is replaced."
    ]
