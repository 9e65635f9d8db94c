"""`index`: which images there are, and the options that say which of them are taken."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from causal_tune.atomic import check_target
from causal_tune.cli.output import (
    emit,
    err,
    errors_as_paragraphs,
    json_option,
    names,
    out,
    progress_bar,
    table,
)
from causal_tune.errors import InvalidConfig
from causal_tune.images.choice import Choice
from causal_tune.images.index import counts, is_index, origin, read_index, skipped_files, write_index
from causal_tune.images.layouts import LAYOUTS, build_index
from causal_tune.wording import plural, visible

__all__ = [
    "choice_options",
    "index_command",
    "labelled_images",
    "layout_option",
    "layout_without_index_option",
    "make_index",
]


def make_index(roots: Sequence[Path | str], layout: str, path: Path, choice: Choice) -> pa.Table:
    """Index `roots` with a progress bar, write the index to `path` and tell how they were read."""
    check_target(path)
    with progress_bar("Indexing", 0, "images") as bar:
        index = build_index(roots, layout, choice=choice, progress=bar.follow)
    write_index(index, path)
    _tell_notes(index)
    if choice.describe():
        err.print(f"Chosen: {choice.describe()}.", soft_wrap=True, highlight=False)
    return index


def labelled_images(path: Path, layout: str | None) -> pa.Table:
    """The index at `path`, or one made of the folder or list there, which is not written."""
    if path.is_file() and is_index(path):
        if layout is not None:
            raise InvalidConfig(
                f"{str(path)!r} is an index already; --layout is for folders and lists. Leave --layout out."
            )
        return read_index(path)
    if layout is None and path.suffix.lower() == ".parquet" and not path.exists():
        return read_index(path)  # says how to make one
    if str(path).encode(errors="replace").decode() != str(path):
        raise InvalidConfig(
            f"The name {visible(str(path))!r} is not UTF-8, and no index can hold such paths. Rename that folder."
        )
    with progress_bar("Indexing", 0, "images") as bar:
        index = build_index([path], layout or "auto", progress=bar.follow)
    _tell_notes(index)
    return index


def _tell_notes(index: pa.Table) -> None:
    for note in origin(index)["notes"]:
        err.print(note, soft_wrap=True, highlight=False)


layout_without_index_option = click.option(
    "--layout",
    type=click.Choice(sorted(LAYOUTS)),
    help="Of a folder or list that is given instead of an index. [default: auto]",
)

layout_option = click.option(
    "--layout",
    default="auto",
    show_default=True,
    type=click.Choice(sorted(LAYOUTS)),
    help="How the images are arranged on disk.",
)


def choice_options(seed: str) -> Callable[[Any], Any]:
    """The options that say which images are taken; the command gets them as one `choice`.

    `seed` is the option that seeds the sample: jobs have a `--seed` of their own.
    """
    options = [
        click.option(
            "--include",
            multiple=True,
            metavar="GLOB",
            help="Take only images whose path below ROOT matches; `*` crosses folders. Repeatable.",
        ),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out what matches. Repeatable."),
        click.option(
            "--limit",
            type=click.IntRange(1),
            help="Take a random sample of at most N images of each generator and class.",
        ),
        click.option(
            seed,
            "sample_seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Seed of the sample that --limit takes.",
        ),
        click.option(
            "--min-side", type=click.IntRange(1), help="Leave out images whose shorter side has fewer pixels."
        ),
        click.option(
            "--max-side", type=click.IntRange(1), help="Leave out images whose longer side has more pixels."
        ),
        click.option(
            "--format",
            "formats",
            multiple=True,
            callback=names,
            help="File formats to take, by content: JPEG, PNG, ... Comma-separated. [default: all]",
        ),
        click.option(
            "--jpeg-quality",
            metavar="LOW-HIGH",
            callback=_quality,
            help="Leave out JPEGs of other qualities, such as 96 or 90-100; other formats stay.",
        ),
    ]

    def decorate(command: Any) -> Any:
        # `wraps` takes over the options that lie on the command already
        @wraps(command)
        def with_choice(*words: Any, sample_seed: int, **values: Any) -> Any:
            chosen = {name: values.pop(name) for name in _CHOSEN}
            with errors_as_paragraphs():
                choice = Choice(seed=sample_seed, **chosen)
            return command(*words, choice=choice, **values)

        decorated: Any = with_choice
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


_CHOSEN = tuple(field.name for field in fields(Choice) if field.name != "seed")


def _quality(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    low, _, high = value.partition("-")
    if not (low.isdecimal() and (high or low).isdecimal()):
        raise click.BadParameter(f"{value!r}; expected one quality, such as 96, or two, such as 90-100.")
    return int(low), int(high or low)


def counts_table(index: pa.Table) -> list[list[str]]:
    """Rows generator, split, real, generated, unreadable of an index, as text."""
    return [
        [
            row.generator,
            row.split or "-",
            f"{row.num_real:,}",
            f"{row.num_generated:,}",
            f"{row.num_unreadable:,}",
        ]
        for row in counts(index)
    ]


@click.command("index", epilog="Example: causal-tune index GenImage --limit 1000 -o genimage.parquet")
@click.argument("roots", nargs=-1, required=True)
@layout_option
@choice_options("--seed")
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The index."
)
@json_option
def index_command(roots: tuple[str, ...], layout: str, choice: Choice, output: Path, as_json: bool) -> None:
    """Make the image index (Parquet) of ROOTS: one row per image, with label, generator, split and hash.

    A root is a folder, a list of images (CSV or Parquet), or a URI of either such as s3://bucket/GenImage.
    """
    index = make_index(roots, layout, output, choice)

    def show() -> None:
        columns = ["generator", "split<", "real", "generated", "unreadable"]
        out.print(table(f"{plural(index.num_rows, 'image')} in {output}", columns, counts_table(index)))
        for what, number in skipped_files(index).items():
            out.print(f"Left out: {plural(number, 'file')} ({what}).")
        out.print(
            f"Next: causal-tune extract {shlex.quote(str(output))} --encoder vit-b-16-int8", soft_wrap=True
        )

    emit(
        as_json,
        {
            "index": str(output),
            "num_images": index.num_rows,
            **origin(index),
            "counts": [asdict(row) for row in counts(index)],
            "skipped": skipped_files(index),
        },
        show,
    )
