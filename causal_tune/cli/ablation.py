"""The ablation of the paper's Table 5: four arms on paired seeds, as one study."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from causal_tune.cli.encoding import Encoding
from causal_tune.cli.job import encode_images, image_options
from causal_tune.cli.output import (
    emit,
    err,
    errors_as_paragraphs,
    json_option,
    names,
    out,
    percent,
    table,
    under_workspace,
    workspace_option,
)
from causal_tune.cli.tune import run_tune, study_options
from causal_tune.errors import InvalidConfig, StudyError, WorkFailed
from causal_tune.export import role_of
from causal_tune.images.choice import Choice
from causal_tune.intervals import Interval, mean_interval, paired_difference
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.report.paper import plain_name
from causal_tune.selection import best, rank
from causal_tune.study.checks import check_roles
from causal_tune.study.space import SearchSpace, load_space
from causal_tune.study.spec import StudySpec, read_spec, study_path
from causal_tune.study.suggestion import trial_seed
from causal_tune.trial import TrialConfig

__all__ = ["ARMS", "PAPER", "Averages", "ablation_job", "ablation_space", "arm_of", "averages", "summarise"]

ARMS: Mapping[str, str] = {
    "neither": "UnivFD, a linear probe",
    "factorisation": "mask, adversary, HSIC and L1; beta = 0, so no counterfactuals",
    "masking": "no mask; the probe, consistent under Bernoulli counterfactuals",
    "both": "CausalCLIP",
}
"""The arms in the paper's order."""
_BASELINE = "neither"

# Table 5 of arXiv 2512.13285, per cent, trained on Stable Diffusion 1.4. For `both` the paper's text has 89.64
# (OP) and 88.45 (GP) accuracy where its table, and so this one, has 90.45 and 89.95.
PAPER: Mapping[str, Mapping[str, float]] = {
    "neither": {"op_accuracy": 65.37, "op_ap": 75.31, "gp_accuracy": 60.42, "gp_ap": 67.09},
    "factorisation": {"op_accuracy": 79.42, "op_ap": 89.53, "gp_accuracy": 75.91, "gp_ap": 87.78},
    "masking": {"op_accuracy": 70.73, "op_ap": 82.13, "gp_accuracy": 65.94, "gp_ap": 79.28},
    "both": {"op_accuracy": 90.45, "op_ap": 96.92, "gp_accuracy": 89.95, "gp_ap": 95.25},
}
_PAPER_NOTE = (
    "The paper's: Table 5 of arXiv 2512.13285, trained on Stable Diffusion 1.4; for both modules its text has "
    "89.64 (OP) and 88.45 (GP) accuracy. Other images, encoders and settings: a reference, no target."
)

GANS = ("progan", "cyclegan", "biggan", "stylegan", "stylegan2", "gaugan", "stargan")
"""What counts as GAN-based, unless --gan-generators says otherwise; case, dots, dashes and spaces aside."""
_ALSO_IN_THE_PAPERS_GP = ("deepfake", "san")

MAX_SEEDS = 100
"""Seeds that a study is frozen with, so that it can be extended; each costs nothing until it is asked for."""

HYPERPARAMETERS = ("lambda1", "lambda2", "alpha", "beta", "tau", "p")
_SHOWN = ("layer", *HYPERPARAMETERS, "learning_rate")

_METRICS = {"accuracy": "ACC", "ap": "AP"}
_AVERAGES = {"op": "OP", "gp": "GP", "gp_computed": "GP*"}


# --- the arms --------------------------------------------------------------------------------------------


def arm_of(config: Mapping[str, Any]) -> str:
    """Which arm a trial's configuration is.

    >>> arm_of({"head": "causal", "mask_scope": "instance", "beta": 0.0, "p": 0.2})
    'factorisation'
    """
    if config["head"] != "causal":
        return _BASELINE
    consistent = config["beta"] > 0 and config["p"] > 0
    if config["mask_scope"] == "none":
        return "masking" if consistent else _BASELINE
    return "both" if consistent else "factorisation"


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
    settings = {key: value for key, value in winner.config.items() if key not in ("seed", "head")}
    return settings, spec, note


# --- what they come to -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Averages:
    """Which generators each average runs over."""

    op: tuple[str, ...]
    """Overall performance: all that judge, the training generator's test split included."""
    gp: tuple[str, ...]
    """Generalisation performance as the paper defines it: the GAN-based ones of them."""
    gp_computed: tuple[str, ...]
    """As the paper's numbers are computed: those, DeepFake and SAN."""
    chosen_by: tuple[str, ...]
    """Validation generators: in no average, since they may have chosen."""
    one_class: tuple[str, ...]
    """Generators whose judged images are of one class: in no average, since their AP is undefined."""


def averages(spec: StudySpec, records: Sequence[TrialRecord], gans: Sequence[str] = ()) -> Averages:
    """The generators of each average; `gans` are exact names, and take the place of the table `GANS`."""
    finished = next((record for record in records if record.finished), None)
    measured = finished.generators if finished else {}
    judged = [name for name in measured if name not in spec.val_generators]
    op = tuple(name for name in judged if measured[name]["ap"] is not None)
    gp = tuple(name for name in op if (name in gans if gans else plain_name(name) in GANS))
    return Averages(
        op=op,
        gp=gp,
        gp_computed=tuple(name for name in op if name in gp or plain_name(name) in _ALSO_IN_THE_PAPERS_GP),
        chosen_by=tuple(name for name in measured if name in spec.val_generators),
        one_class=tuple(name for name in judged if name not in op),
    )


def summarise(records: Sequence[TrialRecord], over: Averages) -> dict[str, dict[str, Any]]:
    """Each arm: its trials, and its metrics as mean, interval and paired difference over seeds.

    The keys of `metrics` and `differences` are `op_accuracy`, `gp_ap` and so on; a value is None where no
    generator or no seed is behind it.
    """
    by_arm: dict[str, dict[int, TrialRecord]] = {arm: {} for arm in ARMS}
    for record in records:
        by_arm[arm_of(record.config)][record.seed] = record
    finished = {
        arm: {seed: record for seed, record in mine.items() if record.finished}
        for arm, mine in by_arm.items()
    }
    baseline = finished[_BASELINE]
    summary: dict[str, dict[str, Any]] = {}
    for arm, mine in finished.items():
        shared = [seed for seed in mine if seed in baseline]
        metrics: dict[str, Interval | None] = {}
        differences: dict[str, Interval | None] = {}
        for average in _AVERAGES:
            for metric in _METRICS:
                generators = getattr(over, average)
                values = {seed: _mean(record, generators, metric) for seed, record in mine.items()}
                metrics[f"{average}_{metric}"] = (
                    mean_interval(list(values.values())) if generators and mine else None
                )
                differences[f"{average}_{metric}"] = (
                    paired_difference(
                        [values[seed] for seed in shared],
                        [_mean(baseline[seed], generators, metric) for seed in shared],
                    )
                    if generators and shared and arm != _BASELINE
                    else None
                )
        every = [*over.op, *over.chosen_by]
        summary[arm] = {
            "what": ARMS[arm],
            "num_finished": len(mine),
            "num_failed": len(by_arm[arm]) - len(mine),
            "num_collapsed": sum(record.collapsed is not None for record in mine.values()),
            "seeds": list(mine),
            "num_pairs": len(shared),
            "metrics": metrics,
            "differences": differences,
            "generators": {
                name: {metric: _over_seeds(mine.values(), name, metric) for metric in _METRICS}
                for name in every
            },
            "trials": [record.id for record in by_arm[arm].values()],
        }
    return summary


def _mean(record: TrialRecord, generators: Sequence[str], metric: str) -> float:
    values = [float(record.generators[name][metric]) for name in generators]
    return sum(values) / len(values) if values else float("nan")


def _over_seeds(records: Any, generator: str, metric: str) -> Interval | None:
    values = [record.generators[generator][metric] for record in records]
    return mean_interval(values) if values and None not in values else None


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


def _cell(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    text = f"{100 * interval.mean:+.2f}" if signed else percent(interval.mean)
    half = interval.half_width
    return text if half is None else f"{text} ± {100 * half:.2f}"


def ablation_tables(
    summary: Mapping[str, Mapping[str, Any]], over: Averages, *, width: int
) -> list[tuple[list[str], list[list[str]]]]:
    """Columns and rows: each arm, and under it its paired difference from `neither`.

    The paper's numbers stand beside ours, or in a table of their own where `width` has no room for both.
    """
    shown = ["op", "gp", *(["gp_computed"] if over.gp_computed != over.gp else [])]
    keys = [f"{average}_{metric}" for average in shown for metric in _METRICS]
    paper_keys = list(PAPER[_BASELINE])
    ours, papers = [], []
    for arm, values in summary.items():
        ours.append([arm, *(_cell(values["metrics"][key]) for key in keys)])
        papers.append([arm, *(f"{PAPER[arm][key]:.2f}" for key in paper_keys)])
        if arm != _BASELINE:
            label = f"  - {_BASELINE}"
            ours.append([label, *(_cell(values["differences"][key], signed=True) for key in keys)])
            gains = (PAPER[arm][key] - PAPER[_BASELINE][key] for key in paper_keys)
            papers.append([label, *(f"{gain:+.2f}" for gain in gains)])
    columns, paper_columns = [*map(_title, keys)], [f"paper's\n{_title(key)}" for key in paper_keys]
    if width >= 140:
        both = [own + paper[1:] for own, paper in zip(ours, papers, strict=True)]
        return [(["arm", *columns, *paper_columns], both)]
    return [(["arm", *columns], ours), (["arm", *paper_columns], papers)]


def _title(key: str) -> str:
    average, metric = key.rsplit("_", 1)
    return f"{_AVERAGES[average]} {_METRICS[metric]}"


def _generator_rows(
    summary: Mapping[str, Mapping[str, Any]], over: Averages, spec: StudySpec
) -> list[list[str]]:
    return [
        [name, role_of(name, spec), *(_cell(summary[arm]["generators"][name]["ap"]) for arm in ARMS)]
        for name in (*over.op, *over.chosen_by)
    ]


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
        f"images. Rows - {_BASELINE}: difference from that arm, paired by seed."
    )
    out.print(f"OP over {', '.join(over.op) or 'no generator'}.", markup=False, highlight=False)
    out.print(f"GP over {', '.join(over.gp) or 'no GAN among them'}.", markup=False, highlight=False)
    if over.gp_computed != over.gp:
        out.print(
            f"GP* as the paper's numbers are computed, with DeepFake and SAN: over {', '.join(over.gp_computed)}.",
            markup=False,
            highlight=False,
        )
    if over.chosen_by:
        out.print(f"In no average, since they may choose: {', '.join(over.chosen_by)}.", markup=False)
    if over.one_class:
        out.print(f"In no average, one class only: {', '.join(over.one_class)}.", markup=False)
    out.print(_PAPER_NOTE)
    out.print(settings_note, markup=False, highlight=False)
    if over.op or over.chosen_by:
        out.print()
        columns = ["generator", "role<", *(f"{arm} AP" for arm in ARMS)]
        out.print(table("By generator", columns, _generator_rows(summary, over, spec)))


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
                    err.print(f"Trial {record.number} failed: {record.reason}", markup=False)
            over = averages(result.spec, result.records, gan_generators)
            summary = summarise(result.records, over)
            repeat = _repeated(name)

            def show() -> None:
                _show(summary, over, result.spec, note)
                out.print("\nWhat to type next:")
                for what, line in {
                    "the same again": repeat,
                    "more seeds": "the same with a larger --seeds: only the new ones are trained",
                    "all trials": f"causal-tune leaderboard {result.path}",
                    "compare in MLflow": ui_command,
                }.items():
                    out.print(f"  {what + ':':<20}{line}", soft_wrap=True, markup=False, highlight=False)

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
                "generators": {
                    "op": list(over.op),
                    "gp": list(over.gp),
                    "gp_computed": list(over.gp_computed),
                    "validation": list(over.chosen_by),
                    "one_class": list(over.one_class),
                },
                "arms": _plain_values(summary),
                "paper_note": _PAPER_NOTE,
                "mlflow_ui": ui_command,
                "repeat": repeat,
            }
            emit(as_json, document, show)
            if result.num_failed or done.num_quarantined:
                raise WorkFailed(
                    f"Done, with {result.num_failed} of {len(result.records)} trials failed and "
                    f"{done.num_quarantined:,} of {done.num_indexed:,} images unreadable; the reasons are in "
                    f"{result.path / 'trials'} and {done.store.path / 'quarantine.arrow'}."
                )

    # --seeds says how many trials there are, and nothing is chosen
    command.params = [item for item in command.params if item.name not in ("trials", "criterion")]
    return command


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
