"""`report`: a study as a page, with every table as a file."""

from pathlib import Path

import click

from causal_tune.atomic import check_target
from causal_tune.cli.output import (
    check_folder,
    emit,
    json_option,
    out,
    under_workspace,
    workspace_option,
    writable,
)
from causal_tune.report.content import build
from causal_tune.report.page import write_report

__all__ = ["report_command"]


@click.command("report", epilog="Example: causal-tune report real -o report")
@click.argument("study")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    callback=writable,
    help="A folder. [default: the study's own, studies/STUDY/report]",
)
@click.option(
    "--index",
    type=click.Path(path_type=Path),
    help="The index of the study's images, for the audit. [default: found in the workspace]",
)
@workspace_option
@json_option
def report_command(
    study: str, output: Path | None, index: Path | None, workspace: Path, as_json: bool
) -> None:
    """Write the report of STUDY: one HTML page, Markdown, each table as CSV and LaTeX, each figure as SVG."""
    path = under_workspace(workspace, "studies", study)
    folder = output or path / "report"
    check_folder(folder, "a report")
    check_target(folder)
    report = build(path, index)
    files = write_report(report, folder)

    def show() -> None:
        for line in report.verdict:
            out.print(line)
        out.print(f"Report: {folder / 'report.html'}", soft_wrap=True)

    document = {
        "report": str(folder / "report.html"),
        "verdict": list(report.verdict),
        "files": [*map(str, files)],
    }
    emit(as_json, document, show)
