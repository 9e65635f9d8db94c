import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causal_tune.errors import InvalidConfig, StoreError
from causal_tune.features import (
    FeatureStore,
    KnownFeatures,
    StoreSpec,
    finish_store,
    load_study_data,
    merge_pieces,
    partition,
    piece_path,
    pieces,
    sets,
    shard_path,
    shard_paths,
    shard_ranges,
    write_shard,
)

WIDTH = 5


def spec(num_indexed: int, **changes: object) -> StoreSpec:
    fields = {
        "encoder": {"name": "e", "weights_sha256": "w"},
        "preprocessing": "p",
        "index_sha256": "i",
        "num_indexed": num_indexed,
    }
    return StoreSpec(**{**fields, **changes})


def digest(row: int) -> str:
    return hashlib.sha256(str(row).encode()).hexdigest()


def rows_table(rows: list[int], *, generators: tuple[str, ...] = ("a", "b"), split: str = "") -> pa.Table:
    return pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "path": [f"/images/{row}.png" for row in rows],
            "label": pa.array([row % 2 for row in rows], pa.int8()),
            "generator": [generators[row // 2 % len(generators)] for row in rows],
            "split": [split] * len(rows),
            "sha256": [digest(row) for row in rows],
        }
    )


def feature_values(rows: list[int]) -> np.ndarray:
    return np.asarray(rows, dtype=np.float32)[:, None] + np.arange(WIDTH, dtype=np.float32) / 10


def make_store(path: Path, num_indexed: int, bad: frozenset[int] = frozenset()) -> FeatureStore:
    for shard, members in enumerate(shard_ranges(num_indexed)):
        kept = [row for row in members if row not in bad]
        write_shard(
            shard_path(path, shard),
            rows_table(kept),
            {"proj": feature_values(kept)},
            [{"path": f"/images/{row}.png", "reason": "broken"} for row in members if row in bad],
        )
    return finish_store(path, spec(num_indexed))


def test_every_indexed_image_is_stored_or_quarantined(tmp_path: Path) -> None:
    store = make_store(tmp_path, 150, bad=frozenset({3, 64, 149}))
    assert store.num_images == 147
    assert store.rows["row"].to_pylist() == [row for row in range(150) if row not in {3, 64, 149}]
    assert store.quarantine().to_pylist() == [
        {"path": f"/images/{row}.png", "reason": "broken"} for row in (3, 64, 149)
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_not_stored(tmp_path: Path, value: float) -> None:
    features = feature_values([0, 1, 2])
    features[1, 3] = value
    with pytest.raises(StoreError, match=r"features of /images/1\.png are not finite numbers \(layer proj\)"):
        write_shard(shard_path(tmp_path, 0), rows_table([0, 1, 2]), {"proj": features}, [])
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(("value", "words"), [(np.nan, "are not finite"), (0.0, "are zeros: a block")])
def test_stored_features_that_no_encoder_gives_are_not_handed_out(
    tmp_path: Path, value: float, words: str
) -> None:
    store = make_store(tmp_path, 70)
    path = shard_path(tmp_path, 1)
    content, expected = path.read_bytes(), feature_values([66]).tobytes()
    assert content.count(expected) == 1  # uncompressed
    path.write_bytes(content.replace(expected, np.full(WIDTH, value, np.float32).tobytes()))
    assert store.features("proj", np.asarray([65, 67])).shape == (2, WIDTH)
    with pytest.raises(StoreError, match=rf"1 images in .*such as /images/66\.png, {words}"):
        FeatureStore(tmp_path).features("proj", np.asarray([65, 66, 67]))


def test_zeros_of_an_encoder_are_no_damage(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0)
    features = np.tile(np.float32([0, 0, 1, 0]), (3, 64))  # as after a ReLU
    write_shard(path, rows_table([0, 1, 2]), {"proj": features}, [])
    store = finish_store(tmp_path, spec(3))
    np.testing.assert_array_equal(store.features("proj", np.arange(3)), features)
    content = path.read_bytes()
    begin = content.index(features.tobytes()) + features.shape[1] * 2  # the second half of the first row
    path.write_bytes(
        content[:begin] + bytes(features.shape[1] * 2) + content[begin + features.shape[1] * 2 :]
    )
    with pytest.raises(StoreError, match=r"1 images in .*such as /images/0\.png, are zeros"):
        FeatureStore(tmp_path).features("proj", np.arange(3))


def test_features_come_back_in_the_order_asked_for_across_shards(tmp_path: Path) -> None:
    store = make_store(tmp_path, 200, bad=frozenset({0}))
    positions = np.asarray([198, 0, 64, 63, 0, 120])
    rows = [store.rows["row"][int(position)].as_py() for position in positions]
    np.testing.assert_array_equal(store.features("proj", positions), feature_values(rows))


def test_a_shard_without_readable_images_is_a_shard(tmp_path: Path) -> None:
    store = make_store(tmp_path, 130, bad=frozenset(range(64, 128)))
    assert store.num_images == 66
    np.testing.assert_array_equal(store.features("proj", np.asarray([64])), feature_values([128]))


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    make_store(tmp_path / "one", 70, bad=frozenset({5}))
    make_store(tmp_path / "two", 70, bad=frozenset({5}))
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": {"name": "e", "weights_sha256": "other"}},
        {"preprocessing": "q"},
        {"index_sha256": "j"},
    ],
)
def test_the_fingerprint_changes_with_every_field(change: dict[str, object]) -> None:
    assert spec(8, **change).fingerprint != spec(8).fingerprint
    assert spec(9).fingerprint != spec(8).fingerprint


def test_the_fingerprint_does_not_depend_on_key_order() -> None:
    reordered = spec(8, encoder={"weights_sha256": "w", "name": "e"})
    assert reordered.fingerprint == spec(8).fingerprint


@given(st.integers(1, 2_000_000))
def test_shards_cover_every_row_once(num_indexed: int) -> None:
    ranges = shard_ranges(num_indexed)
    assert ranges[0].start == 0
    assert ranges[-1].stop == num_indexed
    assert all(one.stop == two.start for one, two in itertools.pairwise(ranges))


@given(st.integers(1, 2_000_000))
def test_pieces_cover_every_shard_in_order(num_indexed: int) -> None:
    parts = pieces(num_indexed)
    ranges = shard_ranges(num_indexed)
    assert parts[0].rows.start == 0
    assert parts[-1].rows.stop == num_indexed
    assert all(one.rows.stop == two.rows.start for one, two in itertools.pairwise(parts))
    for shard, of_shard in itertools.groupby(parts, key=lambda piece: piece.shard):
        numbered = list(of_shard)
        assert [piece.number for piece in numbered] == list(range(len(numbered)))
        assert (numbered[0].rows.start, numbered[-1].rows.stop) == (ranges[shard].start, ranges[shard].stop)
        assert numbered[0].is_shard == (len(numbered) == 1)


def test_pieces_become_the_same_bytes_as_a_shard_written_at_once(tmp_path: Path) -> None:
    bad = {70, 71, 511}
    parts = [piece for piece in pieces(5_000) if piece.shard == 0]

    def write(path: Path, rows: range) -> None:
        kept = [row for row in rows if row not in bad]
        reasons = [{"path": f"/images/{row}.png", "reason": "broken"} for row in rows if row in bad]
        write_shard(path, rows_table(kept), {"proj": feature_values(kept)}, reasons)

    write(shard_path(tmp_path / "whole", 0), range(512))
    for piece in parts:
        write(piece_path(tmp_path / "parts", piece), piece.rows)
    merge_pieces(tmp_path / "parts", parts)
    whole = shard_path(tmp_path / "whole", 0).read_bytes()
    assert shard_path(tmp_path / "parts", 0).read_bytes() == whole
    assert not list((tmp_path / "parts" / "pieces").rglob("*.arrow"))
    merge_pieces(tmp_path / "parts", parts)  # a run that was killed between the two steps
    assert shard_path(tmp_path / "parts", 0).read_bytes() == whole


def test_sets_larger_than_memory_are_mapped_and_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path, 150)
    roles = {"train_generators": ["a"], "test_generators": ["b"]}
    in_memory = load_study_data(tmp_path, **roles)
    assert not (tmp_path / "sets").exists()
    monkeypatch.setattr(sets, "_IN_MEMORY_BYTES", 100)
    for _ in range(2):  # made, then found
        mapped = load_study_data(tmp_path, **roles)
        assert torch.equal(mapped.train.features, in_memory.train.features)
        assert torch.equal(mapped.generators["b"].features, in_memory.generators["b"].features)
    assert len(list((tmp_path / "sets").iterdir())) == 3


def test_known_features_are_found_by_their_bytes(tmp_path: Path) -> None:
    store = make_store(tmp_path, 150, bad=frozenset({3}))
    known = KnownFeatures([*shard_paths(tmp_path), tmp_path / "gone.arrow"])
    asked = pa.chunked_array([[digest(149), digest(3), None], [digest(64), digest(999)]], pa.string())
    found = known.find(asked)
    assert found.files.tolist() == [2, -1, -1, 1, -1]
    assert found.positions.tolist() == [149 - 128, -1, -1, 0, -1]
    assert known.paths == [shard_path(store.path, shard) for shard in range(3)]
    assert KnownFeatures([]).find(asked).files.tolist() == [-1] * 5


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    make_store(tmp_path, 130)
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(StoreError, match=r"00001\.arrow is missing.*extract"):
        finish_store(tmp_path, spec(130))


def test_a_shard_that_lost_a_row_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path, 130)
    members = list(shard_ranges(130)[1])[:-1]
    write_shard(shard_path(tmp_path, 1), rows_table(members), {"proj": feature_values(members)}, [])
    with pytest.raises(StoreError, match=r"63 stored and 0 quarantined.*its range has 64"):
        finish_store(tmp_path, spec(130))
    with pytest.raises(StoreError, match=r"hold 129 images of the view .clean. and its store\.json says 130"):
        _ = FeatureStore(tmp_path).rows


def test_a_torn_shard_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, 100)
    path = shard_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="not a whole shard"):
        _ = store.rows


def test_no_store_an_unfinished_one_and_a_newer_one_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no feature store"):
        FeatureStore(tmp_path / "nothing")
    store = make_store(tmp_path / "store", 10)
    description = {**store.description, "format": 99}
    (tmp_path / "store" / "store.json").write_text(json.dumps(description))
    with pytest.raises(StoreError, match=r"format 99; this release reads format 1"):
        FeatureStore(tmp_path / "store")
    (tmp_path / "store" / "store.json").unlink()
    with pytest.raises(StoreError, match="unfinished"):
        FeatureStore(tmp_path / "store")


def test_an_unknown_layer_lists_those_there_are(tmp_path: Path) -> None:
    store = make_store(tmp_path, 10)
    with pytest.raises(StoreError, match=r"no layer 'cls@7'; it has proj.*--layers proj,cls@7"):
        store.features("cls@7", np.asarray([0]))


def test_named_splits_are_used_as_they_are() -> None:
    table = pa.concat_tables(
        [
            rows_table(list(range(0, 8)), generators=("a",), split="train"),
            rows_table(list(range(8, 12)), generators=("a",), split="val"),
            rows_table(list(range(12, 16)), generators=("a",), split="test"),
            rows_table(list(range(16, 20)), generators=("b",), split="train"),
            rows_table(list(range(20, 24)), generators=("b",), split="val"),
        ]
    )
    parts = partition(table, train_generators=["a"], test_generators=["b"])
    assert parts.train.tolist() == list(range(0, 8))
    assert parts.validation.tolist() == list(range(8, 12))
    assert {name: rows.tolist() for name, rows in parts.generators.items()} == {
        "a": list(range(12, 16)),
        "b": list(range(20, 24)),
    }


def test_without_splits_the_content_hash_chooses_a_fifth_and_copies_stay_together() -> None:
    table = rows_table(list(range(2000)), generators=("a",))
    doubled = pa.concat_tables([table, table])
    parts = partition(doubled, train_generators=["a"])
    assert 0.15 < len(parts.validation) / 4000 < 0.25
    assert set(parts.train).isdisjoint(parts.validation)
    hashes = np.asarray(doubled["sha256"].to_pylist())
    assert set(hashes[parts.train]).isdisjoint(hashes[parts.validation])
    assert parts.generators == {}


def test_an_unknown_generator_lists_those_there_are() -> None:
    with pytest.raises(InvalidConfig, match=r"No generator is called 'c' .*There are: a, b\."):
        partition(rows_table(list(range(40))), train_generators=["a"], test_generators=["c"])


def test_a_training_generator_of_one_class_is_refused() -> None:
    table = rows_table(list(range(0, 400, 2)), generators=("a",))
    with pytest.raises(InvalidConfig, match="training images of a hold no generated image"):
        partition(table, train_generators=["a"])


def test_study_data_is_gathered_from_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path, 400, bad=frozenset({7, 8}))
    data = load_study_data(tmp_path, train_generators=["a"], test_generators=["b"])
    assert len(data.train) + len(data.validation) + len(data.generators["b"]) == store.num_images
    rows = data.generators["b"].features[:, 0].round().to(int).tolist()
    assert [row % 2 for row in rows] == data.generators["b"].labels.to(int).tolist()
    assert {row // 2 % 2 for row in rows} == {1}
