"""`causal-tune studies`, near names of commands, and help pages."""

import json
import re
import runpy
import shutil
from datetime import datetime, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner

from causal_tune.cli import COMMANDS
from causal_tune.cli.output import out
from causal_tune.lock import owned
from tests.conftest import run_cli

ROOT = Path(__file__).parents[1]
STORED = ROOT / "tests" / "stored" / "study-format-1"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Two studies, one of `finalists`, and one that cannot be read."""
    for name in ("first", "second", "first.probe"):
        shutil.copytree(STORED, tmp_path / "studies" / name)
        path = tmp_path / "studies" / name / "study.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "name": name}))
    (tmp_path / "studies" / "torn").mkdir()
    (tmp_path / "studies" / "torn" / "study.json").write_text("{")
    return tmp_path


def test_studies_are_listed_with_state_trials_and_best(workspace: Path) -> None:
    with owned(workspace / "studies" / "second", "study"):
        found = json.loads(run_cli("studies", "--json", "--workspace", workspace).stdout)["studies"]
    studies = {one["name"]: one for one in found}
    assert studies.keys() == {"first", "second", "torn"}
    assert [studies[name]["state"] for name in ("first", "second", "torn")] == [
        "idle",
        "running",
        "unreadable",
    ]
    leading = json.loads(run_cli("leaderboard", workspace / "studies" / "first", "--json").stdout)
    first = studies["first"]
    assert first["best"] == leading["leaderboard"][0]["val_generators"]
    assert first["best_trial"] == leading["leaderboard"][0]["trial"]
    assert (first["num_trials"], first["num_failed"]) == (3, 0)
    assert datetime.fromisoformat(first["changed"]) <= datetime.now(timezone.utc)
    assert "cannot be read" in studies["torn"]["reason"]
    every = json.loads(run_cli("studies", "--all", "--json", "--workspace", workspace).stdout)["studies"]
    assert "first.probe" in {one["name"] for one in every}


@pytest.mark.parametrize("width", [80, 140])
def test_the_list_is_shown_whole(workspace: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", width)
    shown = run_cli("studies", "--workspace", workspace).stdout
    assert {"first", "second", "torn", "val_generators"} <= set(shown.split())
    assert "first.probe" not in shown
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d", shown)


def test_an_empty_workspace_says_how_a_study_is_made(tmp_path: Path) -> None:
    result = run_cli("studies", "--workspace", tmp_path)
    assert result.exit_code == 0
    assert "`causal-tune tune` makes one" in result.stdout


@pytest.mark.parametrize(("typed", "meant"), [("tnue", "tune"), ("studys", "studies"), ("exprot", "export")])
def test_a_mistyped_command_gets_the_near_one(typed: str, meant: str) -> None:
    result = run_cli(typed)
    assert result.exit_code == 2
    assert f"There is no command '{typed}'. Did you mean" in result.output
    assert meant in result.output.split("Did you mean")[1]


def test_a_command_that_is_near_none_leads_to_the_list() -> None:
    result = run_cli("xyzzy")
    assert result.exit_code == 2
    assert "Did you mean" not in result.output
    assert "causal-tune --help" in result.output


JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))


@pytest.mark.parametrize("job", JOBS)
def test_jobs_take_the_short_option_for_help_and_show_sections(job: str) -> None:
    result = CliRunner().invoke(runpy.run_path(str(ROOT / "jobs" / job))["main"], ["-h"])
    assert result.exit_code == 0
    assert "\nImages:" in result.output
    assert "\nOutput:" in result.output


@pytest.mark.parametrize("name", list(COMMANDS))
def test_no_line_of_help_is_wider_than_the_page(name: str) -> None:
    assert max(map(len, run_cli(name, "--help").output.splitlines())) <= 100


def test_help_of_a_long_command_shows_every_option_once_in_sections() -> None:
    shown = run_cli("tune", "--help").output
    for option in ("--study", "--criterion", "--sampler", "--max-concurrent", "--workspace", "--help"):
        assert len(re.findall(rf"^ +(?:-h, )?{option}\b", shown, flags=re.M)) == 1
    assert shown.index("Study:") < shown.index("Search:") < shown.index("Machine:")


def test_every_command_is_in_the_list() -> None:
    shown = run_cli("--help").output
    assert all(f"  {name} " in shown for name in COMMANDS)
