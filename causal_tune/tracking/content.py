"""What MLflow is told of a trial and of a study: names, tags, metrics, and a page in Markdown."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from causal_tune.errors import CausalTuneError
from causal_tune.features import FeatureStore
from causal_tune.features.stores import index_file_of_store
from causal_tune.heads import reads
from causal_tune.ledger import TrialRecord
from causal_tune.selection import CRITERIA, Roles, score, undefined_note
from causal_tune.study.finalists import searched_by
from causal_tune.study.spec import StudySpec
from causal_tune.tracking.names import part
from causal_tune.wording import inline_markdown, markdown_cell, shortened, visible

__all__ = [
    "BEST_SO_FAR",
    "FIGURES",
    "Figures",
    "dataset_name",
    "gallery",
    "gallery_of",
    "metrics_of",
    "run_name",
    "study_page",
    "study_params",
    "trial_params",
    "version_tags",
]

BEST_SO_FAR = "best_so_far"
"""The folder of the parent run's metrics that have a step a trial."""
EPOCHS = "Epochs"
"""The folder of a trial's curves. MLflow shows folders in the order of their characters, where capitals are first: the
curves stand before all that is one point."""

FIGURES = "figures"
"""The folder of a run's artifacts that holds them."""

_COMMIT = "mlflow.source.git.commit"
_GALLERY = "\n\n### Figures\n\n"
_MAX_PAGE = 8000  # letters that MLflow takes
_MAX_PARAM = 6000
_MAX_NAME = 500
_GENERATOR_AP = "generator_ap/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What a study looks like."""

    of: str
    """Names what they are a function of: the figures of the same are the same."""
    drawn: Mapping[str, tuple[str, str]]
    """By name, the caption and the SVG."""


def run_name(record: TrialRecord) -> str:
    """What a human tells runs apart by: `007 causal cls@7`."""
    return f"{record.number:03d} {record.config.get('head')} {record.config.get('layer', '')}".rstrip()


def trial_params(record: TrialRecord) -> dict[str, str]:
    """What a trial's head reads of its configuration; options that are off are left out."""
    head = str(record.config.get("head"))
    return {key: str(value) for key, value in record.config.items() if value is not None and reads(head, key)}


def study_params(spec: StudySpec) -> dict[str, str]:
    """What a study was asked, as plain text; its search space is too long for MLflow."""
    values = {key: value for key, value in spec.to_json().items() if key not in ("space", "versions")}
    return {f"study.{key}": shortened(_text(value), _MAX_PARAM) for key, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}={_text(one)}" for key, one in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else visible(str(value))


def dataset_name(store_path: Path) -> str:
    """What a feature store is called among others: its index, encoder and size; its folder where it is away."""
    try:
        store = FeatureStore(store_path)
        of = index_file_of_store(store)
    except CausalTuneError:
        return store_path.name
    index = f"{visible(of[0].stem)}, " if of else ""
    return (
        f"{index}{store.description['encoder'].get('name', '')}, {store.description['num_stored']:,} images"[
            :_MAX_NAME
        ]
    )


def version_tags(versions: Mapping[str, str]) -> dict[str, str]:
    """What made a number, under the names that MLflow's pages know: the commit and the versions of libraries."""
    libraries = {name: version for name, version in versions.items() if name != "commit"}
    tags = {"causal_tune.versions": ", ".join(f"{name} {version}" for name, version in libraries.items())}
    return tags | ({_COMMIT: versions["commit"]} if "commit" in versions else {})


_PASSED_OVER = " Its mask has collapsed: reports and detectors take the best trial without a collapsed mask."


def study_page(
    spec: StudySpec, best: TrialRecord | None, best_run: str = "", figures: str = "", *, verdict: str = ""
) -> str:
    """The parent run's page, in Markdown: the winner, the question, the roles, the criterion, the command, the figures.

    MLflow folds all but the first lines, so the winner is among these. `best_run` is the winner's page, `figures` a
    `gallery`, `verdict` what `causal-tune finalists` found.
    """
    part_of = searched_by(spec.name)
    lines = [f"**Finalists: {inline_markdown(verdict)}**", ""] if verdict else []
    if best is not None:
        value = score(best, spec.criterion, spec.roles)
        test = score(best, "oracle", spec.roles) if spec.test_generators else None
        searched = spec.search_space().settings_of(best.config)
        settings = ", ".join(f"{key} {_short(value)}" for key, value in searched.items())
        named = f"[trial {best.id}]({best_run})" if best_run else f"trial {best.id}"
        lines += [
            f"**Best of the search: {named}** ({best.config['head']}, layer "
            f"`{best.config.get('layer', 'proj')}`), "
            f"{_percent(value)} by the criterion, which chose it and so flatters it; mean test AP {_percent(test)}."
            + (f" {note}" if (note := undefined_note(best, spec.roles)) else "")
            + (_PASSED_OVER if best.collapsed else "")
            + ("" if verdict or part_of else f" `causal-tune finalists {spec.name}` says how sure that is."),
            "",
            *([settings + ".", ""] if settings else []),
        ]
    roles = {
        "trained on": spec.train_generators,
        "chosen by": spec.val_generators,
        "judged on": spec.test_generators,
    }
    lines += [spec.space["question"].strip(), "", "| role | generators |", "|---|---|"]
    lines += [f"| {role} | {markdown_cell(', '.join(names)) or '-'} |" for role, names in roles.items()]
    lines += ["", f"Criterion `{spec.criterion}`: {CRITERIA[spec.criterion].summary}."]
    if part_of:
        command = f"causal-tune finalists {part_of}"
    else:  # an option a line: a long one would widen the page
        command = spec.command(spec.store_path, "N").replace(" --", " \\\n    --")
    lines += ["", f"Store `{spec.store_fingerprint}`. Again, or longer:", "", f"    {_in_code(command)}"]
    page = "\n".join(lines) + (_GALLERY + figures if figures else "")
    return page if len(page) <= _MAX_PAGE else page[:_MAX_PAGE].rpartition("\n\n")[0]


def _in_code(command: str) -> str:
    """A command as lines of a block of code, whatever its words hold."""
    return visible(command, keep="\n").replace("\n", "\n    ")


def gallery(run_id: str, figures: Figures) -> str:
    """The figures as Markdown that a run's page shows; their files are the run's artifacts."""
    # the address from which MLflow's pages show artifacts, relative to the page
    shown = []
    for name, (caption, _) in figures.drawn.items():
        path = f"{FIGURES}/{name}.svg"
        address = f"get-artifact?{urlencode({'path': path, 'run_uuid': run_id})}"
        shown.append(f"{caption} `{path}`\n\n![{path}]({address})")
    return "\n\n".join(shown)


def gallery_of(page: str) -> str:
    """The figures on a `study_page`, as they were given to it."""
    return page.partition(_GALLERY)[2]


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.2f} %"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def metrics_of(record: TrialRecord, roles: Roles, *, epochs: bool = True) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of everything to be logged: per epoch first, then the results."""
    best_epoch = record.best_epoch or 0
    if epochs:
        for epoch in record.epochs:
            step = int(epoch["epoch"])
            yield from (
                (_epoch_name(name), value, step)
                for name, value in _numbers(epoch)
                if name not in ("epoch", "kept")
            )
    if not record.finished:
        return
    folders = {
        **dict.fromkeys(roles.test_generators, "test"),
        **dict.fromkeys(roles.train_generators, "seen"),
        **dict.fromkeys(roles.val_generators, "val_generators"),
    }
    for generator, metrics in record.generators.items():
        folder = folders.get(generator, "other")
        for name, value in _numbers(metrics):
            if name in ("ap", "accuracy", "accuracy_val_threshold", "loss"):
                yield f"{folder}/{part(generator)}/{name}", value, best_epoch
    # the last point of the curves is not the kept epoch's
    for name, value in _numbers(record.validation):
        if name in ("ap", "accuracy", "loss"):
            yield f"best_validation/{name}", value, best_epoch
    for view, metrics in record.perturbed.items():
        for name, value in _numbers(metrics):
            if name in ("ap", "accuracy"):
                yield f"perturbed_validation/{part(view)}/{name}", value, best_epoch
    for name, value in _numbers(record.mask or {}):
        yield f"best_mask/{part(name)}", value, best_epoch
    for name, criterion in CRITERIA.items():
        if criterion.skips_collapsed:
            continue  # the same number as the plain criterion, or none
        judged = score(record, name, roles)
        if judged is not None:
            yield f"criterion/{name}", judged, best_epoch
    yield "best_epoch", float(best_epoch), best_epoch
    yield "steps", float(record.steps), best_epoch
    yield from ((f"time/{part(name)}", value, best_epoch) for name, value in _numbers(record.timings))


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, bool | int | float) and math.isfinite(value):
            yield name, float(value)


def _epoch_name(name: str) -> str:
    if name.startswith(_GENERATOR_AP):  # whose name may hold slashes
        return f"{EPOCHS}/{_GENERATOR_AP}{part(name.removeprefix(_GENERATOR_AP))}"
    if "/" not in name:  # steps and seconds: MLflow shows what is in no folder of its own before all others
        name = f"training/{name}"
    return f"{EPOCHS}/{'/'.join(map(part, name.split('/')))}"
