"""Real and generated images in different folders, one real set shared by several generators."""

import shutil
from pathlib import Path

import pytest

from causal_tune.images.index import origin, skipped_files
from causal_tune.images.layouts import build_index
from causal_tune.images.places import Place
from causal_tune.images.univfd import place_univfd
from tests.images.trees import UNIVFD, found, make, make_univfd, refused


@pytest.mark.parametrize("layout", ["univfd", "auto"])
def test_diffusion_datasets_of_universal_fake_detect(tmp_path, layout):
    expected = make_univfd(tmp_path / "diffusion_datasets")
    for root in (tmp_path / "diffusion_datasets", tmp_path):
        table = build_index([root], layout)
        assert found(table) == expected
    rows = [row for row in table.to_pylist() if row["label"] == 0]
    for row in rows:
        assert ("/imagenet/" in row["path"]) == (row["generator"] == "guided")
    shared = [row["generator"] for row in rows if row["path"].endswith("laion/0_real/0.jpg")]
    assert shared == sorted(UNIVFD)
    assert any(
        "Real images of laion (3) are compared with each of: dalle" in note for note in origin(table)["notes"]
    )


def test_sets_and_their_class_folders_may_be_roots_of_their_own(tmp_path):
    expected = make_univfd(tmp_path)
    sets = [tmp_path / name for name in ("imagenet", "laion", "guided", *UNIVFD)]
    assert found(build_index(sets, "univfd")) == expected
    assert found(build_index(sets[::-1])) == expected
    classes = [folder for one in sets for folder in one.iterdir()]
    assert found(build_index(classes, "univfd")) == expected
    elsewhere = tmp_path / "elsewhere" / "laion"
    shutil.move(tmp_path / "laion", elsewhere)
    assert found(build_index([elsewhere, *(tmp_path / name for name in UNIVFD)])) == {
        key: number for key, number in expected.items() if key[0] != "guided"
    }


@pytest.mark.parametrize(("real", "fake"), [("real", "fake"), ("0_real", "1_fake"), ("nature", "ai")])
def test_one_folder_of_real_images_serves_every_generator_without_any(tmp_path, real, fake):
    make(tmp_path, f"photos/{real}/a.png", f"photos/{real}/b.png", f"sdxl/{fake}/a.png", f"flux/{fake}/a.png")
    make(tmp_path, f"own/{real}/a.png", f"own/{fake}/a.png")
    assert found(build_index([tmp_path])) == {
        ("sdxl", "", 0): 2, ("sdxl", "", 1): 1, ("flux", "", 0): 2, ("flux", "", 1): 1,
        ("own", "", 0): 1, ("own", "", 1): 1,
    }  # fmt: skip


def test_forensynths_beside_diffusion_datasets(tmp_path):
    make_univfd(tmp_path / "diffusion_datasets")
    for category in ("cat", "train"):
        make(tmp_path, *(f"progan/{category}/{name}/a.png" for name in ("0_real", "1_fake")))
    table = found(build_index([tmp_path]))
    assert table["progan", "", 0] == table["progan", "", 1] == 2
    assert table["dalle", "", 0] == 3


@pytest.mark.parametrize("layout", ["univfd", "auto"])
def test_real_sets_without_a_rule_are_named(tmp_path, layout):
    make_univfd(tmp_path)
    make(tmp_path, "sdxl/1_fake/a.png")
    text = refused([tmp_path], layout)
    assert "several folders of real images only, imagenet, laion" in text
    assert "sdxl is compared with" in text
    assert "use the layout csv" in text
    sets = [tmp_path / name for name in ("imagenet", "laion", "sdxl")]
    assert "several folders of real images only, imagenet, laion" in refused(sets, layout)


@pytest.mark.parametrize("layout", ["univfd", "auto"])
def test_no_real_images_at_all(tmp_path, layout):
    make(tmp_path, "sdxl/1_fake/a.png", "flux/1_fake/a.png")
    text = refused([tmp_path], layout)
    assert "no folder of real images only" in text
    assert "found flux, sdxl" in text


def test_a_real_set_that_serves_no_generator_is_counted(tmp_path):
    make_univfd(tmp_path)
    table = build_index([tmp_path / name for name in ("imagenet", "laion", "dalle")], "univfd")
    assert set(table["generator"].to_pylist()) == {"dalle"}
    assert skipped_files(table) == {"real, with no generator to compare": 2}


@pytest.mark.parametrize(
    ("root", "parts", "expected"),
    [
        ("/d/diffusion_datasets", ("glide_50_27", "1_fake", "deep"), ("glide_50_27", 1, "")),
        ("/d/guided", ("1_fake",), ("guided", 1, "")),
        ("/d/guided/1_fake", (), ("guided", 1, "")),
        ("/d/guided/1_fake", ("deep",), ("guided", 1, "")),
        ("/d", ("test", "laion", "0_REAL"), ("laion", 0, "test")),
        ("/d", ("laion", "train", "0_real"), ("laion", 0, "train")),
        ("/d/test", ("progan", "airplane", "0_real"), ("progan", 0, "test")),
        ("/d", ("laion", "images"), None),
    ],
)
def test_place_univfd(root, parts, expected):
    place = place_univfd(Path(root), parts)
    if expected is None:
        assert place is None
    else:
        assert place == Place(generator=expected[0], label=expected[1], split=expected[2])
