"""`audit`: what is wrong with the images of an index before anything is trained on them."""

from collections.abc import Mapping
from pathlib import Path

import click
import pyarrow as pa
from rich.text import Text

from causal_tune.atomic import write_json, write_text
from causal_tune.audit.findings import Audit, ImageRef, audit_summary
from causal_tune.audit.page import html_page
from causal_tune.audit.pictures import example_pictures
from causal_tune.audit.pixels import PixelFacts, read_all_pixels
from causal_tune.audit.run import MAX_COMPARED, MIN_COSINE, audit_index
from causal_tune.audit.words import count_rows, method_name, number_text, score_rows
from causal_tune.cli.index import labelled_images, layout_without_index_option
from causal_tune.cli.output import (
    emit,
    err,
    json_option,
    names,
    out,
    progress_bar,
    table,
    under_workspace,
    workspace_option,
    writable,
)
from causal_tune.errors import WorkFailed
from causal_tune.wording import plural, visible

__all__ = ["audit_command", "show_findings"]


@click.command(
    "audit", epilog="Example: causal-tune audit genimage.parquet --train-generator sd14 --strict -o audit"
)
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--store",
    help="The features of these images, to compare them: a name of `causal-tune stores`, or a path.",
)
@layout_without_index_option
@click.option(
    "--train-generator",
    "train_generators",
    multiple=True,
    callback=names,
    help="Generators whose images will train. [default: as the splits of the index say]",
)
@click.option("--decode", is_flag=True, help="Decode every image: finds unreadable files and near copies.")
@click.option(
    "--min-cosine",
    type=click.FloatRange(0.9, 1),
    default=MIN_COSINE,
    show_default=True,
    help="Cosine of their features from which images count as near copies.",
)
@click.option(
    "--max-compared",
    type=click.IntRange(0),
    default=MAX_COMPARED,
    show_default=True,
    help="Skip the comparison of features above this many distinct images.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 if there are findings.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    callback=writable,
    help="Folder for audit.json and audit.html.",
)
@workspace_option
@json_option
def audit_command(
    index: Path,
    store: str | None,
    layout: str | None,
    train_generators: tuple[str, ...],
    decode: bool,
    min_cosine: float,
    max_compared: int,
    strict: bool,
    output: Path | None,
    workspace: Path,
    as_json: bool,
) -> None:
    """Count the images of INDEX and look for leaks, wrong labels, copies, unreadable files and shortcuts.

    A shortcut is a property of the files, such as format or size, that separates real from generated images without
    looking at the pixels. INDEX can also be a folder or a list of images.
    """
    images = labelled_images(index, layout)
    features = None
    if store is not None:
        from causal_tune.features import FeatureStore  # imports torch, which takes seconds

        features = FeatureStore(under_workspace(workspace, "stores", store))
    audit = audit_index(
        images,
        store=features,
        pixels=_pixels(images) if decode else None,
        train_generators=train_generators,
        min_cosine=min_cosine,
        max_compared=max_compared,
    )
    document = audit.to_document(str(index))
    if output is not None:
        write_json(output / "audit.json", document)
        write_text(output / "audit.html", html_page(audit, str(index), example_pictures(audit)))

    def show() -> None:
        _show(audit)
        if output is not None:
            out.print(f"Written: {output / 'audit.html'} and audit.json", soft_wrap=True)

    emit(as_json, document, show)
    if strict and audit.num_findings:
        raise WorkFailed(
            f"The audit has {plural(audit.num_findings, 'finding')}; --strict allows none. Fix them as described, "
            "or run without --strict to continue despite them."
        )


def show_findings(audit: Audit, command: str, most: int = 4) -> None:
    """The findings of an audit on stderr in a few lines, with the command that tells all; nothing if none."""
    found = audit_summary(audit)["findings"]
    if not found:
        return
    for item in found[:most]:
        err.print(Text.assemble(("Audit: ", "bold yellow"), visible(item["what"])), soft_wrap=True)
    more = f"{plural(len(found) - most, 'more finding')}, and what" if len(found) > most else "What"
    err.print(f"  {more} to do about them: {command}", soft_wrap=True, highlight=False)


def _pixels(index: pa.Table) -> Mapping[str, PixelFacts]:
    paths = index["path"].unique().to_pylist()
    with progress_bar("Decoding", len(paths), "images") as bar:
        return read_all_pixels(paths, progress=bar.follow)


# --- the terminal ----------------------------------------------------------------------------------------


def _show(audit: Audit) -> None:
    notes = [item for item in audit.findings if item.severity == "note"]
    found = [item for item in audit.findings if item.severity == "finding"]
    out.print(
        Text(
            f"{plural(audit.num_images, 'image')}: {plural(len(found), 'finding')}, {plural(len(notes), 'note')}"
        ),
        style="bold",
    )
    for word, style, items in (("Finding", "bold red", found), ("Note", "bold yellow", notes)):
        for item in items:
            out.print(
                Text.assemble((f"\n{word}: ", style), visible(item.what)), soft_wrap=not out.is_terminal
            )
            for group in item.examples[:2]:
                out.print(Text("  " + "  =  ".join(map(_reference, group)), style="dim"), soft_wrap=True)
            out.print(Text(f"  Next: {visible(item.next_step)}"), soft_wrap=not out.is_terminal)
    out.print()
    out.print(
        table(
            "Images",
            ["generator", "split<", "class<", "format<", "images"],
            count_rows(audit),
        )
    )
    columns = ["generator", "real", "generated", *score_rows(audit.probes)[0]]
    out.print(
        table(
            "Average precision by properties of the files alone (0.50: chance, !: alarming)",
            columns,
            _probes(audit),
        )
    )
    rows = [[method_name(item), f"{item.num_compared:,}", f"{item.num_groups:,}", f"{item.num_images:,}",
             f"{item.num_leaks:,}"] for item in audit.matches]  # fmt: skip
    out.print(table("Copies", ["compared by", "contents", "groups", "images in them", "leaks"], rows))


def _probes(audit: Audit) -> list[list[str]]:
    rows = []
    for item, scores in zip(audit.probes, score_rows(audit.probes)[1], strict=True):
        values = [f"{number_text(score)}{'!' if score and score.is_alarming else ''}" for score in scores]
        rows.append([item.scope or "all", f"{item.num_real:,}", f"{item.num_generated:,}", *values])
    return rows


def _reference(item: ImageRef) -> str:
    kind = "generated" if item.label else "real"
    return visible(f"{item.path} ({item.generator}{'/' + item.split if item.split else ''}, {kind})")
