"""The paper's printed numbers beside a study's: the right ones, marked, and with the known errors told."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score

from causal_tune.report.paper import OwnHead, _generators, _rows, paper_tables, printed_name
from causal_tune.report.tables import Table
from causal_tune.resampling import Scored


def scored(*generators: str, seed: int = 0) -> dict[str, Scored]:
    rng = np.random.default_rng(seed)
    return {
        name: Scored.of(rng.normal(size=40) + np.repeat([0, 1], 20), np.repeat([0, 1], 20))
        for name in generators
    }


def row(table: Table, name: str) -> dict[str, str]:
    (found,) = [dict(zip(table.titles, row, strict=True)) for row in table.rows if row[0] == name]
    return found


@pytest.mark.parametrize(("table", "average"), [("1", 96.92), ("2", 90.45), ("3", 94.27), ("4", 86.23)])
def test_the_cells_have_the_average_that_the_paper_prints_for_its_own_head(
    table: str, average: float
) -> None:
    (ours,) = [one for one in _rows() if (one["table"], one["method"]) == (table, "CausalCLIP")]
    assert np.mean([float(ours[name]) for name in _generators()]) == pytest.approx(average, abs=0.01)


def test_the_copied_column_is_the_accuracy_on_san() -> None:
    cells = {(one["table"], one["method"]): one for one in _rows()}
    copied = [
        cells["1", method]["BigGAN"] == cells["2", method]["SAN"]
        for table, method in cells
        if table == "1" and method not in ("CausalCLIP", "Fusing")  # of which two digits changed places
    ]
    assert len(copied) == 6
    assert all(copied)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("stable_diffusion_v_1_4", "SD1.4"),
        ("sdv5", "SD1.5"),
        ("SD-1.5", "SD1.5"),
        ("biggan", "BigGAN"),
        ("VQDM", "VQDM"),
        ("validation", None),
        ("view/jpeg-50", None),
        ("sd1x_diffusiondb", None),
    ],
)
def test_generators_are_matched_by_name(name: str, printed: str | None) -> None:
    assert printed_name(name) == printed


def test_own_numbers_stand_above_the_papers_on_the_shared_generators() -> None:
    sets = scored("sd14", "biggan", "flux", "progan")
    ap, accuracy = paper_tables(["sd14"], [OwnHead("mine", [], sets)])
    assert ap.titles == ["head", "sd14", "biggan", "progan", "mean"]
    assert "Table 1" in ap.caption
    assert "Table 2" in accuracy.caption
    expected = [average_precision_score(sets[name].labels, sets[name].logits) for name in ap.titles[1:-1]]
    assert [float(cell) for cell in ap.rows[0][1:]] == pytest.approx(
        [100 * value for value in (*expected, np.mean(expected))], abs=0.006
    )
    right = accuracy_score(sets["progan"].labels, sets["progan"].logits > 0)
    assert float(row(accuracy, "mine")["progan"]) == pytest.approx(100 * right, abs=0.006)
    # read from the paper's pages
    assert row(ap, "CausalCLIP †") == {
        "head": "CausalCLIP †", "sd14": "100.00", "biggan": "97.43", "progan": "97.33", "mean": "98.25",
    }  # fmt: skip
    assert row(ap, "VIB-Net †")["biggan"] == "81.50‡"
    assert row(ap, "VIB-Net †")["mean"].endswith("‡")
    assert "not AP" in ap.caption
    assert not any("‡" in cell for cells in accuracy.rows for cell in cells)


def test_without_a_wrong_cell_no_error_is_told() -> None:
    (ap, _) = paper_tables(["progan"], [OwnHead("mine", [], scored("progan", "biggan"))])
    assert "Table 3" in ap.caption
    assert "‡" not in ap.caption
    assert row(ap, "CausalCLIP †")["biggan"] == "99.31"


def test_a_generator_that_chose_the_head_is_marked_in_its_row_alone() -> None:
    (ap, accuracy) = paper_tables(["progan"], [OwnHead("mine", ["cyclegan"], scored("cyclegan", "sd14"))])
    for table in (ap, accuracy):
        assert "* chose the head" in table.caption
        own = row(table, "mine")
        assert (own["cyclegan"][-1], own["mean"][-1]) == ("*", "*")
        assert "*" not in own["sd14"]
        assert not any("*" in cell for cells in table.rows[1:] for cell in cells)
    assert not any(
        "* chose" in table.caption
        for table in paper_tables(["progan"], [OwnHead("mine", [], scored("sd14"))])
    )


def test_other_training_data_gets_no_reference() -> None:
    sets = scored("sd14", "progan")
    assert paper_tables(["sd1x_diffusiondb"], [OwnHead("mine", [], sets)]) == []
    assert paper_tables(["sd14", "progan"], [OwnHead("mine", [], sets)]) == []
    assert paper_tables(["cyclegan"], [OwnHead("mine", [], sets)]) == []
    assert paper_tables(["sd14"], [OwnHead("mine", [], scored("flux"))]) == []


def test_a_set_of_one_class_is_left_out() -> None:
    sets = scored("sd14", "progan") | {"glide": Scored.of([1.0, 2.0], [1, 1])}
    assert "glide" not in paper_tables(["sd14"], [OwnHead("mine", [], sets)])[0].titles


def test_several_heads_stand_above_on_what_all_have_judged() -> None:
    heads = [
        OwnHead("one", ["cyclegan"], scored("cyclegan", "biggan", "sd14")),
        OwnHead("two", [], scored("sd14", "cyclegan", seed=1)),
    ]
    (ap, accuracy) = paper_tables(["progan"], heads)
    assert (ap.name, accuracy.name) == ("paper_table_3", "paper_table_4")
    assert ap.titles == ["head", "cyclegan", "sd14", "mean"]
    assert [cells[0] for cells in ap.rows[:2]] == ["one", "two"]
    assert row(ap, "one")["cyclegan"].endswith("*")
    assert not row(ap, "two")["cyclegan"].endswith("*")
    one = heads[1].scored["sd14"]
    expected = 100 * average_precision_score(one.labels, one.logits)
    assert float(row(ap, "two")["sd14"]) == pytest.approx(expected, abs=0.006)
