"""A study's winner as a detector folder: the head, all that its scores depend on, and a model card."""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from scipy.special import expit

from causal_tune import __version__
from causal_tune.atomic import atomic_directory, write_json, write_text
from causal_tune.audit.run import audit_index
from causal_tune.calibration import Cuts, Platt, choose_cuts, cross_fitted, ece, fit_platt, reliability
from causal_tune.detector import DETECTOR_FORMAT, Detector, load_detector
from causal_tune.errors import DetectorError, StudyError
from causal_tune.features import FeatureStore
from causal_tune.features.stores import index_of_store
from causal_tune.guard import Guard
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.judgement import judge
from causal_tune.ledger import Ledger, TrialRecord
from causal_tune.model_card import model_card
from causal_tune.onnx_graphs import write_head, write_images
from causal_tune.resampling import Scored
from causal_tune.selection import CRITERIA, score
from causal_tune.study.finalists import read_finalists
from causal_tune.study.recommended import Chosen, recommended
from causal_tune.study.scores import VALIDATION, checkpoint_bytes, fitted_on, trial_scores
from causal_tune.study.spec import StudySpec, read_spec
from causal_tune.study.verdicts import remedy

__all__ = ["FALSE_POSITIVES", "export_detector"]

FALSE_POSITIVES = 0.05
"""The rate of false verdicts, of either class, that is wished for by default."""

_TOLERANCE = 1e-4
"""How far a loss that is measured again may lie from the training's: another processor sums in another order."""


def export_detector(
    study_path: Path,
    folder: Path,
    *,
    criterion: str | None = None,
    trial: int | None = None,
    fpr: float = FALSE_POSITIVES,
    index: Path | None = None,
    onnx_images: bool = False,
    force: bool = False,
) -> Detector:
    """Write the winner of a study by `criterion` (default: the study's own) to `folder`; the whole or nothing.

    Where the study has finalists and no `criterion` is asked for, it is the configuration that they chose, in the best
    of its trainings by the criterion; `trial` names one by its number instead. A winner with a collapsed mask is passed
    over for the best trial without one (`study.recommended`), unless `force`. `fpr` is the wished rate of false
    verdicts (`calibration.choose_cuts`). The card tells what the audit finds in `index`, or in the index of the
    workspace that the store was made from. The head is also written as ONNX, and with `onnx_images` the way from crops
    to scores (`onnx_graphs`).

    An existing detector in `folder` is replaced; anything else there is refused. Raises `StudyError` where no trial
    can be chosen, or the trial named has no result; where every mask, or that of the trial named, has collapsed (unless
    `force`); and where the checkpoint is missing or damaged, or does not score what it scored when it was trained.
    `StoreError` where the study's store is gone: the detector would not know its encoder.
    """
    searched = study_path
    spec = read_spec(study_path)
    records = Ledger(study_path / "trials").records()
    finalists = None if criterion or trial is not None else read_finalists(study_path, len(records))
    command = f"causal-tune export {spec.name}" + (f" --criterion {criterion}" if criterion else "")
    command += f" --trial {trial}" if trial is not None else ""
    command += f" --fpr {fpr:g}" if fpr != FALSE_POSITIVES else ""
    command += " --force" if force else ""
    criterion = criterion or spec.criterion
    chosen = (
        Chosen(study_path, spec, _named(records, trial, spec))
        if trial is not None
        else recommended(study_path, spec, records, finalists, criterion=criterion, collapsed_too=force)
    )
    study_path, spec, winner = chosen.path, chosen.spec, chosen.record
    if winner.collapsed and not force:
        what = (
            f"The mask of trial {winner.id} has"
            if trial is not None
            else "Every mask that could be exported has"
        )
        raise StudyError(
            f"{what} collapsed (all {winner.collapsed}), so there is no causal head to export. "
            f"{remedy(winner.collapsed)} in the search space and run a study under another name, or add "
            f"--force to `{command}` to export trial {winner.number} as it is."
        )
    data = save_safetensors(
        {
            name: tensor.contiguous()
            for name, tensor in load_safetensors(checkpoint_bytes(study_path, winner)).items()
        }
    )
    store = FeatureStore(spec.store_path)
    if store.fingerprint != spec.store_fingerprint:
        raise StudyError(
            f"The study {spec.name} was made on the store {spec.store_fingerprint}; {store.path} is "
            f"{store.fingerprint}. Continue the study with its own store, or start another."
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / "detector.json").exists():
        raise DetectorError(f"{folder} exists and is not a detector. Name an empty or new folder.")
    scored = trial_scores(study_path, spec, winner)
    _check_scores(scored, winner)
    fitted = fitted_on(spec, scored)
    provenance = f"the validation split of {', '.join(spec.train_generators)}"
    if others := [name for name in spec.val_generators if name in scored]:
        provenance += f" and the validation generators {', '.join(others)}"
    table = index_of_store(store, index)
    calibration = fit_platt(fitted.logits, fitted.labels)
    cuts = choose_cuts(fitted.logits, fitted.labels, fpr)
    description = {
        "format": DETECTOR_FORMAT,
        "name": folder.name,
        "head": dict(winner.head_config),
        "layer": winner.config["layer"],
        "evaluation_mask": winner.config["evaluation_mask"] if winner.mask else None,
        "encoder": store.description["encoder"],
        "preprocessing": store.description["preprocessing"],
        "labels": {"0": "real", "1": "generated"},
        "calibration": _calibration(calibration, fitted, provenance),
        **_verdicts(cuts, calibration, fitted, provenance),
        "guard": Guard(max_enlargement=_max_enlargement(spec, store, table)).to_dict(),
        "metrics": _metrics(scored, spec, winner, calibration, cuts),
        "audit": _audit(table, store, spec),
        "model_sha256": hashlib.sha256(data).hexdigest(),
        "provenance": {
            "study": spec.name,
            "study_uid": spec.uid,
            "trial": winner.id,
            "config": winner.config,
            "collapsed": winner.collapsed,
            "checkpoint_sha256": winner.checkpoint_sha256,
            "criterion": criterion,
            "criterion_value": score(winner, criterion, spec.roles),
            "uses_test_domain": CRITERIA[criterion].uses_test_domain,
            "train_generators": list(spec.train_generators),
            "val_generators": list(spec.val_generators),
            "test_generators": list(spec.test_generators),
            "store_fingerprint": spec.store_fingerprint,
            "space_sha256": spec.space_sha256,
            "index_sha256": store.description["index_sha256"],
            "passed_over": [record.id for record in chosen.passed_over],
            "finalists": finalists["verdict"] if finalists and chosen.path != searched else None,
            "command": command,
            "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {"causal-tune": __version__, **winner.versions},
        },
    }
    with atomic_directory(folder) as temporary:
        (temporary / "model.safetensors").write_bytes(data)
        write_json(temporary / "detector.json", description)
        write_text(temporary / "README.md", model_card(description))
        written = load_detector(temporary)
        write_head(written, temporary)
        if onnx_images:
            write_images(written, temporary)
    return load_detector(folder)


def _named(records: Sequence[TrialRecord], number: int, spec: StudySpec) -> TrialRecord:
    for record in records:
        if record.number == number and record.finished:
            return record
        if record.number == number:
            raise StudyError(
                f"Trial {number} of the study {spec.name!r} has no head to export: it is {record.state} "
                f"({record.reason}). Name a finished one of `causal-tune leaderboard {spec.name}`."
            )
    raise StudyError(
        f"The study {spec.name!r} has no trial {number}; it has {len(records)}. Name one of "
        f"`causal-tune leaderboard {spec.name}`."
    )


def _check_scores(scored: Mapping[str, Scored], record: TrialRecord) -> None:
    """The head has to score here what it scored in its training: parity, by the loss on every set."""
    told = {VALIDATION: record.validation, **record.generators}
    for name, metrics in told.items():
        one = scored[name]
        signed = np.where(one.labels == 1, -one.logits, one.logits)
        loss = float(np.logaddexp(0, signed).mean())
        if not math.isclose(loss, metrics["loss"], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            raise StudyError(
                f"Trial {record.id} had a loss of {metrics['loss']:.6f} on {name} when it was trained, and has "
                f"{loss:.6f} now: the store or this release computes something else. Run the study again under "
                "another name."
            )


def _calibration(calibration: Platt, fitted_on: Scored, provenance: str) -> dict[str, Any]:
    before = reliability(Platt(slope=1.0, offset=0.0).probabilities(fitted_on.logits), fitted_on.labels)
    after = reliability(cross_fitted(fitted_on.logits, fitted_on.labels), fitted_on.labels)
    return {
        "method": "platt",
        **asdict(calibration),
        "provenance": provenance,
        "num_real": int((fitted_on.labels == 0).sum()),
        "num_generated": int((fitted_on.labels == 1).sum()),
        "ece_before": ece(before),
        "ece_after": ece(after),
        "reliability_before": before,
        "reliability_after": after,
    }


def _verdicts(cuts: Cuts, calibration: Platt, fitted_on: Scored, provenance: str) -> dict[str, Any]:
    """`threshold` and `unsure` of detector.json, in logits, scores and probabilities."""

    def told(logit: float) -> dict[str, float]:
        probability = float(calibration.probabilities(logit))
        return {"logit": logit, "score": float(expit(logit)), "probability": probability}

    real, generated = fitted_on.logits[fitted_on.labels == 0], fitted_on.logits[fitted_on.labels == 1]
    low, high = cuts.unsure

    def promised(bound: float, num: int, kind: str) -> str:
        few = f" ({100 * cuts.wished:g} % were asked for)" if bound > cuts.wished else ""
        return f"at most {100 * bound:.3g} % of {kind} images{few}, by the {num} {kind} images"

    most_real = promised(cuts.bound_real, cuts.num_real, "real")
    most_generated = promised(cuts.bound_generated, cuts.num_generated, "generated")
    return {
        "threshold": {
            **told(cuts.generated_from),
            "wished_fpr": cuts.wished,
            "promised_fpr": cuts.bound_real,
            "fpr": float((real >= cuts.generated_from).mean()),
            "tpr": float((generated >= cuts.generated_from).mean()),
            "provenance": f"reached by {most_real} of {provenance}",
        },
        "unsure": {
            "low": told(low),
            "high": told(high),
            "promised_miss_rate": cuts.bound_generated,
            "share_of_real": float(((real >= low) & (real < high)).mean()),
            "share_of_generated": float(((generated >= low) & (generated < high)).mean()),
            "provenance": f"above it {most_real}, and below it {most_generated}, of {provenance}",
        },
    }


def _metrics(
    scored: Mapping[str, Scored], spec: StudySpec, winner: TrialRecord, calibration: Platt, cuts: Cuts
) -> dict[str, Any]:
    low, high = cuts.unsure
    judged = {
        name: judge(
            one, calibration=calibration, real_below=low, generated_from=high, threshold=winner.threshold
        )
        for name, one in scored.items()
    }
    return {
        "validation": judged[VALIDATION],
        "generators": {name: judged[name] for name in winner.generators},
        "perturbed": {view: judged[f"view/{view}"] for view in spec.degraded_views},
    }


def _max_enlargement(spec: StudySpec, store: FeatureStore, table: pa.Table | None) -> float | None:
    """Twice what the images of the training and validation generators need, but for the smallest hundredth of them.

    None where their sizes are not known, or small images are not enlarged.
    """
    preprocessing = Preprocessing.parse(store.description["preprocessing"])
    if table is None or preprocessing.small != "resize":
        return None
    known = pc.is_in(table["generator"], pa.array([*spec.train_generators, *spec.val_generators]))
    sides = table.filter(known).select(["width", "height"]).drop_null()
    shorter = np.minimum(sides["width"].to_numpy(), sides["height"].to_numpy())
    return 2 * max(1.0, preprocessing.crop_size / float(np.quantile(shorter, 0.01)))


def _audit(table: pa.Table | None, store: FeatureStore, spec: StudySpec) -> list[dict[str, Any]] | None:
    """Findings of the audit of the images; None where their index is not at hand."""
    if table is None:
        return None
    audit = audit_index(table, store=store, train_generators=spec.train_generators)
    return [
        {"kind": one.kind, "subject": one.subject, "what": one.what}
        for one in audit.findings
        if one.severity == "finding"
    ]
