"""`jobs/robustness_sd14.py` end to end: what the report says of degraded images is what the head says of them."""

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import average_precision_score

from causal_tune.ledger import Ledger
from causal_tune.selection import best
from causal_tune.study.robustness import degraded_scores
from causal_tune.study.scores import trial_scores
from causal_tune.study.spec import read_spec
from tests.conftest import Finished

JOB = Path(__file__).parents[2] / "jobs" / "robustness_sd14.py"


def run(*words: object):
    command = runpy.run_path(str(JOB))["main"]
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.journey
@pytest.mark.ray
def test_the_table_is_what_the_head_says_of_every_view(finished: Finished, tmp_path: Path) -> None:
    result = run(
        *("--images", finished.images, "--layout", "csv", "--encoder", "tiny-random", "--space", "demo"),
        *("--train-generator", "alpha", "--val-generators", "beta", "--trials", 2, "--max-concurrent", 1),
        *("--study", "robust", "--degrade", "jpeg-30,blur-2,lr-64", "--workspace", tmp_path),
    )
    assert result.exit_code == 0, result.output
    assert "What it withstands" in result.output
    study = tmp_path / "studies" / "robust"
    spec = read_spec(study)
    winner = best(Ledger(study / "trials").records(), spec.criterion, spec.roles)
    found = degraded_scores(study, spec, winner)
    assert list(found) == ["clean", "jpeg-30", "blur-2", "lr-64"]
    plain = trial_scores(study, spec, winner)
    assert found["clean"].keys() >= {"beta", "gamma"}
    for name, one in found["clean"].items():
        np.testing.assert_allclose(one.logits, plain[name].logits, atol=1e-6)
    assert not np.allclose(found["blur-2"]["gamma"].logits, found["clean"]["gamma"].logits)
    with (study / "report" / "tables" / "robustness.csv").open() as file:
        rows = {row["view"]: row for row in csv.DictReader(file)}
    assert rows.keys() == found.keys()
    for view, row in rows.items():
        one = found[view]["gamma"]
        ap = 100 * average_precision_score(one.labels, one.logits)
        assert float(row["gamma"]) == pytest.approx(ap, abs=0.051)
        assert float(row["recommended"].split(" ")[0]) == pytest.approx(ap, abs=0.051)
    assert (study / "report" / "figures" / "robustness.svg").exists()


def test_figure_4_is_what_the_job_makes_without_being_told() -> None:
    assert "[default: figure4]" in " ".join(run("--help").output.split())


@pytest.mark.journey
@pytest.mark.ray
def test_a_store_without_degraded_views_has_nothing_to_say(finished: Finished) -> None:
    spec = read_spec(finished.study)
    winner = best(Ledger(finished.study / "trials").records(), spec.criterion, spec.roles)
    assert degraded_scores(finished.study, spec, winner) == {}
    assert "robustness.csv" not in {path.name for path in finished.study.rglob("*.csv")}
