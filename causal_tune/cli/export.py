"""`export`: a study's winner as a detector."""

import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from causal_tune.atomic import check_target
from causal_tune.cli.ending import Ending
from causal_tune.cli.leaderboard import criterion_option
from causal_tune.cli.output import (
    emit,
    json_option,
    out,
    percent,
    under_workspace,
    workspace_option,
    workspace_words,
    writable,
)
from causal_tune.cli.tracking import study_tracker, tracking_option
from causal_tune.export import FALSE_POSITIVES, export_detector
from causal_tune.ledger import Ledger
from causal_tune.model_card import failures
from causal_tune.study.spec import read_spec

__all__ = ["export_command", "passed_over_note"]


def passed_over_note(provenance: Mapping[str, Any], workspace: Path) -> str:
    """Which trial was exported instead of the winner, and why; nothing where it is the winner."""
    passed_over = provenance.get("passed_over")
    if not passed_over:
        return ""
    number = int(passed_over[0].partition("-")[0])
    better = f"{passed_over[0]} has" if len(passed_over) == 1 else f"The best {len(passed_over)} trials have"
    return (
        f"{better} a collapsed mask, which is no causal head, so the detector is trial {provenance['trial']}, the best "
        f"without one. `causal-tune export {provenance['study']} --trial {number} --force{workspace_words(workspace)}` "
        "exports the first all the same."
    )


@click.command("export", epilog="Example: causal-tune export real -o detectors/real")
@click.argument("study")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="[default: detectors/STUDY]"
)
@criterion_option("the study's own", any_criterion=True)
@click.option("--trial", type=click.IntRange(0), help="Number of another trial than the winner.")
@click.option(
    "--fpr",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    default=FALSE_POSITIVES,
    show_default=True,
    help="Target rate of real images with the verdict `generated`, and of generated ones with `real`.",
)
@click.option(
    "--index",
    type=click.Path(path_type=Path),
    help="Image index to audit for the model card. [default: that of the store, if in the workspace]",
)
@click.option(
    "--onnx-images", is_flag=True, help="Write images.onnx, crops to scores, beside the head's model.onnx."
)
@click.option(
    "--mlflow-model",
    type=click.Path(file_okay=False, path_type=Path),
    callback=writable,
    help="Write the detector as an MLflow model, too, to this new folder.",
)
@click.option(
    "--register",
    metavar="NAME",
    help="Register the MLflow model under NAME where the study is tracked, with the alias `champion`.",
)
@tracking_option
@click.option("--force", is_flag=True, help="Export the winner even if its mask has collapsed.")
@workspace_option
@json_option
def export_command(
    study: str,
    output: Path | None,
    criterion: str | None,
    trial: int | None,
    fpr: float,
    index: Path | None,
    onnx_images: bool,
    mlflow_model: Path | None,
    register: str | None,
    tracking_uri: str | None,
    force: bool,
    workspace: Path,
    as_json: bool,
) -> None:
    """Export the winner of STUDY (a name, or a folder) as a detector."""
    source = click.get_current_context().get_parameter_source("tracking_uri")
    if source == ParameterSource.COMMANDLINE and not register:
        raise click.UsageError("--tracking-uri is where to --register NAME: give both or neither.")
    if register is not None and not re.fullmatch(r"[^/:.%\s][^/:%]*", register):
        raise click.UsageError(
            f"{register!r} is not a valid name of a registered MLflow model: it must not contain '/', ':' or '%'."
        )
    study_path = under_workspace(workspace, "studies", study)
    folder = output or workspace / "detectors" / study_path.name
    check_target(folder)
    tracker = None
    if register is not None:  # asked before anything is written: the server may refuse
        tracker = study_tracker(study_path, read_spec(study_path), workspace, tracking_uri)
        tracker.deliver(Ledger(study_path / "trials").records())
        tracker.check_registrable(register)
    detector = export_detector(
        study_path,
        folder,
        criterion=criterion,
        trial=trial,
        fpr=fpr,
        index=index,
        onnx_images=onnx_images,
        force=force,
    )
    described = detector.description
    ending = Ending()

    def deliver() -> str | None:
        from causal_tune.pyfunc import save_mlflow_model  # MLflow takes seconds that others need not wait for

        with tempfile.TemporaryDirectory() as temporary:
            model = save_mlflow_model(folder, mlflow_model or Path(temporary))
            if tracker is None or register is None:
                return None
            told = {key: str(described["provenance"][key]) for key in ("trial", "criterion", "command")}
            return tracker.register(register, model, (folder / "README.md").read_text(encoding="utf-8"), told)

    champion = None
    if mlflow_model is not None or tracker is not None:
        options = {
            "--output": output,
            "--index": index,
            "--mlflow-model": mlflow_model,
            "--register": register,
            "--tracking-uri": tracking_uri,
        }
        again = [described["provenance"]["command"], *(["--onnx-images"] if onnx_images else [])]
        again += [f"{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
        champion = ending.step(
            "The detector was exported, and MLflow did not get it",
            " ".join(again) + workspace_words(workspace),
            deliver,
        )

    def show() -> None:
        calibration, unsure = described["calibration"], described["unsure"]
        out.print(f"Detector: {folder}", soft_wrap=True)
        if note := passed_over_note(described["provenance"], workspace):
            out.print(note, soft_wrap=True)
        out.print(
            f"Generated from score {unsure['high']['score']:.4g}, real below {unsure['low']['score']:.4g}, unsure "
            f"between. Calibration error: {percent(calibration['ece_before'])} points before, "
            f"{percent(calibration['ece_after'])} after.",
            soft_wrap=True,
        )
        found = failures(described)
        if found:
            out.print("Where it fails:")
            for subject, what in found:
                out.print(f"  {subject}: {what}", soft_wrap=True, highlight=False)
        if champion is not None:
            out.print(
                f"Registered in MLflow: models:/{register}@champion is version {champion}.", soft_wrap=True
            )
        out.print(
            f"Next: causal-tune predict {shlex.quote(str(folder))} PATH... -o scores.csv", soft_wrap=True
        )

    document = {"detector": str(folder), **described["provenance"], "registered_version": champion}
    document["model"] = detector.id
    document["failures"] = [{"subject": subject, "what": what} for subject, what in failures(described)]
    emit(as_json, document | {name: described[name] for name in ("threshold", "unsure", "calibration")}, show)
    ending.close()
