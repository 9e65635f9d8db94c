"""Studies side by side: the numbers are scikit-learn's, what was seen is marked, and wrong usage is told."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from causal_tune.ledger import Ledger
from causal_tune.report.comparison import _beside_paper, _Head
from causal_tune.selection import best
from causal_tune.study.scores import trial_scores
from causal_tune.study.spec import read_spec
from tests.conftest import Finished, run_cli
from tests.report.test_paper import scored

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def workspace(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished study, and beside it the same one without its winner."""
    workspace = tmp_path_factory.mktemp("two") / "runs"
    shutil.copytree(finished.workspace, workspace)
    other = workspace / "studies" / "other"
    shutil.copytree(workspace / "studies" / "small", other)
    spec = read_spec(other)
    winner = best(Ledger(other / "trials").records(), spec.criterion, spec.roles)
    (other / "trials" / f"{winner.id}.json").unlink()
    return workspace


def compared(workspace: Path, *more: object) -> dict:
    result = run_cli("compare", "small", "other", "--workspace", workspace, "--json", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_ap_is_that_of_scikit_learn_and_what_was_seen_is_marked(workspace: Path) -> None:
    found = {row["head"]: row for row in compared(workspace)["tables"]["ap"]}
    means = {}
    for name in ("small", "other"):
        study = workspace / "studies" / name
        spec = read_spec(study)
        winner = best(Ledger(study / "trials").records(), spec.criterion, spec.roles)
        scored = trial_scores(study, spec, winner)
        for generator in (*spec.val_generators, *spec.test_generators):
            ap = average_precision_score(scored[generator].labels, scored[generator].logits)
            cell = found[name][generator]
            assert float(cell.split(" ")[0]) == pytest.approx(100 * ap, abs=0.051)
            assert cell.endswith("‡") == (generator in spec.val_generators)
        tests = [scored[generator] for generator in spec.test_generators]
        means[name] = np.mean([average_precision_score(one.labels, one.logits) for one in tests])
        assert float(list(found[name].values())[-1]) == pytest.approx(100 * means[name], abs=0.051)
    (pair,) = [row for row in compared(workspace)["tables"]["pairs"] if row["pair"] == "small - other"]
    assert pair["images"] == "the same"
    assert float(pair["difference"].split(" ")[0]) == pytest.approx(
        100 * (means["small"] - means["other"]), abs=0.0051
    )


def test_the_papers_rows_stand_below_the_heads_of_one_source(workspace: Path) -> None:
    study = workspace / "studies" / "small"
    spec = read_spec(study)
    record = Ledger(study / "trials").records()[0]

    def head(name: str, source: str, *generators: str) -> _Head:
        own = replace(spec, train_generators=(source,), val_generators=())
        return _Head(
            name=name, spec=own, record=record, encoder="", index_sha256="", scored=scored(*generators)
        )

    heads = [
        head("a", "progan", "cyclegan", "sd14"),
        head("b", "sdv4", "cyclegan", "sd14"),
        head("c", "ProGAN", "sd14"),
        head("d", "alpha", "sd14"),
    ]
    tables = [table for section in _beside_paper(heads) for table in section.tables]
    assert [(table.name, table.titles) for table in tables] == [
        ("paper_table_3", ["head", "sd14", "mean"]),
        ("paper_table_4", ["head", "sd14", "mean"]),
        ("paper_table_1", ["head", "cyclegan", "sd14", "mean"]),
        ("paper_table_2", ["head", "cyclegan", "sd14", "mean"]),
    ]
    assert [[row[0] for row in table.rows if "†" not in row[0]] for table in tables[::2]] == [
        ["a", "c"],
        ["b"],
    ]


def test_the_verdict_calls_a_tie_what_the_pairs_call_one(workspace: Path) -> None:
    found = compared(workspace)
    best = max(found["tables"]["ap"], key=lambda row: float(list(row.values())[-1]))["head"]
    tied = [row["pair"] for row in found["tables"]["pairs"] if best in row["pair"] and row["better"] == "tie"]
    assert found["verdict"][0].startswith("A tie of") == bool(tied)
    assert tied  # twelve images of a class tell little


def test_its_files_are_the_same_each_time(workspace: Path, tmp_path: Path) -> None:
    files = [Path(name) for name in compared(workspace, "-o", tmp_path / "out")["files"]]
    first = {path: path.read_bytes() for path in files}
    assert {"report.html", "ap.csv", "pairs.tex"} <= {path.name for path in files}
    compared(workspace, "-o", tmp_path / "out")
    assert first == {path: path.read_bytes() for path in files}


def test_a_terminal_shows_the_generators_as_rows(workspace: Path) -> None:
    result = run_cli("compare", "small", "other", "--workspace", workspace)
    assert result.exit_code == 0, result.output
    spec = read_spec(workspace / "studies" / "small")
    for generator in spec.test_generators:
        assert any(line.strip().startswith(generator) for line in result.output.splitlines())


@pytest.mark.parametrize(
    ("studies", "said"),
    [(("small",), "two or more"), (("small", "small"), "each named once"), (("small", "none"), "none")],
)
def test_too_few_or_unknown_studies_are_told(workspace: Path, studies: tuple[str, ...], said: str) -> None:
    result = run_cli("compare", *studies, "--workspace", workspace)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output
