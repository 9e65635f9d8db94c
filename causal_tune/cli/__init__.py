"""The command line: `causal-tune`.

A command's module is imported when the command is run: torch, Ray and MLflow take seconds each, and
`--help` should not wait for them.
"""

import importlib
from difflib import get_close_matches
from typing import Any

import click

from causal_tune import __version__
from causal_tune.cli.help import CONTEXT_SETTINGS
from causal_tune.cli.output import errors_as_paragraphs

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "index": ("index", "Make the image index: one row per image."),
    "audit": ("audit", "Find leaks, copies, wrong labels and shortcuts in labelled images."),
    "encoders": ("encoders", "List the encoders."),
    "fetch": ("encoders", "Fetch and verify an encoder's weights."),
    "extract": ("extract", "Encode the images of an index into the feature store."),
    "stores": ("stores", "List, merge or clean up the feature stores of a workspace."),
    "tune": ("tune", "Create, continue or extend a study."),
    "sync": ("sync", "Send to MLflow what it lacks of a study."),
    "studies": ("studies", "List the studies of a workspace."),
    "leaderboard": ("leaderboard", "Show the best trials of a study."),
    "finalists": ("finalists", "Train the best again on fresh seeds: a winner or a tie."),
    "report": ("report", "Write a study's report: page, tables, figures."),
    "compare": ("compare", "Compare several studies side by side."),
    "export": ("export", "Export a study's winner as a detector."),
    "evaluate": ("evaluate", "Evaluate a detector on labelled images."),
    "predict": ("predict", "Score images with a detector."),
    "serve": ("serve", "Serve a detector over HTTP, with a page to drop images on."),
    "demo": ("demo", "Run the whole pipeline on embedded images."),
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is typed first; for a name that there is not, an error with those that are near."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            close = get_close_matches(args[0], COMMANDS)
            near = f"Did you mean {' or '.join(close)}? " if close else ""
            ctx.fail(f"There is no command {args[0]!r}. {near}`causal-tune --help` lists the commands.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with errors_as_paragraphs():
            return super().invoke(ctx)


@click.group(
    cls=_Commands,
    context_settings=CONTEXT_SETTINGS,
    epilog="Begin with `causal-tune demo`. Exit codes: 0 done, 1 done with findings or failures, 2 wrong usage, "
    "130 interrupted.",
)
@click.version_option(__version__, prog_name="causal-tune")
def main() -> None:
    """Hyperparameter studies for detectors of AI-generated images on frozen CLIP features."""
