"""The worst errors of a report: the images that the head gets most wrong, as pictures where their files are there."""

import base64
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causal_tune.features import FeatureStore
from causal_tune.images.decode import read_crop
from causal_tune.ledger import Ledger
from causal_tune.report.mistakes import MOST_SHOWN, mistakes
from causal_tune.report.page import html_page, markdown_page
from causal_tune.report.section import Report, Section
from causal_tune.resampling import Scored
from causal_tune.selection import best
from causal_tune.study.scores import trial_scores
from causal_tune.study.spec import read_spec
from tests.conftest import Finished

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def inverted(scored: dict[str, Scored]) -> dict[str, Scored]:
    """The scores of a head that is wrong about every image, by as much as it was right or wrong."""
    return {
        name: Scored.of(np.where(one.labels == 1, -1, 1) * (0.1 + np.abs(one.logits)), one.labels)
        for name, one in scored.items()
    }


def test_the_worst_are_those_with_the_most_extreme_scores_and_are_shown(finished: Finished) -> None:
    spec, records = read_spec(finished.study), Ledger(finished.study / "trials").records()
    scored = inverted(dict(trial_scores(finished.study, spec, best(records, spec.criterion, spec.roles))))
    (section,) = mistakes(spec, scored)
    (table,) = section.tables
    judged = [scored[name] for name in ("beta", "gamma")]
    logits, labels = (np.concatenate([getattr(one, part) for one in judged]) for part in ("logits", "labels"))
    highest = np.sort(1 / (1 + np.exp(-logits[labels == 0].astype(float))))[::-1][:MOST_SHOWN]
    lowest = np.sort(1 / (1 + np.exp(-logits[labels == 1].astype(float))))[:MOST_SHOWN]
    assert [row[1] for row in table.rows] == [f"{value:.4f}" for value in (*highest, *lowest)]
    assert {row[0] for row in table.rows[:MOST_SHOWN]} == {"false alarm"}
    assert "24 false alarms and 24 misses" in section.text
    known = {row["path"]: row for row in FeatureStore(finished.store).rows.to_pylist()}
    for row in table.rows:
        assert known[row[3]]["generator"] == row[2]
        assert known[row[3]]["label"] == (row[0] == "miss")
    page = html_page(Report(title="t", verdict=[], sections=[section]))
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(sources) == 2 * MOST_SHOWN
    for source, row in zip(sources, table.rows, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(source))) as opened:
            shown = np.asarray(opened.convert("L").resize((24, 24)), float)
        crop = np.asarray(Image.fromarray(read_crop(row[3])).convert("L").resize((24, 24)), float)
        assert np.corrcoef(shown.ravel(), crop.ravel())[0, 1] > 0.98  # that image, and no other
    assert "data:image" not in markdown_page(Report(title="t", verdict=[], sections=[section]))
    assert len(page) < 400_000


def test_files_that_are_gone_or_changed_are_told(finished: Finished, tmp_path: Path) -> None:
    spec, records = read_spec(finished.study), Ledger(finished.study / "trials").records()
    scored = inverted(dict(trial_scores(finished.study, spec, best(records, spec.criterion, spec.roles))))
    (section,) = mistakes(spec, scored)
    gone, changed = (Path(row[3]) for row in section.tables[0].rows[:2])
    kept = [(path, shutil.copy(path, tmp_path / f"{number}")) for number, path in enumerate((gone, changed))]
    try:
        gone.unlink()
        Image.new("RGB", (48, 48)).save(changed)
        (section,) = mistakes(spec, scored)
    finally:
        for path, copy in kept:
            shutil.copy(copy, path)
    assert [bool(one.jpeg) for one in section.pictures[:3]] == [False, False, True]
    assert "1 x the file is gone or cannot be read" in section.text
    assert "1 x the file has changed since it was encoded" in section.text
    page = html_page(Report(title="t", verdict=[], sections=[section]))
    assert page.count("<div class=none>") == 2


def test_a_head_without_errors_says_so_and_one_that_judged_nothing_is_silent(finished: Finished) -> None:
    spec = read_spec(finished.study)
    record = best(Ledger(finished.study / "trials").records(), spec.criterion, spec.roles)
    right = {
        name: Scored.of(np.where(one.labels == 1, 1.0, -1.0), one.labels)
        for name, one in trial_scores(finished.study, spec, record).items()
    }
    (section,) = mistakes(spec, right)
    assert section == Section(
        title="Worst errors", text="On beta, gamma there are 0 false alarms and 0 misses at probability 0.5."
    )
    assert mistakes(replace(spec, val_generators=(), test_generators=()), right) == []
