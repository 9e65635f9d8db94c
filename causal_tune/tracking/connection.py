"""The way to MLflow: settings, one attempt that fails within seconds, and its errors as sentences."""

import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout

from causal_tune.errors import TrackingError
from causal_tune.tracking.place import database_path, is_server, mlflow_command, redacted

__all__ = ["connect", "quieten_mlflow", "words_of"]

# MLflow itself waits minutes for a server that is away
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_AT_FIRST = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
_DATABASE_TIMEOUT_S = 5
_MIGRATION_TIMEOUT_S = 120
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CAUSE = re.compile(r"Caused by \w+\((?:.*?\): )?(.*?)[\"')]*$", re.DOTALL)
"""Of a request that urllib3 gave up."""
_HINT = "correct --tracking-uri (or MLFLOW_TRACKING_URI), or leave both out to keep the runs in the workspace"


def quieten_mlflow() -> None:
    """Before mlflow is imported: it reports its use to its makers, and draws bars where the command tells itself."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def connect(uri: str) -> Any:
    """MLflow's client of a server or a database, which is made where there is none.

    `TrackingError`, within about ten seconds, where nothing answers or it is not MLflow's.
    """
    quieten_mlflow()
    # screens of migrations, and of errors that are told below
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # a setting of the user's own is followed
    ours = {name for name, value in _PATIENCE.items() if os.environ.get(name) in (None, value)}
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(_DATABASE_TIMEOUT_S))
    from mlflow import MlflowClient

    try:
        if is_server(uri):
            client = MlflowClient(tracking_uri=uri)
            os.environ.update({name: _AT_FIRST[name] for name in ours})
            client.search_experiments(max_results=1)
            return client
        with _alone(uri):
            _check_database(uri)
            return MlflowClient(tracking_uri=uri)
    except TrackingError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy, Alembic and drivers have no common one
        raise TrackingError(_sentence(uri, error)) from error
    finally:
        os.environ.update({name: _PATIENCE[name] for name in ours})


def words_of(error: BaseException) -> str:
    """What an error of MLflow's says, in one line, without SQL and passwords."""
    text = str(error).partition("[SQL:")[0].partition("(Background on this error")[0]
    if cause := _CAUSE.search(text):
        text = cause[1]
    return redacted(" ".join(text.split()))[:400].rstrip(".") or type(error).__name__


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Be the only process that makes or checks the tables of a SQLite database: MLflow makes them twice, and fails."""
    path = database_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path.with_name(f".{path.name}.lock")), timeout=_MIGRATION_TIMEOUT_S)
    try:
        lock.acquire()
    except Timeout:
        raise TrackingError(
            f"Another process has been making the tables of {path} for {_MIGRATION_TIMEOUT_S} seconds. End it if it "
            "hangs, and run the same command again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _check_database(uri: str) -> None:
    """One attempt to read a database; MLflow makes ten, in a hundred seconds."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ArgumentError:
        return  # a scheme of MLflow's or a plug-in's
    backend = url.get_backend_name()
    if backend not in ("sqlite", *_PORTS):
        return
    if url.host:
        socket.create_connection((url.host, url.port or _PORTS[backend]), _DATABASE_TIMEOUT_S).close()
    engine = create_engine(url)
    try:
        inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _sentence(uri: str, error: Exception) -> str:
    """What was found at `uri`, and the next step."""
    words = words_of(error)
    if isinstance(error, ModuleNotFoundError):
        return f"Tracking to {redacted(uri)} needs the Python package {error.name}, which is not installed. Install it."
    if is_server(uri):
        if any(f"error code {code}" in words for code in (401, 403)) or _code_of(error) in _REFUSED:
            return (
                f"The MLflow server at {redacted(uri)} refuses the login: {words}. Set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            )
        return f"No MLflow server answers at {redacted(uri)}: {words}. Start it, {_HINT}."
    path = database_path(uri)
    if "out-of-date database schema" in words or "Can't locate revision" in words:
        from mlflow import __version__

        upgrade = mlflow_command("db", "upgrade", uri)
        return (
            f"The database {redacted(uri)} was made by another MLflow than the installed {__version__} ({words}). If "
            f"an older one made it, copy it and run `{upgrade}`; if a newer one did, install that version."
        )
    if "filesystem tracking backend" in words:
        return (
            f"{redacted(uri)!r} is a path, and MLflow keeps no runs in folders any more. Name a database, such as "
            "sqlite:////data/mlflow.db, or the address of a server."
        )
    if path is None:
        return f"{redacted(uri)!r} cannot be used for tracking: {words}. Start that database, {_HINT}."
    if isinstance(error, OSError):
        return f"{path} cannot be made: {words}. Mend that, or keep the runs elsewhere."
    for found, problem in _SQLITE_PROBLEMS.items():
        if found in words:
            return f"{path} {problem}"
    return f"{path} cannot be used as MLflow's database: {words}."


_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
_MADE_AGAIN = "Name another place, or move it away: the next delivery makes a new one."
_SQLITE_PROBLEMS: Mapping[str, str] = {
    "database is locked": "is locked by another program. Wait for that program or end it.",
    "disk is full": "cannot grow: its disk is full. Free some space there, or keep the runs elsewhere.",
    "readonly database": "cannot be written: it, or its disk, is read-only. Change that, or keep the runs elsewhere.",
    "not a database": f"is not a database. {_MADE_AGAIN}",
    "malformed": f"is damaged. {_MADE_AGAIN}",
    "unable to open": "cannot be opened: it is a folder, or its permissions are missing. Mend that, or keep the runs "
    "elsewhere.",
    "readonly": "cannot be written. Mend its permissions, or keep the runs elsewhere.",
}


def _code_of(error: Exception) -> str:
    return str(getattr(error, "error_code", ""))
