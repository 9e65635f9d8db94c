"""Run a study: what its ledger lacks, on Ray, each trial exactly once."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune import TuneError

from causal_tune.atomic import atomic_path
from causal_tune.cluster import RayFailed, connected, has_other_nodes, stopped, told_in_a_line
from causal_tune.errors import InvalidConfig, StudyError, TrackingError, WorkFailed
from causal_tune.features import FeatureStore
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.lock import owned
from causal_tune.selection import rank
from causal_tune.study.delivery import Delivery, Tracker
from causal_tune.study.journal import JOURNAL, Journal
from causal_tune.study.node_store import serve_store
from causal_tune.study.search import LedgerSearch, Turns, memory_kills_lose_workers
from causal_tune.study.spec import StudySpec, freeze, study_path
from causal_tune.study.worker import TrialWorker, Work, failed_record, train_on_store

__all__ = ["StudyEvent", "StudyResult", "Tracker", "run_study"]

_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three loggers a trial that nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would save a state that is never restored
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no objective
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the same: the ledger is the state
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}

_TIMES_ALONE = 2
_PAUSE_S = 10  # before the second time: what fills the memory may not be of this study, and pass
_BLAMED_IN_A_ROW = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyEvent:
    """Something that a progress display wants to know."""

    kind: str
    """`stage`, `started`, `trial`, `warning` or `ended`."""
    num_done: int
    """Trials in the ledger."""
    num_trials: int
    """Trials wanted; those in the ledger where they are more."""
    record: TrialRecord | None = None
    """The trial that ended, for `trial`."""
    message: str = ""
    """For `warning`, and for `stage`: what is done before or after trials run, such as `starting Ray`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """A study after a run."""

    spec: StudySpec
    path: Path
    records: list[TrialRecord]
    """All trials in the ledger, by number."""
    best: TrialRecord | None
    """The winner by the study's criterion; None where no trial can be chosen."""
    num_new: int
    """Trials that this run added."""
    duration_s: float
    undelivered: str | None = None
    """Why the tracker lacks some of it; None where it has everything."""

    @property
    def num_finished(self) -> int:
        """Trials with a result."""
        return sum(record.finished for record in self.records)

    @property
    def num_failed(self) -> int:
        """Trials that failed; their records say why."""
        return sum(record.failed for record in self.records)


def run_study(
    spec: StudySpec,
    *,
    num_trials: int,
    workspace: Path | str,
    ray_address: str | None = None,
    on_event: Callable[[StudyEvent], None] | None = None,
    tracker: Tracker | None = None,
    tracker_required: bool = True,
    work: Work = train_on_store,
) -> StudyResult:
    """Create or continue the study until it has `num_trials` trials, failed ones included.

    A killed run is continued by calling this again; the study ends as if it had not been killed.
    `StudyError` where the study of that name is another one, where another process runs it, or where
    the ledger cannot be read or written; `StoreError` for the store; `TrackingError` where MLflow does
    not answer at the start and is `tracker_required` (other failures are warnings, `StudyResult.undelivered` says what
    remained of them, and the next run delivers what is missing);
    `Interrupted` after SIGTERM or Ctrl-C, and `WorkFailed` where Ray fails, with what is kept.
    """
    if num_trials < 1:
        raise InvalidConfig(f"{num_trials} trials were asked for; at least 1 is needed.")
    path = study_path(workspace, spec.name)
    with owned(path, "study"):
        spec = freeze(spec, workspace, write=False)
        store = FeatureStore(spec.store_path)
        if store.fingerprint != spec.store_fingerprint:
            raise StudyError(
                f"The store {store.path} has the fingerprint {store.fingerprint}, the study {spec.name!r} "
                f"was made for {spec.store_fingerprint}. Point --store at that one, or use another --study name."
            )
        run = _Run(spec, workspace, num_trials, on_event, tracker, tracker_required)
        try:
            with told_in_a_line():
                return run.go(ray_address, work)
        except (KeyboardInterrupt, RayFailed) as error:
            kept = f"{len(run.records)} of {num_trials} trials are done and kept in {path}."
            raise stopped(
                error, f"The study {spec.name!r}", f"{kept} Run the same command again to continue."
            ) from None


class _Run:
    """The state of one call of `run_study`."""

    def __init__(
        self,
        spec: StudySpec,
        workspace: Path | str,
        num_trials: int,
        on_event: Callable[[StudyEvent], None] | None,
        tracker: Tracker | None,
        tracker_required: bool = True,
    ) -> None:
        self.spec, self.workspace, self.num_trials = spec, workspace, num_trials
        self.path = path = study_path(workspace, spec.name)
        self.on_event = on_event
        if tracker and tracker.spec.uid != spec.uid:
            # the study existed before: its runs are known by the identity it was made with
            tracker.spec = spec
        self.delivery = Delivery(tracker, spec.roles) if tracker else None
        self.tracker_required = tracker_required
        self.ledger = Ledger(path / "trials")
        self.records = {record.number: record for record in self.ledger.records()}
        self.num_before = len(self.records)
        self.journal: Journal | None = None
        self.is_sure = False
        self.around = ExitStack()  # Ray, signals and what the tracker watches, while trials run

    def go(self, ray_address: str | None, work: Work) -> StudyResult:
        started = time.time()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self.delivery or nullcontext():  # MLflow loads while Ray starts
            with self.around:
                if is_missing := any(number not in self.records for number in range(self.num_trials)):
                    self._tell("stage", message="starting Ray")
                    self.around.enter_context(connected(ray_address))
                    self._tell("stage", message="starting workers")
                if self.delivery:
                    # before Ray ends: what another thread happens to free of it in that moment ends the process
                    self.around.callback(self.delivery.wait)
                    # and while workers load; a study that is done is shown in any case
                    is_required = self.tracker_required and is_missing
                    self.delivery.start(self.records.values(), is_required=is_required)
                if is_missing:
                    self._search(work)
                self.make_sure()
            return self._end(started)

    def make_sure(self) -> None:
        """Called before anything is kept: a study that can be run or shown nowhere is not half-made."""
        if self.is_sure:
            return
        if self.delivery:
            self.around.enter_context(self.delivery.ready())
            self._tell_problem(self.delivery)
        freeze(self.spec, self.workspace)
        self.is_sure = True
        self._tell("started")
        try:
            self.journal = Journal(self.path / JOURNAL, self.spec, self.records.values())
        except OSError as error:
            self._tell(
                "warning", message=f"{JOURNAL} cannot be written: {error}. The study does not need it."
            )

    def _end(self, started: float) -> StudyResult:
        ranked = rank(self.records.values(), self.spec.criterion, self.spec.roles)
        best = ranked[0][0] if ranked else None
        undelivered = None
        if self.delivery:
            self._tell("stage", message="delivering to MLflow")
            self.delivery.wait()
            self._tell_problem(self.delivery)
            try:
                self.delivery.finish(self.records.values(), best)
            except TrackingError as error:
                undelivered = str(error)
        self._tell("ended")
        return StudyResult(
            spec=self.spec,
            path=self.path,
            records=[self.records[number] for number in sorted(self.records)],
            best=best,
            num_new=len(self.records) - self.num_before,
            duration_s=time.time() - started,
            undelivered=undelivered,
        )

    def _search(self, work: Work) -> None:
        """Run what is missing. A trial whose worker was lost among others is run again alone: it may have been killed
        for the memory that another one took, and only what dies alone is blamed.
        """
        # failed trials are in the ledger with their reasons; here they would be tracebacks on the screen
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        trainable = tune.with_parameters(
            TrialWorker,
            spec=self.spec,
            store_files=serve_store(self.spec.store_path) if has_other_nodes() else None,
            work=work,
        )
        alone: dict[int, int] = {}  # by number, how often a lost trial was lost again alone
        num_blamed = 0  # in a row
        while missing := sorted(set(range(self.num_trials)) - self.records.keys()):
            again = min((number for number in missing if number in alone), default=None)
            num_before = len(self.records)
            search = self._round(trainable, again)
            if len(self.records) > num_before:
                num_blamed = 0
            for number, (config, cause) in search.lost.items():
                alone[number] = alone.get(number, -1) + 1
                if alone[number] < _TIMES_ALONE:
                    self._tell("warning", message=f"Trial {number}: {cause}. It is run again, alone.")
                    time.sleep(_PAUSE_S * alone[number])
                    continue
                num_blamed += 1
                reason = f"{cause}; that happened each of the {_TIMES_ALONE} times that it was run alone"
                search.settle(failed_record(number, config, reason))
            if search.failure:
                raise search.failure
            if num_blamed == _BLAMED_IN_A_ROW:
                raise WorkFailed(
                    f"The study {self.spec.name!r} was stopped, because no trial gets through: {cause}, for trial "
                    f"{number} as for those before. {len(self.records)} trials are kept; make room, or search smaller "
                    "batches, and run the same command again to continue."
                )
            if not search.lost and len(self.records) == num_before:
                raise WorkFailed(
                    f"The study {self.spec.name!r} ended without {len(missing)} of its trials: Ray stopped "
                    f"early. {len(self.records)} trials are kept; run the same command again to continue."
                )

    def _round(self, trainable: Any, alone: int | None) -> LedgerSearch:
        """One `Tuner` over the missing trials, or over one of them; a search that remembers which were lost."""
        search = LedgerSearch(
            self.spec,
            self.records.values(),
            num_trials=self.num_trials,
            record=self._record,
            on_start=self.make_sure,
            alone=alone,
        )
        for left_over in self.path.glob(".tune-*"):  # of a driver that was killed; the lock is ours
            shutil.rmtree(left_over, ignore_errors=True)
        scratch = self.path / f".tune-{os.getpid()}"
        resources = {"cpu": self.spec.threads_per_trial, "gpu": self.spec.gpus_per_trial}
        try:
            with _environment(_TUNE_SETTINGS), memory_kills_lose_workers():
                # never `Tuner.restore`: its snapshot and the searcher's memory fall apart when killed
                tune.Tuner(
                    tune.with_resources(trainable, resources),
                    tune_config=tune.TuneConfig(
                        search_alg=search,
                        num_samples=search.num_missing,
                        max_concurrent_trials=self.spec.max_concurrent,
                        reuse_actors=True,
                    ),
                    run_config=tune.RunConfig(
                        name="tune",
                        storage_path=str(scratch),
                        verbose=0,
                        # the head is in the study's checkpoints already
                        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                        # among others a lost node costs its trials one repetition, and no round
                        failure_config=tune.FailureConfig(max_failures=1 if alone is None else 0),
                        callbacks=[Turns(search)],
                    ),
                ).fit()
        except TuneError as error:
            last_line = str(error).strip().splitlines()[-1][:400]
            raise WorkFailed(
                f"Ray Tune ended the study {self.spec.name!r} early: {last_line}. {len(self.records)} trials are "
                "kept; run the same command again to continue."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return search

    def _record(self, record: TrialRecord, checkpoint: bytes | memoryview | None) -> None:
        self.make_sure()  # a repeated trial ends without a start
        if record.checkpoint and checkpoint is not None:  # before the record that names it
            with atomic_path(self.path / "checkpoints" / record.checkpoint) as temporary:
                temporary.write_bytes(checkpoint)
        self.ledger.add(record)
        self.records[record.number] = record
        if self.journal:
            try:
                self.journal.add(record)
            except OSError as error:  # the next start makes it anew from the ledger
                self.journal = None
                self._tell("warning", message=f"{JOURNAL} cannot be written: {error}. The study goes on.")
        if self.delivery:
            self.delivery.log_trial(record)
            self._tell_problem(self.delivery)
        self._tell("trial", record=record)

    def _tell_problem(self, delivery: Delivery) -> None:
        if problem := delivery.take_problem():
            self._tell("warning", message=f"{problem} The study goes on without it.")

    def _tell(self, kind: str, *, record: TrialRecord | None = None, message: str = "") -> None:
        if self.on_event:
            self.on_event(
                StudyEvent(
                    kind=kind,
                    num_done=len(self.records),
                    num_trials=max(self.num_trials, len(self.records)),
                    record=record,
                    message=message,
                )
            )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    # Ray Tune has these settings nowhere else
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
