"""The parts that a mask makes of features: drawn evenly, the same every time, and what the head itself sees."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from causal_tune.features import FeatureStore
from causal_tune.ledger import Ledger
from causal_tune.study.parts import balanced_sample, feature_parts
from causal_tune.study.scores import trial_head
from causal_tune.study.spec import read_spec
from tests.conftest import Finished

ROWS = pa.table(
    {
        "label": [0] * 10 + [1] * 30 + [1] * 5,
        "sha256": [f"real {number}" for number in range(10)] + [f"fake {number}" for number in range(35)],
    }
)
SETS = {"a": np.arange(25), "b": np.r_[0:10, 25:40], "fakes": np.arange(40, 45)}


def test_of_every_set_as_many_real_images_as_generated_ones_are_drawn_and_none_twice() -> None:
    found = balanced_sample(ROWS, SETS, most=24, seed=0)
    assert {name: len(rows) for name, rows in found.items()} == {"a": 8, "b": 8}  # 24 / (2 classes x 3 sets)
    labels = ROWS["label"].to_numpy()
    assert all(labels[rows].mean() == 0.5 for rows in found.values())
    assert all(set(rows) <= set(SETS[name]) for name, rows in found.items())
    every = np.concatenate(list(found.values()))
    assert len(set(every)) == len(every)  # the ten real images are listed in both
    again = balanced_sample(ROWS, SETS, most=24, seed=0)
    assert all((found[name] == again[name]).all() for name in found)
    other = balanced_sample(ROWS, SETS, most=24, seed=1)
    assert any((found[name] != other[name]).any() for name in found)


def test_copies_of_one_picture_count_once() -> None:
    rows = pa.table({"label": [0] * 4 + [1] * 4, "sha256": ["same"] * 4 + [f"fake {n}" for n in range(4)]})
    assert balanced_sample(rows, {"a": np.arange(8)}, most=100, seed=0) == {}


@pytest.mark.ray
@pytest.mark.slow
def test_the_parts_are_those_of_the_head(finished: Finished) -> None:
    spec = read_spec(finished.study)
    record = next(one for one in Ledger(finished.study / "trials").records() if one.mask is not None)
    parts = feature_parts(finished.study, spec, record, most=1000)
    assert parts is not None
    assert parts.sets == ["gamma"]
    assert len(parts.labels) == 24
    store = FeatureStore(finished.store)
    gamma = np.flatnonzero(np.array(store.rows["generator"].to_pylist()) == "gamma")
    np.testing.assert_array_equal(
        np.sort(parts.features, axis=0), np.sort(store.features(record.config["layer"], gamma), axis=0)
    )
    by_name = parts.by_name
    np.testing.assert_allclose(by_name["Zc"] + by_name["Znc"], by_name["E"], atol=1e-6)
    head = trial_head(finished.study, record)
    with torch.no_grad():
        classified = head.classifier(torch.from_numpy(by_name["Zc"]))[:, 0]  # type: ignore[attr-defined]
        np.testing.assert_allclose(classified, head.logits(torch.from_numpy(by_name["E"])), atol=1e-5)


@pytest.mark.ray
@pytest.mark.slow
def test_a_head_without_a_mask_has_the_features_alone(finished: Finished) -> None:
    spec = read_spec(finished.study)
    probe = next(one for one in Ledger(finished.study / "trials").records() if one.mask is None)
    parts = feature_parts(finished.study, spec, probe, most=8)
    assert parts is not None
    assert (parts.mask, list(parts.by_name), len(parts.labels)) == (None, ["E"], 8)
