"""What is recognised, why, and what is said where nothing or too much fits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_tune.images.auto import SHAPES, recognise
from causal_tune.images.files import join
from causal_tune.images.index import origin
from causal_tune.images.layouts import build_index
from causal_tune.images.walk import ImageFolder, Tree
from tests.images.trees import found, make, make_forensynths_test, make_genimage, make_univfd, refused


def tree_of(root: str, folders: dict[tuple[str, ...], int]) -> Tree:
    from collections import Counter

    listed = [
        ImageFolder(path=join(root, *parts), parts=parts, names=tuple(f"{i}.png" for i in range(number)))
        for parts, number in sorted(folders.items())
    ]
    return Tree(root=root, folders=listed, skipped=Counter())


def make_folders(root):
    make(root, "mygan/real/a.png", "mygan/fake/a.png", "val/other/real/a.png", "val/other/fake/a.png")


TREES = {
    "genimage": (lambda root: make_genimage(root, True), "{train,val}/{ai,nature}"),
    "forensynths": (make_forensynths_test, "the test set biggan"),
    "univfd": (make_univfd, "real and generated images apart"),
    "folders": (make_folders, "<generator>/{real,fake}"),
}


@pytest.mark.parametrize("layout", TREES)
def test_each_layout_is_recognised_and_gives_what_its_name_gives(tmp_path, layout):
    make_tree, why = TREES[layout]
    make_tree(tmp_path)
    recognised, named = build_index([tmp_path], "auto"), build_index([tmp_path], layout)
    assert recognised.equals(named)
    note = origin(recognised)["notes"][0]
    assert note.startswith(f"{layout}: ")
    assert why in note
    assert found(build_index([tmp_path])) == found(named)  # it is the default


@pytest.mark.parametrize(
    ("names", "layout", "split"),
    [
        (["ADM/train/ai/a.png", "ADM/train/nature/a.png"], "genimage", "train"),  # fits `folders` as well
        (
            ["mygan/0_real/a.png", "mygan/1_fake/a.png"],
            "folders",
            "",
        ),  # no test set that would be ForenSynths'
        (["biggan/0_real/a.png", "biggan/1_fake/a.png"], "forensynths", "test"),
        (["train/sdv1.4/0_real/a.png", "train/sdv1.4/1_fake/a.png"], "forensynths", "train"),
        (["train/car/0_real/a.png", "train/car/1_fake/a.png"], "forensynths", "train"),
        (["new/cats/0_real/a.png", "new/cats/1_fake/a.png"], "forensynths", "test"),
        (["real/a.png", "fake/a.png"], "folders", ""),
        (["ai/a.png", "nature/a.png"], "folders", ""),
    ],
)
def test_what_several_layouts_would_take(tmp_path, names, layout, split):
    make(tmp_path, *names)
    table = build_index([tmp_path])
    assert origin(table)["notes"][0].startswith(f"{layout}: ")
    assert set(table["split"].to_pylist()) == {split}
    assert table.num_rows == 2


def test_roots_of_different_layouts_and_a_list_together(tmp_path):
    make_genimage(tmp_path / "GenImage", True)
    make_forensynths_test(tmp_path / "test")
    make(tmp_path, "x/r.png", "x/f.png")
    (tmp_path / "x" / "list.csv").write_text("path,label,generator\nr.png,real,sdxl\nf.png,fake,sdxl\n")
    roots = [tmp_path / "GenImage", tmp_path / "x" / "list.csv", tmp_path / "test"]
    table = build_index(roots)
    parts = [(roots[0], "genimage"), (roots[1], "csv"), (roots[2], "forensynths")]
    expected = sum(
        (found(build_index([root], layout)) for root, layout in parts), start=found(table) - found(table)
    )
    assert found(table) == expected
    notes = origin(table)["notes"]
    assert [note.partition(":")[0] for note in notes[:3]] == ["csv", "genimage", "forensynths"]


def test_nothing_fits_says_what_is_there_and_what_is_expected(tmp_path):
    make(tmp_path, "cats/a.png", "cats/b.JPG", "dogs/x/c.png", "notes.txt")
    text = refused([tmp_path], "auto")
    for part in ("folders cats, dogs", "2 .png", "1 .jpg", "1 .txt", "No folder is called after a class"):
        assert part in text
    assert all(shape in text for layout, shape in SHAPES.items() if layout != "auto")
    make(tmp_path, "metadata.csv")
    assert "A list is in it, metadata.csv" in refused([tmp_path], "auto")


def test_a_tree_of_two_layouts_is_not_halved(tmp_path):
    make(
        tmp_path,
        *(f"ADM/imagenet_ai_0508_adm/val/{name}/{i}.png" for name in ("ai", "nature") for i in range(9)),
    )
    make(tmp_path, "progan/cat/0_real/a.png", "progan/cat/1_fake/a.png")
    text = refused([tmp_path], "auto")
    assert "Several layouts fit parts of" in text
    assert "genimage (18 images), forensynths (2 images)" in text
    both = build_index([tmp_path / "ADM", tmp_path / "progan"])
    assert both.num_rows == 20


@pytest.mark.parametrize("name", ["real", "1_fake"])
def test_one_class_only(tmp_path, name):
    make(tmp_path, f"g/{name}/a.png", f"h/{name}/b.png")
    text = refused([tmp_path], "auto")
    assert ("hold 2 real and 0 generated" if name == "real" else "no folder of real images only") in text


def test_every_generator_has_one_class_only(tmp_path):
    make(tmp_path, "a/real/a.png", "b/fake/a.png")
    text = refused([tmp_path], "folders")
    assert "Each of the 2 generators found has images of one class only: a (real), b (generated)" in text


NAMES = st.text("abcxyzABCXYZ0123456789_", min_size=1, max_size=8).filter(
    lambda name: (
        name.lower() not in {"ai", "nature", "real", "fake", "0_real", "1_fake", "train", "val", "test"}
    )
)


@settings(max_examples=60, deadline=None)
@given(
    generators=st.lists(NAMES, min_size=1, max_size=3, unique_by=str.lower),
    classes=st.sampled_from([("nature", "ai"), ("real", "fake"), ("0_real", "1_fake"), ("REAL", "Fake")]),
    splits=st.sampled_from([("train", "val"), ("test",), ()]),
    root=st.sampled_from(["/d", "/zzz/ai", "/nature/0", "s3://bucket/data?region=x"]),
)
def test_labels_are_the_class_folders_whatever_sorts_first(generators, classes, splits, root):
    real, fake = classes
    folders = {}
    for generator in generators:
        for number, name in ((2, real), (3, fake)):
            for split in splits or (None,):
                folders[(generator, *([split] if split else []), name)] = number
    placed = [pair for _, assignment in recognise([tree_of(root, folders)]) for pair in assignment.placed]
    assert len(placed) == len(folders)
    for folder, place in placed:
        assert place.label == (folder.parts[-1] == fake) == (len(folder.names) == 3)
