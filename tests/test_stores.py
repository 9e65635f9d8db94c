"""The stores of a workspace: listed, merged, cleared; and what they cost when they are large."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from causal_tune.errors import StoreError
from causal_tune.features import (
    FeatureStore,
    StoreSpec,
    finish_store,
    load_study_data,
    shard_path,
    shard_ranges,
    write_shard,
)
from causal_tune.features.stores import merge_stores
from causal_tune.images.index import index_sha256
from causal_tune.lock import owned
from tests.conftest import run_cli
from tests.test_features import digest, feature_values

ENCODER = {"name": "e", "weights_sha256": "0123456789", "dtype": "float32"}


def make(workspace: Path, numbers: list[int], *, generator: str = "a", **changes: object) -> FeatureStore:
    """A store whose image number n has the features n, n + 0.1, ..."""
    rows = pa.table(
        {
            "row": pa.array(range(len(numbers)), pa.int64()),
            "path": [f"/images/{number:06d}.png" for number in numbers],
            "label": pa.array([number % 2 for number in numbers], pa.int8()),
            "generator": [generator] * len(numbers),
            "split": ["" for _ in numbers],
            "sha256": [digest(number) for number in numbers],
        }
    )
    spec = StoreSpec(
        **{
            "encoder": ENCODER,
            "preprocessing": "p",
            "index_sha256": index_sha256(rows),
            "num_indexed": len(numbers),
            **changes,
        }
    )
    path = workspace / "stores" / spec.fingerprint
    for shard, members in enumerate(shard_ranges(len(numbers))):
        chosen = numbers[members.start : members.stop]
        write_shard(
            shard_path(path, shard),
            rows.slice(members.start, len(members)),
            {"proj": feature_values(chosen)},
            [],
        )
    return finish_store(path, spec)


def test_stores_are_listed_with_size_and_provenance(tmp_path: Path) -> None:
    assert "no store" in run_cli("stores", "--workspace", tmp_path).output
    store = make(tmp_path, list(range(130)))
    make(tmp_path, list(range(7)))
    (tmp_path / "stores" / "beginning" / "shards").mkdir(parents=True)
    document = json.loads(run_cli("stores", "--workspace", tmp_path, "--json").stdout)
    found = {Path(item["path"]).name: item for item in document["stores"]}
    assert found["beginning"]["state"] == "unfinished"
    mine = found[store.fingerprint]
    assert (mine["state"], mine["num_stored"], mine["encoder"]) == ("finished", 130, ENCODER)
    assert mine["num_bytes"] == sum(path.stat().st_size for path in store.path.rglob("*") if path.is_file())
    shown = run_cli("stores", "--workspace", tmp_path).output
    assert all(words in shown for words in ("130", "unfinished", "float32"))


def test_merged_stores_are_what_one_extraction_would_have_made(tmp_path: Path) -> None:
    one = make(tmp_path, list(range(0, 200, 2)), generator="b")
    two = make(tmp_path, list(range(1, 101, 2)), generator="b")
    again = make(tmp_path, list(range(90, 200, 2)), generator="b")  # all of these are in the first one
    words = (
        "stores",
        "merge",
        one.fingerprint,
        two.path,
        again.fingerprint,
        "--workspace",
        tmp_path,
        "--json",
    )
    done = json.loads(run_cli(*words).stdout)
    assert done["num_stored"] == 150
    merged = FeatureStore(done["store"])
    numbers = [*range(0, 200, 2), *range(1, 101, 2)]  # by label, then by path
    at_once = make(tmp_path / "other", numbers, generator="b")
    assert merged.fingerprint == at_once.fingerprint
    for path in sorted(at_once.path.rglob("*.arrow")):
        assert (merged.path / path.relative_to(at_once.path)).read_bytes() == path.read_bytes(), path


def test_stores_of_different_features_are_not_merged(tmp_path: Path) -> None:
    one = make(tmp_path, [0, 1])
    for changes in ({"preprocessing": "q"}, {"encoder": {**ENCODER, "weights_sha256": "9"}}):
        other = make(tmp_path, [2, 3], **changes)
        with pytest.raises(StoreError, match=f"differ in {next(iter(changes))}"):
            merge_stores([one.path, other.path], tmp_path)
    renamed = make(tmp_path, [2, 3], encoder={**ENCODER, "name": "where it was found"})
    assert merge_stores([one.path, renamed.path], tmp_path).num_images == 4


def test_leftovers_are_listed_and_removed_only_when_asked(tmp_path: Path) -> None:
    store = make(tmp_path, list(range(10)))
    (tmp_path / "stores" / "beginning" / "shards").mkdir(parents=True)
    words = ("stores", "gc", "--workspace", tmp_path)
    assert "Nothing was removed" in run_cli(*words).output
    assert store.path.exists()
    with owned(store.path, "extraction"):
        refused = run_cli(*words, "--delete")
    assert (refused.exit_code, store.path.exists()) == (2, True)
    assert len(json.loads(run_cli(*words, "--delete", "--json").stdout)["leftovers"]) >= 1
    assert not store.path.exists()
    assert "no leftovers" in run_cli(*words).output


def test_a_store_that_a_study_uses_is_kept(finished: object) -> None:
    workspace, store = finished.workspace, FeatureStore(finished.store)  # type: ignore[attr-defined]
    kept = store.path / "sets"
    kept.mkdir()
    (kept / "x.f32").write_bytes(b"1234")
    document = json.loads(run_cli("stores", "gc", "--workspace", workspace, "--delete", "--json").stdout)
    assert [item["path"] for item in document["leftovers"] if store.path.name in item["path"]] == [str(kept)]
    assert not kept.exists()
    assert np.isfinite(load_study_data(store.path, train_generators=["alpha"]).train.features.numpy()).all()
