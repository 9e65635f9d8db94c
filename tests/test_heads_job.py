"""`jobs/heads_sd14.py`: every head on one store, through the real command and real Ray."""

import json
import re
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from causal_tune.cli.heads import _space, heads_table, summarise
from causal_tune.cli.tune import run_tune
from causal_tune.errors import Interrupted
from causal_tune.heads import HEADS
from causal_tune.ledger import TrialRecord
from causal_tune.study.run import StudyResult

ROOT = Path(__file__).parents[1]


def run(*words):
    command = runpy.run_path(str(ROOT / "jobs" / "heads_sd14.py"))["main"]
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_has_a_search_space_that_tries_it_on_the_asked_layer(head, tmp_path):
    space = _space(head, "cls@7", tmp_path, "new")
    assert space.defaults["layer"] == "cls@7"
    assert space.defaults["head"] == head
    assert all(entry.get("head", head) == head for entry in space.enqueued)


def test_a_head_without_a_result_is_a_row_that_says_so(finished):
    from causal_tune.study.spec import read_spec

    spec = read_spec(finished.study)
    failed = TrialRecord(number=0, id="00000-x", state="failed", reason="diverged", config={}, seed=1)
    summary = summarise(
        StudyResult(spec=spec, path=finished.study, records=[failed], best=None, num_new=0, duration_s=0.0)
    )
    assert (summary["num_failed"], summary["num_trials"]) == (1, 1)
    ((name, said, *rest),) = heads_table({"vib": summary}, ("gamma",))
    assert (name, said) == ("vib", "no trial can be chosen")
    assert len(rest) == 4 + 4


@pytest.mark.journey
@pytest.mark.ray
def test_heads_end_in_one_table_and_a_second_run_trains_nothing(finished, monkeypatch):
    heads = {"causal", "svm"}
    words = ["--images", finished.images, "--layout", "csv", "--encoder", "tiny-random", "--trials", 2]
    words += ["--max-concurrent", 1]  # a second worker takes longer to start than these trials
    words += ["--study", "all", "--train-generator", "alpha", "--val-generators", "beta"]
    words += ["--workspace", finished.workspace, "--heads", ",".join(sorted(heads))]
    first = run(*words, "--json")
    assert first.exit_code == 0, first.output
    document = json.loads(first.stdout)
    assert document["heads"].keys() == heads
    assert document["test_generators"] == ["gamma"]
    for head, summary in document["heads"].items():
        assert summary["num_trials"] == 2
        metrics = summary["generators"]["gamma"]
        assert 0 <= metrics["accuracy_val_threshold"] <= 1, head
        assert summary["config"]["head"] == head
    assert json.loads(run(*words, "--json").stdout) == document
    shown = run(*words)
    assert all(head in shown.output for head in heads)
    assert "differences of a few points are noise" in " ".join(shown.output.split())

    def fail(head):
        def summarise_or_fail(result):
            if head in result.spec.name:
                raise ZeroDivisionError("division by zero")
            return summarise(result)

        return summarise_or_fail

    for head in heads:
        monkeypatch.setattr("causal_tune.cli.heads.summarise", fail(head))
        result = run(*words)
        text = " ".join(result.output.split())
        assert result.exit_code == 1, text
        assert f"The head {head} has no row: ZeroDivisionError: division by zero." in text
        assert f"`causal-tune leaderboard all-{head} --workspace {finished.workspace}`" in text
        (other,) = heads - {head}
        assert re.search(rf"\b{other}\b +\d+\.\d\d", result.output), "the row of the other head"
    monkeypatch.undo()

    def interrupt(*, study, **options):
        if study.endswith("svm"):
            raise Interrupted("The study was interrupted.")
        return run_tune(study=study, **options)

    monkeypatch.setattr("causal_tune.cli.heads.run_tune", interrupt)
    result = run(*words)
    assert result.exit_code == 130, result.output
    assert re.search(r"\bcausal\b +\d+\.\d\d", result.output), "the row of the head that was done before"
    monkeypatch.undo()
    # a mistake of its own: it takes one argument
    monkeypatch.setattr("causal_tune.tracking.tracker.Tracker.finish", fail)
    result = run(*words, "--json")
    assert result.exit_code == 1, result.output
    assert json.loads(result.stdout)["heads"] == document["heads"]
    for head in heads:
        assert f"`causal-tune sync all-{head} --workspace {finished.workspace}`" in " ".join(
            result.stderr.split()
        )


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--space", "sd14"), "leave --space out"),
        (("--heads", "linear,quadratic"), "quadratic"),
        (("--layer", "cls@7"), "not among --layers"),
        (("--study", "../a"), "name of a study"),
    ],
)
def test_wrong_usage_is_a_paragraph_before_any_work(tmp_path, extra, said):
    words = ["--images", tmp_path, "--layout", "csv", "--trials", 2, "--study", "a", *extra]
    result = run(*words, "--workspace", tmp_path)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
