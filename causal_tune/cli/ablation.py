"""The ablation of the paper's Table 5: four arms on paired seeds, as one study."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from causal_tune.cli.encoding import Encoding
from causal_tune.cli.ending import Ending
from causal_tune.cli.help import SectionedCommand
from causal_tune.cli.job import encode_images, image_options
from causal_tune.cli.leaderboard import leaderboard_rows, show_leaderboard
from causal_tune.cli.output import (
    emit,
    err,
    errors_as_paragraphs,
    json_option,
    names,
    out,
    table,
    under_workspace,
    workspace_option,
)
from causal_tune.cli.tune import run_tune, study_options
from causal_tune.errors import InvalidConfig, StudyError
from causal_tune.images.choice import Choice
from causal_tune.intervals import Interval
from causal_tune.ledger import Ledger
from causal_tune.report.ablation import (
    ARMS,
    BASELINE,
    PAPER,
    PAPER_NOTE,
    Averages,
    ablation_tables,
    arm_of,
    averages,
    generator_rows,
    summarise,
)
from causal_tune.selection import best, rank
from causal_tune.study.checks import check_roles
from causal_tune.study.space import SearchSpace, load_space
from causal_tune.study.spec import StudySpec, read_spec, study_path
from causal_tune.study.suggestion import trial_seed
from causal_tune.trial import TrialConfig, completed

__all__ = ["ablation_job", "ablation_space", "check_generators", "settings_of"]

MAX_SEEDS = 100
"""Seeds that a study is frozen with, so that it can be extended; each costs nothing until it is asked for."""

HYPERPARAMETERS = ("lambda1", "lambda2", "alpha", "beta", "tau", "p")
_SHOWN = ("layer", *HYPERPARAMETERS, "learning_rate")

# --- the arms --------------------------------------------------------------------------------------------


def ablation_space(space: SearchSpace, *, settings: Mapping[str, Any], seed: int) -> SearchSpace:
    """The four arms of `space`, over `settings` (its defaults where there are none), once for each seed.

    Nothing is searched. The same `seed` gives the same list; all arms of one seed come one after another, so
    that a study which is extended or interrupted holds whole pairs. `InvalidConfig` where the space's ENQUEUED
    are not the arms.
    """
    plain = space.fixed(**settings)
    base = _default_config(plain)
    found = [arm_of({**base, **entry}) for entry in plain.enqueued]
    if sorted(found) != sorted(ARMS):
        raise InvalidConfig(
            f"The ENQUEUED of the search space {space.name!r} are {', '.join(found) or 'empty'}; an ablation "
            f"needs each of {', '.join(ARMS)} once. Copy search_spaces/ablation.py and change its DEFAULTS only."
        )
    in_order = sorted(plain.enqueued, key=lambda entry: list(ARMS).index(arm_of({**base, **entry})))
    seeds = [trial_seed(seed, number) for number in range(MAX_SEEDS)]
    return replace(plain, enqueued=tuple({**entry, "seed": value} for value in seeds for entry in in_order))


def _default_config(space: SearchSpace) -> dict[str, Any]:
    """Every field of the default configuration."""
    return TrialConfig.from_dict({**space.defaults, "seed": 0}).to_dict()


def settings_of(path: Path) -> tuple[dict[str, Any], StudySpec, str]:
    """The settings of the winner of the study in `path`, that study, and what was taken, in words.

    The winner is the best trial with both modules, by the study's own criterion: the settings of a probe say
    nothing about the method. `StudyError` where there is none.
    """
    spec = read_spec(path)
    records = Ledger(path / "trials").records()
    winner = best(records, spec.criterion, spec.roles)
    note = f"Settings of the winner {winner.id} of the study {spec.name!r} by {spec.criterion}"
    if arm_of(winner.config) != "both":
        whole = [
            item for item, _ in rank(records, spec.criterion, spec.roles) if arm_of(item.config) == "both"
        ]
        if not whole:
            raise StudyError(
                f"No trial of the study {spec.name!r} that can be chosen has both modules (a causal head with a "
                "mask, beta and p above 0), so it has no settings for this ablation. Extend it with more "
                "--trials, or leave --like out."
            )
        note = (
            f"Settings of {whole[0].id} of the study {spec.name!r}, the best by {spec.criterion} that has both "
            f"modules (the winner {winner.id} lacks one)"
        )
        winner = whole[0]
    settings = {key: value for key, value in completed(winner.config).items() if key not in ("seed", "head")}
    return settings, spec, note


# --- what they come to -----------------------------------------------------------------------------------


def _plain_values(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The summary for JSON: intervals as objects."""

    def plain(value: Any) -> Any:
        if isinstance(value, Interval):
            return {"mean": value.mean, "low": value.low, "high": value.high, "num": value.num}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return value

    return {arm: {**plain(values), "paper": dict(PAPER[arm])} for arm, values in summary.items()}


# --- what people see -------------------------------------------------------------------------------------


def _show(
    summary: Mapping[str, Mapping[str, Any]], over: Averages, spec: StudySpec, settings_note: str
) -> None:
    for number, (columns, rows) in enumerate(ablation_tables(summary, over, width=out.width)):
        out.print(table("The paper's, Table 5" if number else f"Ablation {spec.name}", columns, rows))
    counts = [
        [arm, values["what"], *(str(values[f"num_{key}"]) for key in ("finished", "failed", "collapsed"))]
        for arm, values in summary.items()
    ]
    out.print(table("Arms", ["arm", "what<", "seeds", "failed", "collapsed masks"], counts))
    out.print(
        "Percent: mean over seeds ± half of its 95 % t interval, which is about training, not about other test "
        f"images. Rows - {BASELINE}: difference from that arm, paired by seed."
    )
    out.print(f"OP over {', '.join(over.op) or 'no generator'}.", highlight=False)
    out.print(f"GP over {', '.join(over.gp) or 'no GAN among them'}.", highlight=False)
    if over.gp_computed != over.gp:
        out.print(
            f"GP* as the paper's numbers are computed, with DeepFake and SAN: over {', '.join(over.gp_computed)}.",
            highlight=False,
        )
    if over.chosen_by:
        out.print(f"In no average, since they may choose: {', '.join(over.chosen_by)}.")
    if over.one_class:
        out.print(f"In no average, one class only: {', '.join(over.one_class)}.")
    out.print(PAPER_NOTE)
    out.print(settings_note, highlight=False)
    if over.op or over.chosen_by:
        out.print()
        columns = ["generator", "role<", *(f"{arm} AP" for arm in ARMS)]
        out.print(table("By generator", columns, generator_rows(summary, over, spec.roles)))


def _repeated(program: str) -> str:
    """The command line that was typed, from its parsed options."""
    context = click.get_current_context()
    words = ["python", f"jobs/{program}"]
    typed = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params.get(name)
        if name == "as_json" or context.get_parameter_source(name) not in typed:
            continue
        if parameter.callback is names:
            words += [parameter.opts[0], ",".join(value)] if value else []
            continue
        for item in value if isinstance(value, tuple) else (value,):
            words += [parameter.opts[0], str(item)]
    return shlex.join(words)


# --- the job ---------------------------------------------------------------------------------------------


def _check_seeds(num_seeds: int) -> None:
    if num_seeds < 2:
        raise InvalidConfig(
            f"--seeds is {num_seeds}; an interval needs 2 seeds or more, and 5 make it usably narrow. "
            "Ask for --seeds 5."
        )
    if num_seeds > MAX_SEEDS:
        raise InvalidConfig(f"--seeds is {num_seeds}; a study has {MAX_SEEDS} at most. Ask for fewer.")


def check_generators(
    known: Sequence[str],
    *,
    train: Sequence[str],
    val: Sequence[str],
    test: Sequence[str],
    gans: Sequence[str],
    like: StudySpec | None,
) -> None:
    """`StudyError` for a generator that no image has, a GAN that cannot judge, and settings that the test chose."""
    check_roles(
        {"--train-generator": train, "--val-generators": val, "--test-generators": test}, known, "the index"
    )
    judges = [*(test or (name for name in known if name not in (*train, *val))), *train]
    if wrong := [name for name in gans if name not in judges]:
        raise StudyError(
            f"--gan-generators names {', '.join(wrong)}, which judge nothing here. They must be among: "
            f"{', '.join(judges)}."
        )
    if like is None:
        return
    used = (*like.train_generators, *like.val_generators)
    if seen := [name for name in judges if name in used and name not in train]:
        raise StudyError(
            f"The settings of the study {like.name!r} were chosen on {', '.join(seen)}, which would judge here: "
            "what chooses cannot judge. Name them with --val-generators, name other --test-generators, or "
            "leave --like out."
        )


def ablation_job(*, name: str, question: str, space: str, encoder: str) -> click.Command:
    """The command of a job that repeats the paper's ablation."""

    @click.command(
        name,
        cls=SectionedCommand,
        help=question,
        epilog=f"Example: python jobs/{name} --images GenImage --layout genimage --train-generator sd14 "
        "--val-generators glide --seeds 5 --study ablation",
    )
    @image_options(encoder)
    @click.option("--layer", help="Feature layer of all arms. [default: the study's of --like, or proj]")
    @click.option(
        "--seeds",
        "num_seeds",
        type=int,
        default=5,
        show_default=True,
        help="Repetitions of every arm; more extend the study.",
    )
    @click.option("--like", help="A study whose winner's settings are taken. [default: the space's]")
    @click.option(
        "--gan-generators", multiple=True, callback=names, help="What GP runs over. [default: known GANs]"
    )
    @study_options
    @workspace_option
    @json_option
    def command(
        *,
        layer: str | None,
        num_seeds: int,
        like: str | None,
        gan_generators: tuple[str, ...],
        images: tuple[str, ...],
        layout: str,
        choice: Choice,
        encoding: Encoding,
        study: str,
        seed: int,
        workspace: Path,
        as_json: bool,
        **options: Any,
    ) -> None:
        with errors_as_paragraphs():
            _check_seeds(num_seeds)
            study_path(workspace, study)
            chosen = load_space(options.pop("space") or space)
            settings: dict[str, Any] = {}
            like_spec = None
            note = f"Settings of the search space {chosen.name!r}"
            if like:
                settings, like_spec, note = settings_of(under_workspace(workspace, "studies", like))
            if layer:
                settings["layer"] = layer
            arms = ablation_space(chosen, settings=settings, seed=seed)
            base = _default_config(arms)
            note += ": " + ", ".join(f"{key} {_short(base[key])}" for key in _SHOWN) + "."
            done = encode_images(
                images=images,
                layout=layout,
                choice=choice,
                index_path=workspace / "index" / f"{study}.parquet",
                encoding=replace(encoding, layers=tuple(dict.fromkeys((*encoding.layers, base["layer"])))),
                workspace=workspace,
                address=options["address"],
                train_generators=options["train_generators"],
                check=lambda known: check_generators(
                    known,
                    train=options["train_generators"],
                    val=options["val_generators"],
                    test=options["test_generators"],
                    gans=gan_generators,
                    like=like_spec,
                ),
            )
            result, ui_command = run_tune(
                workspace=workspace,
                store=done.store.path,
                study=study,
                space=arms,
                trials=len(ARMS) * num_seeds,
                seed=seed,
                **options,
            )
            for record in result.records:
                if not record.finished:
                    err.print(f"Trial {record.number} failed: {record.reason}")
            repeat = _repeated(name)
            ending = Ending()
            ending.add(result.undelivered)

            def arms_of() -> tuple[Averages, dict[str, dict[str, Any]]]:
                over = averages(result.spec, result.records, gan_generators)
                return over, summarise(result.records, over)

            failed = "The table of the arms was not made"
            over, summary = ending.step(failed, repeat, arms_of) or (None, {})

            def show() -> None:
                if over:
                    ending.step(failed, repeat, lambda: _show(summary, over, result.spec, note))
                else:
                    rows = leaderboard_rows(result.spec, result.records, result.spec.criterion)
                    show_leaderboard(result.spec, rows, result.spec.criterion, most=len(ARMS))
                out.print("\nWhat to type next:")
                for what, line in {
                    "the same again": repeat,
                    "more seeds": "the same with a larger --seeds: only the new ones are trained",
                    "all trials": f"causal-tune leaderboard {shlex.quote(str(result.path))}",
                    "compare in MLflow": ui_command,
                }.items():
                    out.print(f"  {what + ':':<20}{line}", soft_wrap=True, highlight=False)

            if result.num_failed or done.num_quarantined:
                ending.add(
                    f"Done, with {result.num_failed} of {len(result.records)} trials failed and "
                    f"{done.num_quarantined:,} of {done.num_indexed:,} images unreadable; the reasons are in "
                    f"{result.path / 'trials'} and {done.store.path / 'quarantine.arrow'}."
                )
            document = {
                "study": str(result.path),
                "store": str(done.store.path),
                "num_indexed": done.num_indexed,
                "num_stored": done.num_stored,
                "num_quarantined": done.num_quarantined,
                "num_trials": len(result.records),
                "num_new": result.num_new,
                "num_failed": result.num_failed,
                "seeds": list(dict.fromkeys(record.seed for record in result.records)),
                "settings": {key: base[key] for key in base if key != "seed"},
                "settings_from": note,
                "like": like_spec.name if like_spec else None,
                "generators": over
                and {
                    "op": list(over.op),
                    "gp": list(over.gp),
                    "gp_computed": list(over.gp_computed),
                    "validation": list(over.chosen_by),
                    "one_class": list(over.one_class),
                },
                "arms": _plain_values(summary),
                "paper_note": PAPER_NOTE,
                "mlflow_ui": ui_command,
                "repeat": repeat,
                "problems": ending.problems,
            }
            emit(as_json, document, show)
            ending.close()

    # --seeds says how many trials there are, and nothing is chosen
    command.params = [item for item in command.params if item.name not in ("trials", "criterion")]
    return command


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
