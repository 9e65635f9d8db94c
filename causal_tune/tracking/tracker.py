"""The runs of a study on a tracking server or in a database.

The driver writes, from ledger records, so that workers need no tracking server. Runs are keyed by the
ids of the trials: what is delivered already is not delivered again, and what is missing can be at any
time (`Tracker.sync`).
"""

import json
import logging
import os
import shutil
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from causal_tune.errors import TrackingError
from causal_tune.ledger import TrialRecord
from causal_tune.selection import Roles, rank
from causal_tune.study.spec import StudySpec
from causal_tune.tracking.content import (
    FIGURES,
    Figures,
    gallery,
    gallery_of,
    metrics_of,
    run_name,
    study_page,
    version_tags,
)
from causal_tune.tracking.machine import Machine

__all__ = ["EXPERIMENT", "Tracker", "default_uri", "quieten_mlflow"]

EXPERIMENT = "causal-tune"

# What MLflow calls an experiment whose runs are trainings: its page then opens as a table of runs
# instead of traces. Newer pages take the same wish from the address (`Tracker.ui_path`).
_EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
_PARENT = "mlflow.parentRunId"
_PAGE = "mlflow.note.content"
_STUDY = "causal_tune.study_uid"
_TRIAL = "causal_tune.trial_id"
_FIGURES_OF = "causal_tune.figures_of"
_REGISTERED = "causal_tune.kind"
_CHAMPION = "champion"

_PROBE_TIMEOUT_S = 5
_MAX_METRICS, _MAX_PARAMS = 900, 100  # a request holds 1,000 entries, of which 100 params


def default_uri(workspace: Path | str) -> str:
    """Where a workspace keeps its runs: `sqlite:///<workspace>/mlflow.db`.

    >>> default_uri("/data/runs")
    'sqlite:////data/runs/mlflow.db'
    """
    return f"sqlite:///{Path(workspace).absolute() / 'mlflow.db'}"


class Tracker:
    """A study's runs on one tracking server or in one database.

    Call `start` before the others; it calls `connect` if that was not done. Every method raises `TrackingError` where
    MLflow refuses or cannot be reached; no trial is lost by that, since `sync` delivers from the ledger. `draw` gives
    the study's figures once it has ended, or None where they would be those whose `Figures.of` it is given.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        spec: StudySpec,
        *,
        draw: Callable[[str], Figures | None] | None = None,
    ) -> None:
        self.uri = uri
        self.experiment = experiment
        self.spec = spec
        self.draw = draw
        self.parent_run_id = ""
        self.experiment_id = ""
        self._client: Any = None
        self._runs: dict[str, tuple[str, bool]] = {}  # trial id -> run id, whether it is complete
        self._began_ms = self._ended_ms = 0
        self._gallery, self._figures_of = "", ""
        self._machine = Machine()

    def connect(self) -> None:
        """Load MLflow, and reach the server or make the database; nothing of the study is written.

        A server that does not answer is told within about ten seconds.
        """
        if self.uri.startswith(("http://", "https://")):
            self._probe()
        elif self._database is not None:
            with self._refusals():
                self._database.parent.mkdir(parents=True, exist_ok=True)
        self._client = _connect(self.uri)

    def start(self) -> None:
        """Find or create the experiment and the study's parent run, and learn what is delivered."""
        if self._client is None:
            self.connect()
        with self._refusals():
            self.experiment_id = self._find_experiment()
            self.parent_run_id = self._find_parent()
            self._client.log_inputs(self.parent_run_id, datasets=[self._dataset()])
            for run in self._search(f"tags.`{_PARENT}` = '{self.parent_run_id}'"):
                if _TRIAL in run.data.tags:
                    self._runs[run.data.tags[_TRIAL]] = (run.info.run_id, run.info.status != "RUNNING")

    def log_trial(self, record: TrialRecord, roles: Roles) -> None:
        """Deliver a trial, unless it is delivered already."""
        run_id, complete = self._runs.get(record.id, ("", False))
        ended_ms = int(record.ended_at * 1000)
        self._ended_ms = max(self._ended_ms, ended_ms)
        if complete:
            return
        from mlflow.entities import Metric, Param

        began_ms = ended_ms - int(1000 * record.timings.get("trial_s", 0.0))
        metrics = [
            Metric(name, value, ended_ms, step)  # a fixed time: the same metric twice is one metric
            for name, value, step in metrics_of(record, roles)
        ]
        # MLflow's comparison opens with the first that there is
        metrics.sort(key=lambda metric: metric.key != f"criterion/{self.spec.criterion}")
        params = [Param(key, str(value)) for key, value in sorted(record.config.items())]
        with self._refusals():
            if not run_id:
                run = self._client.create_run(
                    self.experiment_id,
                    start_time=began_ms,
                    run_name=run_name(record),
                    tags={_PARENT: self.parent_run_id, _TRIAL: record.id, **self._trial_tags(record)},
                )
                run_id = run.info.run_id
                self._runs[record.id] = (run_id, False)
            first = metrics[: _MAX_METRICS - len(params)]
            self._client.log_batch(run_id, metrics=first, params=params[:_MAX_PARAMS])
            self._log(run_id, metrics[len(first) :])
            status = {"finished": "FINISHED", "failed": "FAILED"}.get(record.state, "KILLED")
            self._client.set_terminated(run_id, status=status, end_time=ended_ms)
            self._runs[record.id] = (run_id, True)
            self._log_machine()

    def watched(self) -> AbstractContextManager[None]:
        """Within it, what the machine does is sampled; it is delivered with the trials, and by `finish`."""
        return self._machine.watched(self.parent_run_id, self.uri)

    def sync(self, records: Iterable[TrialRecord]) -> int:
        """Deliver the trials that MLflow lacks; how many those were."""
        num_delivered = 0
        for record in records:
            num_delivered += not self._runs.get(record.id, ("", False))[1]
            self.log_trial(record, self.spec.roles)
        return num_delivered

    def deliver(self, records: Sequence[TrialRecord]) -> int:
        """`start`, `sync` and `finish` in one, for a study that does not run; how many trials were missing."""
        self.start()
        num_delivered = self.sync(records)
        ranked = rank(records, self.spec.criterion, self.spec.roles)
        self.finish(ranked[0][0] if ranked else None)
        return num_delivered

    def finish(self, best: TrialRecord | None) -> None:
        """End the parent run, with the winner's hyperparameters and metrics on it, and the study's figures."""
        from mlflow.entities import Metric

        tags: dict[str, str] = {}
        best_run = ""
        with self._refusals():
            if best is not None:
                ended_ms = int(best.ended_at * 1000)
                run_id = self._runs[best.id][0]
                best_run = f"#/experiments/{self.experiment_id}/runs/{run_id}"
                tags |= {"causal_tune.best_trial": best.id, "causal_tune.best_run": run_id}
                for key in sorted(self.spec.space["distributions"]):
                    tags[f"best.{key}"] = str(best.config[key])
                self._log(
                    self.parent_run_id,
                    [
                        Metric(f"best/{name}", value, ended_ms, best.number)
                        for name, value, step in metrics_of(best, self.spec.roles, epochs=False)
                    ],
                )
            self._tag_parent({**tags, _PAGE: study_page(self.spec, best, best_run, self._gallery)})
            self._log_machine()
            # not when it was delivered, which may be days later
            self._client.set_terminated(self.parent_run_id, end_time=max(self._began_ms, self._ended_ms))
        figures = self.draw(self._figures_of) if self.draw and best is not None else None
        if figures is not None:
            with self._refusals(Exception):  # a store of artifacts raises what its own library does
                for name, (_, svg) in figures.drawn.items():
                    self._client.log_text(self.parent_run_id, svg, f"{FIGURES}/{name}.svg")
                self._gallery, self._figures_of = gallery(self.parent_run_id, figures), figures.of
                page = study_page(self.spec, best, best_run, self._gallery)
                self._tag_parent({_PAGE: page, _FIGURES_OF: figures.of})

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
                f"{self.uri} has a registered model {name!r} that is not a detector of causal-tune. Give "
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
        """What to type to see the runs, and the page that they are on."""
        if self._database is None:
            return f"open {self.uri.rstrip('/')}/{self.ui_path()}"
        program = "mlflow" if shutil.which("mlflow") else f"{sys.executable} -m mlflow"
        return f"{program} ui --backend-store-uri {self.uri}  # http://127.0.0.1:5000/{self.ui_path()}"

    def ui_path(self) -> str:
        """The part of the address, after the server's, of the table of this study's runs."""
        return f"#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"

    @property
    def _database(self) -> Path | None:
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None

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
            tags["reason"] = record.reason[:4000]
        if record.checkpoint_sha256:
            tags["checkpoint_sha256"] = record.checkpoint_sha256
        return {f"causal_tune.{key}": value for key, value in tags.items()} | version_tags(record.versions)

    def _dataset(self) -> Any:
        """The feature store as MLflow's dataset: its fingerprint is the digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        store = Path(self.spec.store_path)
        source = json.dumps({"uri": str(store)})
        dataset = Dataset(store.name, self.spec.store_fingerprint, "local", source)
        return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])

    def _probe(self) -> None:
        # Left to itself the client retries a dead address for four minutes.
        try:
            urllib.request.urlopen(self.uri.rstrip("/") + "/health", timeout=_PROBE_TIMEOUT_S).close()
        except urllib.error.HTTPError:
            pass  # it answers; whether it lets us in is told by the first real request
        except (OSError, ValueError) as error:
            raise TrackingError(
                f"No MLflow server answers at {self.uri}: {error}. Start it, correct --tracking-uri, or "
                "leave that option out to keep the runs in the workspace."
            ) from error

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            artifacts = (self._database.parent / "mlartifacts").as_uri() if self._database else None
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
            raise TrackingError(
                f"The MLflow experiment {self.experiment!r} at {self.uri} is deleted. Restore it with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or name another one."
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
        told_otherwise = ("space", "versions")  # the one too long, the other a tag
        spec = {key: value for key, value in self.spec.to_json().items() if key not in told_otherwise}
        params = [Param(f"study.{key}", str(value)) for key, value in sorted(spec.items())]
        self._client.log_batch(run.info.run_id, params=params)
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
    def _refusals(self, *others: type[Exception]) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError, *others) as error:
            words = " ".join(str(error).split())[:400]
            raise TrackingError(
                f"MLflow at {self.uri} did not take the study {self.spec.name!r}: {words}. Mend the server "
                "or --tracking-uri and run the same command again: it delivers what is missing."
            ) from error


def quieten_mlflow() -> None:
    """Before mlflow is imported: it reports its use to its makers, and draws bars where the command tells itself."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def _connect(uri: str) -> Any:
    quieten_mlflow()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # it waits minutes for dead servers
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("alembic", "mlflow.store.db.utils"):  # a screen of migrations at the first use
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(tracking_uri=uri)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"{uri!r} cannot be used for tracking: {' '.join(str(error).split())[:400]}. Use "
            "sqlite:///PATH or the address of a server."
        ) from error
