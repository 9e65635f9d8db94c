"""Where the commands keep a study's runs: `--tracking-uri`, and the tracker that it stands for."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource

from causal_tune.cli.output import err
from causal_tune.errors import StudyError
from causal_tune.ledger import Ledger
from causal_tune.study.finalists import read_finalists
from causal_tune.study.spec import StudySpec
from causal_tune.tracking import EXPERIMENT, Figures, Tracker, default_uri, redacted

__all__ = ["study_tracker", "tracking_option"]


def _say_where(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value and context.get_parameter_source(str(parameter.name)) == ParameterSource.ENVIRONMENT:
        err.print(f"Runs are kept at {redacted(value)}, as $MLFLOW_TRACKING_URI says.", soft_wrap=True)
    return value


tracking_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    callback=_say_where,
    help="An MLflow server or database. [default: $MLFLOW_TRACKING_URI, or sqlite in the workspace]",
)
"""`--tracking-uri`, else $MLFLOW_TRACKING_URI, which is said."""


def study_tracker(
    path: Path,
    spec: StudySpec,
    workspace: Path,
    tracking_uri: str | None,
    *,
    draw: Callable[[str], Figures | None] | None = None,
) -> Tracker:
    """The tracker of the study in the folder `path`; `draw` gives its figures."""
    return Tracker(
        tracking_uri or default_uri(workspace),
        EXPERIMENT,
        spec,
        draw=draw,
        verdict=partial(_verdict, path),
    )


def _verdict(path: Path) -> str:
    """What the finalists of a study came to; empty where there are none, or the search has gone on since."""
    try:
        finalists = read_finalists(path, len(Ledger(path / "trials").records()))
    except StudyError as error:  # the page of the search stands without it
        err.print(f"Warning: {error}")
        return ""
    return str(finalists["verdict"]["reason"]) if finalists else ""
