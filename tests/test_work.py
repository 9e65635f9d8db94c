"""Which pieces of a store are made, from what, in which round; without images, encoders and Ray."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from causal_tune.features import FeatureStore, StoreSpec, finish_store, read_shard, write_shard
from causal_tune.features.work import Work
from causal_tune.images.pieces import rows_from_bytes
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.images.views import CLEAN


def index_of(contents: list[str | None], split: str = "") -> pa.Table:
    return pa.table(
        {
            "path": [f"/{place:05d}.png" for place in range(len(contents))],
            "label": pa.array([place % 2 for place in range(len(contents))], pa.int8()),
            "generator": ["g"] * len(contents),
            "split": [split] * len(contents),
            "sha256": pa.array(contents, pa.string()),
        }
    )


def feature(content: str, view: str) -> float:
    return 1.0 + int(content) + (0.5 if view != CLEAN else 0.0)


def do(work: Work, task: dict) -> tuple[int, int]:
    """What a decoding task and an actor do; how many were encoded, and how many taken."""
    rows = rows_from_bytes(task["rows"])
    contents = rows["sha256"].to_pylist()
    num_encoded = num_taken = 0
    for view in json.loads(task["views"]):
        kept, values, quarantine = [], [], []
        for position, source in zip(view["rows"], view["sources"], strict=True):
            content = contents[position]
            if content is None:
                quarantine.append({"path": rows["path"][position].as_py(), "reason": "no such file"})
                continue
            kept.append(position)
            if source is None:
                num_encoded += 1
                values.append(feature(content, view["name"]))
            else:
                num_taken += 1
                batch, _ = read_shard(Path(source[0]))
                assert batch["sha256"][source[1]].as_py() == content
                values.append(float(batch["proj"][source[1]].to_numpy()[0]))
        table = rows.take(pa.array(kept, pa.int64()))
        if view["name"] != CLEAN:
            for name in ("operation", "parameters"):
                table = table.append_column(name, pa.array(["x"] * len(kept)))
        features = np.asarray(values, dtype=np.float32).reshape(-1, 1)
        write_shard(Path(view["path"]), table, {"proj": features}, quarantine)
    work.take(task["piece"])
    return num_encoded, num_taken


def store_of(
    index: pa.Table,
    path: Path,
    *,
    views: tuple[str, ...] = (),
    siblings: tuple[Path, ...] = (),
    stop: int = -1,
) -> tuple[FeatureStore | None, list[tuple[int, int, int]]]:
    """The store of an index, and of each round the numbers of tasks, encoded and taken images."""
    spec = StoreSpec(encoder={}, preprocessing="p", index_sha256="i", num_indexed=index.num_rows)
    work = Work(index, path, (CLEAN, *views), Preprocessing())
    work.find_done()
    rounds = []
    while work.pending:
        tasks = work.next_tasks(siblings)
        assert tasks, "no progress"
        done = []
        for task in tasks:
            done.append(do(work, task))
            stop -= 1
            if stop == 0:
                return None, rounds
        work.merge()
        rounds.append((len(tasks), sum(e for e, _ in done), sum(t for _, t in done)))
    return finish_store(path, spec, views), rounds


def contents_of(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def check(store: FeatureStore, index: pa.Table, view: str = CLEAN) -> None:
    contents = [content for content in index["sha256"].to_pylist() if content is not None]
    assert store.num_images == len(contents)
    found = store.features("proj", np.arange(len(contents)), view=view)[:, 0]
    assert found.tolist() == [feature(content, view) for content in contents]


def test_shared_images_are_encoded_once_also_across_pieces_of_a_shard(tmp_path: Path) -> None:
    # 5,000 rows: shards of 512 in pieces of 64; the second half lists the images of the first again
    index = index_of([str(row % 2_500) for row in range(5_000)])
    store, rounds = store_of(index, tmp_path)
    check(store, index)
    assert not (tmp_path / "pieces").exists()
    assert sum(encoded for _, encoded, _ in rounds) == 2_500
    assert sum(taken for _, _, taken in rounds) == 2_500
    assert len(rounds) <= 3  # the piece that lists both first and second images waits, and one waits for it


def test_chains_of_shared_images_end(tmp_path: Path) -> None:
    # piece k shares half of its images with piece k - 1
    index = index_of([str(row - 32 * (row // 64)) for row in range(640)])
    store, rounds = store_of(index, tmp_path)
    check(store, index)
    assert sum(encoded for _, encoded, _ in rounds) == 640 - 9 * 32


@pytest.mark.parametrize("stop", [1, 5, 8, 9, 37, 78])
def test_a_stopped_run_continues_to_the_same_bytes(tmp_path: Path, stop: int) -> None:
    index = index_of([None if row % 97 == 0 else str(row) for row in range(5_000)])
    undisturbed, _ = store_of(index, tmp_path / "a", views=("augment-0",))
    check(undisturbed, index, "augment-0")
    assert store_of(index, tmp_path / "b", views=("augment-0",), stop=stop)[0] is None
    store, rounds = store_of(index, tmp_path / "b", views=("augment-0",))
    assert rounds[0][0] == 79 - stop
    assert contents_of(store.path) == contents_of(undisturbed.path)


def test_what_a_sibling_holds_is_taken(tmp_path: Path) -> None:
    old, _ = store_of(index_of([str(row) for row in range(0, 5_000, 2)]), tmp_path / "old", views=("blur-1",))
    index = index_of([str(row) for row in range(5_000)])
    store, ((_, encoded, taken),) = store_of(index, tmp_path / "new", views=("blur-1",), siblings=(old.path,))
    assert (encoded, taken) == (5_000, 5_000)  # of each view half
    check(store, index)
    check(store, index, "blur-1")


def test_a_view_leaves_out_the_splits_it_is_not_for(tmp_path: Path) -> None:
    index = index_of([str(row) for row in range(100)], split="test")
    store, _ = store_of(index, tmp_path, views=("augment-0",))
    assert store.view_rows("augment-0").num_rows == 0


def test_an_image_is_done_when_no_view_of_it_is_lacking(tmp_path: Path) -> None:
    index = index_of([str(row) for row in range(40)])
    store_of(index, tmp_path)
    work = Work(index, tmp_path, (CLEAN, "augment-0"), Preprocessing())
    work.find_done()
    assert work.num_stored == 40
    counts = [work.num_done]
    for task in work.next_tasks([]):
        do(work, task)
        counts.append(work.num_done)
    assert counts == [0, 16, 32, 40]
