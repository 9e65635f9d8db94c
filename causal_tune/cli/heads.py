"""Every head under one protocol: a study for each on one store, and one table."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from causal_tune.cli.encoding import Encoding
from causal_tune.cli.ending import Ending
from causal_tune.cli.help import SectionedCommand
from causal_tune.cli.job import encode_images, image_options, roles_of
from causal_tune.cli.output import (
    emit,
    err,
    errors_as_paragraphs,
    json_option,
    names,
    out,
    percent,
    table,
    workspace_option,
    workspace_words,
)
from causal_tune.cli.tune import run_tune, study_options
from causal_tune.errors import Interrupted, InvalidConfig, WorkFailed
from causal_tune.heads import HEADS
from causal_tune.images.choice import Choice
from causal_tune.registry import look_up
from causal_tune.selection import rank
from causal_tune.study.checks import check_roles
from causal_tune.study.run import StudyResult
from causal_tune.study.space import SearchSpace, load_space
from causal_tune.study.spec import study_path, study_space

__all__ = ["heads_job", "summarise"]

_SPACE_OF = {"causal": "sd14"}
"""Search space of a head, where it is not called like the head."""


def _space(head: str, layer: str, workspace: Path, study: str) -> SearchSpace:
    """What `study` searches on one layer; a new one the head's search space without the baselines of other heads:
    those have rows of their own."""
    space = load_space(_SPACE_OF.get(head, head))
    own = replace(space, enqueued=tuple(one for one in space.enqueued if one.get("head", head) == head))
    found = study_space(workspace, study, own)
    return replace(found, defaults={**found.defaults, "head": head, "layer": layer})


def summarise(result: StudyResult) -> dict[str, Any]:
    """What a study of one head came to: its winner on every generator, and what it cost."""
    spec, records = result.spec, result.records
    ranked = rank(records, spec.criterion, spec.roles)
    finished = [record for record in records if record.finished]
    spans = [(record.ended_at - record.timings.get("trial_s", 0.0), record.ended_at) for record in finished]
    summary: dict[str, Any] = {
        "study": str(result.path),
        "num_trials": len(records),
        "num_failed": result.num_failed,
        "num_collapsed": sum(record.collapsed is not None for record in records),
        "seed": spec.seed,
        # from the ledger, so that a continued study tells the same
        "trial_s": sum(end - begin for begin, end in spans),
        "wall_s": max((end for _, end in spans), default=0.0)
        - min((begin for begin, _ in spans), default=0.0),
    }
    if not ranked:
        return summary
    winner, value = ranked[0]
    return {
        **summary,
        "winner": winner.id,
        "winner_seed": winner.seed,
        "criterion": spec.criterion,
        "value": value,
        "threshold": winner.threshold,
        "validation": winner.validation,
        "generators": {name: winner.generators[name] for name in winner.generators},
        "config": winner.config,
    }


def _mean(summary: Mapping[str, Any], generators: tuple[str, ...], key: str) -> float | None:
    """Over the generators with images of both classes: those of one have no AP."""
    judged = [summary["generators"][name] for name in generators]
    present = [
        metrics[key] for metrics in judged if metrics.get("ap") is not None and metrics.get(key) is not None
    ]
    return math.fsum(present) / len(present) if present else None


def _one_class(summaries: Mapping[str, Mapping[str, Any]], tests: tuple[str, ...]) -> list[str]:
    chosen = [summary["generators"] for summary in summaries.values() if "winner" in summary]
    return [name for name in tests if any(generators[name].get("ap") is None for generators in chosen)]


def heads_table(summaries: Mapping[str, Mapping[str, Any]], tests: tuple[str, ...]) -> list[list[str]]:
    """One row a head: the criterion, each test generator's AP and accuracies, and their means."""
    rows = []
    for head, summary in summaries.items():
        cost = [
            f"{summary['num_failed']}",
            f"{summary['num_collapsed']}",
            f"{summary['trial_s']:.0f}",
            f"{summary['wall_s']:.0f}",
        ]
        if "winner" not in summary:
            rows.append([head, "no trial can be chosen", *["-"] * (3 + len(tests)), *cost])
            continue
        rows.append(
            [
                head,
                percent(summary["value"]),
                *(percent(summary["generators"][name]["ap"]) for name in tests),
                percent(_mean(summary, tests, "ap")),
                percent(_mean(summary, tests, "accuracy")),
                percent(_mean(summary, tests, "accuracy_val_threshold")),
                *cost,
            ]
        )
    return rows


def heads_job(*, name: str, question: str, encoder: str) -> click.Command:
    """The command of a job that compares heads."""

    @click.command(
        name,
        cls=SectionedCommand,
        help=question,
        epilog=f"Example: python jobs/{name} --images GenImage --layout genimage --train-generator sd14 "
        "--val-generators glide --trials 20 --study heads",
    )
    @click.option(
        "--heads",
        multiple=True,
        default=tuple(HEADS),
        show_default=True,
        callback=names,
        help="Comma-separated.",
    )
    @click.option("--layer", help="The feature layer that all heads read. [default: the first of --layers]")
    @image_options(encoder)
    @study_options
    @workspace_option
    @json_option
    def command(
        *,
        heads: tuple[str, ...],
        layer: str | None,
        images: tuple[str, ...],
        layout: str,
        choice: Choice,
        encoding: Encoding,
        study: str,
        space: str | None,
        workspace: Path,
        as_json: bool,
        **options: Any,
    ) -> None:
        with errors_as_paragraphs():
            if space:
                raise InvalidConfig("Each head has a search space of its own here: leave --space out.")
            chosen = layer or encoding.layers[0]
            if chosen not in encoding.layers:
                raise InvalidConfig(
                    f"--layer {chosen} is not among --layers {','.join(encoding.layers)}; name it there too."
                )
            for head in heads:
                look_up("head", HEADS, head)
            study_path(workspace, study)
            done = encode_images(
                images=images,
                layout=layout,
                choice=choice,
                index_path=workspace / "index" / f"{study}.parquet",
                encoding=encoding,
                workspace=workspace,
                address=options["address"],
                train_generators=options["train_generators"],
                check=lambda known: check_roles(roles_of(options), known, "the index"),
            )
            summaries: dict[str, dict[str, Any]] = {}
            tests: tuple[str, ...] = ()
            ending = Ending()
            stopped: Interrupted | WorkFailed | None = None
            for head in heads:
                again = f"causal-tune leaderboard {study}-{head}{workspace_words(workspace)}"
                try:
                    result, _ = run_tune(
                        workspace=workspace,
                        store=done.store.path,
                        study=f"{study}-{head}",
                        space=_space(head, chosen, workspace, f"{study}-{head}"),
                        **options,
                    )
                except (
                    Interrupted,
                    WorkFailed,
                ) as error:  # stopped, or no room: that ends the others too, and is told last
                    stopped = error
                    break
                except Exception as error:
                    if not summaries:  # before any study: wrong usage
                        raise
                    ending.failed(f"The head {head} has no row", again, error)
                    continue
                summary = ending.step(f"The head {head} has no row", again, partial(summarise, result))
                if summary is not None:
                    summaries[head] = summary
                tests = result.spec.test_generators
                ending.add(result.undelivered)
                for record in result.records:
                    if not record.finished:
                        err.print(f"{head}: trial {record.number} failed: {record.reason}")

            def show() -> None:
                columns = [
                    "head",
                    "chosen by",
                    *(f"{name} AP" for name in tests),
                    "AP",
                    "acc. 0.5",
                    "acc. val",
                ]
                columns += ["failed", "collapsed", "trials s", "wall s"]
                title = f"{len(summaries)} heads, {options['trials']} trials each, layer {chosen}"
                out.print(table(title, columns, heads_table(summaries, tests)))
                out.print(
                    "Percent; AP and accuracies are means over the test generators. acc. 0.5: at probability 0.5; "
                    f"acc. val: at the threshold of the validation split. Seed {options['seed']}, one each: "
                    "differences of a few points are noise."
                )
                if absent := _one_class(summaries, tests):
                    out.print(
                        f"The means are over {len(tests) - len(absent)} of {len(tests)} test generators: "
                        f"{', '.join(absent)} left out, images of one class only.",
                    )

            num_failed = sum(summary["num_failed"] for summary in summaries.values())
            if num_failed:
                ending.add(f"{num_failed} trials failed; the others stand. Their reasons are above.")
            document = {"heads": summaries, "test_generators": list(tests), "problems": ending.problems}
            if summaries:
                emit(as_json, document, show)
            if stopped:
                raise stopped
            ending.close()

    return command
