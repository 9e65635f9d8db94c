"""A study in MLflow: one parent run, one nested run a trial. The only module that knows mlflow.

The driver writes, from ledger records, so that workers need no tracking server. Runs are keyed by the
ids of the trials: what is delivered already is not delivered again, and what is missing can be at any
time (`Tracker.sync`).
"""

import json
import logging
import math
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from causal_tune.errors import TrackingError
from causal_tune.ledger import TrialRecord
from causal_tune.selection import CRITERIA, Roles, rank, score
from causal_tune.study.spec import StudySpec

__all__ = ["EXPERIMENT", "Tracker", "default_uri", "quieten_mlflow"]

EXPERIMENT = "causal-tune"

# What MLflow calls an experiment whose runs are trainings: its page then opens as a table of runs
# instead of traces. Newer pages take the same wish from the address (`Tracker.ui_path`).
_EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
_PARENT = "mlflow.parentRunId"
_COMMIT = "mlflow.source.git.commit"
_STUDY = "causal_tune.study_uid"
_TRIAL = "causal_tune.trial_id"
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

    Call `start` before the others. Every method raises `TrackingError` where MLflow refuses or cannot
    be reached; nothing is lost by that, since `sync` delivers from the ledger.
    """

    def __init__(self, uri: str, experiment: str, spec: StudySpec) -> None:
        self.uri = uri
        self.experiment = experiment
        self.spec = spec
        self.parent_run_id = ""
        self.experiment_id = ""
        self._client: Any = None
        self._runs: dict[str, tuple[str, bool]] = {}  # trial id -> run id, whether it is complete

    def start(self) -> None:
        """Find or create the experiment and the study's parent run, and learn what is delivered.

        A server that does not answer is told within about ten seconds.
        """
        if self.uri.startswith(("http://", "https://")):
            self._probe()
        elif self._database is not None:
            with self._refusals():
                self._database.parent.mkdir(parents=True, exist_ok=True)
        self._client = _connect(self.uri)
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
        if complete:
            return
        from mlflow.entities import Metric, Param, RunTag

        ended_ms = int(record.ended_at * 1000)
        began_ms = ended_ms - int(1000 * record.timings.get("trial_s", 0.0))
        tags = self._trial_tags(record)
        metrics = [
            Metric(name, value, ended_ms, step)  # a fixed time: the same metric twice is one metric
            for name, value, step in _metrics(record, roles)
        ]
        params = [Param(key, str(value)) for key, value in sorted(record.config.items())]
        with self._refusals():
            if not run_id:
                run = self._client.create_run(
                    self.experiment_id,
                    start_time=began_ms,
                    run_name=_run_name(record),
                    tags={_PARENT: self.parent_run_id, _TRIAL: record.id},
                )
                run_id = run.info.run_id
                self._runs[record.id] = (run_id, False)
            first = metrics[: _MAX_METRICS - len(params) - len(tags)]
            self._client.log_batch(
                run_id,
                metrics=first,
                params=params[:_MAX_PARAMS],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
            for start in range(len(first), len(metrics), _MAX_METRICS):
                self._client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])
            status = {"finished": "FINISHED", "failed": "FAILED"}.get(record.state, "KILLED")
            self._client.set_terminated(run_id, status=status, end_time=ended_ms)
        self._runs[record.id] = (run_id, True)

    def sync(self, records: Iterable[TrialRecord]) -> int:
        """Deliver the trials that MLflow lacks; how many those were."""
        missing = [record for record in records if not self._runs.get(record.id, ("", False))[1]]
        for record in missing:
            self.log_trial(record, self.spec.roles)
        return len(missing)

    def deliver(self, records: Sequence[TrialRecord]) -> int:
        """`start`, `sync` and `finish` in one, for a study that does not run; how many trials were missing."""
        self.start()
        num_delivered = self.sync(records)
        ranked = rank(records, self.spec.criterion, self.spec.roles)
        self.finish(ranked[0][0] if ranked else None)
        return num_delivered

    def finish(self, best: TrialRecord | None) -> None:
        """End the parent run, with the winner's hyperparameters and metrics on it."""
        from mlflow.entities import Metric, RunTag

        with self._refusals():
            self._client.set_tag(self.parent_run_id, "mlflow.note.content", _description(self.spec, best))
            if best is not None:
                ended_ms = int(best.ended_at * 1000)
                tags = {"causal_tune.best_trial": best.id, "causal_tune.best_run": self._runs[best.id][0]}
                for key in sorted(self.spec.space["distributions"]):
                    tags[f"best.{key}"] = str(best.config[key])
                self._client.log_batch(
                    self.parent_run_id,
                    metrics=[
                        Metric(f"best/{name}", value, ended_ms, best.number)
                        for name, value, step in _metrics(best, self.spec.roles, epochs=False)
                    ],
                    tags=[RunTag(key, value) for key, value in tags.items()],
                )
            self._client.set_terminated(self.parent_run_id)

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
                self._client.create_registered_model(name, tags={_REGISTERED: "detector"})
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
        return {f"causal_tune.{key}": value for key, value in tags.items()} | _version_tags(record.versions)

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
            return str(run.info.run_id)
        from mlflow.entities import Param

        tags = {
            _STUDY: self.spec.uid,
            "causal_tune.study": self.spec.name,
            "causal_tune.criterion": self.spec.criterion,
            "causal_tune.store_fingerprint": self.spec.store_fingerprint,
            "mlflow.note.content": _description(self.spec, None),
            **_version_tags(self.spec.versions),
        }
        run = self._client.create_run(self.experiment_id, run_name=self.spec.name, tags=tags)
        spec = {key: value for key, value in self.spec.to_json().items() if key != "space"}
        params = [Param(f"study.{key}", str(value)) for key, value in sorted(spec.items())]
        self._client.log_batch(run.info.run_id, params=params)
        return str(run.info.run_id)

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
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
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


def _run_name(record: TrialRecord) -> str:
    """What a human tells runs apart by: `007 causal cls@7`."""
    return f"{record.number:03d} {record.config.get('head')} {record.config.get('layer', '')}".rstrip()


def _version_tags(versions: Mapping[str, str]) -> dict[str, str]:
    """What made a number, under the names that MLflow's pages know: the commit and the versions of libraries."""
    libraries = {name: version for name, version in versions.items() if name != "commit"}
    tags = {"causal_tune.versions": ", ".join(f"{name} {version}" for name, version in libraries.items())}
    return tags | ({_COMMIT: versions["commit"]} if "commit" in versions else {})


def _description(spec: StudySpec, best: TrialRecord | None) -> str:
    """The parent run's page, in Markdown: the question, the roles, the criterion, the winner, the command."""
    roles = {
        "trained on": spec.train_generators,
        "chosen by": spec.val_generators,
        "judged on": spec.test_generators,
    }
    lines = [spec.space["question"].strip(), "", "| role | generators |", "|---|---|"]
    lines += [f"| {role} | {', '.join(names) or '-'} |" for role, names in roles.items()]
    lines += ["", f"Criterion `{spec.criterion}`: {CRITERIA[spec.criterion].summary}."]
    if best is not None:
        value = score(best, spec.criterion, spec.roles)
        test = score(best, "oracle", spec.roles) if spec.test_generators else None
        settings = ", ".join(
            f"{key} {_short(best.config.get(key))}" for key in sorted(spec.space["distributions"])
        )
        lines += [
            "",
            f"**Best of the search: trial {best.id}** ({best.config['head']}, layer "
            f"`{best.config.get('layer', 'proj')}`), "
            f"{_percent(value)} by the criterion, which chose it and so flatters it; mean test AP {_percent(test)}. "
            f"`causal-tune finalists {spec.name}` says how sure that is.",
            "",
            settings + ".",
        ]
    command = spec.command(spec.store_path, "N")
    lines += ["", f"Store `{spec.store_fingerprint}`. Again, or longer:", "", f"    {command}"]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.2f} %"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _metrics(record: TrialRecord, roles: Roles, *, epochs: bool = True) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of everything to be logged: per epoch first, then the results."""
    best_epoch = record.best_epoch or 0
    if epochs:
        for epoch in record.epochs:
            step = int(epoch["epoch"])
            yield from (
                (name, value, step) for name, value in _numbers(epoch) if name not in ("epoch", "kept")
            )
    if not record.finished:
        return
    folders = {
        **dict.fromkeys(roles.test_generators, "test"),
        **dict.fromkeys(roles.train_generators, "seen"),
        **dict.fromkeys(roles.val_generators, "val_generators"),
    }
    for generator, metrics in record.generators.items():
        folder = folders.get(generator, "other")
        for name, value in _numbers(metrics):
            if name in ("ap", "accuracy", "accuracy_val_threshold", "loss"):
                yield f"{folder}/{_plain(generator)}/{name}", value, best_epoch
    # `validation/` and `mask/` are curves, whose last point is not the kept epoch's
    for name, value in _numbers(record.validation):
        if name in ("ap", "accuracy", "loss"):
            yield f"best_validation/{name}", value, best_epoch
    for view, metrics in record.perturbed.items():
        for name, value in _numbers(metrics):
            if name in ("ap", "accuracy"):
                yield f"perturbed_validation/{_plain(view)}/{name}", value, best_epoch
    for name, value in _numbers(record.mask or {}):
        yield f"best_mask/{name}", value, best_epoch
    for name, criterion in CRITERIA.items():
        if criterion.skips_collapsed:
            continue  # the same number as the plain criterion, or none
        judged = score(record, name, roles)
        if judged is not None:
            yield f"criterion/{name}", judged, best_epoch
    yield "best_epoch", float(best_epoch), best_epoch
    yield "steps", float(record.steps), best_epoch
    yield from ((f"time/{name}", value, best_epoch) for name, value in _numbers(record.timings))


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, bool | int | float) and math.isfinite(value):
            yield _plain(name, keep="/"), float(value)


def _plain(name: str, keep: str = "") -> str:
    # MLflow takes letters, digits and a few signs; a slash would open a folder
    return re.sub(rf"[^\w. {keep}-]", "_", name)
