"""A study's figures for MLflow: those of its report."""

import hashlib
from pathlib import Path

from causal_tune import __version__
from causal_tune.cli.output import err
from causal_tune.ledger import Ledger
from causal_tune.study.finalists import FINALISTS
from causal_tune.tracking import Figures

__all__ = ["study_figures"]

_WINNERS = {"roc", "calibration", "mask", "mask_dimensions", "features", "robustness"}
"""Figures that show one head; the others show the search."""


def study_figures(study_path: Path, shown: str = "") -> Figures | None:
    """The figures of the study's report; None where they are those that are `shown`, or cannot be drawn (a warning)."""
    of = _state(study_path)
    if of == shown:
        return None
    from causal_tune.report.content import (
        build,
    )  # matplotlib and others, for which no command waits at its start

    try:
        sections = build(study_path, audit=False).sections
    except Exception as error:  # noqa: BLE001 - the study stands without its figures
        err.print(f"Warning: MLflow gets no figures of {study_path.name}: {error}", markup=False)
        return None
    drawn = {
        name: (caption, drawing.svg)
        for section in sections
        for name, (caption, drawing) in section.figures.items()
    }
    search_first = sorted(drawn, key=_WINNERS.__contains__)
    return Figures(of=of, drawn={name: drawn[name] for name in search_first})


def _state(study_path: Path) -> str:
    """A digest of what the figures are a function of; the records of a ledger do not change."""
    finalists = study_path / FINALISTS
    parts = [__version__, *(record.id for record in Ledger(study_path / "trials").records())]
    parts += [finalists.read_text(encoding="utf-8")] if finalists.is_file() else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
