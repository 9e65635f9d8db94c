"""The trial that a study recommends: what a report shows, and what `causal-tune export` takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causal_tune.errors import StudyError
from causal_tune.ledger import TrialRecord
from causal_tune.selection import rank
from causal_tune.study.finalists import chosen_training
from causal_tune.study.spec import StudySpec

__all__ = ["Chosen", "best_probe", "recommended"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A trial, with the study in which it was trained."""

    path: Path
    spec: StudySpec
    record: TrialRecord


def recommended(
    path: Path, spec: StudySpec, records: Sequence[TrialRecord], finalists: Mapping[str, Any] | None
) -> Chosen:
    """The finalists' choice where there are finalists, else the best of the search; `StudyError` where none is."""
    ranked = rank(records, spec.criterion, spec.roles)
    if not ranked:
        raise StudyError(
            f"No trial of {spec.name!r} can be chosen by {spec.criterion!r}, so there is nothing to report. Look at "
            f"`causal-tune leaderboard {spec.name}`."
        )
    if finalists is None:
        return Chosen(path, spec, ranked[0][0])
    return Chosen(*chosen_training(path, finalists))


def best_probe(spec: StudySpec, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The best linear probe of a search; None where it tried none."""
    ranked = rank(records, spec.criterion, spec.roles)
    return next((record for record, _ in ranked if record.config["head"] == "linear"), None)
