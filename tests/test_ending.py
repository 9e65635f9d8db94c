"""How jobs end: what is finished is shown and kept, whatever fails after it."""

import json
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from causal_tune.cli import reports
from causal_tune.detector import load_detector
from causal_tune.ledger import Ledger
from tests.conftest import run_cli, write_images

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOBS = Path(__file__).parents[1] / "jobs"


def run_job(name: str, words: list[object]) -> Result:
    command = runpy.run_path(str(JOBS / name))["main"]
    return CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)


@dataclass(frozen=True)
class Job:
    """A job whose trials are done: run again it trains nothing, and only ends."""

    workspace: Path
    words: list[object]

    @property
    def study(self) -> Path:
        return self.workspace / "studies" / "end"

    @property
    def detector(self) -> Path:
        return self.workspace / "detectors" / "end"

    def again(self, *more: object, name: str = "tune_sd14.py") -> Result:
        return run_job(name, [*self.words, *more])

    def change(self, rank: int, **values: Any) -> str:
        """The id of the trial that the criterion ranks so, after its record was changed."""
        shown = run_cli("leaderboard", "end", "--workspace", self.workspace, "--json")
        trial = json.loads(shown.output)["leaderboard"][rank]["trial"]
        path = self.study / "trials" / f"{trial}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return str(trial)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Job:
    folder = tmp_path_factory.mktemp("ending")
    images = write_images(folder / "images", {"alpha": 40, "beta": 10, "gamma": 10, "delta": 10})
    lines = [line for line in images.read_text().splitlines() if not line.endswith("real,delta,")]
    images.write_text("\n".join(lines) + "\n")
    words: list[object] = [
        "--images",
        images,
        "--layout",
        "csv",
        "--encoder",
        "tiny-random",
        "--space",
        "demo",
    ]
    words += ["--study", "end", "--trials", 3, "--train-generator", "alpha", "--val-generators", "beta"]
    words += ["--degrade", "jpeg-50", "--max-concurrent", 1, "--workspace", folder / "runs"]
    job = Job(folder / "runs", words)
    result = job.again()
    assert result.exit_code == 0, result.output
    return job


@pytest.fixture
def job(trained: Job, tmp_path: Path) -> Iterator[Job]:
    """The trained job; what a test changes of it is put back."""
    kept = ("studies", "detectors")
    for name in kept:
        shutil.copytree(trained.workspace / name, tmp_path / name)
    for made in (trained.study / "report", trained.detector):
        shutil.rmtree(made)
    reports._report.cache_clear()
    yield trained
    for name in kept:
        shutil.rmtree(trained.workspace / name)
        shutil.copytree(tmp_path / name, trained.workspace / name)


def said(result: Result) -> str:
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_a_collapsed_winner_leaves_a_table_a_report_and_the_best_detector_that_there_is(job: Job) -> None:
    winner = job.change(0, collapsed="ones")
    result = job.again()
    text = said(result)
    assert result.exit_code == 0, text
    assert "Leaderboard by val_generators" in text
    assert f"Winner: trial {winner}" in text
    provenance = load_detector(job.detector).description["provenance"]
    second = provenance["trial"]
    assert provenance["passed_over"] == [winner]
    assert f"passed over: {winner}" in (job.detector / "README.md").read_text()
    assert (
        f"{winner} has a collapsed mask, which is no causal head, so the detector is trial {second}" in text
    )
    report = (job.study / "report" / "report.html").read_text()
    assert f"recommended instead of {winner}" in report
    for words in ("Report:", "Detector:", "compare in MLflow", "causal-tune predict"):
        assert words in text
    forced = [
        "export",
        "end",
        "--trial",
        int(winner.partition("-")[0]),
        "--force",
        "--workspace",
        job.workspace,
    ]
    assert f"`causal-tune {' '.join(map(str, forced))}`" in text
    assert run_cli(*forced).exit_code == 0
    assert load_detector(job.detector).description["provenance"]["trial"] == winner
    plain = run_cli("export", "end", "--workspace", job.workspace)
    assert plain.exit_code == 0
    assert f"the detector is trial {second}" in said(plain)
    assert f"instead of {winner}" in said(run_cli("report", "end", "--workspace", job.workspace))


def test_a_test_generator_of_one_class_is_left_out_of_the_mean_and_named(job: Job) -> None:
    from mlflow import MlflowClient

    result = job.again("--json")
    assert result.exit_code == 0, result.output
    best = json.loads(result.stdout)["leaderboard"][0]
    path = job.study / "trials" / f"{best['trial']}.json"
    generators = json.loads(path.read_text())["generators"]
    assert generators["delta"]["ap"] is None
    assert best["mean_test_ap"] == generators["gamma"]["ap"]
    note = "over 1 of 2 test generators: AP is undefined for delta, with images of one class only."
    assert note in said(job.again())
    assert note in (job.study / "report" / "report.html").read_text()
    client = MlflowClient(f"sqlite:///{job.workspace / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'causal-tune'")
    (run,) = client.search_runs([experiment.experiment_id], "tags.causal_tune.best_trial != ''")
    assert note in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["best_so_far/test"] == generators["gamma"]["ap"]


def test_the_winner_of_the_test_generators_is_named_once_where_it_is_the_winner(job: Job) -> None:
    shown = run_cli("leaderboard", "end", "--workspace", job.workspace, "--json")
    rows = json.loads(shown.output)["leaderboard"]
    for rank, row in enumerate(rows):
        path = job.study / "trials" / f"{row['trial']}.json"
        record = json.loads(path.read_text())
        record["generators"]["gamma"]["ap"] = 1.0 - rank / 10
        path.write_text(json.dumps(record))
    text = said(run_cli("leaderboard", "end", "--workspace", job.workspace))
    assert "Oracle gap 0.00 points: the test generators would have chosen the same trial." in text
    assert "not allowed" not in text


def test_where_every_mask_has_collapsed_all_but_the_detector_is_there(job: Job) -> None:
    for rank in range(3):
        job.change(rank, collapsed="ones")
    result = job.again()
    text = said(result)
    assert result.exit_code == 1, text
    assert "Leaderboard by val_generators" in text
    assert "The detector was not exported: Every mask" in text
    assert "causal-tune predict" not in text
    assert "it is no causal head" in (job.study / "report" / "report.html").read_text()
    assert not job.detector.exists()
    finalists = run_cli("finalists", "end", "--workspace", job.workspace)
    assert finalists.exit_code == 2
    assert "has a collapsed mask, so it has no finalists" in said(finalists)


def test_where_no_trial_has_a_result_the_reason_is_told_once(job: Job) -> None:
    for _ in range(3):
        job.change(0, state="failed", reason="the loss became nan")
    result = job.again("--tracking-uri", f"sqlite:///{job.workspace / 'other.db'}")
    text = said(result)
    assert result.exit_code == 1, text
    assert text.count("3 x the loss became nan") == 1
    assert "compare in MLflow" in text


def _mistake(*args: object, **options: object) -> None:
    raise ZeroDivisionError("division by zero")


PARTS = {
    "causal_tune.report.figures.roc": ("The report was not written", "report"),
    "causal_tune.report.content.audited": ("The report was not written", "report"),
    "causal_tune.cli.leaderboard.oracle_gap": ("The winner's table was not shown", "leaderboard"),
    "causal_tune.export.audit_index": ("The detector was not exported", "export"),
    "causal_tune.export.model_card": ("The detector was not exported", "export"),
    "causal_tune.tracking.tracker.Tracker.finish": ("The tracker failed", "sync"),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_fails_after_the_study_costs_nothing_else(
    job: Job, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(part, _mistake)
    result = job.again(name="tune_sd14.py" if "export" in part else "robustness_sd14.py")
    text = said(result)
    failed, again = PARTS[part]
    assert result.exit_code == 1, text
    assert "Leaderboard by val_generators" in text
    assert "Winner: trial" in text
    assert failed in text
    assert "division by zero" in text
    assert f"`causal-tune {again} end --workspace {job.workspace}`" in text
    assert (job.study / "report" / "report.html").exists() == (again != "report")
    assert job.detector.exists() == (again != "export")
    assert len(Ledger(job.study / "trials").records()) == 3
    monkeypatch.undo()
    repeated = run_cli(again, "end", "--workspace", job.workspace)
    assert repeated.exit_code == 0, repeated.output


def test_what_cannot_be_written_is_told_with_the_rest_and_in_json(job: Job) -> None:
    (job.study / "report").write_text("a file where the folder should be")
    job.detector.mkdir()
    (job.detector / "notes.txt").write_text("somebody's own")
    result = job.again("--json")
    assert result.exit_code == 1, result.output
    document = json.loads(result.stdout)
    assert len(document["leaderboard"]) == 3
    assert (document["report"], document["detector"]) == (None, None)
    assert [problem.split(":")[0] for problem in document["problems"]] == [
        "The report was not written",
        "The detector was not exported",
    ]
    assert (job.detector / "notes.txt").exists()
