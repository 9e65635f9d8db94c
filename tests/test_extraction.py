import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest

from causal_tune.errors import InvalidConfig, StoreError, StudyError, WeightsError
from causal_tune.extraction import Progress, extract, plan_actors
from causal_tune.features import FeatureStore, load_study_data
from causal_tune.images.index import write_index
from causal_tune.images.layouts import build_index
from causal_tune.lock import owned
from causal_tune.training import train
from causal_tune.trial import TrialConfig
from tests.conftest import write_images

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """100 images in two shards, of which four cannot be read."""
    csv = write_images(tmp_path_factory.mktemp("images"), {"alpha": 30, "beta": 20})
    folder = csv.parent
    (folder / "alpha/real/000.png").write_bytes(b"")
    (folder / "alpha/fake/001.png").write_text("not an image")
    whole = (folder / "beta/fake/003.png").read_bytes()
    (folder / "beta/fake/003.png").write_bytes(whole[: len(whole) // 2])
    table = build_index([csv], "csv")
    (folder / "beta/real/019.png").unlink()
    return table


def contents(store: FeatureStore) -> dict[str, bytes]:
    files = [*store.path.glob("shards/*.arrow"), store.path / "quarantine.arrow", store.path / "store.json"]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(index: pa.Table, tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> FeatureStore:
    return extract(index, encoder="tiny-random", workspace=tmp_path_factory.mktemp("undisturbed")).store


def test_every_image_is_stored_or_quarantined_with_its_reason(undisturbed: FeatureStore) -> None:
    assert undisturbed.num_images == 96
    reasons = {Path(row["path"]).name: row["reason"] for row in undisturbed.quarantine().to_pylist()}
    assert set(reasons) == {"000.png", "001.png", "003.png", "019.png"}
    assert all(reason and "Traceback" not in reason for reason in reasons.values())


def test_a_second_run_does_nothing(index: pa.Table, undisturbed: FeatureStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.path.glob("shards/*")}
    again = extract(index, encoder="tiny-random", workspace=undisturbed.path.parents[1])
    assert again.num_encoded_now == 0
    assert (again.num_stored, again.num_quarantined) == (96, 4)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.path.glob("shards/*")} == before


def test_two_actors_and_other_batches_write_the_same_bytes(
    index: pa.Table, undisturbed: FeatureStore, tmp_path: Path
) -> None:
    two = extract(index, encoder="tiny-random", workspace=tmp_path, num_actors=2, batch_size=7)
    assert contents(two.store) == contents(undisturbed)


def test_a_lost_shard_is_made_again_and_only_that(
    index: pa.Table, undisturbed: FeatureStore, tmp_path: Path
) -> None:
    store = extract(index, encoder="tiny-random", workspace=tmp_path).store
    (store.path / "shards" / "00001.arrow").unlink()
    (store.path / "store.json").unlink()
    points: list[Progress] = []
    again = extract(index, encoder="tiny-random", workspace=tmp_path, on_progress=points.append)
    assert again.num_encoded_now < 64
    assert points[0].num_stored + points[0].num_quarantined == 64
    assert contents(again.store) == contents(undisturbed)


@pytest.mark.journey
def test_a_killed_run_continues_to_the_same_bytes(
    index: pa.Table, undisturbed: FeatureStore, tmp_path: Path
) -> None:
    write_index(index, tmp_path / "index.parquet")
    command = [sys.executable, "-m", "causal_tune", "extract", str(tmp_path / "index.parquet")]
    command += ["--encoder", "tiny-random", "--workspace", str(tmp_path)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("stores/*/pieces/clean/*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr  # 1: four images are unreadable
    (store_path,) = tmp_path.glob("stores/*")
    assert contents(FeatureStore(store_path)) == contents(undisturbed)


def test_the_runtime_names_the_store_and_its_fidelity_is_recorded(
    index: pa.Table, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path / "cache")
    )  # of this process: it measures, actors encode
    done = {
        runtime: extract(index, encoder="tiny-random", workspace=tmp_path, dtype="float32", runtime=runtime)
        for runtime in ("torch", "openvino")
    }
    assert done["torch"].fidelity is None
    assert "(layer proj, 16 crops of photographs)" in str(done["openvino"].fidelity)
    stores = {runtime: one.store for runtime, one in done.items()}
    assert stores["torch"].fingerprint != stores["openvino"].fingerprint
    assert "fidelity" not in stores["torch"].description
    assert "runtime" not in stores["torch"].description["encoder"]  # as before there was a second one
    assert stores["openvino"].description["encoder"]["runtime"] == "openvino"
    assert stores["openvino"].description["fidelity"]["layers"]["proj"]["worst"] > 0.99999
    rows = np.arange(stores["torch"].num_images)
    one, other = (store.features("proj", rows) for store in stores.values())
    assert 0 < np.abs(one - other).max() < 1e-4


def test_another_owner_is_named(index: pa.Table, undisturbed: FeatureStore) -> None:
    with (
        owned(undisturbed.path, "extraction"),
        pytest.raises(StudyError, match=rf"already doing this extraction .* process {os.getpid()} "),
    ):
        extract(index, encoder="tiny-random", workspace=undisturbed.path.parents[1])


def test_an_index_that_has_grown_encodes_only_what_is_new(
    index: pa.Table, undisturbed: FeatureStore, tmp_path: Path
) -> None:
    known = pa.compute.not_equal(index["generator"], "beta")
    extract(index.filter(known), encoder="tiny-random", workspace=tmp_path)
    grown = extract(index, encoder="tiny-random", workspace=tmp_path)
    assert grown.num_encoded_now == 38  # of 40 images of beta two cannot be read
    assert grown.num_taken == 58
    assert contents(grown.store) == contents(undisturbed)


def test_an_image_of_several_generators_is_encoded_once(index: pa.Table, tmp_path: Path) -> None:
    shared = index.filter(pa.compute.equal(index["generator"], "alpha"))
    position = shared.column_names.index("generator")
    again = shared.set_column(position, index.schema.field("generator"), pa.array(["gamma"] * 60))
    both = pa.concat_tables([shared, again])
    done = extract(both, encoder="tiny-random", workspace=tmp_path)
    assert (done.num_stored, done.num_quarantined) == (116, 4)
    assert done.num_encoded_now == 58
    rows = np.arange(58)
    features = done.store.features("proj", np.arange(116))
    assert np.array_equal(features[rows], features[rows + 58])


@pytest.mark.journey
def test_views_are_added_to_a_store_and_equal_those_made_at_once(
    index: pa.Table, undisturbed: FeatureStore, tmp_path: Path
) -> None:
    views = ("augment-0", "jpeg-50")
    names = index["generator"].to_pylist()
    split = [
        "test" if name == "beta" else "val" if row % 5 == 0 else "train" for row, name in enumerate(names)
    ]
    index = index.set_column(index.column_names.index("split"), index.schema.field("split"), pa.array(split))
    at_once = extract(index, encoder="tiny-random", workspace=tmp_path / "once", views=views).store
    clean = extract(index, encoder="tiny-random", workspace=tmp_path / "later").store
    before = {path: path.stat().st_mtime_ns for path in clean.path.glob("shards/*")}
    later = extract(index, encoder="tiny-random", workspace=tmp_path / "later", views=views)
    of_alpha = [row["split"] for row in clean.rows.to_pylist() if row["generator"] == "alpha"]
    num_val = of_alpha.count("val")
    assert (
        later.num_encoded_now == 58 + 38 + num_val
    )  # augmented: not of split test; degraded: not of split train
    assert {path: path.stat().st_mtime_ns for path in clean.path.glob("shards/*")} == before
    assert contents(later.store) == contents(at_once)
    assert later.store.views == views
    for view, kept in (("augment-0", ["train", "val"]), ("jpeg-50", ["val", "test"])):
        mine, theirs = later.store.view_rows(view), at_once.view_rows(view)
        assert mine == theirs
        assert set(mine["split"].to_pylist()) == set(kept)
        rows = np.flatnonzero(np.isin(later.store.rows["split"].to_pylist(), kept))
        features = [store.features("proj", rows, view=view) for store in (later.store, at_once)]
        assert np.array_equal(*features)
        assert not np.allclose(features[0], later.store.features("proj", rows), rtol=1e-3)
    assert json.loads(later.store.view_rows("jpeg-50")["parameters"][0].as_py()) == {"quality": 50.0}
    roles = {"train_generators": ["alpha"], "test_generators": ["beta"], "views": 1}
    data = load_study_data(later.store.path, **roles, degraded_views=["jpeg-50"])
    assert (len(data.train), len(data.validation)) == (2 * (58 - num_val), num_val)
    assert len(data.perturbed["jpeg-50"]) == num_val
    result = train(TrialConfig(head="linear", views=1, max_epochs=2), data)
    assert result.perturbed["jpeg-50"]["num_real"] == data.validation.num_real
    assert result.perturbed["jpeg-50"]["loss"] != result.validation["loss"]
    with pytest.raises(StoreError, match=r"have no view 'augment-0'"):
        later.store.features("proj", np.arange(96), view="augment-0")
    with pytest.raises(StoreError, match=r"no view 'blur-1'; it has clean, augment-0, jpeg-50"):
        later.store.features("proj", np.arange(96), view="blur-1")


def test_wrong_sizes_and_unfetched_weights_are_refused_before_any_work(
    index: pa.Table, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig, match="batch_size 0"):
        extract(index, encoder="tiny-random", workspace=tmp_path, batch_size=0)
    with pytest.raises(WeightsError, match="fetch"):
        extract(index, encoder="vit-l-14", workspace=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"num_cpus": 1, "num_gpus": 0, "gpus_per_actor": 0, "num_actors": None}, (1, 0.5, 1)),
        ({"num_cpus": 2, "num_gpus": 0, "gpus_per_actor": 0, "num_actors": 2}, (2, 0.75, 1)),
        ({"num_cpus": 8, "num_gpus": 0, "gpus_per_actor": 0, "num_actors": 99}, (10, 0.75, 1)),
        ({"num_cpus": 20, "num_gpus": 0, "gpus_per_actor": 0, "num_actors": None}, (3, 1, 6)),
        ({"num_cpus": 8, "num_gpus": 1, "gpus_per_actor": 1, "num_actors": None}, (1, 1, 8)),
        ({"num_cpus": 8, "num_gpus": 1, "gpus_per_actor": 0.25, "num_actors": None}, (4, 1, 2)),
    ],
)
def test_actors_leave_cpu_to_the_decoders(asked: dict[str, float], expected: tuple[int, float, int]) -> None:
    plan = plan_actors(num_pieces=10, **asked)
    assert (plan.num_actors, plan.cpus_per_actor, plan.num_threads) == expected
    assert plan.num_actors * plan.cpus_per_actor <= asked["num_cpus"] - 0.5


def test_gpus_that_are_not_there_are_an_error() -> None:
    with pytest.raises(InvalidConfig, match=r"2 actors of 1 GPUs were asked for; Ray has 1 GPUs"):
        plan_actors(num_cpus=8, num_gpus=1, gpus_per_actor=1, num_actors=2, num_pieces=10)
