import hashlib
import io
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from causal_tune.errors import IndexingError, UnknownName
from causal_tune.images.facts import FileFacts, estimate_jpeg_quality, header_facts, read_facts
from causal_tune.images.index import INDEX_SCHEMA, index_sha256, skipped_files, summarise
from causal_tune.images.layouts import LAYOUTS, SHAPES, build_index
from causal_tune.images.places import (
    Place,
    place_folders,
    place_forensynths,
    place_genimage,
)
from tests.images import misbehaving
from tests.images.trees import (
    GENIMAGE,
    JPEG,
    LSUN,
    PNG,
    found,
    image_bytes,
    make,
    make_forensynths_test,
    make_genimage,
    refused,
)

# --- genimage


@pytest.mark.parametrize("extra_level", [True, False])
def test_genimage_tree(tmp_path, extra_level):
    make_genimage(tmp_path, extra_level)
    expected = {}
    for name in GENIMAGE:
        expected |= {(name, "train", 1): 3, (name, "train", 0): 1, (name, "val", 1): 1, (name, "val", 0): 1}
    assert found(build_index([tmp_path], "genimage")) == expected


def test_genimage_ai_is_generated_although_it_sorts_first(tmp_path):
    make_genimage(tmp_path, True)
    for row in build_index([tmp_path], "genimage").to_pylist():
        assert row["label"] == ("/ai/" in row["path"])
        assert row["label"] == (row["format"] == "PNG")


@pytest.mark.parametrize("extra_level", [True, False])
def test_genimage_root_may_be_one_generator_or_above_the_tree(tmp_path, extra_level):
    make_genimage(tmp_path / "GenImage", extra_level)
    one = build_index([tmp_path / "GenImage" / "stable_diffusion_v_1_4"], "genimage")
    assert set(one["generator"].to_pylist()) == {"sd14"}
    above = build_index([tmp_path], "genimage")
    assert set(above["generator"].to_pylist()) == set(GENIMAGE)
    if extra_level:
        inner = tmp_path / "GenImage" / GENIMAGE["adm"]
        assert set(build_index([inner], "genimage")["generator"].to_pylist()) == {"adm"}


@pytest.mark.parametrize(
    ("root", "parts", "expected"),
    [
        ("/d", ("SDv1.4", "val", "nature"), Place(label=0, generator="sd14", split="val")),
        ("/d", ("My New GAN", "train", "ai"), Place(label=1, generator="my new gan", split="train")),
        ("/d", ("FLUX", "imagenet_ai_x", "train", "ai"), Place(label=1, generator="flux", split="train")),
        (
            "/d",
            ("renamed", "imagenet_ai_0508_adm", "val", "ai"),
            Place(label=1, generator="adm", split="val"),
        ),
        ("/d", ("ADM", "train", "nature", "n0144"), Place(label=0, generator="adm", split="train")),
        ("/d/ADM", ("train", "AI"), Place(label=1, generator="adm", split="train")),
        ("/d", ("ADM", "ai"), None),
        ("/d", ("ADM", "train"), None),
        ("/d", (), None),
    ],
)
def test_place_genimage(root, parts, expected):
    assert place_genimage(Path(root), parts) == expected


# --- forensynths


@pytest.mark.parametrize("folder", ["test", "CNN_synth_testset", "ForenSynths/test"])
def test_forensynths_13_test_sets(tmp_path, folder):
    expected = make_forensynths_test(tmp_path / folder)
    assert len({generator for generator, _, _ in expected}) == 13
    for root in {tmp_path, tmp_path / folder}:
        assert found(build_index([root], "forensynths")) == expected


def test_forensynths_training_tree_and_its_single_roots(tmp_path):
    for split in ("train", "val"):
        for category in LSUN:
            make(
                tmp_path, f"{split}/progan/{category}/0_real/a.png", f"{split}/progan/{category}/1_fake/a.png"
            )
    both = {("progan", split, label): 20 for split in ("train", "val") for label in (0, 1)}
    assert found(build_index([tmp_path], "forensynths")) == both
    only_train = {key: number for key, number in both.items() if key[1] == "train"}
    assert found(build_index([tmp_path / "train"], "forensynths")) == only_train
    assert found(build_index([tmp_path / "train" / "progan"], "forensynths")) == only_train


@pytest.mark.parametrize(
    ("root", "parts", "expected"),
    [
        ("/d/test", ("progan", "train", "0_real"), Place(label=0, generator="progan", split="test")),
        ("/d/progan", ("train", "1_fake"), Place(label=1, generator="progan", split="test")),
        ("/d/train_ForenSynths", ("val", "horse", "1_fake"), Place(label=1, generator="progan", split="val")),
        ("/d", ("test", "DALLE2", "0_real"), Place(label=0, generator="DALLE2", split="test")),
        ("/d", ("DALLE2", "1_fake", "deeper"), Place(label=1, generator="DALLE2", split="test")),
        ("/d/midjourney", ("1_fake",), Place(label=1, generator="midjourney", split="test")),
        ("/d", ("train", "sdv1.4", "0_real"), Place(label=0, generator="sdv1.4", split="train")),
        ("/d", ("progan", "cat"), None),
        ("/d", ("progan", "real"), None),
    ],
)
def test_place_forensynths(root, parts, expected):
    assert place_forensynths(Path(root), parts) == expected


# --- folders


@pytest.mark.parametrize(
    ("real", "fake"), [("real", "fake"), ("0_real", "1_fake"), ("nature", "ai"), ("REAL", "Fake")]
)
@pytest.mark.parametrize(
    ("shape", "split"), [("{g}/{c}", ""), ("train/{g}/{c}", "train"), ("{g}/Val/{c}", "val")]
)
def test_folders(tmp_path, real, fake, shape, split):
    for generator in ("sd14", "My GAN"):
        make(
            tmp_path,
            shape.format(g=generator, c=real) + "/a.png",
            shape.format(g=generator, c=real) + "/b.png",
        )
        make(tmp_path, shape.format(g=generator, c=fake) + "/deep/er/a.png")
    assert found(build_index([tmp_path], "folders")) == {
        (generator, split, label): 2 - label for generator in ("sd14", "My GAN") for label in (0, 1)
    }


def test_folders_root_may_be_one_generator(tmp_path):
    make(tmp_path / "mygan", "real/a.png", "fake/a.png")
    assert found(build_index([tmp_path / "mygan"], "folders")) == {("mygan", "", 0): 1, ("mygan", "", 1): 1}


def test_folders_that_do_not_fit_are_counted(tmp_path):
    make(tmp_path, "g/real/a.png", "g/fake/a.png", "g/c.png", "g/cats/real/d.png", "train/g/val/real/e.png")
    table = build_index([tmp_path], "folders")
    assert table.num_rows == 2
    assert skipped_files(table) == {"outside the class folders": 3}
    assert place_folders(Path("/d"), ("a", "b", "real")) is None


# --- what all folder layouts share


def test_extensions_count_by_the_last_suffix_in_any_case(tmp_path):
    names = ["a.PNG", "b.JPEG", "c.v2.Jpg", "d.tar.webp", "e.bmp", "f.tif", "g.TIFF", "h.gif", "i.png"]
    others = ["x.png.txt", "README", "y.zip", "._a.png", ".DS_Store", ".cache/z.png", "v.mp4", "w.TXT"]
    make(tmp_path, *(f"g/real/{name}" for name in (*names, *others)), "g/fake/a.png")
    table = build_index([tmp_path], "folders")
    assert sorted(Path(path).name for path in table["path"].to_pylist()) == sorted([*names, "a.png"])
    assert skipped_files(table) == {".mp4": 1, ".txt": 2, ".zip": 1, "hidden": 3, "no suffix": 1}
    assert "skipped 8 (1 .mp4, 2 .txt, 1 .zip, 3 hidden, 1 no suffix)" in summarise(table)


def test_unreadable_files_keep_their_rows(tmp_path):
    make(tmp_path, "g/real/good.png", "g/fake/good.png")
    make(tmp_path, "g/fake/empty.png", data=b"")
    make(tmp_path, "g/fake/text.jpg", data=b"hello")
    make(tmp_path, "g/fake/cut.png", data=PNG[:-30])
    (tmp_path / "g/fake/broken.png").symlink_to("nowhere.png")
    (tmp_path / "g/fake/self.png").symlink_to("self.png")
    rows = {Path(r["path"]).name: r for r in build_index([tmp_path], "folders").to_pylist() if r["label"]}
    assert len(rows) == 6
    assert {name for name, row in rows.items() if row["width"] is None} == {
        "empty.png", "text.jpg", "broken.png", "self.png"
    }  # fmt: skip
    assert (rows["empty.png"]["bytes"], rows["text.jpg"]["bytes"], rows["broken.png"]["bytes"]) == (
        0,
        5,
        None,
    )
    assert rows["cut.png"]["width"] == 12  # its header is sound: refused when it is decoded


def test_names_with_odd_characters(tmp_path):
    odd = ["a b.png", "q\"u'o.png", "new\nline.png", "ünï 猫.png", "e\u0301.png", "percent%20.png", "-rf.png"]
    make(tmp_path, *(f"g/real/{name}" for name in odd), "g/fake/a.png")
    (tmp_path / "g" / "real" / os.fsdecode(b"latin-\xe9.png")).write_bytes(PNG)
    table = build_index([tmp_path], "folders")
    names = [
        Path(path).name for path in table.filter(pa.compute.equal(table["label"], 0))["path"].to_pylist()
    ]
    assert sorted(names) == sorted(odd)
    assert skipped_files(table) == {"name is not UTF-8": 1}
    assert table["width"].null_count == 0


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, "shared/real/a.png", "shared/real/b.png", "tree/sd14/fake/a.png", "tree/adm/fake/a.png")
    for generator in ("sd14", "adm"):
        (tmp_path / "tree" / generator / "real").symlink_to(tmp_path / "shared" / "real")
    (tmp_path / "tree" / "sd14" / "fake" / "up").symlink_to(tmp_path / "tree")
    table = build_index([tmp_path / "tree"], "folders")
    expected = {(g, "", label): 2 - label for g in ("sd14", "adm") for label in (0, 1)}
    assert found(table) == expected
    assert skipped_files(table) == {"link back to a folder above": 1}


def test_several_roots_real_and_generated_apart(tmp_path):
    make(tmp_path, "a/laion/0_real/x.png", "b/laion/1_fake/x.png")
    table = build_index([tmp_path / "b", tmp_path / "a"], "forensynths")
    assert found(table) == {("laion", "test", 0): 1, ("laion", "test", 1): 1}


def test_order_of_roots_and_of_the_disk_does_not_matter(tmp_path, monkeypatch):
    make_genimage(tmp_path / "one", True)
    make_genimage(tmp_path / "two", False)
    roots = [tmp_path / "one", tmp_path / "two"]
    first = build_index(roots, "genimage")
    real_scandir = os.scandir

    class Shuffled:
        def __init__(self, path):
            with real_scandir(path) as entries:
                self.entries = list(entries)
            random.Random(str(path)).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(os, "scandir", Shuffled)
    second = build_index(roots[::-1], "genimage")
    assert first.equals(second, check_metadata=True)
    keys = [(r["generator"], r["split"], r["label"], r["path"]) for r in first.to_pylist()]
    assert keys == sorted(keys)


def test_index_hash_does_not_depend_on_where_the_tree_lies(tmp_path):
    make_genimage(tmp_path / "one", True)
    shutil.copytree(tmp_path / "one", tmp_path / "moved" / "elsewhere")
    first = build_index([tmp_path / "one"], "genimage")
    assert index_sha256(first) == index_sha256(build_index([tmp_path / "moved" / "elsewhere"], "genimage"))
    make(tmp_path / "one", "ADM/imagenet_ai_0508_adm/val/ai/3.png", data=JPEG)
    assert index_sha256(first) != index_sha256(build_index([tmp_path / "one"], "genimage"))


def test_relative_root_gives_absolute_paths(tmp_path, monkeypatch):
    make(tmp_path, "g/real/a.png", "g/fake/a.png")
    monkeypatch.chdir(tmp_path)
    table = build_index(["."], "folders")
    assert set(table["path"].to_pylist()) == {str(tmp_path / "g/real/a.png"), str(tmp_path / "g/fake/a.png")}
    assert table.schema.equals(INDEX_SCHEMA)


def test_progress_reaches_the_number_of_files(tmp_path):
    make(tmp_path, *(f"g/{name}/{i}.png" for name in ("real", "fake") for i in range(200)))
    calls: list[tuple[int, int]] = []
    build_index([tmp_path], "folders", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(256, 400), (400, 400)]


# --- folder errors


def test_missing_folder_and_file_as_root(tmp_path):
    assert "There is no folder" in refused([tmp_path / "gone"], "genimage")
    make(tmp_path, "list.csv")
    text = refused([tmp_path / "list.csv"], "folders")
    assert "is a file" in text
    assert "Use the layout csv" in text


def test_empty_folder_says_what_is_there(tmp_path):
    assert "There is no image" in refused([tmp_path], "folders")
    make(tmp_path, "a.txt", "b/c.zip", "b/d.zip")
    assert "other files: 1 .txt, 2 .zip" in refused([tmp_path], "forensynths")


@pytest.mark.parametrize(
    ("names", "wrong", "right"),
    [
        (["ADM/train/ai/a.png", "ADM/train/nature/a.png"], "forensynths", "genimage"),
        (["biggan/0_real/a.png", "biggan/1_fake/a.png"], "genimage", "forensynths"),
        (["g/real/a.png", "g/fake/a.png"], "genimage", "folders"),
    ],
)
def test_wrong_layout_names_the_one_that_fits(tmp_path, names, wrong, right):
    make(tmp_path, *names)
    text = refused([tmp_path], wrong)
    assert f"The layout {right} fits all of them" in text
    assert names[0].rpartition("/")[0] in text
    assert SHAPES[wrong] in text
    assert build_index([tmp_path], right).num_rows == 2


def test_no_layout_fits(tmp_path):
    make(tmp_path, "cats/a.png", "dogs/b.png", "x/y/c.png", "z/d.png")
    text = refused([tmp_path], "genimage")
    assert "None of the 4 images" in text
    assert "Folders with images: cats, dogs, x/y, ..." in text
    assert "write a CSV file with the columns path, label, generator" in text
    make(tmp_path, "list.csv")
    assert "There is a CSV file in it, list.csv" in refused([tmp_path], "genimage")


@pytest.mark.parametrize(
    ("name", "only", "other"), [("real", "real", "generated"), ("fake", "generated", "real")]
)
def test_one_class_only(tmp_path, name, only, other):
    make(tmp_path, f"g/{name}/a.png", f"g/{name}/b.png", "g/stuff/c.png")
    text = refused([tmp_path], "folders")
    assert f"All 2 images found are {only}, none is {other} (1 more lie outside its class folders)" in text


def test_a_root_that_fits_nothing_is_an_error_beside_one_that_fits(tmp_path):
    make(tmp_path, "a/g/real/a.png", "a/g/fake/a.png", "b/stuff/a.png")
    assert "None of the 1 images under" in refused([tmp_path / "a", tmp_path / "b"], "folders")


def test_overlapping_roots(tmp_path):
    make(tmp_path, "g/real/a.png", "g/fake/a.png")
    assert "Two of the roots are the same" in refused([tmp_path, tmp_path], "folders")


def test_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    make(tmp_path, "g/real/a.png", "g/fake/a.png")
    real_scandir = os.scandir

    def scandir(path):
        if str(path).endswith("fake"):
            raise PermissionError(13, "Permission denied", path)
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "g/fake' cannot be listed: Permission denied" in refused([tmp_path], "folders")


def test_unknown_layout_and_no_roots():
    with pytest.raises(UnknownName, match="csv, folders, forensynths, genimage"):
        build_index(["/d"], "imagefolder")
    with pytest.raises(IndexingError, match="No root was given"):
        build_index([], "csv")
    assert set(SHAPES) == set(LAYOUTS)


@given(
    parts=st.lists(
        st.sampled_from(["train", "val", "0_real", "ai", "real", "progan", "x", "imagenet_x"]), max_size=6
    )
)
def test_any_folder_gets_a_place_or_none(parts):
    for place in (place_folders, place_genimage, place_forensynths):
        for root in (Path("/"), Path("/imagenet_a"), Path("/train"), Path("/a/progan")):
            result = place(root, parts)
            assert result is None or (result.label in (0, 1) and result.split in ("train", "val", "test", ""))


# --- csv


def make_csv(folder: Path, text: str, **options: str) -> Path:
    make(folder, "r.png", "f.png", "sub/r 2.png")
    path = folder / "list.csv"
    path.write_text(text, **{"encoding": "utf-8", **options})
    return path


def test_csv_labels_splits_and_paths(tmp_path):
    table = build_index(
        [
            make_csv(
                tmp_path,
                "note,path,Label,generator,split\n"
                "n,r.png,REAL,sd14,train\n"
                f"n,{tmp_path}/f.png,Fake,sd14,Train\n"
                "n,./sub/r 2.png,0,adm,\n"
                "n,sub/../f.png,1,adm,test\n"
                "n,r.png,real,glide,val\n"
                'n,"with,comma.png",generated,glide,val\n\n',
            )
        ],
        "csv",
    )
    assert found(table) == {
        ("sd14", "train", 0): 1, ("sd14", "train", 1): 1, ("adm", "", 0): 1,
        ("adm", "test", 1): 1, ("glide", "val", 0): 1, ("glide", "val", 1): 1,
    }  # fmt: skip
    missing = [Path(row["path"]).name for row in table.to_pylist() if row["bytes"] is None]
    assert missing == ["with,comma.png"]
    assert all(Path(path).is_absolute() and ".." not in path for path in table["path"].to_pylist())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_from_spreadsheets(tmp_path, encoding, end):
    text = end.join(["path,label,generator", "r.png,real,g", "f.png,fake,g", ""])
    path = make_csv(tmp_path, "")
    path.write_bytes(text.encode(encoding))
    assert build_index([path], "csv").num_rows == 2


def test_csv_keeps_rows_of_any_suffix(tmp_path):
    path = make_csv(tmp_path, "path,label,generator\nr.png,real,g\nlist.csv,fake,g\nsub,fake,g\n")
    table = build_index([path], "csv")
    assert table.num_rows == 3
    assert table["width"].null_count == 2


HEAD = "path,label,generator\nr.png,real,g\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["is empty", "path, label, generator"]),
        ("path,label,generator\n", ["no rows"]),
        (
            "path|label|generator\nr.png|real|g\n",
            ["no column path, label, generator", "found path|label|generator"],
        ),
        ("path,class\nr.png,real\n", ["no column label, generator", "found path, class"]),
        ("path,label,generator,path\nr.png,real,g,x\n", ["column path more than once"]),
        (HEAD + "f.png,synthetic,g\n", ["line 3", "label 'synthetic'", "real or fake"]),
        (HEAD + "f.png,fake,\n", ["line 3", "no generator"]),
        (HEAD + ",fake,g\n", ["line 3", "no path"]),
        (HEAD + "f.png,fake,g,extra\n", ["line 3", "4 columns", "header has 3"]),
        (HEAD + "f.png,fake\n", ["line 3", "2 columns"]),
        (HEAD + "f.png,fake,g\n./r.png,real,g\n", ["line 4", "line 2", "again"]),
        (HEAD + "r.png,fake,h\n", ["line 3", "generated", "line 2 real"]),
        ("path,label,generator,split\nr.png,real,g,dev\n", ["line 2", "split 'dev'", "train, val, test"]),
        (HEAD + "f.png,real,g\n", ["All 2 images found are real", "none is generated"]),
        (
            "path,label,generator\nx/a.png,real,g\nx/b.png,fake,g\n",
            ["None of the 2 files", "relative to the folder"],
        ),
        (HEAD + '"f.png,fake,g\n', ["not well-formed CSV"]),
    ],
)
def test_bad_csv(tmp_path, text, parts):
    message = refused([make_csv(tmp_path, text)], "csv")
    assert "list.csv" in message or "images found" in message
    for part in parts:
        assert part in message


def test_csv_that_is_missing_a_folder_or_no_text(tmp_path):
    assert "There is no CSV file" in refused([tmp_path / "gone.csv"], "csv")
    assert "holds no list either" in refused([tmp_path], "csv")
    path = make_csv(tmp_path, "path\n")
    assert "It holds list.csv: name that file" in refused([tmp_path], "csv")
    path.write_bytes(b"path,label,generator\n\xff\xfe.png,real,g\n")
    assert "is not UTF-8 text" in refused([path], "csv")


def test_two_csv_files_with_the_same_row(tmp_path):
    path = make_csv(tmp_path, HEAD + "f.png,fake,g\n")
    assert "found twice" in refused([path, path], "csv")


def test_a_shared_file_is_read_once(tmp_path, monkeypatch):
    calls: list[str] = []
    from causal_tune.images import layouts

    def count(path):
        calls.append(path)
        return read_facts(path)

    monkeypatch.setattr(layouts, "read_facts", count)
    path = make_csv(tmp_path, HEAD + "r.png,real,h\nf.png,fake,g\n")
    table = build_index([path], "csv")
    assert table.num_rows == 3
    assert len(calls) == 2


# --- facts


@pytest.mark.parametrize("quality", [1, 10, 30, 42, 45, 49, 50, 51, 65, 75, 90, 95, 96, 98, 100])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_quality_is_the_one_it_was_written_with(quality, options, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(image_bytes("JPEG", quality=quality, **options))
    assert read_facts(str(path)).jpeg_quality == quality


def test_jpeg_quality_of_foreign_tables_is_the_nearest():
    tables = Image.open(io.BytesIO(image_bytes("JPEG", quality=80))).quantization
    assert estimate_jpeg_quality([value + (i % 7 == 0) for i, value in enumerate(tables[0])]) in (79, 80)


def test_facts_of_one_file(tmp_path):
    path = tmp_path / "wrong suffix.png"
    path.write_bytes(JPEG)
    facts = read_facts(str(path))
    assert (facts.width, facts.height, facts.format, facts.mode) == (12, 8, "JPEG", "RGB")
    assert facts.bytes == len(JPEG)
    assert facts.sha256 is not None
    assert len(facts.sha256) == 64
    path.write_bytes(PNG)
    assert read_facts(str(path)).jpeg_quality is None
    assert np.prod(read_facts(str(path)).width) == 12


@pytest.mark.parametrize("name", ["WEBP", "AVIF"])
def test_a_header_that_a_library_in_c_reads_is_read_in_a_child(name, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(image_bytes(name))
    expected = header_facts(path.read_bytes())
    _, accept = Image.OPEN[name]
    monkeypatch.setitem(Image.OPEN, name, (lambda *_: pytest.fail("read in this process"), accept))
    facts = read_facts(str(path))
    assert {key: getattr(facts, key) for key in expected} == expected
    assert facts.format == name


def test_a_header_that_crashes_its_library_costs_the_facts_of_that_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.webp"
    path.write_bytes(image_bytes("WEBP"))
    monkeypatch.setattr("causal_tune.images.facts.header_facts", misbehaving.crash)
    facts = read_facts(str(path))
    assert facts == FileFacts(bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.undo()
    assert read_facts(str(path)).width == 12
