"""`demo`: the main job on the images that the package makes itself."""

from pathlib import Path

import click

from causal_tune.cli.encoding import Encoding
from causal_tune.cli.job import run_job
from causal_tune.cli.output import err, json_option, names, workspace_option
from causal_tune.demo.images import DISCLAIMER, TEST_GENERATORS, TRAIN_GENERATOR, VAL_GENERATORS, make_images
from causal_tune.study.space import load_space

__all__ = ["demo_command"]


@click.command("demo", epilog="Example: causal-tune demo --trials 12")
@click.option("--encoder", default="vit-b-16-int8", show_default=True)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    default=("cls@4", "cls@3", "cls@2"),
    show_default=True,
    callback=names,
    help="Feature layers to search, comma-separated. The blocks of the encoder behind them are not computed.",
)
@click.option("--trials", type=click.IntRange(1), default=12, show_default=True)
@workspace_option
@json_option
def demo_command(encoder: str, layers: tuple[str, ...], trials: int, workspace: Path, as_json: bool) -> None:
    """Index, encode, tune, compare and export on embedded photographs and six tiny generators."""
    err.print(DISCLAIMER)
    csv = make_images(workspace / "demo" / "images")
    space = load_space("demo")
    run_job(
        images=(csv,),
        layout="csv",
        encoding=Encoding(encoder=encoder, layers=layers),
        workspace=workspace,
        as_json=as_json,
        study="demo",
        trials=trials,
        space=space,
        address=None,
        train_generators=(TRAIN_GENERATOR,),
        val_generators=VAL_GENERATORS,
        test_generators=TEST_GENERATORS,
        criterion="val_generators_uncollapsed",
        next_steps={"your own images": "python jobs/tune_sd14.py --help"},
    )
