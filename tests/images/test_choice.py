"""Which images are taken: globs, samples, and what headers say."""

import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_tune.errors import IndexingError, InvalidConfig
from causal_tune.images.choice import Choice, choose, is_chosen
from causal_tune.images.entries import Entry
from causal_tune.images.facts import FileFacts
from causal_tune.images.index import origin, skipped_files
from causal_tune.images.layouts import build_index
from tests.images.trees import UNIVFD, found, image_bytes, make, make_genimage, make_univfd

FACTS = st.builds(
    FileFacts,
    width=st.sampled_from([100, 256, 512, None]),
    height=st.sampled_from([100, 256, 512]),
    format=st.sampled_from(["PNG", "JPEG"]),
    jpeg_quality=st.sampled_from([None, 75, 96]),
)


@st.composite
def data_sets(draw: st.DrawFn) -> dict[str, tuple[Entry, FileFacts]]:
    """Path -> an entry and the facts of its file."""
    names = draw(st.lists(st.text("abc/1", min_size=1, max_size=6), min_size=1, max_size=40, unique=True))
    return {
        f"/data/{name}": (
            Entry(
                path=f"/data/{name}",
                name=name,
                label=draw(st.sampled_from([0, 1])),
                generator=draw(st.sampled_from("gh")),
            ),
            draw(FACTS),
        )
        for name in names
    }


def taken(data: dict[str, tuple[Entry, FileFacts]], choice: Choice, order: int = 0) -> tuple[set[str], int]:
    entries = [entry for entry, _ in data.values()]
    random.Random(order).shuffle(entries)
    chosen, _, skipped = choose(entries, choice, lambda paths: {path: data[path][1] for path in paths})
    assert len(chosen) + skipped.total() == len(data)  # nothing is lost or counted twice
    return {entry.name for entry in chosen}, skipped.total()


@settings(max_examples=150, deadline=None)
@given(
    data=data_sets(),
    seed=st.integers(0, 3),
    order=st.integers(1, 10),
    limits=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    min_side=st.sampled_from([None, 200]),
    quality=st.sampled_from([None, (90, 100)]),
)
def test_a_sample_is_independent_of_order_and_nested(data, seed, order, limits, min_side, quality):
    def sample(limit: int | None, order: int = 0) -> set[str]:
        return taken(data, Choice(limit=limit, seed=seed, min_side=min_side, jpeg_quality=quality), order)[0]

    smaller, larger = sorted(limits)
    assert sample(smaller) == sample(smaller, order)
    assert sample(smaller) <= sample(larger) <= sample(None)
    for generator in "gh":
        for label in (0, 1):
            group = {
                name for name in sample(None)
                if (data[f"/data/{name}"][0].generator, data[f"/data/{name}"][0].label) == (generator, label)
            }  # fmt: skip
            assert len(sample(smaller) & group) == min(smaller, len(group))


def test_the_sample_depends_on_the_seed_and_not_on_where_the_root_lies(tmp_path):
    make(tmp_path / "one", *(f"g/{name}/{i}.png" for name in ("real", "fake") for i in range(40)))
    shutil.copytree(tmp_path / "one", tmp_path / "moved" / "far")

    def sample(root: Path, seed: int) -> set[str]:
        table = build_index([root], choice=Choice(limit=5, seed=seed))
        assert found(table) == {("g", "", 0): 5, ("g", "", 1): 5}
        assert skipped_files(table) == {"beyond the limit of 5": 70}
        return {str(Path(path).relative_to(root)) for path in table["path"].to_pylist()}

    assert sample(tmp_path / "one", 0) == sample(tmp_path / "moved" / "far", 0)
    assert sample(tmp_path / "one", 0) != sample(tmp_path / "one", 1)


def test_generators_that_share_real_images_share_their_sample(tmp_path):
    make_univfd(tmp_path)
    rows = build_index([tmp_path], choice=Choice(limit=2)).to_pylist()
    samples = [{r["path"] for r in rows if r["generator"] == name and not r["label"]} for name in UNIVFD]
    assert len(samples[0]) == 2
    assert all(sample == samples[0] for sample in samples)


def test_only_the_sample_is_read(tmp_path):
    make(tmp_path, *(f"g/{name}/{i}.png" for name in ("real", "fake") for i in range(30)))
    calls: list[tuple[int, int]] = []
    build_index([tmp_path], choice=Choice(limit=3), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(6, 6)]


def test_globs_are_of_the_path_below_the_root(tmp_path):
    make_genimage(tmp_path / "val" / "GenImage", True)
    root = tmp_path / "val" / "GenImage"
    table = build_index(
        [root], choice=Choice(include=("*/val/*",), exclude=("ADM/*", "*/wukong/*", "wukong/*"))
    )
    assert set(table["split"].to_pylist()) == {"val"}
    assert set(table["generator"].to_pylist()) == {"sd14", "sd15", "midjourney", "biggan", "glide", "vqdm"}
    assert skipped_files(table) == {"excluded": 4, "not included": 8 * 4}
    assert origin(table)["choice"] == {"include": ["*/val/*"], "exclude": ["ADM/*", "*/wukong/*", "wukong/*"]}
    with pytest.raises(IndexingError, match=r"other files: 48 not included.*include nothing"):
        build_index([root], choice=Choice(include=("nothing",)))


def test_globs_of_a_list(tmp_path):
    make(tmp_path, "a/r.png", "a/f.png", "b/f.png")
    path = tmp_path / "list.csv"
    path.write_text("path,label,generator\na/r.png,real,g\na/f.png,fake,g\nb/f.png,fake,g\n")
    table = build_index([path], choice=Choice(exclude=("b/*",)))
    assert (table.num_rows, skipped_files(table)) == (2, {"excluded": 1})
    with pytest.raises(IndexingError, match="None of the 3 images"):
        build_index([path], choice=Choice(include=("c/*",)))


def test_what_headers_say(tmp_path):
    make(tmp_path, "g/real/q96.jpg", data=image_bytes("JPEG", quality=96))
    make(tmp_path, "g/real/q50.jpg", data=image_bytes("JPEG", quality=50))
    make(tmp_path, "g/real/photo.png", "g/fake/a.png", "g/fake/b.png")
    make(tmp_path, "g/fake/broken.png", data=b"hello")

    def left(**chosen: object) -> tuple[int, dict[str, int]]:
        table = build_index([tmp_path], choice=Choice(**chosen))
        return table.num_rows, skipped_files(table)

    assert left(jpeg_quality=(96, 96)) == (5, {"JPEG quality not 96 to 96": 1})
    assert left(formats=("png",)) == (4, {"format JPEG": 2})
    assert left(min_side=8, max_side=12) == (6, {})  # 12 x 8 pixels
    with pytest.raises(IndexingError, match=r"dropped: 5 larger than 11 pixels.*widen the choice"):
        left(max_side=11)  # only the broken one is left: no pixels are known of it
    with pytest.raises(IndexingError, match=r"All 2 images left are real, none .*3 format PNG.*: widen"):
        left(exclude=("*broken*",), formats=("JPEG",))
    with pytest.raises(IndexingError, match=r"No image is left \(dropped: 5 smaller than 9 pixels\)"):
        left(exclude=("*broken*",), min_side=9)


@pytest.mark.parametrize(
    ("chosen", "part"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"min_side": 300, "max_side": 200}, "no image fits"),
        ({"jpeg_quality": (96, 90)}, "expected two of 1 to 100"),
        ({"jpeg_quality": (0, 90)}, "expected two of 1 to 100"),
    ],
)
def test_choices_that_fit_nothing(chosen, part):
    with pytest.raises(InvalidConfig, match=part):
        Choice(**chosen)


def test_every_reason_of_a_choice_is_told_from_other_reasons():
    facts = FileFacts(width=100, height=100, format="JPEG", jpeg_quality=50)
    by_facts = [
        Choice(min_side=200),
        Choice(max_side=50),
        Choice(formats=("PNG",)),
        Choice(jpeg_quality=(90, 99)),
    ]
    reasons = [choice.by_facts(facts) for choice in by_facts]
    reasons += [Choice(include=("b*",)).by_name("a.png"), Choice(exclude=("a*",)).by_name("a.png")]
    entries = [Entry(path=name, label=0, generator="g", name=name) for name in "ab"]
    reasons += choose(entries, Choice(limit=1), lambda paths: {path: facts for path in paths})[2]
    assert len(reasons) == 7
    assert all(reason and is_chosen(reason) for reason in reasons)
    others = (".txt", "no suffix", "hidden", "name is not UTF-8", "link back to a folder above")
    assert not any(
        map(is_chosen, (*others, "outside the class folders", "real, with no generator to compare"))
    )
