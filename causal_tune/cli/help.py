"""How help pages are laid out: the options of long commands in sections, what every study needs first."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["CONTEXT_SETTINGS", "SectionedCommand"]

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Of `causal-tune` and of every job."""

_SECTIONS: Mapping[str, Sequence[str]] = {
    "Images": (
        *("images", "layout", "include", "exclude", "limit", "sample_seed"),
        *("min_side", "max_side", "formats", "jpeg_quality"),
    ),
    "Study": (
        *("store", "study", "trials", "train_generators", "val_generators", "test_generators"),
        *("space", "heads", "criterion", "seed"),
    ),
    "Features": (
        *("encoder", "layers", "layer", "recompress", "small", "num_augmented", "degrade", "dtype"),
        *("runtime", "batch_size", "num_actors", "gpus_per_actor"),
    ),
    "Search": ("sampler", "pruner", "grace_steps", "objectives"),
    "Machine": ("max_concurrent", "threads_per_trial", "gpus_per_trial", "address"),
    "Output": ("workspace", "tracking_uri", "as_json"),
}
"""Names of parameters by section, in the order in which people need them."""


class SectionedCommand(click.Command):
    """A command whose help shows its options in sections; `-h` asks for it, in a job too."""

    def __init__(self, *words: Any, **settings: Any) -> None:
        super().__init__(*words, **{"context_settings": CONTEXT_SETTINGS, **settings})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections that this command has options of, and what is in none of them."""
        records = {one.name: record for one in self.get_params(ctx) if (record := one.get_help_record(ctx))}
        for title, names in _SECTIONS.items():
            if rows := [records.pop(name) for name in names if name in records]:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if records:
            with formatter.section("Other options"):
                formatter.write_dl(list(records.values()))
