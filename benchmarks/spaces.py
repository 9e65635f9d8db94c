"""How many masks of the causal head collapse where in a search space, and what does that cost on unseen generators?

    python benchmarks/spaces.py --store STORE --train-generator G --val-generators H,I --test-generators J,K
        [--layers proj,cls@7] [--points 12] [--ranges lambda1=3e-5..1e-3,lambda2=0.1..10]... [--output FILE]

Every variant of the ranges of `WIDE` is tried at the same points of the unit cube (Sobol's, scrambled by seed 0), with
the same layer and seed at each; so differences to the first variant are taken point by point. A field with one value,
`adversary_loss=clamped`, is fixed. Trials are those of a study without Ray, one after the other. FILE has one JSON
document a line for each trial, and a killed run continues from it.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc

from causal_tune.features import StudyData, load_study_data
from causal_tune.intervals import mean_interval, paired_difference
from causal_tune.training import train
from causal_tune.trial import TrialConfig

WIDE = {
    "lambda1": (1e-5, 1e-2),
    "lambda2": (1e-1, 1e3),
    "alpha": (1e-2, 1.0),
    "beta": (1e-2, 1e1),
    "tau": (0.1, 2.0),
    "p": (0.05, 0.5),
    "learning_rate": (1e-4, 1e-4),
}
"""The ranges of `sd14` until these figures, all but p logarithmic."""


def configuration(ranges: str, point: np.ndarray) -> dict[str, Any]:
    """What a point of the unit cube is in `WIDE` with some ranges or values changed."""
    bounds: dict[str, tuple[float, float]] = dict(WIDE)
    fixed: dict[str, Any] = {}
    for item in filter(None, ranges.split(",")):
        name, _, value = item.partition("=")
        if ".." in value:
            low, _, high = value.partition("..")
            bounds[name] = float(low), float(high)
        else:
            fixed[name] = value
    values: dict[str, Any] = {}
    for (name, (low, high)), share in zip(bounds.items(), point, strict=True):
        values[name] = low + share * (high - low) if name == "p" else low * (high / low) ** share
    return {name: float(value) for name, value in values.items()} | fixed


def trial(config: TrialConfig, data: StudyData, tests: list[str]) -> dict[str, Any]:
    result = train(config, data)
    aps = {name: metrics["ap"] for name, metrics in result.generators.items()}
    return {
        "collapsed": result.collapsed,
        "val": math.fsum(aps[name] for name in data.val_generators) / len(data.val_generators),
        "unseen": math.fsum(aps[name] for name in tests) / len(tests),
        "best_epoch": result.best_epoch,
        "mask_mean": result.mask["mean"] if result.mask else None,
    }


def summary(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each variant, in percent, and its unseen AP less the first variant's with its 95 % t interval."""
    first, rows = next(iter(found.values())), []
    for name, trials in found.items():
        best = max(trials, key=lambda one: float(one["val"]))
        unseen = [100 * one["unseen"] for one in trials]
        less = paired_difference(unseen, [100 * one["unseen"] for one in first])
        rows.append(
            {
                "ranges": name or "wide",
                "trials": len(trials),
                "collapsed": sum(one["collapsed"] is not None for one in trials),
                "kept_by_epoch_3": sum(one["best_epoch"] <= 3 for one in trials),
                "mean_val": round(100 * float(np.mean([one["val"] for one in trials])), 1),
                "mean_unseen": round(mean_interval(unseen).mean, 1),
                "unseen_less_first": [
                    None if one is None else round(one, 1) for one in (less.mean, less.low, less.high)
                ],
                "best_val": round(100 * best["val"], 1),
                "its_unseen": round(100 * best["unseen"], 1),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("--store", "--train-generator", "--val-generators", "--test-generators"):
        parser.add_argument(name, required=True)
    parser.add_argument("--layers", default="proj,cls@7")
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--ranges", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("spaces.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layers, tests = options.layers.split(","), options.test_generators.split(",")
    sets = {
        layer: load_study_data(
            options.store,
            train_generators=[options.train_generator],
            val_generators=options.val_generators.split(","),
            test_generators=tests,
            layer=layer,
        )
        for layer in layers
    }
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    done = {(one["ranges"], one["point"]): one for one in map(json.loads, lines)}
    points = qmc.Sobol(len(WIDE) + 1, seed=0).random(128)[: options.points]
    found: dict[str, list[dict[str, Any]]] = {ranges: [] for ranges in ("", *options.ranges)}
    for number, point in enumerate(points):
        layer = layers[int(point[-1] * len(layers))]
        for ranges, trials in found.items():
            if (ranges, number) not in done:
                config = TrialConfig(**configuration(ranges, point[:-1]), layer=layer, seed=1000 + number)
                one = {"ranges": ranges, "point": number, **trial(config, sets[layer], tests)}
                with options.output.open("a") as file:
                    file.write(json.dumps({**one, "config": config.to_dict()}) + "\n")
                done[ranges, number] = one
            trials.append(done[ranges, number])
    print(json.dumps(summary(found), indent=2))


if __name__ == "__main__":
    main()
