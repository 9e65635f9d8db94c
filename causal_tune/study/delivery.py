"""Trials on their way to the tracker: one thread, beside the study, in the order in which they ended.

A trial's slot never waits for MLflow, whether that is a file on this machine or a server a continent away.
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Protocol

from causal_tune.errors import TrackingError
from causal_tune.ledger import TrialRecord
from causal_tune.selection import Roles
from causal_tune.study.spec import StudySpec

__all__ = ["Delivery", "Tracker"]

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where trials are shown while they end: `tracking.Tracker`, or a user's own. Raises `TrackingError`.

    It is called by one thread at a time.
    """

    spec: StudySpec

    def connect(self) -> None:
        """Reach the server, or make the database; nothing of the study yet. Called once, before `start`."""

    def start(self) -> None:
        """Find or make the study's place; called once, before any trial."""

    def sync(self, records: Iterable[TrialRecord]) -> int:
        """Deliver what is not there yet; how many that were."""

    def log_trial(self, record: TrialRecord, roles: Roles) -> None:
        """Deliver one trial."""

    def watched(self) -> AbstractContextManager[object]:
        """Entered while trials run; after `start`."""

    def finish(self, best: TrialRecord | None) -> None:
        """The study has ended, with this winner."""

    def stop(self) -> None:
        """The study was interrupted, and may be continued; after `start`."""


class Delivery:
    """A context around a study's run that connects the tracker at once and has delivered, or failed to, at its end."""

    def __init__(self, tracker: Tracker, roles: Roles) -> None:
        self._tracker, self._roles = tracker, roles
        self._is_required = True
        self._is_ready = False
        self._thread = ThreadPoolExecutor(1, "tracking")
        self._connected: Future[None]
        self._started: Future[None]
        self._is_broken = False
        self._problem: str | None = None

    def __enter__(self) -> "Delivery":
        self._connected = self._thread.submit(self._tracker.connect)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wait()
        if error is not None and self._is_ready and not self._is_broken:
            try:
                self._tracker.stop()
            except Exception as problem:  # noqa: BLE001  what ended the study is raised already
                _log.warning("The study is shown as running: %s", problem)

    def start(self, records: Iterable[TrialRecord], *, is_required: bool = True) -> None:
        """Find or make the study's place, and deliver what it lacks of `records`, soon: `ready` waits for it.

        `TrackingError` where it is known already that MLflow does not answer, and it is required.
        """
        self._is_required = is_required
        if self._is_required and self._connected.done():
            self._connected.result()
        self._started = self._thread.submit(self._start, list(records))

    def ready(self) -> AbstractContextManager[object]:
        """Wait for `start`; what is to be entered while trials run. `TrackingError` where MLflow did not answer.

        Where it is not required, that is a problem to take and no trial is delivered before `finish`.
        """
        try:
            self._started.result()
        except Exception as error:
            if self._is_required:
                raise
            self._problem, self._is_broken = _words(error), True
            return nullcontext()
        self._is_ready = True
        return self._tracker.watched()

    def log_trial(self, record: TrialRecord) -> None:
        """Deliver one trial, soon."""
        self._thread.submit(self._log_trial, record)

    def take_problem(self) -> str | None:
        """What went wrong since the last call. No trial is delivered any more then; `finish` tries once again."""
        problem, self._problem = self._problem, None
        return problem

    def wait(self) -> None:
        """Until nothing is on its way any more; there are no further trials."""
        self._thread.shutdown()

    def finish(self, records: Iterable[TrialRecord], best: TrialRecord | None) -> None:
        """Deliver what is missing after `wait`, and end; `TrackingError` where that fails, whatever the cause."""
        try:
            self._tracker.sync(records)
            self._tracker.finish(best)
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(_words(error)) from error

    def _start(self, records: Sequence[TrialRecord]) -> None:
        self._connected.result()  # or raise what kept it from that
        self._tracker.start()
        self._tracker.sync(records)

    def _log_trial(self, record: TrialRecord) -> None:
        if self._is_broken:  # each further attempt would wait for its time-outs
            return
        try:
            self._tracker.log_trial(record, self._roles)
        except Exception as error:  # noqa: BLE001  kept, and told by whoever runs the study
            self._problem, self._is_broken = _words(error), True


def _words(error: Exception) -> str:
    """A refusal in its own words; a mistake in the tracker with its type."""
    if isinstance(error, TrackingError):
        return str(error)
    return f"The tracker failed with {type(error).__name__}: {error}."
