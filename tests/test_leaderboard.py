"""What a leaderboard shows of a study: what was searched, of each trial what its head reads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from causal_tune.cli.output import out
from causal_tune.heads import HEADS
from causal_tune.ledger import Ledger
from causal_tune.report.content import build
from causal_tune.study.space import load_space
from causal_tune.study.spec import read_spec
from causal_tune.trial import TrialConfig
from tests.conftest import run_cli

STORED = Path(__file__).parent / "stored" / "study-format-1"
READ = {
    "causal": {"normalisation", "learning_rate", "lambda1", "lambda2", "alpha", "beta", "tau", "p"},
    "linear": {"normalisation", "learning_rate"},
    "mlp": {"normalisation", "learning_rate", "mlp_width", "mlp_depth", "weight_decay", "dropout"},
    "nearest": {"normalisation", "neighbours"},
    "prototypes": {"normalisation", "shots"},
    "svm": {"normalisation", "svm_c"},
    "vib": {"normalisation", "learning_rate", "dropout", "bottleneck", "vib_beta"},
}


@pytest.fixture
def every_head(tmp_path: Path) -> Path:
    """A study of one trial a head, over the space of all heads; the SVM is the best."""
    study = Path(shutil.copytree(STORED, tmp_path / "runs" / "studies" / "heads"))
    space = load_space("heads")
    content = json.loads((study / "study.json").read_text())
    content |= {"name": "heads", "space": space.to_json(), "space_sha256": space.sha256}
    (study / "study.json").write_text(json.dumps(content))
    ledger = Ledger(study / "trials")
    known = ledger.records()[0]
    for record in ledger.records():
        (ledger.path / f"{record.id}.json").unlink()
    for number, head in enumerate(sorted(HEADS, key=lambda name: name != "svm")):
        config = TrialConfig.from_dict({**space.defaults, "seed": number, "head": head}).to_dict()
        sets = {name: {**one, "ap": 0.9 - 0.01 * number} for name, one in known.generators.items()}
        ledger.add(replace(known, number=number, id=f"{number:05d}-{head}", config=config, generators=sets))
    return study


def test_json_has_what_was_searched_and_only_what_the_head_reads(every_head: Path) -> None:
    rows = json.loads(run_cli("leaderboard", every_head, "--json").stdout)["leaderboard"]
    assert {row["head"] for row in rows} == HEADS.keys()
    searched = load_space("heads").distributions.keys() - {"head"}
    for row in rows:
        assert searched <= row.keys()
        assert {name for name in searched if row[name] is not None} == READ[row["head"]]
    (svm,) = (row for row in rows if row["head"] == "svm")
    assert svm["svm_c"] == 1.0


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_has_a_column_for_what_was_searched(
    every_head: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "width", width)
    shown = run_cli("leaderboard", every_head).stdout
    words = shown.split()
    for name in {*READ["mlp"], *READ["svm"], *READ["causal"]}:
        assert name in words, name
    for trial in ("00000-svm", "00001-causal", "00006-mlp"):
        assert trial in words  # on one line
    assert max(cell_len(line.rstrip()) for line in shown.splitlines()) <= width


def test_the_winner_is_told_by_the_settings_that_its_head_reads(every_head: Path) -> None:
    from causal_tune.cli.leaderboard import show_winner

    spec, records = read_spec(every_head), Ledger(every_head / "trials").records()
    with out.capture() as captured:
        show_winner(spec, records, spec.criterion)
    (line,) = (line for line in captured.get().splitlines() if line.startswith("Winner's settings"))
    assert line == "Winner's settings: head svm, layer proj, normalisation none, svm_c 1, seed 0"


def test_the_report_shows_no_weight_of_another_head(every_head: Path) -> None:
    (search,) = (one for one in build(every_head).sections if one.title == "The search")
    (trials,) = search.tables
    rows = {row[1]: dict(zip(trials.titles, row, strict=True)) for row in trials.rows}
    assert rows["svm"]["svm_c"] == "1"
    for head, row in rows.items():
        shown = {name for name in load_space("heads").distributions.keys() - {"head"} if row[name] != "-"}
        assert shown == READ[head]


def test_the_paper_head_keeps_its_six_numbers_where_they_were_not_searched() -> None:
    rows = json.loads(run_cli("leaderboard", STORED, "--json").stdout)["leaderboard"]
    for row in rows:
        weights = [row[name] for name in ("lambda1", "lambda2", "alpha", "beta", "tau", "p")]
        assert all((value is None) == (row["head"] == "linear") for value in weights)
        assert row["learning_rate"] > 0
