from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from causal_tune.audit.findings import Audit, Finding
from causal_tune.audit.matches import (
    JUDGED,
    TRAINING,
    content_numbers,
    find_matches,
    linked,
    near_features,
    near_hashes,
    row_roles,
)
from causal_tune.audit.run import audit_index
from causal_tune.errors import InvalidConfig
from causal_tune.features import partition
from tests.audit.rows import index_of, row

SOUND = [row(f"{label}{number}", label, split="train") for label in (0, 1) for number in range(3)]
"""Both classes, nothing wrong."""


def kinds(audit: Audit, severity: str = "finding") -> list[str]:
    return [item.kind for item in audit.findings if item.severity == severity]


def test_nothing_wrong_is_no_finding() -> None:
    assert kinds(audit_index(index_of(SOUND))) == []


def test_a_leak_is_found_with_its_numbers_and_an_example() -> None:
    rows = [
        *SOUND,
        row("00", 0, split="test"),
        row("01", 0, "other", "val"),
        row("00", 0, "other", "test", "/x"),
    ]
    audit = audit_index(index_of(rows))
    assert kinds(audit) == ["leak", "one_class"]
    (leak, _) = (item for item in audit.findings if item.severity == "finding")
    assert leak.num_images == 3
    assert "2 pictures that training sees are also judged: 3 judged images" in leak.what
    assert "g/train and other/test (1)" in leak.what
    assert {(image.split, image.path) for image in leak.examples[0]} >= {("train", "/g/train/0/00.png")}
    assert {image.split for image in leak.examples[0]} & {"test", "val"}


def test_copies_on_one_side_are_a_note() -> None:
    audit = audit_index(index_of([*SOUND, row("00", 0, split="train", path="/copy.png")]))
    assert kinds(audit) == []
    assert "duplicates" in kinds(audit, "note")
    assert "1 within one generator, split and class" in next(
        i.what for i in audit.findings if i.kind == "duplicates"
    )


def test_one_content_with_both_labels_is_found() -> None:
    audit = audit_index(index_of([*SOUND, row("00", 1, split="train")]))
    assert kinds(audit) == ["both_labels"]
    assert {image.label for image in audit.findings[0].examples[0]} == {0, 1}


def shared_reals(split: str) -> list[dict[str, object]]:
    """Two judged generators with the same real files, one path each."""
    rows = [row(f"r{number}", 0, name, split, f"/real/{number}") for name in "ab" for number in range(4)]
    return rows + [row(f"{name}{number}", 1, name, split) for name in "ab" for number in range(4)]


@pytest.mark.parametrize("split", ["", "test"])
def test_real_images_shared_by_judged_generators_are_no_leak(split: str) -> None:
    audit = audit_index(index_of([*SOUND, *shared_reals(split)]), train_generators=("g",))
    assert kinds(audit) == []
    assert audit.matches[0].num_shared_reals == 4
    (note,) = (item for item in audit.findings if item.kind == "shared_reals")
    assert "4 real files are shared by a, b" in note.what
    assert note.num_images == 8


def test_a_shared_real_image_that_trains_is_a_leak() -> None:
    audit = audit_index(index_of(shared_reals("")), train_generators=("a",))
    assert kinds(audit) == ["leak"]
    assert audit.matches[0].num_leaks == 4


def test_empty_and_unreadable_files_are_not_copies_of_each_other() -> None:
    broken = [
        row("", label, split=split, path=f"/{label}{split}", width=None)
        for label in (0, 1)
        for split in ("train", "test")
    ]
    unhashed = [{**item, "path": item["path"] + "x", "sha256": None} for item in broken]
    audit = audit_index(index_of([*SOUND, *broken, *unhashed]))
    assert kinds(audit) == ["unreadable"]
    assert audit.unreadable == {"the file or its header cannot be read": 8}


def test_a_generator_with_one_class_is_found() -> None:
    audit = audit_index(index_of([*SOUND, row("x", 1, "lonely")]))
    assert kinds(audit) == ["one_class"]
    assert "lonely has 1 generated image and no real one" in audit.findings[0].what


def imbalances(rows: list[dict[str, object]], *train_generators: str) -> list[Finding]:
    audit = audit_index(index_of(rows), train_generators=train_generators)
    return [item for item in audit.findings if item.kind == "imbalance"]


def numbered(num_real: int, num_generated: int, **place: str) -> list[dict[str, object]]:
    """Rows that differ in content alone."""
    return [row((place.get("generator"), n, 0), 0, **place) for n in range(num_real)] + [
        row((place.get("generator"), n, 1), 1, **place) for n in range(num_generated)
    ]


def test_an_imbalanced_training_set_is_found_with_its_counts_and_what_removes_it() -> None:
    rows = numbered(61, 6, generator="mine") + numbered(40, 2, generator="far")
    (found,) = imbalances(rows, "mine")
    assert (found.severity, found.subject, found.num_images) == ("finding", "mine", 67)
    assert "The training set of mine has 61 real and 6 generated images, 10 to 1." in found.what
    assert "call all of them real" in found.what
    assert "Add generated images, to 100 or more: 6 say little" in found.next_step
    assert "--limit" not in found.next_step
    (many,) = imbalances(numbered(120, 600, split="train"))
    assert "120 real and 600 generated images, 5 to 1" in many.what
    assert "`causal-tune index ... --limit 120`" in many.next_step


@pytest.mark.parametrize(
    ("rows", "train_generators"),
    [
        (numbered(39, 10, generator="mine"), ["mine"]),  # fewer than four to one
        (
            numbered(61, 6, generator="mine") + numbered(20, 20, generator="other"),
            ["other"],
        ),  # it only judges
        (numbered(61, 6), []),  # what trains is not known
        (numbered(5, 0, generator="mine"), ["mine"]),  # one class, which is another finding
    ],
)
def test_what_is_no_imbalanced_training_set(rows, train_generators) -> None:
    assert imbalances(rows, *train_generators) == []


def test_an_unknown_training_generator_is_an_error() -> None:
    with pytest.raises(InvalidConfig, match="No generator is called 'sd9'"):
        audit_index(index_of(SOUND), train_generators=("sd9",))


cells = st.tuples(
    st.integers(0, 6),
    st.integers(0, 1),
    st.sampled_from("abc"),
    st.sampled_from(["train", "val", "test", ""]),
)


@given(st.lists(cells, max_size=30, unique=True))
def test_exact_matches_agree_with_counting_by_hand(found: list[tuple[int, int, str, str]]) -> None:
    index = index_of([row(content, label, name, split) for content, label, name, split in found])
    content = content_numbers(index)
    matches, _ = find_matches(index, row_roles(index), content, content, method="sha256", num_compared=0)
    groups = defaultdict(list)
    for cell in found:
        groups[cell[0]].append(cell)
    repeated = [cells for cells in groups.values() if len(cells) > 1]
    assert matches.num_groups == len(repeated)
    assert matches.num_images == sum(map(len, repeated))
    assert matches.num_both_labels == sum(len({label for _, label, _, _ in cells}) == 2 for cells in repeated)
    leaks = leaked = 0
    for cells in repeated:
        for wanted in (0, 1):
            splits = [split for _, label, _, split in cells if label == wanted]
            judged = sum(split in ("val", "test") for split in splits)
            if "train" in splits and judged:
                leaks, leaked = leaks + 1, leaked + judged
    assert (matches.num_leaks, matches.num_leaked_images) == (leaks, leaked)


@given(st.lists(cells, max_size=30, unique=True))
def test_roles_are_those_that_a_study_uses(found: list[tuple[int, int, str, str]]) -> None:
    both = [(9, label, "a", split) for label in (0, 1) for split in ("train", "val")]
    index = index_of([row(cell, cell[1], cell[2], cell[3]) for cell in {*found, *both}])
    parts = partition(
        index,
        train_generators=("a",),
        test_generators=tuple(sorted(set(index["generator"].to_pylist()) - {"a"})),
    )
    role = row_roles(index, ("a",))
    judged = [rows for rows in parts.generators.values()]
    assert sorted(np.flatnonzero(role == JUDGED)) == sorted(np.concatenate(judged) if judged else [])
    used = {*parts.train.tolist(), *parts.validation.tolist()}
    assert used <= set(np.flatnonzero(role == TRAINING).tolist())
    # a study that has `val` rows leaves no training row out
    assert used == set(np.flatnonzero(role == TRAINING).tolist())


# --- near copies -----------------------------------------------------------------------------------------


def same_groups(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = np.unique(np.stack([one, other]), axis=1).shape[1]
    return pairs == len(np.unique(one)) == len(np.unique(other))


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 6))
def test_banded_hashes_find_what_comparing_all_finds(seed: int, number: int, distance: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, 5, dtype=np.uint64)[rng.integers(0, 5, number)]
    for _ in range(5):  # copies of five pictures, each with up to 5 flipped bits: some near, some just not
        flip = np.uint64(1) << rng.integers(0, 64, number, dtype=np.uint64)
        base ^= np.where(rng.random(number) < 0.5, flip, np.uint64(0))
    everything = np.bitwise_count(base[:, None] ^ base[None]) <= distance
    expected = connected_components(everything, directed=False)[1]
    assert same_groups(linked(number, near_hashes(base, distance)), expected)


def test_feature_blocks_find_what_one_product_finds() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2500, 3)).astype(np.float32)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.argwhere(np.triu(units @ units.T >= 0.999, 1))
    assert len(expected) > 20
    found = near_features(features, 0.999)
    assert set(map(tuple, found.tolist())) == set(map(tuple, expected.tolist()))


def test_features_that_are_all_alike_need_few_links() -> None:
    features = np.ones((3000, 2), dtype=np.float32)
    features[1000:2000, 1] = -1
    links = near_features(features, 0.999)
    assert len(links) <= 4 * 3000
    groups = linked(3000, links)
    assert same_groups(groups, (np.arange(3000) // 1000 == 1).astype(np.int64))


def test_zero_features_are_like_nothing() -> None:
    assert len(near_features(np.zeros((3, 4), dtype=np.float32), 0.999)) == 0


@pytest.mark.parametrize(("labels", "leaks"), [((0, 0), 1), ((0, 1), 0)])
def test_near_copies_leak_within_one_label(labels: tuple[int, int], leaks: int) -> None:
    index = index_of([row("a", labels[0], split="train"), row("b", labels[1], split="test"), row("c", 1)])
    group = np.array([0, 0, 1])
    matches, _ = find_matches(
        index, row_roles(index), content_numbers(index), group, method="phash", num_compared=3
    )
    assert (matches.num_groups, matches.num_leaks, matches.num_both_labels) == (1, leaks, 1 - leaks)


def test_an_exact_leak_is_not_counted_again_among_the_near() -> None:
    index = index_of([row("a", 0, split="train"), row("a", 0, split="test"), row("b", 0, split="")])
    content = content_numbers(index)
    matches, _ = find_matches(
        index, row_roles(index), content, np.zeros(3, int), method="phash", num_compared=2
    )
    assert (matches.num_groups, matches.num_leaks) == (1, 0)
