"""`finalists`: the best configurations of a study, again on fresh seeds, with intervals and a verdict."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from causal_tune.atomic import write_json
from causal_tune.cli.ending import Ending
from causal_tune.cli.output import (
    Bar,
    emit,
    json_option,
    out,
    percent,
    progress_bar,
    table,
    under_workspace,
    workspace_option,
    workspace_words,
)
from causal_tune.cli.reports import study_figures
from causal_tune.cli.tracking import study_tracker, tracking_option
from causal_tune.cli.tune import run_tune
from causal_tune.errors import StudyError
from causal_tune.ledger import Ledger
from causal_tune.selection import rank
from causal_tune.study.finalists import (
    FINALISTS,
    MAX_SEEDS,
    NO_SHARES,
    PROBE,
    TERMS,
    Candidate,
    Trained,
    ahead_collapsed,
    candidates_of,
    compare,
    compare_terms,
    gain_over_probe,
    probe_space,
    repeat_space,
    terms_of,
)
from causal_tune.study.run import StudyResult
from causal_tune.study.space import SearchSpace
from causal_tune.study.spec import StudySpec, read_spec

__all__ = ["finalists_command", "run_finalists", "show_finalists"]


def run_finalists(
    study_path: Path,
    *,
    workspace: Path,
    top: int,
    num_seeds: int,
    with_terms: bool,
    ending: Ending,
    bar: Bar,
    **running: Any,
) -> dict[str, Any]:
    """Train the finalists, the probe and the winner's arms, and write `finalists.json`; its content.

    `ending` is told what failed after the verdict stood, and what MLflow did not get.

    Each stage is a study of its own beside the search (`<study>.probe`, `<study>.finalists-<digest>`,
    `<study>.terms-<digest>`), so what is killed is continued, and what is there is not trained again. `running` are
    `tracking_uri`, `address` and `max_concurrent`.
    """
    spec = read_spec(study_path)
    records = Ledger(study_path / "trials").records()
    candidates = candidates_of(spec, records, top)
    collapsed = ahead_collapsed(spec, records, candidates)
    num_repeats = (len(candidates) + 1) * num_seeds
    # those of the terms are known for sure when the best is known
    num_arms = len(terms_of(candidates[0], _default_layer(spec))) * num_seeds if with_terms else 0
    num_stages = 3 if num_arms else 2

    def study(kind: str, space: SearchSpace, trials: int, begin: int, number: int) -> StudyResult:
        bar.resize(max(begin + trials, len(records) + num_repeats + num_arms))
        result, _ = run_tune(
            workspace=workspace,
            store=Path(spec.store_path),
            study=f"{spec.name}.{kind}",
            space=space,
            trials=trials,
            train_generators=spec.train_generators,
            val_generators=spec.val_generators,
            test_generators=spec.test_generators,
            criterion=spec.criterion,
            seed=spec.seed,
            figures=False,  # the report of the study that they belong to has them
            bar=bar.part(f"stage {number} of {num_stages}", begin),
            **running,
        )
        ending.add(result.undelivered)
        return result

    probe = study(PROBE, probe_space(spec), len(records), 0, 1)
    ranked = rank(probe.records, spec.criterion, spec.roles)
    if not ranked:
        raise StudyError(
            f"No trial of {probe.spec.name} can be chosen by {spec.criterion!r}: there is no probe."
        )
    candidates.append(Candidate(PROBE, ranked[0][0].config, ranked[0][1]))

    again = study(
        f"finalists-{_digest(candidates)}",
        repeat_space("finalists", candidates, spec.seed),
        len(candidates) * num_seeds,
        len(records),
        2,
    )
    document, trained = compare(
        spec,
        candidates,
        repeats=(again.path, again.spec, again.records),
        probe={"study": probe.spec.name, "trials": len(probe.records), "search_trials": len(records)},
    )
    document["terms"] = []
    document["ahead_collapsed"] = collapsed
    best = max(
        (one for one in trained if one.candidate.name != PROBE and not one.always_collapsed),
        key=lambda one: sum(one.values.values()),
        default=None,
    )
    words = ["causal-tune", "finalists", spec.name, "--top", str(top), "--seeds", str(num_seeds)]
    document["command"] = shlex.join(words + ([] if with_terms else ["--no-terms"]))
    write_json(study_path / FINALISTS, document)  # the verdict does not wait for the terms
    terms = terms_of(best.candidate, _default_layer(spec)) if best and with_terms else []
    if best and terms:

        def measure_terms(best: Trained = best) -> list[dict[str, Any]]:
            arms = study(
                f"terms-{_digest([best.candidate, *terms])}",
                repeat_space("terms", terms, spec.seed),
                len(terms) * num_seeds,
                len(records) + num_repeats,
                3,
            )
            gain = gain_over_probe(document, best.candidate.name)
            return compare_terms(spec, best, terms, repeats=(arms.path, arms.spec, arms.records), gain=gain)

        again = document["command"] + workspace_words(workspace)
        document["terms"] = ending.step("The terms were not measured", again, measure_terms) or []
        document["terms_of"] = best.candidate.name
        write_json(study_path / FINALISTS, document)
    return document


def _digest(candidates: Sequence[Candidate]) -> str:
    """Of which configurations they are: a search that was extended has other finalists, in another study."""
    return hashlib.sha256(json.dumps(sorted(one.key for one in candidates)).encode()).hexdigest()[:6]


def _default_layer(spec: StudySpec) -> str:
    return str(spec.search_space().defaults.get("layer", "proj"))


def show_finalists(document: Mapping[str, Any], tests: Sequence[str]) -> None:
    """The verdict, the finalists with their intervals, the paired comparisons, and what each term brings."""
    rows = [*document["finalists"], *([document["probe"]] if document["probe"] else [])]
    place = {row["name"]: number for number, row in enumerate(rows, start=1)}

    def label(name: str) -> str:
        return name if name == PROBE else f"#{place.get(name, '?')}"

    lines = []
    for row in rows:
        config = row["config"]
        lines.append(
            [
                label(row["name"]),
                row["name"] if row["name"] != PROBE else "tuned linear probe",
                config["head"],
                config["layer"],
                percent(row["search_score"]),
                percent(row["mean"]),
                _span(row["interval"] or _ends(row["over_seeds"])),
                *([_mean_cell(row["test_mean"])] if tests else []),
                str(row["num_collapsed"]),
            ]
        )
    columns = ["", "configuration<", "head<", "layer<", "in the search*", document["criterion"], "95 %"]
    columns += [*(["mean test AP**"] if tests else []), "collapsed"]
    out.print(
        table(f"Finalists of {document['study']}, {len(document['seeds'])} fresh seeds", columns, lines)
    )
    pairs = [
        [
            f"{label(pair['a'])} - {label(pair['b'])}",
            f"{100 * pair['difference']:+.2f}",
            _span(pair["interval"], signed=True),
            "-" if pair["p"] is None else f"{pair['p']:.3f}",
            pair["covers"],
        ]
        for pair in document["paired"]
    ]
    if pairs:
        level = f"{100 * document['paired'][0]['level']:.1f} %"
        out.print(table("Differences, paired", ["pair", "points", level, "p", "covers<"], pairs))
    if document["terms"]:
        has_gain = gain_over_probe(document, document["terms_of"]) is not None
        terms = [
            [
                row["term"],
                TERMS[row["term"]][0],
                "failed" if "failed" in row else f"{100 * row['difference']:+.2f}",
                "-" if "failed" in row else _span(row["interval"], signed=True),
                *(["-" if row.get("share") is None else f"{100 * row['share']:.0f} %"] if has_gain else []),
                *([_mean_cell(row.get("test_difference"), signed=True)] if tests else []),
            ]
            for row in document["terms"]
        ]
        columns = [
            "term",
            "switched off<",
            "gain",
            "95 %",
            *(["of the gain over the probe"] if has_gain else []),
        ]
        columns += ["in test AP**"] if tests else []
        out.print(table(f"Gain from each term of {label(document['terms_of'])}", columns, terms))
        if not has_gain:
            out.print(NO_SHARES)
    out.print("Percent. * optimistic: used to choose them. ** reported only: test generators never choose.")
    one_class = [name for name in tests if all(row["test"][name]["mean"] is None for row in rows)]
    if one_class:
        out.print(
            f"Mean test AP leaves out {', '.join(one_class)}: images of one class only, so AP is undefined.",
        )
    for name in document["failed"]:
        out.print(f"{name} finished no trial.")
    if document.get("ahead_collapsed"):  # not in files of earlier releases
        out.print(
            f"No finalists, though ahead in the search: {', '.join(document['ahead_collapsed'])}. Their masks have "
            "collapsed.",
        )
    verdict = document["verdict"]
    out.print(("Winner: " if verdict["winner"] else "Verdict: ") + verdict["reason"])


def _ends(interval: Mapping[str, Any]) -> list[float] | None:
    return None if interval["low"] is None else [interval["low"], interval["high"]]


def _span(interval: Sequence[float] | None, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    low, high = (100 * value for value in interval)
    return f"{low:+.2f} .. {high:+.2f}" if signed else f"{low:.2f} .. {high:.2f}"


def _mean_cell(interval: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    mean = f"{100 * interval['mean']:+.2f}" if signed else percent(interval["mean"])
    half = interval["high"]
    return mean if half is None else f"{mean} ± {100 * (half - interval['mean']):.2f}"


@click.command("finalists", epilog="Example: causal-tune finalists real --top 3 --seeds 5")
@click.argument("study")
@click.option(
    "--top", type=click.IntRange(1, 20), default=3, show_default=True, help="Configurations of the search."
)
@click.option(
    "--seeds",
    "num_seeds",
    type=click.IntRange(1, MAX_SEEDS),
    default=5,
    show_default=True,
    help="Trainings of each.",
)
@click.option(
    "--terms/--no-terms",
    "with_terms",
    default=True,
    show_default=True,
    help="Whether each term of the best is also switched off alone.",
)
@click.option("--max-concurrent", type=click.IntRange(1), help="Trials at a time. [default: the CPUs]")
@tracking_option
@click.option("--address", help="A Ray cluster. [default: $RAY_ADDRESS, or a local Ray]")
@workspace_option
@json_option
def finalists_command(
    study: str,
    top: int,
    num_seeds: int,
    with_terms: bool,
    workspace: Path,
    as_json: bool,
    **running: Any,
) -> None:
    """Train the best configurations of STUDY again on fresh seeds, beside a tuned linear probe: winner or tie."""
    path = under_workspace(workspace, "studies", study)
    spec = read_spec(path)
    ending = Ending()
    with progress_bar(f"Finalists of {spec.name}", 0, "trainings") as bar:
        document = run_finalists(
            path,
            workspace=workspace,
            top=top,
            num_seeds=num_seeds,
            with_terms=with_terms,
            ending=ending,
            bar=bar,
            **running,
        )

    def show() -> None:
        show_finalists(document, spec.test_generators)
        out.print(f"Written: {path / FINALISTS}", soft_wrap=True)
        out.print(f"Next: causal-tune export {spec.name}{workspace_words(workspace)}", soft_wrap=True)

    emit(as_json, document, show)
    tracker = study_tracker(
        path, spec, workspace, running["tracking_uri"], draw=partial(study_figures, path, failed=ending.add)
    )
    ending.step(
        f"MLflow does not show the verdict on the page of {spec.name}",
        f"causal-tune sync {spec.name}{workspace_words(workspace)}",
        partial(tracker.deliver, Ledger(path / "trials").records()),
    )
    if document["failed"]:
        ending.add(
            f"{len(document['failed'])} of the finalists finished no trial; the reasons are in the ledger of "
            f"{document['study_of_finalists']}."
        )
    ending.close()
