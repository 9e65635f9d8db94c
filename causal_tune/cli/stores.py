"""`stores`: which feature stores a workspace has, two put together, and what nothing needs any more."""

from pathlib import Path

import click

from causal_tune.cli.output import emit, json_option, out, table, under_workspace, workspace_option
from causal_tune.features.stores import Leftover, StoreSummary, leftovers, list_stores, merge_stores, remove
from causal_tune.study.spec import read_spec

__all__ = ["stores_command"]


@click.group(
    "stores",
    invoke_without_command=True,
    epilog="Example: causal-tune stores --workspace causal_tune_runs",
)
@workspace_option
@json_option
@click.pass_context
def stores_command(context: click.Context, workspace: Path, as_json: bool) -> None:
    """List the feature stores of a workspace, merge them, or remove those that no study needs."""
    if context.invoked_subcommand is None:
        found = list_stores(workspace)
        emit(as_json, {"stores": [_document(store) for store in found]}, lambda: _show(found, workspace))


def _document(store: StoreSummary) -> dict[str, object]:
    return {
        "path": str(store.path),
        "state": store.state,
        "reason": store.reason,
        "num_bytes": store.num_bytes,
        **store.description,
    }


def _show(stores: list[StoreSummary], workspace: Path) -> None:
    if not stores:
        out.print(
            f"There is no store in {workspace} yet. Make one with `causal-tune extract INDEX --encoder NAME`."
        )
        return
    rows = []
    for store in stores:
        about = store.description
        if not about:
            rows.append([store.path.name, store.state, *["-"] * 6, megabytes(store.num_bytes)])
            continue
        encoder = about["encoder"]
        layers = ", ".join(f"{layer} ({width})" for layer, width in about["layers"].items())
        made = f"{encoder['name']} {encoder['weights_sha256'][:8]}, {encoder['dtype']}"
        counts = [f"{about['num_stored']:,}", f"{about['num_quarantined']:,}"]
        views = ", ".join(about.get("views", {})) or "-"
        rows.append(
            [
                store.path.name,
                store.state,
                made,
                about["preprocessing"],
                layers,
                views,
                *counts,
                megabytes(store.num_bytes),
            ]
        )
    columns = ["store", "state<", "encoder<", "preprocessing<", "layers<", "views<"]
    out.print(table(f"Stores in {workspace / 'stores'}", [*columns, "images", "unreadable", "MB"], rows))


def megabytes(num_bytes: int) -> str:
    """In millions of bytes.

    >>> megabytes(3_160_000)
    '3.2'
    """
    return f"{num_bytes / 1e6:,.1f}"


@stores_command.command("merge", epilog="Example: causal-tune stores merge 1b2c... 9f8e...")
@click.argument("stores", nargs=-1, required=True)
@workspace_option
@json_option
def merge(stores: tuple[str, ...], workspace: Path, as_json: bool) -> None:
    """Merge STORES (names or paths) of the same encoder into one; nothing is encoded."""
    merged = merge_stores([under_workspace(workspace, "stores", name) for name in stores], workspace)
    emit(
        as_json,
        {"store": str(merged.path), "num_stored": merged.num_images},
        lambda: out.print(f"{merged.num_images:,} images. Store: {merged.path}", soft_wrap=True),
    )


@stores_command.command("gc", epilog="Example: causal-tune stores gc --delete")
@click.option("--delete", is_flag=True, help="Remove them. Without this they are only listed.")
@workspace_option
@json_option
def gc(delete: bool, workspace: Path, as_json: bool) -> None:
    """List what no study of the workspace needs: unused stores, unfinished stores, temporary files."""
    # a study that cannot be read stops this: nobody knows what it needs
    specs = [read_spec(path.parent) for path in sorted((workspace / "studies").glob("*/study.json"))]
    found = leftovers(workspace, {spec.store_fingerprint for spec in specs})
    if delete:
        for leftover in found:
            remove(leftover, workspace)
    document = {
        "deleted": delete,
        "leftovers": [
            {"path": str(item.path), "reason": item.reason, "num_bytes": item.num_bytes} for item in found
        ],
    }
    emit(as_json, document, lambda: _show_leftovers(found, delete))


def _show_leftovers(found: list[Leftover], delete: bool) -> None:
    if not found:
        out.print("Every store is used by a study, and there are no leftovers.")
        return
    rows = [[str(item.path), item.reason, megabytes(item.num_bytes)] for item in found]
    out.print(table("Removed" if delete else "Not needed", ["path", "why<", "MB"], rows))
    if not delete:
        out.print("Nothing was removed. `causal-tune stores gc --delete` removes these.")
