"""The trial that a study recommends: what a report shows, and what `causal-tune export` takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causal_tune.errors import StudyError
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.selection import rank
from causal_tune.study.finalists import representative
from causal_tune.study.spec import StudySpec, read_spec

__all__ = ["Chosen", "recommended"]


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
    again = path.parent / finalists["study_of_finalists"]
    own = read_spec(again)
    return Chosen(again, own, representative(finalists, Ledger(again / "trials").records(), own))
