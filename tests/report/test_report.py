"""The report of a real study: its files, its numbers, and what it says of a study that went badly."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score, roc_curve

from causal_tune.errors import StudyError
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.report.comparison import compare
from causal_tune.report.content import build
from causal_tune.report.figures import Drawing
from causal_tune.report.page import html_page, markdown_page
from causal_tune.report.section import Report, Section
from causal_tune.report.tables import Table
from causal_tune.selection import best, rank, score
from causal_tune.study.finalists import FINALISTS
from causal_tune.study.scores import VALIDATION, trial_scores
from causal_tune.study.spec import read_spec
from tests.conftest import Finished, run_cli

NASTY = "a<b>|_&%"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def number(cell: str) -> float:
    return float(cell.split(" ")[0])


def ends(cell: str) -> tuple[float, float]:
    low, high = re.findall(r"[-+]?[\d.]+(?=[,\]])", cell)
    return float(low), float(high)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished workspace, whose study may be changed."""
    return Path(shutil.copytree(finished.workspace, tmp_path / "runs"))


def write_finalists(study: Path, chosen: TrialRecord, causal: TrialRecord, probe: TrialRecord) -> None:
    """As if the finalists of a study, one causal head and the probe, had been trained by the study itself."""

    def row(name: str, record: TrialRecord) -> dict[str, Any]:
        over = {"mean": 0.5, "low": None, "high": None, "num": 1}
        return {
            "name": name,
            "trials": [record.id],
            "config": record.config,
            "search_score": 0.5,
            "mean": 0.5,
            "interval": None,
            "over_seeds": over,
            "test_mean": None,
            "num_collapsed": 0,
        }

    document = {
        "format": 1,
        "study": study.name,
        "criterion": "val_generators",
        "seeds": [1],
        "finalists": [row(causal.id, causal)],
        "probe": row("probe", probe),
        "budget": {"search_trials": len(Ledger(study / "trials").records())},
        "paired": [],
        "terms": [],
        "verdict": {"chosen": "probe" if chosen is probe else causal.id, "reason": "Planted."},
        "failed": [],
        "study_of_finalists": study.name,
        "command": "causal-tune finalists",
    }
    (study / FINALISTS).write_text(json.dumps(document))


def write(study: Path, folder: Path, workspace: Path) -> dict[str, bytes]:
    result = run_cli("report", study, "-o", folder, "--workspace", workspace)
    assert result.exit_code == 0, result.output
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_text_is_escaped_in_every_form() -> None:
    table = Table(name="t", caption=NASTY, columns=["what", "value"], rows=[[NASTY, "1 ± 2"]])
    report = Report(title=NASTY, verdict=[NASTY], sections=[Section(title=NASTY, text=NASTY, tables=[table])])
    assert "<b>" not in html_page(report)
    assert "| a\\<b>\\|\\_&% | 1 ± 2 |" in markdown_page(report)
    assert r"a$<$b$>$\textbar{}\_\&\% & 1 $\pm$ 2 \\" in table.latex()
    assert table.latex().count("{") == table.latex().count("}")
    assert list(csv.reader(table.csv().splitlines()))[1] == [NASTY, "1 ± 2"]


def test_what_stands_between_backticks_is_code_in_every_form() -> None:
    text = "Run `a --b <c>`."
    table = Table(name="t", caption=text, columns=["what"], rows=[["`literal`"]])
    drawing = Drawing(svg="<svg/>", data=pa.table({}))
    section = Section(title="T", text=text, tables=[table], figures={"f": (text, drawing)})
    report = Report(title="T", verdict=[text], sections=[section])
    page = html_page(report)
    assert page.count("Run <code>a --b &lt;c&gt;</code>.") == 4
    assert page.count("`") == 2  # a cell is shown as it is
    assert markdown_page(report).count(text) == 4
    assert table.latex().count(r"Run \texttt{a -{}-b $<$c$>$}.") == 1


@pytest.mark.ray
@pytest.mark.slow
def test_the_same_study_gives_the_same_bytes_and_needs_no_network(finished: Finished, tmp_path: Path) -> None:
    first = write(finished.study, tmp_path / "one", finished.workspace)
    second = write(finished.study, tmp_path / "other", finished.workspace)
    assert first == second
    assert {"report.html", "report.md", "tables/generators.csv", "tables/generators.tex"} <= first.keys()
    page = first["report.html"].decode()
    assert "<svg" in page
    assert "`" not in page
    assert not re.search(r"(?:src|[^:]href)=.?https?:|url\(.?http|<script", page)
    shown = re.findall(r"\]\((figures/[^)]+)\)", first["report.md"].decode())
    assert shown
    assert first.keys() >= set(shown)
    assert {
        f"figures/{name}.{form}" for name in ("features", "mask_dimensions") for form in ("svg", "arrow")
    } <= (first.keys())


@pytest.mark.ray
@pytest.mark.slow
def test_the_numbers_are_those_of_other_libraries(copied: Path, tmp_path: Path) -> None:
    study = copied / "studies" / "small"
    spec, records = read_spec(study), Ledger(study / "trials").records()
    winner = next(
        record for record, _ in rank(records, spec.criterion, spec.roles) if record.config["head"] == "causal"
    )
    probe = next(record for record in records if record.config["head"] == "linear")
    write_finalists(study, winner, winner, probe)
    write(study, tmp_path, copied)
    scored = trial_scores(study, spec, winner)
    found = {row["set"]: row for row in rows_of(tmp_path / "tables" / "generators.csv")}
    assert found.keys() == scored.keys()
    assert VALIDATION in found
    for name, row in found.items():
        labels, logits = scored[name].labels, scored[name].logits
        mistaken, caught, _ = roc_curve(labels, logits, drop_intermediate=False)
        expected = {
            "AP": average_precision_score(labels, logits),
            "AUC": roc_auc_score(labels, logits),
            "accuracy": accuracy_score(labels, logits > 0),
            "TPR at 5 % FPR": caught[mistaken <= 0.05].max(),
        }
        for column, value in expected.items():
            assert number(row[column]) == pytest.approx(100 * value, abs=0.051), (name, column)
            low, high = ends(row[column])
            assert low - 0.05 <= number(row[column]) <= high + 0.05
        assert number(row["real acc."]) == pytest.approx(100 * (logits[labels == 0] <= 0).mean(), abs=0.051)
        assert (int(row["n real"]), int(row["n gen."])) == ((labels == 0).sum(), (labels == 1).sum())
    theirs = trial_scores(study, spec, probe)
    against = rows_of(tmp_path / "tables" / "against_probe.csv")
    assert {row["set"] for row in against} == {VALIDATION, "beta", "gamma"}
    for row in against:
        one, other = scored[row["set"]], theirs[row["set"]]
        mine, its = ((item.logits > 0) == (item.labels == 1) for item in (one, other))
        right, wrong = int(np.sum(mine & ~its)), int(np.sum(~mine & its))
        assert row["right only it / only the probe"] == f"{right} / {wrong}"
        p = binomtest(right, right + wrong).pvalue if right + wrong else 1.0
        assert float(row["McNemar p"]) == pytest.approx(p, abs=5.1e-4)
        difference = average_precision_score(one.labels, one.logits) - average_precision_score(
            other.labels, other.logits
        )
        assert number(row["AP, points"]) == pytest.approx(100 * difference, abs=0.0051)


@pytest.mark.ray
@pytest.mark.slow
def test_a_head_is_compared_with_a_tuned_probe_only(copied: Path, tmp_path: Path) -> None:
    study = copied / "studies" / "small"
    records = Ledger(study / "trials").records()
    causal = next(record for record in records if record.config["head"] == "causal")
    probe = next(record for record in records if record.config["head"] == "linear")
    untuned = write(study, tmp_path / "untuned", copied)
    assert "tables/against_probe.csv" not in untuned
    text = untuned["report.md"].decode()
    assert "Left out: the " in text
    assert "too few to say whether the criterion tells trials apart" in text
    write_finalists(study, probe, causal, probe)
    itself = write(study, tmp_path / "itself", copied)
    assert "tables/against_probe.csv" not in itself
    assert "Left out: the recommended head is itself a linear probe" in itself["report.md"].decode()
    write_finalists(study, causal, causal, probe)
    both = write(study, tmp_path / "both", copied)
    assert "tables/against_probe.csv" in both
    assert f"minus the tuned linear probe on proj (trial {probe.id} of small)" in both["report.md"].decode()
    document = compare([study, shutil.copytree(study, copied / "studies" / "other")])
    heads = [
        row[0]
        for section in document.sections
        for one in section.tables
        if one.name == "ap"
        for row in one.rows
    ]
    assert heads == ["small", "small, tuned linear probe", "other", "other, tuned linear probe"]
    (study / FINALISTS).unlink()
    (copied / "studies" / "other" / FINALISTS).unlink()
    document = compare([study, copied / "studies" / "other"])
    assert not any("probe" in row[0] for one in document.sections[1].tables for row in one.rows)


@pytest.mark.ray
@pytest.mark.slow
def test_the_audit_of_the_images_is_told(finished: Finished, tmp_path: Path) -> None:
    text = write(finished.study, tmp_path / "one", finished.workspace)["report.md"].decode()
    found = json.loads(run_cli("audit", finished.index, "--train-generator", "alpha", "--json").stdout)
    for one in found["findings"]:
        if one["kind"] != "not_checked":  # the report has the features, too
            assert one["what"] in text
    counts = rows_of(tmp_path / "one" / "tables" / "images.csv")
    assert [int(row["images"]) for row in counts if row["generator"] == "alpha"] == [60, 60]
    assert {row["generator"] for row in rows_of(tmp_path / "one" / "tables" / "shortcuts.csv")} >= {
        "alpha",
        "all",
    }
    # the whole folder: other tests of the session may have listed the same images there
    indexes = finished.index.parent
    elsewhere = Path(shutil.move(indexes, tmp_path / "elsewhere")) / finished.index.name
    try:
        without = write(finished.study, tmp_path / "two", finished.workspace)["report.md"].decode()
        assert "`causal-tune report small --index INDEX`" in without
        named = run_cli("report", finished.study, "--index", elsewhere, "-o", tmp_path / "three", "--json")
        assert named.exit_code == 0, named.output
        expected = re.sub(r"index/[\w-]+\.parquet", str(elsewhere), text)  # of those, whichever was found
        assert (tmp_path / "three" / "report.md").read_text() == expected
    finally:
        shutil.move(elsewhere.parent, indexes)


@pytest.mark.ray
@pytest.mark.slow
def test_without_its_features_a_study_is_told_from_its_ledger(finished: Finished, tmp_path: Path) -> None:
    workspace = tmp_path / "runs"
    shutil.copytree(finished.workspace / "studies", workspace / "studies")
    study = workspace / "studies" / "small"
    description = study / "study.json"
    text = json.loads(description.read_text()) | {"store_path": str(tmp_path / "gone")}
    description.write_text(json.dumps(text))
    files = write(study, tmp_path / "report", workspace)
    page = files["report.md"].decode()
    assert "There is no feature store at" in page
    assert "the map of E, Zc and Znc" in page
    assert "figures/features.svg" not in files
    spec, records = read_spec(study), Ledger(study / "trials").records()
    winner = best(records, spec.criterion, spec.roles)
    rows = {row["set"]: row for row in rows_of(tmp_path / "report" / "tables" / "generators.csv")}
    assert rows.keys() == {VALIDATION, "beta", "gamma"}
    assert number(rows["gamma"]["AP"]) == pytest.approx(100 * winner.generators["gamma"]["ap"], abs=0.051)
    assert {"tables/trials.csv", "tables/criteria.csv", "figures/history.svg"} <= files.keys()
    assert spec.store_fingerprint in page


@pytest.mark.ray
@pytest.mark.slow
def test_where_the_probe_wins_the_mask_is_that_of_the_best_head_that_has_one(
    copied: Path, tmp_path: Path
) -> None:
    study = copied / "studies" / "small"
    ledger = Ledger(study / "trials")
    probe = next(record for record in ledger.records() if record.mask is None)
    beta = {**probe.generators["beta"], "ap": 1.0}
    (ledger.path / f"{probe.id}.json").unlink()
    ledger.add(replace(probe, generators={**probe.generators, "beta": beta}))
    for record in ledger.records():
        if record.mask is not None:
            (ledger.path / f"{record.id}.json").unlink()
            ledger.add(
                replace(
                    record, collapsed="ones", generators={**record.generators, "beta": {**beta, "ap": 0.5}}
                )
            )
    text = write(study, tmp_path / "report", copied)["report.md"].decode()
    assert re.search(r"The recommended head has no mask: this is trial 0000\d-\w+, the best", text)
    assert "It has collapsed to all ones" in text


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_that_went_badly_is_told_as_it_is(copied: Path, tmp_path: Path) -> None:
    study = copied / "studies" / "small"
    ledger = Ledger(study / "trials")
    known = ledger.records()[1]
    for place, state, reason in (
        (3, "failed", "the loss <became> nan"),
        (4, "pruned", "below"),
        (5, "duplicate", "1"),
    ):
        bare = replace(known, epochs=[], generators={}, validation={}, mask=None, checkpoint=None)
        ledger.add(replace(bare, number=place, id=f"{place:05d}-0", state=state, reason=reason))
    one_class = {**known.generators, "gamma": {**known.generators["gamma"], "ap": None}}
    ledger.add(replace(known, number=6, id="00006-0", collapsed="ones", generators=one_class))
    files = write(study, tmp_path / "report", copied)
    text = files["report.md"].decode()
    assert "7 trials: 1 duplicate, 1 failed, 4 finished, 1 pruned" in text
    assert "1 x the loss \\<became> nan" in text
    assert "trials have a collapsed mask." in text
    assert "the loss &lt;became&gt; nan" in files["report.html"].decode()
    assert "undefined" in text  # the mean test AP of the trial whose set has one class
    for path in ledger.path.glob("0*.json"):
        if json.loads(path.read_text())["state"] == "finished":
            path.unlink()
    with pytest.raises(StudyError, match="can be chosen by"):
        build(study)


@pytest.mark.ray
@pytest.mark.slow
def test_what_mattered_is_told_of_enough_trials_and_drawn_with_its_points(
    copied: Path, tmp_path: Path
) -> None:
    study = copied / "studies" / "small"
    spec = read_spec(study)
    ledger = Ledger(study / "trials")
    known = next(record for record in ledger.records() if record.config["head"] == "causal")
    rng = np.random.default_rng(0)
    for number in range(len(ledger.records()), 40):
        tau = float(rng.uniform(0.1, 2.0))
        sets = {name: {**one, "ap": 0.5 + tau / 5} for name, one in known.generators.items()}
        drawn = {"tau": tau, "p": float(rng.uniform(0.05, 0.5))}
        record = replace(
            known, number=number, id=f"{number:05d}-0", config={**known.config, **drawn}, generators=sets
        )
        ledger.add(replace(record, validation={**known.validation, "ap": 0.5 + tau / 5}))
    files = write(study, tmp_path / "report", copied)
    rows = rows_of(tmp_path / "report" / "tables" / "importance.csv")
    assert rows[0]["hyperparameter"] == "tau"
    assert "Distinguishable from chance" in files["report.md"].decode()
    assert ": tau." in files["report.md"].decode()
    drawings = {name.removesuffix(".svg") for name in files if name.endswith(".svg")}
    assert {f"figures/{name}" for name in ("importance", "parallel", "landscape", "calibration")} <= drawings
    assert {f"{name}.arrow" for name in drawings} <= files.keys()
    with pa.memory_map(str(tmp_path / "report" / "figures" / "parallel.arrow")) as source:
        lines = pa.ipc.open_file(source).read_all().to_pylist()
    assert len(lines) == sum(score(one, spec.criterion, spec.roles) is not None for one in ledger.records())
    assert max(line["tau"] for line in lines if line["tau"]) <= 2.0
    assert files == write(study, tmp_path / "report", copied)  # what is there already is written anew
