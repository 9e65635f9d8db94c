"""A study's winner as a detector folder: the head, all that its scores depend on, and a model card."""

import hashlib
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from causal_tune import __version__
from causal_tune.atomic import atomic_directory, write_json, write_text
from causal_tune.detector import DETECTOR_FORMAT, Detector, load_detector
from causal_tune.errors import DetectorError, StudyError
from causal_tune.features import FeatureStore
from causal_tune.ledger import Ledger
from causal_tune.selection import CRITERIA, best, score
from causal_tune.study.finalists import read_finalists, representative
from causal_tune.study.scores import checkpoint_bytes
from causal_tune.study.spec import StudySpec, read_spec

__all__ = ["export_detector", "role_of"]


def export_detector(study_path: Path, folder: Path, *, criterion: str | None = None) -> Detector:
    """Write the winner of a study by `criterion` (default: the study's own) to `folder`; the whole or nothing.

    Where the study has finalists and no `criterion` is asked for, it is the configuration that they chose, in the best
    of its trainings by the criterion.

    An existing detector in `folder` is replaced; anything else there is refused. Raises `StudyError`
    where no trial can be chosen or its checkpoint is missing or damaged, `StoreError` where the study's
    store is gone: the detector would not know its encoder.
    """
    spec = read_spec(study_path)
    records = Ledger(study_path / "trials").records()
    finalists = None if criterion else read_finalists(study_path, len(records))
    command = f"causal-tune export {spec.name}" + (f" --criterion {criterion}" if criterion else "")
    criterion = criterion or spec.criterion
    if finalists:
        study_path = study_path.parent / finalists["study_of_finalists"]
        spec = read_spec(study_path)
        winner = representative(finalists, Ledger(study_path / "trials").records(), spec)
    else:
        winner = best(records, criterion, spec.roles)
    if winner.collapsed:
        raise StudyError(
            f"The winner {winner.id} has a collapsed mask (all ones or all zeros): it is no causal head. "
            "Narrow lambda1 and alpha in the search space and run a study under another name."
        )
    state = load_safetensors(checkpoint_bytes(study_path, winner))
    data = save_safetensors({name: tensor.contiguous() for name, tensor in state.items()})
    store = FeatureStore(spec.store_path)
    if store.fingerprint != spec.store_fingerprint:
        raise StudyError(
            f"The study {spec.name} was made on the store {spec.store_fingerprint}; {store.path} is "
            f"{store.fingerprint}. Continue the study with its own store, or start another."
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / "detector.json").exists():
        raise DetectorError(f"{folder} exists and is not a detector. Name an empty or new folder.")
    description = {
        "format": DETECTOR_FORMAT,
        "name": folder.name,
        "head": dict(winner.head_config),
        "layer": winner.config["layer"],
        "encoder": store.description["encoder"],
        "preprocessing": store.description["preprocessing"],
        "labels": {"0": "real", "1": "generated"},
        "threshold": {"value": 0.5, "provenance": "fixed; not tuned on any images"},
        "calibration": None,
        "metrics": {"validation": winner.validation, "generators": winner.generators},
        "model_sha256": hashlib.sha256(data).hexdigest(),
        "provenance": {
            "study": spec.name,
            "trial": winner.id,
            "config": winner.config,
            "criterion": criterion,
            "criterion_value": score(winner, criterion, spec.roles),
            "uses_test_domain": CRITERIA[criterion].uses_test_domain,
            "train_generators": list(spec.train_generators),
            "val_generators": list(spec.val_generators),
            "test_generators": list(spec.test_generators),
            "store_fingerprint": spec.store_fingerprint,
            "index_sha256": store.description["index_sha256"],
            "finalists": finalists["verdict"] if finalists else None,
            "command": command,
            "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {"causal-tune": __version__, **winner.versions},
        },
    }
    with atomic_directory(folder) as temporary:
        (temporary / "model.safetensors").write_bytes(data)
        write_json(temporary / "detector.json", description)
        write_text(temporary / "README.md", _model_card(description, spec))
    return load_detector(folder)


def role_of(generator: str, spec: StudySpec) -> str:
    """`trained on`, `chosen by` or `test`: what a generator was to the study."""
    if generator in spec.train_generators:
        return "trained on"
    return "chosen by" if generator in spec.val_generators else "test"


def _rate(value: float | None) -> str:
    return "undefined (one class)" if value is None else f"{100 * value:.2f}"


def _how_sure(provenance: dict[str, Any]) -> str:
    if not provenance["finalists"]:
        return ", the best of a search and so flattered by it"
    return ". " + str(provenance["finalists"]["reason"]).rstrip(".")


def _model_card(description: dict[str, Any], spec: StudySpec) -> str:
    provenance, encoder = description["provenance"], description["encoder"]
    lines = [
        f"| {generator} | {role_of(generator, spec)} | {_rate(metrics['ap'])} | {_rate(metrics['accuracy'])} "
        f"| {metrics['num_real']} | {metrics['num_generated']} |"
        for generator, metrics in description["metrics"]["generators"].items()
    ]
    table = "\n".join(lines)
    oracle = (
        "\n> **Chosen by the test generators** (criterion `oracle`): its test figures are optimistic.\n"
        if provenance["uses_test_domain"]
        else ""
    )
    settings = "\n".join(f"- `{key}`: {value}" for key, value in provenance["config"].items())
    return f"""# {description["name"]}: a detector of generated images

A `{provenance["config"]["head"]}` head on the frozen features of `{encoder["name"]}`
(layer `{description["layer"]}`, weights {encoder["weights_sha256"][:12]}, preprocessing
`{description["preprocessing"]}`). Its score is the probability that an image is generated; from
{description["threshold"]["value"]} on the verdict is *generated* ({description["threshold"]["provenance"]}).

    causal-tune predict {description["name"]} PATH... -o scores.csv
{oracle}
## Measured on held-out images

| generator | role | AP | accuracy | n real | n generated |
|---|---|---|---|---|---|
{table}

Percent. *Chosen by*: the generators whose AP chose this trial among the study's, so their figures are
optimistic. With n images of a class, an accuracy is known to about +-100/sqrt(n) points.

## Limits

- Trained on {", ".join(provenance["train_generators"])} only. On other generators it can fail, in both directions.
- The score is not calibrated; ranking holds further than the threshold does.
- Frozen features see style and content as well as traces of generation: photographs unlike the training's
  can score high, and generated images in a photographic style low.
- Recompressed, resized or cropped images were not part of these figures. No verdict is proof.

## Where it comes from

Study `{provenance["study"]}`, trial `{provenance["trial"]}`, criterion `{provenance["criterion"]}` =
{_rate(provenance["criterion_value"])}{_how_sure(provenance)}; store `{provenance["store_fingerprint"]}`, index
`{provenance["index_sha256"][:12]}`; causal-tune {provenance["versions"]["causal-tune"]}.

{settings}

Made by `{provenance["command"]}`.
"""
