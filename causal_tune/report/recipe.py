"""The section of a report that makes it again: the commands from the images on, and what the figures are of."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from causal_tune.features import FeatureStore
from causal_tune.features.stores import index_file_of_store
from causal_tune.images.index import origin
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.images.views import is_augmented
from causal_tune.ledger import TrialRecord
from causal_tune.report.section import Section
from causal_tune.report.tables import Table
from causal_tune.study.spec import StudySpec

__all__ = ["extract_command", "index_command", "recipe"]


def recipe(
    store: FeatureStore | None,
    spec: StudySpec,
    records: Sequence[TrialRecord],
    finalists: Mapping[str, Any] | None,
    index: Path | None,
) -> Section:
    """The commands in order, and the hashes, seeds and versions behind the figures."""
    facts = [["store", spec.store_fingerprint]]
    found = index_file_of_store(store, index) if store else None
    code = []
    if store:
        encoder = store.description["encoder"]
        facts += [
            ["index, sha256", store.description["index_sha256"]],
            ["encoder", f"{encoder['name']}, weights {encoder.get('weights_sha256', '?')}"],
            ["preprocessing", str(store.description["preprocessing"])],
            ["images", f"{store.description['num_stored']:,}"],
        ]
        path = _from_workspace(found[0], store) if found else "INDEX"
        made = index_command(origin(found[1]), path) if found else ""
        code += [*([made] if made else []), extract_command(store, path)]
    code += [
        spec.command(f"stores/{spec.store_fingerprint}", len(records)),
        *([finalists["command"]] if finalists else []),
        f"causal-tune report {spec.name} -o DIR",
    ]
    spent = sum(record.timings.get("trial_s", 0.0) for record in records)
    facts += [
        ["search space, sha256", spec.space_sha256],
        ["seed of the study", str(spec.seed)],
        ["time of all trials", f"{spent:.0f} s"],
        *([name, version] for name, version in sorted(spec.versions.items())),
    ]
    if not store:
        said = "The store is gone, and with it the record of the images, encoder and layers that it was made from."
    elif not found:
        said = "The index of the images is not in the workspace: INDEX is the one whose hash stands below."
    else:
        said = "The commands in order, with paths from the workspace on."
    return Section(
        title="Reproduce",
        text=said,
        code="\n".join(code),
        tables=[
            Table(
                name="provenance",
                caption="Inputs of the figures.",
                columns=["what", "value<"],
                rows=facts,
            )
        ],
    )


def _from_workspace(index: Path, store: FeatureStore) -> str:
    """The path of an index, below the workspace where it is there, as that of the store is."""
    workspace = store.path.parent.parent
    return str(index.relative_to(workspace) if index.is_relative_to(workspace) else index)


def index_command(made: Mapping[str, Any], path: str) -> str:
    """The `causal-tune index` that made an index, from its `origin`; empty where an older index does not say.

    >>> index_command({"roots": ["GenImage"], "choice": {"limit": 9, "formats": ["PNG"]}}, "i.parquet")
    'causal-tune index GenImage --limit 9 --format PNG -o i.parquet'
    """
    if "roots" not in made:
        return ""
    words = ["causal-tune", "index", *map(str, made["roots"])]
    if made.get("layout", "auto") != "auto":
        words += ["--layout", made["layout"]]
    for name, value in made.get("choice", {}).items():
        option = "--" + {"formats": "format"}.get(name, name).replace("_", "-")
        if name == "jpeg_quality":
            words += [option, f"{value[0]}-{value[1]}"]
        elif isinstance(value, list | tuple):
            words += [word for item in value for word in (option, str(item))]
        elif not (name == "seed" and value == 0):
            words += [option, str(value)]
    return shlex.join([*words, "-o", path])


def extract_command(store: FeatureStore, index: str) -> str:
    """The `causal-tune extract` that makes the features of a store from `index`."""
    encoder, made = store.description["encoder"], Preprocessing.parse(store.description["preprocessing"])
    words = [
        "causal-tune",
        "extract",
        index,
        "--encoder",
        encoder["name"],
        "--layers",
        ",".join(store.layers),
    ]
    words += ["--dtype", encoder["dtype"]]
    if made.small != Preprocessing().small:
        words += ["--small", made.small]
    if made.recompress is not None:
        words += ["--recompress", str(made.recompress)]
    if num_augmented := sum(map(is_augmented, store.views)):
        words += ["--views", str(num_augmented)]
    if degraded := [view for view in store.views if not is_augmented(view)]:
        words += ["--degrade", ",".join(degraded)]
    return shlex.join(words)
