"""`export`: a study's winner as a detector."""

from pathlib import Path

import click

from causal_tune.cli.output import emit, json_option, out, under_workspace, workspace_option
from causal_tune.export import export_detector
from causal_tune.selection import CRITERIA

__all__ = ["export_command"]


@click.command("export", epilog="Example: causal-tune export real -o detectors/real")
@click.argument("study")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="[default: detectors/STUDY]"
)
@click.option("--criterion", type=click.Choice(sorted(CRITERIA)), help="[default: the study's own]")
@workspace_option
@json_option
def export_command(
    study: str, output: Path | None, criterion: str | None, workspace: Path, as_json: bool
) -> None:
    """Export the winner of STUDY (a name, or a folder) as a detector."""
    study_path = under_workspace(workspace, "studies", study)
    folder = output or workspace / "detectors" / study_path.name
    detector = export_detector(study_path, folder, criterion=criterion)

    def show() -> None:
        out.print(f"Detector: {folder}", soft_wrap=True)
        out.print(f"Next: causal-tune predict {folder} PATH... -o scores.csv", soft_wrap=True)

    emit(as_json, {"detector": str(folder), **detector.description["provenance"]}, show)
