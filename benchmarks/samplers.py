"""Does a sampler find better configurations than random search, and does what it finds carry over?

    python benchmarks/samplers.py --store STORE --train-generator G --val-generators H --test-generators I,J
        [--samplers tpe] [--seeds 10] [--trials 40] [--epochs 8] [--layers proj,cls@7] [--workspace DIR] [--figure FILE]

A study for every sampler and seed, without the baselines that a space tries first: every trial is the sampler's.
After each trial the best one so far is asked for two numbers: its score by the criterion, which is what the sampler
works for, and its mean AP on the test generators, which nobody has looked at. Studies of one seed train with the same
seeds, and their first trials are the same random draws; so differences to random search are taken seed by seed.

Means over seeds with 95 % t intervals. In a workspace of your own a killed run continues.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import optuna
import ray
from matplotlib.figure import Figure

from causal_tune.intervals import Interval, mean_interval, paired_difference
from causal_tune.ledger import TrialRecord
from causal_tune.report.figures import COLOURS
from causal_tune.selection import rank
from causal_tune.study.run import run_study
from causal_tune.study.space import load_space
from causal_tune.study.spec import StudySpec, make_spec

BASELINE = "random"
QUESTIONS = ("criterion", "unseen")

Curves = dict[str, list[list[float]]]
"""For each question: of every seed, the value of the best trial after each trial."""


def curves_of(spec: StudySpec, records: Sequence[TrialRecord]) -> dict[str, list[float]]:
    """After each trial: the score of the best one so far, and its mean AP on the test generators."""
    found: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    for count in range(1, len(records) + 1):
        ranked = rank(records[:count], spec.criterion, spec.roles)
        if not ranked:  # nothing has a score yet
            continue
        leader, value = ranked[0]
        found["criterion"].append(value)
        aps = [leader.generators[name]["ap"] for name in spec.test_generators]
        found["unseen"].append(sum(aps) / len(aps))
    return found


def told(interval: Interval) -> dict[str, float]:
    """In percent; the interval of one seed is its value."""
    low, high = (interval.mean if end is None else end for end in (interval.low, interval.high))
    ends = {"mean": interval.mean, "low": low, "high": high}
    return {name: round(100 * value, 3) for name, value in ends.items()}


def after(curves: list[list[float]], trials: int) -> list[float]:
    return [curve[min(trials, len(curve)) - 1] for curve in curves]


def draw(curves: Mapping[str, Curves], criterion: str, path: Path) -> None:
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        for axes, question in zip(figure.subplots(1, 2), QUESTIONS, strict=True):
            for colour, (sampler, found) in zip(COLOURS, curves.items(), strict=False):
                length = min(map(len, found[question]))
                steps = range(1, length + 1)
                at = [told(mean_interval(after(found[question], step))) for step in steps]
                mean, low, high = ([one[name] for one in at] for name in ("mean", "low", "high"))
                axes.plot(steps, mean, color=colour, label=sampler)
                axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set_xlabel("trials")
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, loc="lower right")
        left, right = figure.axes
        left.set_ylabel(f"best so far by {criterion}, %")
        right.set_ylabel("its mean AP on unseen generators, %")
        figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--train-generator", required=True)
    parser.add_argument("--val-generators", required=True, help="comma-separated")
    parser.add_argument("--test-generators", required=True, help="comma-separated")
    parser.add_argument("--samplers", default="tpe", help=f"comma-separated; {BASELINE} is always run")
    parser.add_argument("--space", default="sd14")
    parser.add_argument("--layers", default="proj", help="comma-separated; several are searched, too")
    parser.add_argument("--epochs", type=int, help="of a trial at most [default: the space's]")
    parser.add_argument("--learning-rate", type=float, help="[default: the space's]")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--workspace", type=Path, help="[default: a temporary folder]")
    parser.add_argument("--figure", type=Path, help="where to draw the curves")
    options = parser.parse_args()

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed = {"max_epochs": options.epochs, "learning_rate": options.learning_rate}
    space = load_space(options.space)
    defaults = {**space.defaults, **{name: value for name, value in fixed.items() if value is not None}}
    space = replace(space, defaults=defaults, enqueued=())
    samplers = [BASELINE, *(name for name in options.samplers.split(",") if name != BASELINE)]
    curves: dict[str, Curves] = {sampler: {name: [] for name in QUESTIONS} for sampler in samplers}
    num_failed, criterion = 0, ""
    num_collapsed = dict.fromkeys(samplers, 0)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory(prefix="causal-tune-samplers-") as folder:
        workspace = options.workspace or Path(folder)
        for seed in range(options.seeds):
            for sampler in samplers:
                spec = make_spec(
                    workspace=workspace,
                    name=f"{sampler}-{seed}",
                    store_path=options.store,
                    space=space,
                    train_generators=[options.train_generator],
                    val_generators=options.val_generators.split(","),
                    test_generators=options.test_generators.split(","),
                    layers=options.layers.split(","),
                    sampler=sampler,
                    seed=seed,
                )
                result = run_study(spec, num_trials=options.trials, workspace=workspace)
                num_failed += result.num_failed
                num_collapsed[sampler] += sum(record.collapsed is not None for record in result.records)
                criterion = spec.criterion
                found = curves_of(spec, sorted(result.records, key=lambda record: record.number))
                for name in QUESTIONS:
                    curves[sampler][name].append(found[name])
                ends = {name: round(100 * values[-1], 2) for name, values in found.items()}
                print(f"seed {seed}, {sampler}: {ends}", file=sys.stderr, flush=True)
    ray.shutdown()

    counts = sorted({min(count, options.trials) for count in (5, 10, 20, options.trials)})
    result_of = {
        sampler: {
            f"after_{count}": {
                name: {
                    **told(mean_interval(after(found[name], count))),
                    **(
                        {
                            f"minus_{BASELINE}": told(
                                paired_difference(
                                    after(found[name], count), after(curves[BASELINE][name], count)
                                )
                            )
                        }
                        if sampler != BASELINE
                        else {}
                    ),
                }
                for name in QUESTIONS
            }
            for count in counts
        }
        for sampler, found in curves.items()
    }
    if options.figure:
        draw(curves, criterion, options.figure)
    print(
        json.dumps(
            {
                "question": "best trial so far by its criterion, and its mean AP on unseen generators, %",
                "criterion": criterion,
                "seeds": options.seeds,
                "trials": options.trials,
                "space": options.space,
                "layers": options.layers.split(","),
                "changed": {name: value for name, value in fixed.items() if value is not None},
                "num_failed": num_failed,
                "num_collapsed": num_collapsed,
                "samplers": result_of,
                "processor": platform.processor() or platform.machine(),
                "versions": {name: version(name) for name in ("optuna", "torch", "ray")},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
