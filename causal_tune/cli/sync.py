"""`sync`: deliver to MLflow what it lacks of a study."""

import shlex
from functools import partial
from pathlib import Path

import click

from causal_tune.cli.ending import Ending
from causal_tune.cli.output import emit, json_option, out, under_workspace, workspace_option, workspace_words
from causal_tune.cli.reports import study_figures
from causal_tune.cli.tracking import study_tracker, tracking_option
from causal_tune.ledger import Ledger
from causal_tune.selection import rank
from causal_tune.study.spec import read_spec
from causal_tune.tracking import redacted

__all__ = ["sync_command"]


@click.command("sync", epilog="Example: causal-tune sync real --tracking-uri http://127.0.0.1:5000")
@click.argument("study")
@tracking_option
@workspace_option
@json_option
def sync_command(study: str, tracking_uri: str | None, workspace: Path, as_json: bool) -> None:
    """Deliver what MLflow lacks of STUDY (a name, or a folder): trials, from the ledger, and figures; each once."""
    path = under_workspace(workspace, "studies", study)
    spec = read_spec(path)
    records = Ledger(path / "trials").records()
    tracker = study_tracker(path, spec, workspace, tracking_uri, draw=partial(study_figures, path))
    tracker.start()
    words = [
        "causal-tune",
        "sync",
        study,
        *(["--tracking-uri", redacted(tracking_uri)] if tracking_uri else []),
    ]
    again = shlex.join(words) + workspace_words(workspace)
    ending = Ending()
    num_delivered = ending.step("MLflow did not get all trials", again, partial(tracker.sync, records))
    if num_delivered is None:
        ending.close()
        return
    ranked = rank(records, spec.criterion, spec.roles)
    best = ranked[0][0] if ranked else None
    ending.step("MLflow did not get everything", again, partial(tracker.finish, best))

    def show() -> None:
        there = len(records) - num_delivered - tracker.num_lacking(records)
        out.print(f"{num_delivered} of {len(records)} trials delivered; {there} were there already.")
        out.print(f"Compare the trials: {tracker.ui_command()}", soft_wrap=True)

    document = {"num_trials": len(records), "num_delivered": num_delivered, "mlflow_ui": tracker.ui_command()}
    emit(as_json, document, show)
    ending.close()
