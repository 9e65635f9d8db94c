"""`encoders` and `fetch`: what images can be encoded by, and the weights that this takes."""

import click

from causal_tune.cli.output import emit, err, json_option, out, table
from causal_tune.encoders import ENCODERS
from causal_tune.weights import fetch, is_fetched

__all__ = ["encoders_command", "fetch_command"]


@click.command("encoders", epilog="Example: causal-tune encoders")
@json_option
def encoders_command(as_json: bool) -> None:
    """List the encoders: names of the table, and how to name others."""
    rows = [
        {
            "name": name,
            "architecture": encoder.architecture,
            "source": encoder.source,
            "fetched": is_fetched(name),
        }
        for name, encoder in ENCODERS.items()
    ]

    def show() -> None:
        text = [
            [name, encoder.architecture or "", encoder.source, "yes" if is_fetched(name) else "no"]
            for name, encoder in ENCODERS.items()
        ]
        out.print(table("Encoders", ["name", "architecture<", "weights<", "fetched<"], text))
        out.print("Also: MODEL:TAG of open_clip, or the path of a .safetensors or .pt file of weights.")

    emit(as_json, {"encoders": rows}, show)


@click.command("fetch", epilog="Example: causal-tune fetch vit-b-16-int8")
@click.argument("encoder")
@json_option
def fetch_command(encoder: str, as_json: bool) -> None:
    """Bring the weights of ENCODER, verify them by hash and convert them once."""
    path = fetch(encoder, progress=lambda step: err.print(step, soft_wrap=not err.is_terminal))
    emit(
        as_json,
        {"encoder": encoder, "weights": str(path)},
        lambda: out.print(f"{encoder}: {path}", soft_wrap=True),
    )
