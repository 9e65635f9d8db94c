"""Ray Tune's view of a study: a searcher that asks `suggestion` and tells the ledger."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.search import Searcher

from causal_tune.errors import StoreError, StudyError
from causal_tune.ledger import PRUNED, TrialRecord
from causal_tune.selection import CRITERIA, epoch_score, objective_values, plain, score
from causal_tune.study.pruning import PRUNER, cutoffs
from causal_tune.study.spec import StudySpec
from causal_tune.study.suggestion import Outcome, Suggester, same_trial
from causal_tune.study.worker import duplicate_record

__all__ = ["LedgerSearch", "Turns", "loss", "memory_kills_lose_workers", "outcome"]

OBJECTIVE = "objective"


class LedgerSearch(Searcher):  # type: ignore[misc]  # ray ships no types
    """Suggests the trial numbers that the ledger lacks, in order, and hands on each that ends.

    Unlike Ray's own `OptunaSearch` nothing of it is ever saved or restored: the ledger is its memory. `record` is
    called once for each trial that ends, with the bytes of its checkpoint if it has one; what it raises is kept in
    `failure`, because Ray Tune would only log it, and ends the search. `on_start` is called whenever a trial is about
    to run; what it raises ends Ray Tune. A lost worker ends the search too, and is remembered in `lost`. `alone` names
    the one trial that is searched for.
    """

    def __init__(
        self,
        spec: StudySpec,
        records: Iterable[TrialRecord],
        *,
        num_trials: int,
        record: Callable[[TrialRecord, bytes | memoryview | None], None],
        on_start: Callable[[], None] = lambda: None,
        alone: int | None = None,
    ) -> None:
        self._spec = spec
        self._space = spec.search_space()
        super().__init__(metric=OBJECTIVE, mode="max")
        self._record = record
        self.on_start = on_start
        self._suggester = Suggester(
            self._space,
            sampler=spec.sampler,
            seed=spec.seed,
            window=spec.window,
            num_objectives=len(spec.objectives) or 1,
        )
        self._configs: dict[int, dict[str, Any]] = {}
        self._first: dict[str, int] = {}  # by what makes a configuration the same trial, its first number
        self._records: dict[int, TrialRecord] = {}
        self._outcomes: dict[int, Outcome] = {}
        for item in sorted(records, key=lambda item: item.number):
            self._keep(item.number, item.config)
            self._records[item.number] = item
            self._outcomes[item.number] = outcome(item, spec)
        wanted = range(num_trials) if alone is None else [alone]
        self._missing = [number for number in wanted if number not in self._records]
        self._numbers: dict[str, int] = {}
        self.failure: Exception | None = None
        self.lost: dict[int, tuple[dict[str, Any], str]] = {}
        """Configuration and cause of the trials whose workers were lost, by number."""

    @property
    def num_missing(self) -> int:
        """Trials that have not been suggested yet."""
        return len(self._missing)

    def suggest(self, trial_id: str) -> Any:
        """The next missing trial; None while a result that its suggestion depends on is not there yet."""
        while self._missing and not self.failure and not self.lost:
            number = self._missing[0]
            settled = range(max(0, number - self._spec.window + 1))
            if any(other not in self._records for other in settled):
                return None
            config = self._suggester.suggest(number, self._configs, self._outcomes)
            self._missing.pop(0)
            if (earlier := self._same(number, config)) is not None:
                self.settle(duplicate_record(number, config, earlier))
                continue
            self._numbers[trial_id] = number
            limits = cutoffs(
                number,
                {other: self._records[other] for other in settled},
                lambda epoch: epoch_score(epoch, self._spec.criterion, self._spec.roles),
                pruner=self._spec.pruner if number >= len(self._space.enqueued) else PRUNER,
                grace_steps=self._spec.grace_steps,
                reduction=self._spec.reduction,
            )
            return {"number": number, "config": config, "limits": limits}
        return Searcher.FINISHED

    def _same(self, number: int, config: Mapping[str, Any]) -> int | None:
        """The earlier trial that this one repeats; one that names its seed repeats only one with that seed."""
        entries = self._space.enqueued
        with_seed = number < len(entries) and "seed" in entries[number]
        first = self._first.get(same_trial(config, with_seed=with_seed), number)
        self._keep(number, config)
        return first if first < number else None

    def _keep(self, number: int, config: Mapping[str, Any]) -> None:
        self._configs[number] = dict(config)
        for with_seed in (False, True):
            key = same_trial(config, with_seed=with_seed)
            self._first[key] = min(number, self._first.get(key, number))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: a trial reports once, when it ends."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hand on the record of a trial that ended by itself (`Turns` tells of the others)."""
        if result and "record" in result:
            checkpoint = result.get("checkpoint")
            self.settle(
                TrialRecord.from_json(json.loads(result["record"])),
                None if checkpoint is None else checkpoint.data,
            )
        elif result and "broken" in result and not self.failure:
            self.failure = StoreError(result["broken"])

    def settle(self, record: TrialRecord, checkpoint: bytes | memoryview | None = None) -> None:
        """Take a trial's end to the ledger, once."""
        if self.failure or record.number in self._records:
            return
        try:
            self._record(record, checkpoint)
        except Exception as error:  # noqa: BLE001  kept, and raised by whoever runs the search
            self.failure = error
            return
        self._records[record.number] = record
        self._outcomes[record.number] = outcome(record, self._spec)

    def lose(self, trial_id: str, cause: str) -> None:
        """The worker of a trial that was suggested is gone, and the trial without an end."""
        number = self._numbers[trial_id]
        self.lost[number] = (self._configs[number], cause)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its searcher for a restoration that never comes, and ours holds a display."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Refused: a study is continued from its ledger."""
        raise StudyError("A study is continued from its ledger; run the same `causal-tune tune` again.")


def outcome(record: TrialRecord, spec: StudySpec) -> Outcome:
    """What the sampler learns of a trial.

    A criterion that skips collapsed trials is the plain one under the constraint that the mask has not
    collapsed: that a region collapses is something to be learnt.
    """
    roles, criterion = spec.roles, spec.criterion
    constraints = {}
    if CRITERIA[criterion].skips_collapsed:
        criterion = plain(criterion)
        constraints = {"collapsed": 1.0 if record.collapsed else -1.0}
    if record.state == PRUNED:
        rungs = {
            int(epoch["steps"]): value
            for epoch in record.epochs[-1:]
            if (value := epoch_score(record.epochs[epoch["kept"] - 1], criterion, roles)) is not None
        }
        return Outcome(values=None, rungs=rungs, constraints=constraints)
    if spec.objectives:
        return Outcome(values=objective_values(record, spec.objectives), constraints=constraints)
    value = score(record, criterion, roles)
    return Outcome(values=None if value is None else (value,), constraints=constraints)


class Turns(tune.Callback):  # type: ignore[misc]  # ray ships no types
    """Tells the search of trials that start and of lost workers, and lets go of checkpoints."""

    def __init__(self, search: LedgerSearch) -> None:
        self._search = search

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune when the trial's worker is there."""
        self._search.on_start()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Ray Tune keeps the last result of every trial; the checkpoint in it is on the disk by now."""
        trial.last_result.pop("checkpoint", None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune when it gives a trial up."""
        file = Path(trial.error_file or "")
        self._search.lose(trial.trial_id, loss(file.read_text(encoding="utf-8") if file.is_file() else ""))


@contextmanager
def memory_kills_lose_workers() -> Iterator[None]:
    """Within it, a worker that Ray's memory monitor ends is for Ray Tune what any lost worker is.

    Left to itself Ray Tune takes the monitor's exception, which is no `RayActorError`, for one of its own, and raises
    it out of `fit`: every trial under way would be lost, and the study over.
    """
    before = RayActorManager._actor_task_failed

    def failed(manager: Any, *, exception: Exception, **task: Any) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        before(manager, exception=exception, **task)

    RayActorManager._actor_task_failed = failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = before


def loss(traceback: str) -> str:
    """Why a worker was lost, in a sentence, from what Ray Tune wrote of each of its ends (the last one counts).

    >>> loss("Memory on the node (IP: 10.0.0.7, ID: ab) was 60.80GB used / 64.00GB limit (0.95)")
    "Ray's memory monitor ended its worker: 60.80 of 64.00 GB were in use on 10.0.0.7"
    """
    text = traceback.rpartition("Failure # ")[2]
    full = re.search(r"Memory on the node \(IP: ([^,]+),.*?\) was ([\d.]+)GB.*? / ([\d.]+)GB", text)
    if full:
        node, used, limit = full.groups()
        return f"Ray's memory monitor ended its worker: {used} of {limit} GB were in use on {node}"
    if "node has died" in text or "node was terminated" in text:
        return "its node was lost"
    if "worker process has died" in text:
        return (
            "its worker's process died, killed or crashed; the operating system kills so when memory is full "
            "(`dmesg` has `oom-kill` then)"
        )
    lines = text.strip().splitlines()
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return "its worker was lost: " + (named or lines or ["Ray gave no cause"])[-1].strip()[:400]
