"""The study as an Optuna study, for `optuna-dashboard` and other tools of Optuna: `studies/<name>/optuna.journal`.

    optuna-dashboard causal_tune_runs/studies/real/optuna.journal

It is written from the ledger and never read back by a study: whoever deletes it gets it again at the next start.
Trials stand in it in the order of their numbers, with the same numbers.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from causal_tune.atomic import atomic_path
from causal_tune.ledger import FAILED, FINISHED, PRUNED, TrialRecord
from causal_tune.selection import epoch_score, objective_values, plain, score
from causal_tune.study.space import SearchSpace
from causal_tune.study.spec import StudySpec
from causal_tune.study.suggestion import calm

__all__ = ["JOURNAL", "Journal"]

JOURNAL = "optuna.journal"


class _Ours(JournalFileOpenLock):
    """No lock: the study's own is held, and one of Optuna's would outlive a driver that is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class Journal:
    """The journal file of one study, brought up to date when it is opened."""

    def __init__(self, path: Path, spec: StudySpec, records: Iterable[TrialRecord]) -> None:
        self._spec, self._space = spec, spec.search_space()
        self._waiting: dict[int, TrialRecord] = {}
        by_number = {record.number: record for record in records}
        ids = self._ids(path)
        if ids != [by_number[number].id for number in range(len(ids)) if number in by_number]:
            ids = []
        if not ids:
            with atomic_path(path) as temporary:
                self._study = self._create(temporary)
                self._next = 0
                for record in by_number.values():
                    self.add(record)
        self._study = self._open(path)
        self._next = len(self._study.get_trials(deepcopy=False))
        for number in sorted(by_number):
            if number >= self._next:
                self.add(by_number[number])

    def add(self, record: TrialRecord) -> None:
        """Take a trial in; it is written when all before it are."""
        self._waiting[record.number] = record
        while (ready := self._waiting.pop(self._next, None)) is not None:
            with calm():
                self._study.add_trial(_as_optuna(ready, self._spec, self._space))
            self._next += 1

    def _ids(self, path: Path) -> list[str]:
        """Of the trials that a journal holds; none where it cannot be read."""
        if not path.is_file() or not path.read_bytes().endswith(b"\n"):
            return []  # not there, or cut short: what were added would be lost with the broken line
        try:
            trials = self._open(path).get_trials(deepcopy=False)
        except Exception:  # noqa: BLE001  not a journal: it is made anew
            return []
        return [trial.user_attrs.get("trial", "") for trial in trials]

    def _open(self, path: Path) -> optuna.Study:
        return optuna.load_study(study_name=self._spec.name, storage=_storage(path))

    def _create(self, path: Path) -> optuna.Study:
        study = optuna.create_study(
            study_name=self._spec.name,
            storage=_storage(path),
            directions=["maximize"] * (len(self._spec.objectives) or 1),
        )
        with calm():
            study.set_metric_names(list(self._spec.objectives) or [self._spec.criterion])
        study.set_user_attr("question", self._spec.space["question"])
        study.set_user_attr("store_fingerprint", self._spec.store_fingerprint)
        return study


def _storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_Ours(str(path))))


def _as_optuna(record: TrialRecord, spec: StudySpec, space: SearchSpace) -> FrozenTrial:
    """A record with the points of the space that it has; what lies outside (a baseline's) is an attribute."""
    distributions = space.axes(record.config)
    other = {
        key: value
        for key, value in record.config.items()
        if key not in distributions and (key in space.distributions or key in ("head", "layer", "seed"))
    }
    state = {FINISHED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED}.get(record.state, TrialState.FAIL)
    values = _values(record, spec) if state is TrialState.COMPLETE else None
    if state is TrialState.COMPLETE and values is None:
        state = TrialState.FAIL
    attributes: dict[str, Any] = {"trial": record.id, "state": record.state, **other}
    for name in ("reason", "collapsed"):
        if value := getattr(record, name):
            attributes[name] = value
    if record.state not in (FINISHED, FAILED, PRUNED):
        attributes["duplicate"] = True
    ended = datetime.fromtimestamp(record.ended_at, timezone.utc).replace(tzinfo=None)
    began = datetime.fromtimestamp(
        record.ended_at - record.timings.get("trial_s", 0.0), timezone.utc
    ).replace(tzinfo=None)
    trial = create_trial(
        state=state,
        values=values,
        params={key: record.config[key] for key in distributions},
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values={} if spec.objectives else _curve(record.epochs, spec),
    )
    trial.datetime_start, trial.datetime_complete = began, ended
    return trial


def _values(record: TrialRecord, spec: StudySpec) -> tuple[float, ...] | None:
    if spec.objectives:
        return objective_values(record, spec.objectives)
    value = score(record, spec.criterion, spec.roles)
    return None if value is None else (value,)


def _curve(epochs: Iterable[Mapping[str, Any]], spec: StudySpec) -> dict[int, float]:
    criterion = plain(spec.criterion)
    values = {int(epoch["steps"]): epoch_score(epoch, criterion, spec.roles) for epoch in epochs}
    return {steps: value for steps, value in values.items() if value is not None}
