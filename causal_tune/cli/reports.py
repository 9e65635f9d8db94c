"""A study's report, built once for the page and for MLflow."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from causal_tune import __version__
from causal_tune.cli.output import err
from causal_tune.ledger import Ledger
from causal_tune.study.finalists import FINALISTS
from causal_tune.tracking import Figures

if TYPE_CHECKING:
    from causal_tune.report.section import Report

__all__ = ["study_figures", "study_report"]

_WINNERS = {"roc", "calibration", "mask", "mask_dimensions", "features", "robustness"}
"""Figures that show one head; the others show the search."""


def study_figures(
    study_path: Path, shown: str = "", *, failed: Callable[[str], None] | None = None
) -> Figures | None:
    """The figures of the study's report; None where they are those that are `shown`, or cannot be drawn.

    The reason why they cannot be drawn goes to `failed`, by default a warning on stderr.
    """
    of = _state(study_path)
    if of == shown:
        return None
    try:
        sections = _report(study_path, of).sections
    except Exception as error:  # noqa: BLE001 - the study stands without its figures
        (failed or _warn)(f"MLflow gets no figures of {study_path.name}: {error}")
        return None
    drawn = {
        name: (caption, drawing.svg)
        for section in sections
        for name, (caption, drawing) in section.figures.items()
    }
    search_first = sorted(drawn, key=_WINNERS.__contains__)
    return Figures(of=of, drawn={name: drawn[name] for name in search_first})


def _warn(problem: str) -> None:
    err.print(f"Warning: {problem}")


def study_report(study_path: Path) -> "Report":
    """The report of a study; the one that its figures for MLflow were taken from, where nothing came after them."""
    return _report(study_path, _state(study_path))


@lru_cache(maxsize=1)
def _report(study_path: Path, state: str) -> "Report":
    # here: it brings matplotlib and others, for which no command waits at its start
    from causal_tune.report.content import build

    return build(study_path)


def _state(study_path: Path) -> str:
    """A digest of what the report is a function of; the records of a ledger do not change."""
    finalists = study_path / FINALISTS
    parts = [__version__, *(record.id for record in Ledger(study_path / "trials").records())]
    parts += [finalists.read_text(encoding="utf-8")] if finalists.is_file() else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
