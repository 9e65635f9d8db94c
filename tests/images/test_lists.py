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


# --- as spreadsheets and other programs write them


LINES = ["path,label,generator,split", "r.png,real,sd14,train", '"a, b.png",fake,sd14,val']
EXPECTED = {("sd14", "train", 0): 1, ("sd14", "val", 1): 1}


def lines_with(delimiter: str) -> str:
    return "\r\n".join(LINES).replace('"a, b.png"', '"a; b.png"' if delimiter == ";" else '"a, b.png"').replace(
        ",", delimiter
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "recognised"),
    [
        (lines_with(",").encode(), None),
        (lines_with(",").encode("utf-8-sig"), None),
        (lines_with(",").replace("\r\n", "\r").encode(), None),
        (lines_with(";").encode(), "semicolons between columns"),
        (lines_with("\t").encode(), "tabs between columns"),
        (b"sep=;\r\n" + lines_with(";").encode(), "semicolons between columns"),
        (b"sep=,\n" + lines_with(",").encode(), None),
        (b"sep=|\n" + lines_with("|").encode(), "'|' between columns"),
        (lines_with(",").encode("utf-16"), "UTF-16 text"),
        (b"\xfe\xff" + lines_with("\t").encode("utf-16-be"), "UTF-16 text, tabs between columns"),
        ("\n".join(", ".join(line.split(",")) for line in LINES[:2]).encode() + b"\nf.png, fake, sd14, val",
         "spaces behind commas"),
        ((lines_with(",") + "\n \n,,,\n\n").encode(), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_forms_of_csv(tmp_path, data, recognised, suffix):
    path = tmp_path / f"list{suffix}"
    path.write_bytes(data)
    make(tmp_path, "r.png", "a, b.png", "a; b.png", "a\t b.png", "a| b.png", "f.png")
    for layout in ("csv", "auto"):
        table = build_index([path], layout)
        assert found(table) == EXPECTED
        assert set(table["bytes"].is_valid().to_pylist()) == {True}
        (note,) = origin(table)["notes"]
        assert note.partition(" Recognised: ")[2] == (f"{recognised}." if recognised else "")


def test_lines_are_counted_from_the_top_of_the_file(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("sep=;\npath;label;generator\na.png;real;g\n\nb.png;synthetic;g\n")
    assert "line 5 has the label 'synthetic'" in refused([path], "csv")
    path.write_text("path;label;generator\na.png;real;g;h\n")
    assert "line 2 has 4 columns, the header has 3. Put values that contain semicolons in" in refused(
        [path], "csv"
    )


@pytest.mark.parametrize(
    ("real", "fake"), [("False", "True"), ("0.0", "1.0"), ("nature", "ai"), ("0_real", "1_fake")]
)
def test_other_words_for_the_labels_are_read_and_said(path, real, fake):
    rows = [
        PLAIN[0] | {"label": real, "split": "training"},
        PLAIN[1] | {"label": fake, "split": "validation"},
    ]
    table = build_index([write_list(path, rows)])
    assert found(table) == EXPECTED
    (note,) = origin(table)["notes"]
    assert note.endswith(
        f"Recognised: the label {real} as real, the split training as train, the label {fake} as generated, "
        f"the split validation as val."
    )


@pytest.mark.parametrize(("real", "fake"), [(False, True), (0.0, 1.0), (0, 1)])
def test_parquet_labels_of_every_type(tmp_path, real, fake):
    rows = [PLAIN[0] | {"label": real}, PLAIN[1] | {"label": fake, "split": "val"}]
    assert found(build_index([write_list(tmp_path / "list.parquet", rows)])) == EXPECTED


def test_backslashes_are_slashes_where_only_that_names_files(path):
    rows = [PLAIN[0] | {"path": "a\\r.png"}, PLAIN[1] | {"path": "a\\b\\f.png"}]
    write_list(path, rows)  # makes files whose names have backslashes
    table = build_index([path])
    assert sorted(Path(name).name for name in table["path"].to_pylist()) == ["a\\b\\f.png", "a\\r.png"]
    for file in path.parent.glob("*.png"):
        file.unlink()
    make(path.parent, "a/r.png", "a/b/f.png")
    table = build_index([path])
    assert sorted(Path(name).name for name in table["path"].to_pylist()) == ["f.png", "r.png"]
    assert origin(table)["notes"][0].endswith("Recognised: backslashes as the slashes of paths.")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("C:\\data\\a.png,real,g\n", ["C:\\\\data\\\\a.png' is a path of Windows", "relative to the folder"]),
        ("~/a.png,real,g\n", ["`~` for a name", "absolute paths"]),
        ("a.png,real,nan\n", ["line 2 has the generator 'nan'"]),
        ("a.png,real,SD\nb.png,fake,sd\n", ["SD (real), sd (generated)", "SD and sd differ only in case"]),
        ("b.png,real,sd\nb.png,fake,sd\n", ["the label generated, line 2 real"]),
    ],
)
def test_mistakes_of_programs(tmp_path, text, parts):
    make(tmp_path, "b.png")
    (tmp_path / "list.csv").write_text(f"{COLUMNS}\n{text}")
    answer = refused([tmp_path / "list.csv"], "csv")
    for part in parts:
        assert part in answer


def test_text_that_cannot_be_decoded_says_what_to_save(tmp_path):
    for data, part in (
        (f"{COLUMNS}\né.png,real,g".encode("latin-1"), "not UTF-8 text (byte 21). Save it as UTF-8 CSV"),
        (f"{COLUMNS}\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (b"\xff\xfep", "not UTF-16 text"),
    ):
        (tmp_path / "list.csv").write_bytes(data)
        assert part in refused([tmp_path / "list.csv"], "csv")


def test_files_that_are_no_lists_by_name(tmp_path):
    (tmp_path / "list.txt").write_text(COLUMNS)
    text = refused([tmp_path / "list.txt"], "auto")
    assert "is a file, but no list of images by its name: these end in .csv, .tsv, .parquet" in text


def test_images_in_a_parquet_are_no_list(tmp_path):
    pq.write_table(pa.table({"image": [{"bytes": b"x"}], "label": [0]}), tmp_path / "hub.parquet")
    assert "no column path, but a column image" in refused([tmp_path / "hub.parquet"], "csv")


def test_generators_that_differ_only_in_case_are_named(path):
    rows = [
        {**row, "path": f"{name}-{row['path']}", "generator": name} for name in ("SD", "sd") for row in PLAIN
    ]
    notes = origin(build_index([write_list(path, rows)]))["notes"]
    assert notes[-1] == "The generators SD and sd differ only in case; they are kept apart."
