"""The pages of a real MLflow server in a headless Chromium, on a study of 40 trials and on one of 1,000.

    python -m pytest -m journey -s tests/tracking/test_pages.py

prints how long people wait; $CAUSAL_TUNE_SCREENSHOTS names a folder for what they see.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from causal_tune.cli.tune import run_tune
from causal_tune.ledger import Ledger
from causal_tune.selection import rank
from causal_tune.study.space import load_space
from causal_tune.study.spec import read_spec
from causal_tune.tracking import EXPERIMENT, Tracker, default_uri
from tests.conftest import encode, run_cli, write_images
from tests.tracking.server import mlflow_server
from tests.tracking.studies import drawn_records, make_spec

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

WAIT_MS = 120_000
FIGURES = {
    "agreement",
    "calibration",
    "features",
    "heat_map",
    "history",
    "importance",
    "landscape",
    "mask",
    "mask_dimensions",
    "parallel",
    "roc",
}
SHOWN = "[...document.images].filter(i => i.src.includes('figures') && i.naturalWidth > 100).map(i => i.src)"


@dataclass(frozen=True)
class Shown:
    """A study, and where its runs are."""

    name: str
    experiment_id: str
    parent_run_id: str
    winner: int
    """The number of the best trial."""
    best_first: str
    """The printed address of the table of its trials."""

    def run(self, run_id: str, tab: str = "") -> str:
        """The address of the page of a run."""
        return f"/#/experiments/{self.experiment_id}/runs/{run_id}{tab}"

    @property
    def folded(self) -> str:
        """The address of the table of runs."""
        return f"/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def server(workspace: Path, browser: Any) -> Iterator[str]:  # nothing is made where there is no browser
    with mlflow_server(workspace) as uri:
        yield uri


@pytest.fixture(scope="module")
def forty(workspace: Path, server: str, ray_local: None) -> Shown:
    """A study from images to the registered winner, by the command line; its heads train for two epochs."""
    images = write_images(workspace / "images", {"alpha": 60, "beta": 30, "gamma": 30})
    _, store = encode(images, workspace)
    space = load_space("demo")
    run_tune(
        workspace=workspace,
        store=store,
        study="forty",
        trials=40,
        space=dataclasses.replace(space, defaults={**space.defaults, "max_epochs": 2, "min_epoch_steps": 2}),
        train_generators=["alpha"],
        val_generators=["beta"],
        max_concurrent=1,
    )
    result = run_cli("export", "forty", "--register", "forty-detector", "--workspace", workspace)
    assert result.exit_code == 0, result.output
    spec = read_spec(workspace / "studies" / "forty")
    records = Ledger(workspace / "studies" / "forty" / "trials").records()
    tracker = Tracker(default_uri(workspace), EXPERIMENT, spec)
    tracker.deliver(records)
    winner, _ = rank(records, spec.criterion, spec.roles)[0]
    return Shown(
        "forty", tracker.experiment_id, tracker.parent_run_id, winner.number, f"/{tracker.ui_path()}"
    )


@pytest.fixture(scope="module")
def thousand(workspace: Path, server: str) -> Shown:
    """A ledger of 1,000 trials that trained nothing, delivered as any other."""
    ledger = Ledger(workspace / "studies" / "thousand" / "trials")
    spec = make_spec(name="thousand", uid="thousand")
    for record in drawn_records(spec, 1000, num_epochs=2):
        ledger.add(record)
    tracker = Tracker(default_uri(workspace), "a thousand", spec)
    begin = time.monotonic()
    assert tracker.deliver(ledger.records()) == 1000
    told("1,000 trials delivered", begin)
    winner, _ = rank(ledger.records(), spec.criterion, spec.roles)[0]
    return Shown(
        "thousand", tracker.experiment_id, tracker.parent_run_id, winner.number, f"/{tracker.ui_path()}"
    )


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, base_url=server)
    # as when somebody has closed the assistant that opens beside the pages
    context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    yield page
    assert broken == []
    context.close()


def told(what: str, begin: float) -> None:
    print(f"\n{what}: {time.monotonic() - begin:.1f} s")


def keep(page: Any, name: str) -> None:
    """A screenshot, where one is asked for."""
    if folder := os.environ.get("CAUSAL_TUNE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def trials(page: Any) -> Any:
    return page.locator(".ag-row").get_by_role("link", name="causal proj")


def compare(page: Any, num: int) -> None:
    """Tick the first `num` rows and press Compare."""
    first, last = (
        page.locator(f".ag-row[row-index='{row}'] .ag-selection-checkbox input") for row in (0, num - 1)
    )
    first.click()
    last.click(modifiers=["Shift"])
    page.wait_for_function(
        f"document.querySelectorAll('.ag-row .ag-selection-checkbox input:checked').length == {num}"
    )
    page.get_by_role("button", name="Compare").first.click()


class TestForty:
    def test_the_list_shows_the_study_and_unfolds_its_trials(self, page: Any, forty: Shown) -> None:
        page.goto(forty.folded)
        row = page.locator(".ag-row").filter(has=page.get_by_role("link", name="forty", exact=True)).first
        row.wait_for()
        assert trials(page).count() == 0
        page.locator(".ag-row").get_by_role("button").first.click()
        page.get_by_role("link", name="039 causal proj").wait_for()
        keep(page, "forty_list")

    def test_the_parent_run_tells_the_winner_and_shows_every_figure(self, page: Any, forty: Shown) -> None:
        page.goto(f"/#/experiments/{forty.experiment_id}/runs/{forty.parent_run_id}")
        page.get_by_text("Best of the search:").wait_for()
        page.get_by_text("Show more").click()
        page.wait_for_function(f"({SHOWN}).length == {len(FIGURES)}")
        addresses = page.evaluate(SHOWN)
        assert {Path(parse_qs(urlsplit(one).query)["path"][0]).stem for one in addresses} == FIGURES
        keep(page, "forty_parent")
        with page.expect_popup() as opened:
            page.get_by_role("link", name=f"trial {forty.winner:05d}").click()
        opened.value.get_by_role("heading", name=f"{forty.winner:03d} ").wait_for()

    def test_the_printed_address_opens_the_trials_best_first(self, page: Any, forty: Shown) -> None:
        page.goto(forty.best_first)
        first = page.locator(".ag-row[row-index='0']")
        first.get_by_role("link", name=f"{forty.winner:03d} ").wait_for()
        page.get_by_text("40 matching runs").wait_for()
        keep(page, "forty_best_first")

    def test_the_curves_of_a_trial_stand_first(self, page: Any, forty: Shown) -> None:
        page.goto(forty.best_first)
        page.locator(".ag-row[row-index='0']").get_by_role("link", name=f"{forty.winner:03d} ").click()
        page.get_by_role("tab", name="Model metrics").click()
        page.get_by_text("Epochs/generator_ap").first.wait_for()
        tops = {
            name: page.get_by_text(name).first.bounding_box()["y"]
            for name in ("Epochs/generator_ap", "Epochs/loss", "Epochs/validation", "best_validation")
            if page.get_by_text(name).count()
        }
        assert list(tops) == sorted(tops, key=lambda name: tops[name])
        keep(page, "forty_trial")

    def test_the_best_so_far_is_charted(self, page: Any, forty: Shown) -> None:
        page.goto(forty.run(forty.parent_run_id, "/model-metrics"))
        for name in ("val_generators", "test"):
            page.get_by_text(f"forty (best_so_far/{name})").first.wait_for()
        keep(page, "forty_best_so_far")

    def test_an_artifact_opens_as_a_picture(self, page: Any, forty: Shown) -> None:
        run = f"/#/experiments/{forty.experiment_id}/runs/{forty.parent_run_id}"
        page.goto(f"{run}/artifacts/figures/history.svg")
        page.wait_for_function("[...document.images].some(i => i.naturalWidth > 300)")
        keep(page, "forty_artifact")

    def test_the_machine_is_charted(self, page: Any, forty: Shown) -> None:
        page.goto(f"/#/experiments/{forty.experiment_id}/runs/{forty.parent_run_id}/system-metrics")
        page.get_by_text("cpu_utilization_percentage").first.wait_for()
        keep(page, "forty_machine")

    def test_the_winner_is_the_registered_champion(self, page: Any, forty: Shown) -> None:
        page.goto("/#/models/forty-detector")
        page.get_by_text("champion").first.wait_for()
        keep(page, "forty_model")
        page.goto("/#/models/forty-detector/versions/1")
        page.get_by_text("forty-detector").first.wait_for()
        page.get_by_role("heading", name="Version 1").wait_for()


class TestThousand:
    def test_twenty_of_a_thousand_are_soon_compared(self, page: Any, thousand: Shown) -> None:
        page.goto("/#/experiments")  # what MLflow's own scripts take to load is not the study's doing
        page.get_by_text("a thousand").first.wait_for()
        begin = time.monotonic()
        page.goto(thousand.folded)
        page.get_by_role("link", name="thousand", exact=True).first.wait_for()
        told("the list of 1,000 runs", begin)
        begin = time.monotonic()
        page.goto(thousand.best_first)
        first = page.locator(".ag-row[row-index='0']")
        first.get_by_role("link", name=f"{thousand.winner:03d} causal proj").wait_for()
        told("the best of 1,000 runs, sorted", begin)
        keep(page, "thousand_list")
        begin = time.monotonic()
        compare(page, 20)
        page.locator(".parcoords").wait_for()
        page.get_by_text("Comparing 20 Runs").wait_for()
        page.locator(".parcoords").get_by_text("criterion/val_generators").wait_for()
        told("20 of 1,000 runs compared", begin)
        keep(page, "thousand_compare")

    def test_the_parent_of_a_thousand_opens(self, page: Any, thousand: Shown) -> None:
        page.goto(f"/#/experiments/{thousand.experiment_id}/runs/{thousand.parent_run_id}")
        page.get_by_text("Best of the search:").wait_for()
