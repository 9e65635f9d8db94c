"""The command line: `causal-tune`.

A command's module is imported when the command is run: torch, Ray and MLflow take seconds each, and
`--help` should not wait for them.
"""

import importlib
from typing import Any

import click

from causal_tune import __version__
from causal_tune.cli.output import errors_as_paragraphs

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "index": ("index", "Make the image index: one row an image."),
    "audit": ("audit", "Find leaks, copies, wrong labels and shortcuts in labelled images."),
    "encoders": ("encoders", "List the encoders there are."),
    "fetch": ("encoders", "Bring and verify an encoder's weights."),
    "extract": ("extract", "Encode the images of an index into the feature store."),
    "stores": ("stores", "List, merge and clear the feature stores of a workspace."),
    "tune": ("tune", "Create, continue or extend a study."),
    "sync": ("sync", "Deliver to MLflow what it lacks of a study."),
    "leaderboard": ("leaderboard", "Show the best trials of a study."),
    "finalists": ("finalists", "Train the best again on fresh seeds: winner, or tie."),
    "report": ("report", "Write a study's report: page, tables, figures."),
    "compare": ("compare", "Put several studies side by side."),
    "export": ("export", "Export a study's winner as a detector."),
    "evaluate": ("evaluate", "Judge a detector on labelled images."),
    "predict": ("predict", "Score images with a detector."),
    "serve": ("serve", "Answer over HTTP, with a page to drop images on."),
    "demo": ("demo", "Run all of it on embedded images."),
}
"""Name -> module of this package that has `<name>_command`, and the line for `--help`."""


class _Commands(click.Group):
    """Commands that are imported on use and end with a paragraph and an exit code, not a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"causal_tune.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with errors_as_paragraphs():
            return super().invoke(ctx)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with `causal-tune demo`. Exit codes: 0 done, 1 done with failures, 2 wrong usage.",
)
@click.version_option(__version__, prog_name="causal-tune")
def main() -> None:
    """Hyperparameter studies for detectors of AI-generated images on frozen CLIP features."""
