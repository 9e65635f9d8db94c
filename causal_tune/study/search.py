"""Ray Tune's view of a study: a searcher that asks `suggestion` and tells the ledger."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from causal_tune.errors import StudyError
from causal_tune.ledger import TrialRecord
from causal_tune.selection import score
from causal_tune.study.spec import StudySpec
from causal_tune.study.suggestion import suggest_config

__all__ = ["LedgerSearch", "LostTrials"]

OBJECTIVE = "objective"


class LedgerSearch(OptunaSearch):  # type: ignore[misc]  # ray ships no types
    """Suggests the trial numbers that the ledger lacks, in order, and hands on each that ends.

    Unlike its parent it keeps no Optuna study and nothing of it is ever restored: the ledger is its
    memory. `record` is called once for each trial that ends; what it raises is kept in `failure`,
    because Ray Tune would only log it, and ends the search.
    """

    def __init__(
        self,
        spec: StudySpec,
        records: Iterable[TrialRecord],
        *,
        num_trials: int,
        record: Callable[[TrialRecord], None],
    ) -> None:
        self._spec = spec
        self._search_space = spec.search_space()
        super().__init__(space=dict(self._search_space.distributions), metric=OBJECTIVE, mode="max")
        self._record = record
        self._configs: dict[int, dict[str, Any]] = {}
        self._objectives: dict[int, float | None] = {}
        for item in records:
            self._configs[item.number] = item.config
            self._objectives[item.number] = score(item, spec.criterion, spec.roles)
        self._missing = [number for number in range(num_trials) if number not in self._objectives]
        self._numbers: dict[str, int] = {}
        self.failure: Exception | None = None

    @property
    def num_missing(self) -> int:
        """Trials that have not been suggested yet."""
        return len(self._missing)

    def suggest(self, trial_id: str) -> Any:
        """The next missing trial; None while a result that its suggestion depends on is not there yet."""
        if self.failure or not self._missing:
            return Searcher.FINISHED
        number = self._missing[0]
        settled = range(max(0, number - self._spec.window + 1))
        if any(other not in self._objectives for other in settled):
            return None
        config = suggest_config(
            self._search_space,
            seed=self._spec.seed,
            number=number,
            known={other: (self._configs[other], self._objectives[other]) for other in settled},
            pending={other: self._configs[other] for other in range(len(settled), number)},
        )
        self._missing.pop(0)
        self._configs[number] = config
        self._numbers[trial_id] = number
        return {"number": number, "config": config}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: a trial reports once, when it ends."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hand on the record of a trial that ended by itself (`LostTrials` tells of the others)."""
        if result and "record" in result:
            self.settle(TrialRecord.from_json(json.loads(result["record"])))

    def settle(self, record: TrialRecord) -> None:
        """Take a trial's end to the ledger, once."""
        if self.failure or record.number in self._objectives:
            return
        try:
            self._record(record)
        except Exception as error:  # noqa: BLE001  kept, and raised by whoever runs the search
            self.failure = error
            return
        self._objectives[record.number] = score(record, self._spec.criterion, self._spec.roles)

    def config_of(self, trial_id: str) -> tuple[int, dict[str, Any]]:
        """Number and configuration of a trial that was suggested."""
        number = self._numbers[trial_id]
        return number, self._configs[number]

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune pickles its searcher for a restoration that never comes, and ours holds a display."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Refused: a study is continued from its ledger."""
        raise StudyError("A study is continued from its ledger; run the same `causal-tune tune` again.")


class LostTrials(tune.Callback):  # type: ignore[misc]  # ray ships no types
    """Turns a trial whose worker died (beyond its one retry) into a failed record."""

    def __init__(
        self, search: LedgerSearch, failed: Callable[[int, dict[str, Any], str], TrialRecord]
    ) -> None:
        self._search = search
        self._failed = failed

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Ray Tune when it gives a trial up."""
        number, config = self._search.config_of(trial.trial_id)
        reason = f"its worker was lost, and again when it was retried: {_cause(trial.error_file)}"
        self._search.settle(self._failed(number, config, reason))


def _cause(error_file: str | None) -> str:
    """The line that names the exception, out of the traceback that Ray Tune keeps in a file."""
    if error_file is None or not Path(error_file).is_file():
        return "Ray gave no cause"
    lines = Path(error_file).read_text(encoding="utf-8").strip().splitlines()
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or ["Ray gave no cause"])[-1].strip()[:400]
