"""The trial that a study recommends: what a report shows, and what `causal-tune export` takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causal_tune.ledger import TrialRecord
from causal_tune.selection import best, rank
from causal_tune.study.finalists import PROBE, chosen_training
from causal_tune.study.spec import StudySpec

__all__ = ["Chosen", "recommended", "tuned_probe"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A trial, with the study in which it was trained."""

    path: Path
    spec: StudySpec
    record: TrialRecord
    passed_over: tuple[TrialRecord, ...] = ()
    """Trials that rank higher and are not recommended, because their masks have collapsed."""


def recommended(
    path: Path,
    spec: StudySpec,
    records: Sequence[TrialRecord],
    finalists: Mapping[str, Any] | None,
    *,
    criterion: str | None = None,
    collapsed_too: bool = False,
) -> Chosen:
    """The finalists' choice where there are finalists, else the best of the search by `criterion` (default: the
    study's own); `StudyError` where no trial can be chosen.

    A collapsed mask is passed over for the best trial of the search without one, unless `collapsed_too`. Where every
    mask has collapsed, the best trial is returned as it is: ask its `collapsed`.
    """
    first = Chosen(path, spec, best(records, criterion or spec.criterion, spec.roles))
    if finalists is not None:
        first = Chosen(*chosen_training(path, finalists))
    if collapsed_too or not first.record.collapsed:
        return first
    passed_over = [first.record] if finalists is not None else []
    for record, _ in rank(records, criterion or spec.criterion, spec.roles):
        if not record.collapsed:
            return Chosen(path, spec, record, tuple(passed_over))
        if finalists is None:
            passed_over.append(record)
    return first


def tuned_probe(path: Path, finalists: Mapping[str, Any] | None, chosen: Chosen) -> Chosen | None:
    """The linear probe that was tuned with as many trials, on the layers that were searched, in its best training: what
    the recommended head is fairly compared with. None without finalists, and where a linear probe is recommended.

    The probe that a search tries as its first trial is no such probe: it is not tuned, and on one layer.
    """
    if not finalists or not finalists["probe"] or chosen.record.config["head"] == "linear":
        return None
    return Chosen(*chosen_training(path, finalists, PROBE))
