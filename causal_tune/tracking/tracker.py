"""The runs of a study on a tracking server or in a database.

The driver writes, from ledger records, so that workers need no tracking server. Runs are keyed by the
ids of the trials: what is delivered already is not delivered again, and what is missing can be at any
time (`Tracker.sync`).
"""

import json
import shlex
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from causal_tune.errors import TrackingError
from causal_tune.ledger import TrialRecord
from causal_tune.selection import Roles, plain, rank, score
from causal_tune.study.spec import StudySpec
from causal_tune.tracking.connection import connect, words_of
from causal_tune.tracking.content import (
    BEST_SO_FAR,
    FIGURES,
    Figures,
    dataset_name,
    gallery,
    gallery_of,
    metrics_of,
    run_name,
    study_page,
    study_params,
    trial_params,
    version_tags,
)
from causal_tune.tracking.machine import Machine
from causal_tune.tracking.place import database_path, is_server, mlflow_command, redacted, without_login
from causal_tune.wording import shortened, visible

__all__ = ["EXPERIMENT", "Tracker"]

EXPERIMENT = "causal-tune"

# What MLflow calls an experiment whose runs are trainings: its page then opens as a table of runs
# instead of traces. Newer pages take the same wish from the address.
_EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
_SIDE = {"workflowType": "machine_learning"}
_PARENT = "mlflow.parentRunId"
_PAGE = "mlflow.note.content"
_STUDY = "causal_tune.study_uid"
_TRIAL = "causal_tune.trial_id"
_FIGURES_OF = "causal_tune.figures_of"
_REGISTERED = "causal_tune.kind"
_CHAMPION = "champion"

_INCOMPLETE = "causal_tune.incomplete"
"""Tag of a trial that MLflow refused in part: its run has ended, and is completed by the next `Tracker.sync`."""

_MAX_METRICS, _MAX_PARAMS = 900, 100  # a request holds 1,000 entries, of which 100 params


class _TrialRefused(TrackingError):
    """All else was delivered."""

    exit_code = 1


class Tracker:
    """A study's runs on one tracking server or in one database.

    Call `start` before the others; it calls `connect` if that was not done. Every method raises `TrackingError` where
    MLflow refuses or cannot be reached; no trial is lost by that, since `sync` delivers from the ledger. `draw` gives
    the study's figures once it has ended, or None where they would be those whose `Figures.of` it is given; `verdict`
    what is known beyond the search, a sentence for its page.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        spec: StudySpec,
        *,
        draw: Callable[[str], Figures | None] | None = None,
        verdict: Callable[[], str] | None = None,
    ) -> None:
        self.uri = _absolute(uri)
        self.experiment = experiment
        self.spec = spec
        self.draw = draw
        self.verdict = verdict
        self.parent_run_id = ""
        self.experiment_id = ""
        self._client: Any = None
        # trial id -> run id, whether it is complete
        self._runs: dict[str, tuple[str, bool]] = {}
        # ids of runs with that tag
        self._incomplete: set[str] = set()
        # those that were given to `log_trial`, in that order: of their ends
        self._records: dict[str, TrialRecord] = {}
        self._best: tuple[TrialRecord, float] | None = None
        # metrics of the best so far, in the same order
        self._progress: list[Any] = []
        # the first trial that MLflow does not take
        self._refusal: _TrialRefused | None = None
        self._began_ms = 0
        self._gallery, self._figures_of = "", ""
        self._machine = Machine()

    def connect(self) -> None:
        """Load MLflow, and reach the server or make the database; nothing of the study is written.

        What does not answer is told within about ten seconds.
        """
        self._client = connect(self.uri)

    def start(self) -> None:
        """Find or create the experiment and the study's parent run, and learn what is delivered."""
        if self._client is None:
            self.connect()
        with self._refusals():
            self.experiment_id = self._find_experiment()
            self.parent_run_id = self._find_parent()
            for run in self._search(f"tags.`{_PARENT}` = '{self.parent_run_id}'"):
                if _TRIAL in run.data.tags:
                    run_id = run.info.run_id
                    self._incomplete |= {run_id} if _INCOMPLETE in run.data.tags else set()
                    is_complete = run.info.status != "RUNNING" and run_id not in self._incomplete
                    self._runs[run.data.tags[_TRIAL]] = (run_id, is_complete)

    def log_trial(self, record: TrialRecord, roles: Roles) -> None:
        """Deliver a trial, unless it is delivered already.

        One that MLflow does not take is ended there as incomplete, and `finish` raises the reason; the others go on.
        """
        run_id, is_complete = self._runs.get(record.id, ("", False))
        new_points = [] if record.id in self._records else self._advance(record)
        if is_complete:
            return
        with self._refusals():
            if not run_id:
                run_id = self._create_run(record)
                self._runs[record.id] = (run_id, False)
            try:
                self._write_trial(run_id, record, roles)
            except Exception as error:  # noqa: BLE001  raised again where it is MLflow that is away
                self._close_incomplete(run_id, record, error)
                return
            self._runs[record.id] = (run_id, True)
            self._log(self.parent_run_id, new_points)
            self._log_machine()

    def watched(self) -> AbstractContextManager[None]:
        """Within it, what the machine does is sampled; it is delivered with the trials, and by `finish`."""
        return self._machine.watched(self.parent_run_id, self.uri)

    def sync(self, records: Iterable[TrialRecord]) -> int:
        """Deliver the trials that MLflow lacks; how many those were."""
        if not self.parent_run_id:  # `start` failed
            self.start()
        num_delivered = 0
        self._refusal = None  # those are tried again
        for record in sorted(records, key=lambda one: (one.ended_at, one.number)):
            was_complete = self._is_complete(record)
            self.log_trial(record, self.spec.roles)
            num_delivered += self._is_complete(record) and not was_complete
        return num_delivered

    def num_lacking(self, records: Iterable[TrialRecord]) -> int:
        """How many trials are not there, or not completely."""
        return sum(not self._is_complete(record) for record in records)

    def deliver(self, records: Sequence[TrialRecord]) -> int:
        """`start`, `sync` and `finish` in one, for a study that does not run; how many trials were missing."""
        self.start()
        num_delivered = self.sync(records)
        ranked = rank(records, self.spec.criterion, self.spec.roles)
        self.finish(ranked[0][0] if ranked else None)
        return num_delivered

    def finish(self, best: TrialRecord | None) -> None:
        """End the parent run, with the winner's settings on it, the best over trials, and the study's figures."""
        best_run = self._end(best, "FINISHED")
        figures = self.draw(self._figures_of) if self.draw and best is not None else None
        if figures is not None:
            with self._refusals():
                for name, (_, svg) in figures.drawn.items():
                    self._client.log_text(self.parent_run_id, svg, f"{FIGURES}/{name}.svg")
                self._gallery, self._figures_of = gallery(self.parent_run_id, figures), figures.of
                self._tag_parent({_PAGE: self._page(best, best_run), _FIGURES_OF: figures.of})
        if self._refusal:
            raise self._refusal

    def stop(self) -> None:
        """End the parent run of a study that was interrupted, and may be continued."""
        ranked = rank(self._records.values(), self.spec.criterion, self.spec.roles)
        self._end(ranked[0][0] if ranked else None, "KILLED")

    def _end(self, best: TrialRecord | None, status: str) -> str:
        """Everything of the parent run but its figures; the address of the winner's run."""
        tags: dict[str, str] = {}
        best_run = ""
        with self._refusals():
            # first: what is refused below leaves no run open; and not when it was delivered, which may be days later
            ended_ms = max([self._began_ms, *(_ms(record.ended_at) for record in self._records.values())])
            self._client.set_terminated(self.parent_run_id, status=status, end_time=ended_ms)
            if best is not None and best.id in self._runs:
                run_id = self._runs[best.id][0]
                best_run = f"#/experiments/{self.experiment_id}/runs/{run_id}?{urlencode(_SIDE)}"
                tags |= {"causal_tune.best_trial": best.id, "causal_tune.best_run": run_id}
                for key, value in self.spec.search_space().settings_of(best.config).items():
                    tags[f"best.{key}"] = str(value)
            self._tag_parent({**tags, _PAGE: self._page(best, best_run)})
            self._log_missing_progress()
            self._log_machine()
        return best_run

    def _page(self, best: TrialRecord | None, best_run: str) -> str:
        return study_page(
            self.spec, best, best_run, self._gallery, verdict=self.verdict() if self.verdict and best else ""
        )

    def check_registrable(self, name: str) -> bool:
        """Whether the registered model `name` is there already; `TrackingError` where something else made it."""
        from mlflow.exceptions import MlflowException

        with self._refusals():
            try:
                found = self._client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False
        if _REGISTERED not in found.tags:
            raise TrackingError(
                f"{redacted(self.uri)} has a registered model {name!r} that is not a detector of causal-tune. Give "
                "--register another name."
            )
        return True

    def register(self, name: str, model: Path, description: str, tags: Mapping[str, str]) -> str:
        """Make the MLflow model in the folder `model` the `champion` of the registered model `name`; its version.

        Its files go to the study's parent run; what was champion stays as an earlier version. A registered model
        that something else made is left alone: `check_registrable`.
        """
        is_there = self.check_registrable(name)
        with self._refusals():
            if not is_there:
                self._client.create_registered_model(
                    name,
                    tags={_REGISTERED: "detector"},
                    description=f"Detectors of generated images, a version each; `models:/{name}@{_CHAMPION}` is the "
                    "one to use.",
                )
            place = f"detectors/{uuid.uuid4().hex[:12]}"  # a version's files are its own
            self._client.log_artifacts(self.parent_run_id, str(model), place)
            artifacts = self._client.get_run(self.parent_run_id).info.artifact_uri
            version = self._client.create_model_version(
                name,
                source=f"{artifacts}/{place}",
                run_id=self.parent_run_id,
                tags={
                    f"causal_tune.{key}": value for key, value in {"study": self.spec.name, **tags}.items()
                },
                description=description,
            ).version
            self._client.set_registered_model_alias(name, _CHAMPION, version)
        return str(version)

    def ui_command(self) -> str:
        """What to type to see the runs, and the page that they are on; of a server only that page."""
        if is_server(self.uri):
            return f"{without_login(self.uri)}/{self.ui_path()}"
        command = mlflow_command("ui", "--backend-store-uri", self.uri)
        return f"{command}  # http://127.0.0.1:5000/{self.ui_path()}"

    def ui_path(self) -> str:
        """The part of the address, after the server's, of the table of this study's trials, best first."""
        if not self.parent_run_id:
            return "#/experiments"
        shown = {
            **_SIDE,
            "searchFilter": f"tags.`{_PARENT}` = '{self.parent_run_id}'",
            "orderByKey": f"metrics.`criterion/{plain(self.spec.criterion)}`",
            "orderByAsc": "false",
        }
        if plain(self.spec.criterion) != self.spec.criterion:  # collapsed trials have no score
            shown["searchFilter"] += " AND tags.causal_tune.collapsed = 'no'"
        return f"#/experiments/{self.experiment_id}/runs?{urlencode(shown, quote_via=quote)}"

    def _is_complete(self, record: TrialRecord) -> bool:
        return self._runs.get(record.id, ("", False))[1]

    def _close_incomplete(self, run_id: str, record: TrialRecord, error: Exception) -> None:
        """End the run of a trial that was not taken; `error` where that is not taken either."""
        try:
            self._client.set_tag(run_id, _INCOMPLETE, words_of(error))
            self._client.set_terminated(run_id, status="FAILED", end_time=_ms(record.ended_at))
        except Exception:  # noqa: BLE001  the first one says more
            raise error from None
        self._incomplete.add(run_id)
        self._refusal = self._refusal or _TrialRefused(
            f"MLflow at {redacted(self.uri)} does not take trial {record.number} of {self.spec.name!r}: "
            f"{words_of(error)}. It stands there without what was refused."
        )

    def _create_run(self, record: TrialRecord) -> str:
        ended_ms = _ms(record.ended_at)
        run = self._client.create_run(
            self.experiment_id,
            start_time=ended_ms - int(1000 * record.timings.get("trial_s", 0.0)),
            run_name=run_name(record),
            tags={_PARENT: self.parent_run_id, _TRIAL: record.id, **self._trial_tags(record)},
        )
        return str(run.info.run_id)

    def _write_trial(self, run_id: str, record: TrialRecord, roles: Roles) -> None:
        from mlflow.entities import Metric, Param

        ended_ms = _ms(record.ended_at)
        metrics = [
            Metric(name, value, ended_ms, step)  # a fixed time: the same metric twice is one metric
            for name, value, step in metrics_of(record, roles)
        ]
        # MLflow's comparison opens with the first that there is
        metrics.sort(key=lambda metric: metric.key != f"criterion/{plain(self.spec.criterion)}")
        params = [Param(key, value) for key, value in sorted(trial_params(record).items())]
        first = metrics[: _MAX_METRICS - len(params)]
        self._client.log_batch(run_id, metrics=first, params=params[:_MAX_PARAMS])
        self._log(run_id, metrics[len(first) :])
        if run_id in self._incomplete:
            self._client.delete_tag(run_id, _INCOMPLETE)
            self._incomplete.remove(run_id)
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(record.state, "KILLED")
        self._client.set_terminated(run_id, status=status, end_time=ended_ms)

    def _trial_tags(self, record: TrialRecord) -> dict[str, str]:
        tags = {
            "number": str(record.number),
            "state": record.state,
            "collapsed": record.collapsed or "no",
            "seed": str(record.seed),
            "study": self.spec.name,
            "criterion": self.spec.criterion,
            "store_fingerprint": self.spec.store_fingerprint,
        }
        if record.reason:
            tags["reason"] = shortened(visible(record.reason, keep="\n"), 4000)
        if record.checkpoint_sha256:
            tags["checkpoint_sha256"] = record.checkpoint_sha256
        return {f"causal_tune.{key}": value for key, value in tags.items()} | version_tags(record.versions)

    def _advance(self, record: TrialRecord) -> list[Any]:
        """The best so far after one more trial: its metrics on the parent run, a step a trial."""
        from mlflow.entities import Metric

        self._records[record.id] = record
        value = score(record, self.spec.criterion, self.spec.roles)
        if value is not None and (self._best is None or value > self._best[1]):
            self._best = record, value
        points = []
        if self._best is not None:
            test = score(self._best[0], "oracle", self.spec.roles)
            for name, best in ((plain(self.spec.criterion), self._best[1]), ("test", test)):
                if best is not None:
                    points.append(
                        Metric(f"{BEST_SO_FAR}/{name}", best, _ms(record.ended_at), len(self._records))
                    )
        self._progress += points
        return points

    def _log_missing_progress(self) -> None:
        """Of studies that were made before there was any, and of trials whose delivery failed."""
        names = {point.key for point in self._progress}
        there = {
            (name, point.step)
            for name in names
            for point in self._client.get_metric_history(self.parent_run_id, name)
        }
        self._log(
            self.parent_run_id, [point for point in self._progress if (point.key, point.step) not in there]
        )

    def _dataset(self) -> Any:
        """The feature store as MLflow's dataset: its fingerprint is the digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        store = Path(self.spec.store_path)
        source = json.dumps({"uri": str(store)})
        dataset = Dataset(dataset_name(store), self.spec.store_fingerprint, "local", source)
        return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            database = database_path(self.uri)
            artifacts = (database.absolute().parent / "mlartifacts").as_uri() if database else None
            try:
                return str(
                    self._client.create_experiment(
                        self.experiment, artifact_location=artifacts, tags=_EXPERIMENT_KIND
                    )
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(self.experiment)  # another driver was faster
        if found.lifecycle_stage != "active":
            restore = mlflow_command("experiments", "restore", "--experiment-id", found.experiment_id)
            raise TrackingError(
                f"The MLflow experiment {self.experiment!r} at {redacted(self.uri)} is deleted. Restore it with "
                f"`MLFLOW_TRACKING_URI={shlex.quote(redacted(self.uri))} {restore}`."
            )
        for key, value in _EXPERIMENT_KIND.items():
            if key not in found.tags:
                self._client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def _find_parent(self) -> str:
        for run in self._search(f"tags.`{_STUDY}` = '{self.spec.uid}'"):
            if run.info.status != "RUNNING":
                self._client.update_run(run.info.run_id, status="RUNNING")
            self._gallery = gallery_of(run.data.tags.get(_PAGE, ""))
            self._figures_of = run.data.tags.get(_FIGURES_OF, "")
            self._began_ms = run.info.start_time
            if not run.inputs.dataset_inputs:
                self._client.log_inputs(run.info.run_id, datasets=[self._dataset()])
            return str(run.info.run_id)
        from mlflow.entities import Param

        tags = {
            _STUDY: self.spec.uid,
            "causal_tune.study": self.spec.name,
            "causal_tune.criterion": self.spec.criterion,
            "causal_tune.store_fingerprint": self.spec.store_fingerprint,
            _PAGE: study_page(self.spec, None),
            **version_tags(self.spec.versions),
        }
        run = self._client.create_run(self.experiment_id, run_name=self.spec.name, tags=tags)
        self._began_ms = run.info.start_time
        params = [Param(key, value) for key, value in sorted(study_params(self.spec).items())]
        self._client.log_batch(run.info.run_id, params=params)
        self._client.log_inputs(run.info.run_id, datasets=[self._dataset()])
        return str(run.info.run_id)

    def _log(self, run_id: str, metrics: Sequence[Any]) -> None:
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])

    def _tag_parent(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.parent_run_id, tags=[RunTag(*tag) for tag in tags.items()])

    def _log_machine(self) -> None:
        from mlflow.entities import Metric

        samples = list(self._machine.samples)
        metrics = []
        for at_s, values in samples:
            at_ms = int(1000 * at_s)
            step = max(0, at_ms - self._began_ms) // 1000  # seconds: a study that is continued goes on
            metrics += [Metric(f"system/{name}", value, at_ms, step) for name, value in values.items()]
        self._log(self.parent_run_id, metrics)
        del self._machine.samples[: len(samples)]  # only now: what was refused is delivered later

    def _search(self, condition: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], condition, max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        # MLflow's stores of runs and of artifacts raise what their own libraries do, too
        try:
            yield
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(
                f"MLflow at {redacted(self.uri)} did not take the study {self.spec.name!r}: {words_of(error)}."
            ) from error


def _absolute(uri: str) -> str:
    """The URI of the same database whatever the working folder is by then: Ray changes it for a moment.

    >>> _absolute("sqlite:////data/mlflow.db"), _absolute("http://server:5000")
    ('sqlite:////data/mlflow.db', 'http://server:5000')
    """
    path = uri.removeprefix("sqlite:///")
    return f"sqlite:///{Path(path).absolute()}" if path != uri and path != ":memory:" else uri


def _ms(seconds: float) -> int:
    return int(1000 * seconds)
