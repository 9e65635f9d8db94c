"""What the map and its numbers say of features whose structure was planted."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from causal_tune.report.feature_map import (
    MOST_IMAGES,
    _placed,
    feature_map,
    mask_by_dimension,
    mask_table,
    neighbours_table,
    votes,
)
from causal_tune.study.parts import Parts

NUM = 40
"""Images of either class in each of two sets."""


def planted(*, shared: bool, seed: int = 0) -> Parts:
    """Two sets far apart; generated images stand out in one direction, shared by both sets or turned round in one."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat([0, 1], NUM), 2)
    generators = np.repeat(["a", "b"], 2 * NUM)
    features = rng.normal(size=(4 * NUM, 8)).astype(np.float32)
    features[:, 0] += np.where(generators == "a", -20, 20)
    features[:, 1] += 20 * labels * np.where((generators == "b") & (not shared), -1, 1)
    mask = np.zeros_like(features)
    mask[:, 1] = 1.0  # what tells the classes apart passes, and the set does not
    return Parts(generators=generators, labels=labels, features=features, mask=mask)


def cells(parts: Parts) -> dict[str, dict[str, float]]:
    table = neighbours_table(parts, 0)
    return {
        row[0].split(", ")[-1]: {
            title: float(cell.split(" ")[0]) for title, cell in zip(table.titles[1:], row[1:], strict=True)
        }
        for row in table.rows
    }


def test_neighbours_of_other_sets_see_what_the_sets_share_and_nothing_else() -> None:
    shared, turned = cells(planted(shared=True)), cells(planted(shared=False))
    assert list(shared) == ["E", "Zc", "Znc", "M"]
    others, everyone = "AP, by images of other sets", "AP, by any images"
    for found in (shared, turned):
        assert found["E"][everyone] == 100
        assert found["E"]["generator guessed"] == 100
        assert 35 < found["Znc"][everyone] < 65  # the direction of the class was taken out of it
        assert found["M"][everyone] < 60  # one mask for all images
    assert shared["Zc"][others] == 100
    assert turned["Zc"][others] == 50  # all look like the real images of the other set
    assert shared["Znc"]["generator guessed"] == 100
    assert shared["Zc"]["generator guessed"] < 70


def test_votes_are_those_of_scikit_learn() -> None:
    parts = planted(shared=True, seed=1)
    features, labels = parts.features, parts.labels
    nearest = NearestNeighbors(n_neighbors=11, algorithm="brute").fit(features).kneighbors(features)[1]
    np.testing.assert_allclose(votes(features, labels), labels[nearest[:, 1:]].mean(axis=1))
    a, b = (parts.generators == name for name in ("a", "b"))
    of_b = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(features[b]).kneighbors(features[a])[1]
    found = votes(features, labels, parts.generators)
    np.testing.assert_allclose(found[a], labels[b][of_b].mean(axis=1))
    cell = cells(parts)["E"]["AP, by images of other sets"]
    assert cell == pytest.approx(100 * average_precision_score(labels, found), abs=0.051)


def test_the_map_is_the_same_every_time_and_has_every_image_in_every_part() -> None:
    parts = planted(shared=True)
    first, second = feature_map(parts), feature_map(parts)
    assert first.svg == second.svg
    assert first.data.equals(second.data)
    assert first.data.num_rows == 3 * len(parts.labels)
    for name in ("all features, E", "causal part, Zc", "non-causal part, Znc"):
        assert f">{name}<" in first.svg
    assert first.svg.count("AP by neighbours 100.0 %") == 2  # of E and Zc, and not of Znc


@pytest.mark.slow
def test_a_map_of_full_size_does_not_depend_on_the_threads_that_there_are() -> None:
    values = np.random.default_rng(0).normal(size=(MOST_IMAGES, 512)).astype(np.float32)
    values[: MOST_IMAGES // 2] += 0.3
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            found.append(_placed(values))
    np.testing.assert_array_equal(*found)


def test_near_images_stay_near_on_the_map() -> None:
    parts = planted(shared=True)
    rows = [row for row in feature_map(parts).data.to_pylist() if row["part"] == "E"]
    points = np.array([[row["x"], row["y"]] for row in rows], np.float32)
    groups = np.array([f"{row['set']}{row['label']}" for row in rows])
    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points)[1][:, 1]
    assert (groups[nearest] == groups).mean() > 0.98


def test_a_part_in_which_nothing_is_left_says_so() -> None:
    whole = planted(shared=True)
    closed = Parts(
        generators=whole.generators,
        labels=whole.labels,
        features=whole.features,
        mask=np.zeros_like(whole.features),
    )
    drawn = feature_map(closed)
    assert "nothing is left in it" in drawn.svg
    assert set(drawn.data["part"].to_pylist()) == {"E", "Znc"}


def test_one_set_and_no_mask_are_shown_for_what_they_are() -> None:
    whole = planted(shared=True)
    mine = whole.generators == "a"
    alone = Parts(
        generators=whole.generators[mine],
        labels=whole.labels[mine],
        features=whole.features[mine],
        mask=None,
    )
    table = neighbours_table(alone, 0)
    assert table.titles == ["part", "AP, by any images"]
    assert [row[0] for row in table.rows] == ["all features, E"]
    drawn = feature_map(alone)
    assert set(drawn.data["part"].to_pylist()) == {"E"}
    assert "Zc" not in drawn.svg


def test_the_mask_by_dimension_has_its_means_and_its_spread() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    mask = rng.uniform(size=(100, 6)).astype(np.float32)
    mask[:, 2] = 0.9  # the same for every image
    mask[labels == 1, 4] = 0.0
    rows = mask_by_dimension(mask, labels).data.to_pylist()
    assert [row["mean"] for row in rows] == sorted((row["mean"] for row in rows), reverse=True)
    by_dimension = {row["dimension"]: row for row in rows}
    for place in range(6):
        assert by_dimension[place]["mean"] == pytest.approx(mask[:, place].mean(), abs=1e-6)
        assert by_dimension[place]["real"] == pytest.approx(mask[labels == 0, place].mean(), abs=1e-6)
        assert by_dimension[place]["low"] == pytest.approx(np.percentile(mask[:, place], 5), abs=1e-6)
    assert by_dimension[2]["low"] == by_dimension[2]["high"]
    assert by_dimension[4]["generated"] == 0


def test_the_mask_is_told_by_set_and_class() -> None:
    whole = planted(shared=True)
    mask = np.where((whole.generators == "a")[:, None] & (whole.labels == 1)[:, None], 1.0, 0.25)
    table = mask_table(
        Parts(
            generators=whole.generators,
            labels=whole.labels,
            features=whole.features,
            mask=np.broadcast_to(mask, whole.features.shape).astype(np.float32),
        )
    )
    rows = {row[0]: dict(zip(table.titles[1:], row[1:], strict=True)) for row in table.rows}
    assert (rows["a"]["real"], rows["a"]["generated"]) == ("0.250", "1.000")
    assert (rows["b"]["real"], rows["b"]["generated"]) == ("0.250", "0.250")
    assert rows["b"]["spread over images"] == "0.000"
    assert rows["a"]["n"] == str(2 * NUM)
