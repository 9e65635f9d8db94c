"""`compare`: several studies side by side."""

from collections.abc import Sequence
from pathlib import Path

import click

from causal_tune.cli.output import (
    check_folder,
    emit,
    json_option,
    out,
    table,
    under_workspace,
    workspace_option,
    writable,
)
from causal_tune.report.comparison import compare
from causal_tune.report.page import write_report

__all__ = ["compare_command"]


@click.command("compare", epilog="Example: causal-tune compare sd14 progan -o comparison")
@click.argument("studies", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    callback=writable,
    help="A folder for the page, Markdown, CSV and LaTeX. [default: nothing is written]",
)
@workspace_option
@json_option
def compare_command(studies: Sequence[str], output: Path | None, workspace: Path, as_json: bool) -> None:
    """Compare STUDIES: the recommended head of each and its linear probe, on every generator."""
    check_folder(output, "a comparison")
    report = compare([under_workspace(workspace, "studies", study) for study in studies])
    files = write_report(report, output) if output is not None else []
    tables = {one.name: one for section in report.sections for one in section.tables}

    def show() -> None:
        aps = tables["ap"]
        # generators as rows: their number is not limited, the width of a terminal is
        rows = [[title, *(row[place] for row in aps.rows)] for place, title in enumerate(aps.titles) if place]
        out.print(table("AP, % [95 % interval]", ["generator", *(row[0] for row in aps.rows)], rows))
        out.print("† trained on, ‡ chosen by")
        if "pairs" in tables:
            pairs = tables["pairs"]
            out.print(table("Mean AP on generators unseen by all, points", pairs.columns, pairs.rows))
        for line in report.verdict:
            out.print(line)
        if output is not None:
            out.print(f"Comparison: {output / 'report.html'}", soft_wrap=True)

    document = {
        "verdict": list(report.verdict),
        "tables": {
            name: [dict(zip(one.titles, row, strict=True)) for row in one.rows]
            for name, one in tables.items()
        },
        "files": [*map(str, files)],
    }
    emit(as_json, document, show)
