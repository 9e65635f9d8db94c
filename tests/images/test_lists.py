"""Lists of images in the dialects of the field, as CSV and as Parquet."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from causal_tune.images.index import origin, write_index
from causal_tune.images.layouts import build_index
from tests.images.trees import found, make, refused

COLUMNS = "path,label,generator"
PLAIN = [
    {"path": "r.png", "label": "real", "generator": "sd14", "split": "train"},
    {"path": "f.png", "label": "fake", "generator": "sd14", "split": ""},
]


def write_list(path: Path, rows: list[dict[str, object]]) -> Path:
    """The same rows as CSV or as Parquet, by the suffix; the files that they name exist."""
    for row in rows:
        make(path.parent, str(row.get("path") or row.get("filename") or "nothing.png"))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture(params=["list.csv", "list.parquet"])
def path(request, tmp_path) -> Path:
    return tmp_path / request.param


def test_plain(path):
    table = build_index([write_list(path, PLAIN)], "csv")
    assert found(table) == {("sd14", "train", 0): 1, ("sd14", "", 1): 1}
    assert build_index([path]).equals(table)
    (note,) = origin(table)["notes"]
    assert (
        note
        == f"csv: {path.name} has the columns path, label, generator: one row for each image and generator."
    )


def test_parquet_of_numbers_nulls_and_image_bytes(tmp_path):
    rows = [
        {"Path": "r.png", "label": 0, "generator": "g", "split": None, "image": {"bytes": b"x"}},
        {"Path": "f.png", "label": 1, "generator": "g", "split": "val", "image": {"bytes": b"y"}},
    ]
    make(tmp_path, "r.png", "f.png")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "l.parquet")
    assert found(build_index([tmp_path / "l.parquet"])) == {("g", "", 0): 1, ("g", "val", 1): 1}


def test_an_index_is_a_list_too(path, tmp_path):
    table = build_index([write_list(path, PLAIN)])
    write_index(table, tmp_path / "elsewhere" / "index.parquet")
    assert build_index([tmp_path / "elsewhere" / "index.parquet"]).equals(table)


def test_real_images_of_a_filename_typ_list_are_compared_with_every_generator(path):
    rows = [("a/r0.png", "real"), ("a/r1.png", "Real"), ("b/f0.png", "dalle3"), ("b/f1.png", "firefly")]
    rows += [("b/f2.png", "firefly")]
    table = build_index([write_list(path, [{"filename": name, "typ": typ} for name, typ in rows])])
    assert found(table) == {
        ("dalle3", "", 0): 2, ("dalle3", "", 1): 1, ("firefly", "", 0): 2, ("firefly", "", 1): 2,
    }  # fmt: skip
    assert "2 real images are compared with each of dalle3, firefly" in origin(table)["notes"][0]


def metadata(path: str, mode: str, generator: str) -> dict[str, object]:
    size = {"width": 512, "height": 512, "compression_rate": 96}
    return {"path": path, "mode": mode, "generator": generator, "class": 7, **size}


def test_metadata_of_unbiased_genimage(path):
    rows = [
        metadata("ADM/imagenet_ai_0508_adm/train/ai/7_adm_0.PNG", "train", "ADM"),
        metadata("ADM/imagenet_ai_0508_adm/train/nature/n01.JPEG", "train", "nature"),
        metadata(
            "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/val/ai/0.png", "val", "stable_diffusion_v_1_4"
        ),
        metadata("stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/val/nature/n02.JPEG", "val", "nature"),
        metadata("ffhq/00001.png", "val", "nature"),
    ]
    table = build_index([write_list(path, rows)])
    assert found(table) == {
        ("adm", "train", 1): 1, ("adm", "train", 0): 1, ("sd14", "val", 1): 1, ("sd14", "val", 0): 2,
        ("adm", "val", 0): 1,
    }  # fmt: skip
    (note,) = origin(table)["notes"]
    assert "metadata of UnbiasedGenImage" in note
    assert "2 real images are compared with the generator that their path names" in note
    assert "1 real image is compared with each of adm, sd14" in note


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (
            [{"filename": "a.png", "score": "1"}],
            ["column filename but none that says", "filename, score", "typ"],
        ),
        ([{"filename": "a.png", "typ": ""}], ["has no typ", "Expected real, or the name of the generator"]),
        ([{"filename": "a.png", "typ": "real"}], ["All 1 images", "are real, none is generated"]),
        ([{"filename": "a.png", "typ": "x", "split": "dev"}], ["split 'dev'", "train, val, test"]),
        ([{"filename": "a.png", "typ": "x"}] * 2, ["lists", "again", "Remove one of the two rows"]),
        ([{"filename": "", "typ": "x"}], ["has no path"]),
        (
            [{"filename": "a.png", "typ": "x"}, {"filename": "a.png", "typ": "real"}],
            ["the label real", "generated", "either real or generated"],
        ),
        ([metadata("a.png", "train", "")], ["has no generator. Expected nature"]),
        ([metadata("a.png", "dev", "ADM")], ["split 'dev'"]),
        ([{"path": "a.png", "class": "1"}], ["has no column label, generator", "found"]),
        ([{"path": "a.png", "label": "2", "generator": "g"}], ["the label '2'", "real or fake"]),
    ],
)
def test_mistakes(path, rows, parts):
    text = refused([write_list(path, rows)], "csv")
    assert path.name in text
    for part in parts:
        assert part in text


def test_mistakes_in_parquet_name_the_row(tmp_path):
    rows = [{**PLAIN[0]}, {**PLAIN[1], "label": "synthetic"}]
    assert "list.parquet', row 2 has the label 'synthetic'" in refused(
        [write_list(tmp_path / "list.parquet", rows)], "csv"
    )
    plain = PLAIN[0] | {"path": "http://host/a.png"}
    pq.write_table(pa.Table.from_pylist([plain]), tmp_path / "web.parquet")
    assert "web.parquet', row 1: 'http://host/a.png' is neither" in refused([tmp_path / "web.parquet"], "csv")
    pq.write_table(
        pa.table({"path": [{"a": 1}], "label": [0], "generator": ["g"]}), tmp_path / "struct.parquet"
    )
    assert "columns of text" in refused([tmp_path / "struct.parquet"], "csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert "cannot be read as Parquet" in refused([tmp_path / "broken.parquet"], "csv")
    assert "There is no Parquet file" in refused([tmp_path / "gone.parquet"], "csv")
