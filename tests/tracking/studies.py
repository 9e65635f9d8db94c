"""Studies for MLflow: a spec, and records as a ledger holds them."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import optuna

from causal_tune.ledger import TrialRecord, trial_id
from causal_tune.selection import Roles
from causal_tune.study.space import load_space
from causal_tune.study.spec import StudySpec
from causal_tune.trial import TrialConfig

ROLES = Roles(train_generators=("latent",), val_generators=("cycle gan+",), test_generators=("progan",))


def make_spec(**changes: Any) -> StudySpec:
    space = load_space("sd14")
    values = {
        "name": "tiny",
        "uid": "u1",
        "store_path": "/store",
        "store_fingerprint": "f00d",
        "space_name": space.name,
        "space_sha256": space.sha256,
        "space": space.to_json(),
        **dataclasses.asdict(ROLES),
        "criterion": "val_generators",
        "seed": 0,
        "max_concurrent": 2,
        "window": 4,
        "versions": {"python": "3"},
    }
    return StudySpec(**{**values, **changes})


def make_record(number: int, *, num_epochs: int = 3, **changes: Any) -> TrialRecord:
    config = {**load_space("sd14").defaults, "head": "causal", "seed": number}

    def metrics(ap: float) -> dict[str, Any]:
        return {"ap": ap, "accuracy": 0.75, "loss": 0.5, "num_real": 10, "num_generated": 10}

    values = {
        "number": number,
        "id": trial_id(number, config),
        "state": "finished",
        "config": config,
        "seed": number,
        "epochs": [
            {
                "epoch": epoch,
                "steps": 25 * epoch,
                "validation/ap": 0.5 + epoch / 1000,
                "mask/mean": 0.3,
                "loss/total": 1 / epoch,
            }
            for epoch in range(1, num_epochs + 1)
        ],
        "best_epoch": 2,
        "validation": metrics(0.9),
        "generators": {"cycle gan+": metrics(0.6 + number / 100), "progan": metrics(0.4)},
        "mask": {"mean": 0.25},
        "steps": 300,
        "timings": {"trial_s": 2.0},
        "ended_at": 1_700_000_000.0 + number,
    }
    return TrialRecord(**{**values, **changes})


def drawn_records(spec: StudySpec, num: int, *, num_epochs: int = 12) -> Iterator[TrialRecord]:
    """Trials at random points of the spec's space, with everything that a trial of a causal head records.

    The score follows `lambda1` and `tau`; every tenth was pruned, every fiftieth failed.
    """
    space = spec.search_space()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(num):
        drawn = study.ask(dict(space.distributions)).params
        config = TrialConfig.from_dict({**space.defaults, **drawn, "seed": number}).to_dict()
        good = 1 / (1 + abs(math.log10(config["lambda1"] / 1e-4)) + abs(config["tau"] - 0.5))
        made = _record(number, config, good, num_epochs)
        if number % 50 == 49:
            made = dataclasses.replace(made, state="failed", reason="the loss became nan", **_NO_RESULT)
        elif number % 10 == 9:
            made = dataclasses.replace(made, state="pruned", reason="its score is below", **_NO_RESULT)
        yield made


_NO_RESULT: Mapping[str, Any] = {"generators": {}, "validation": {}, "mask": None, "best_epoch": None}


def _record(number: int, config: dict[str, Any], good: float, num_epochs: int) -> TrialRecord:
    def metrics(ap: float) -> dict[str, Any]:
        halves = {"accuracy_real": ap, "accuracy_generated": ap, "num_real": 50, "num_generated": 50}
        return {"ap": ap, "accuracy": ap, "accuracy_val_threshold": ap, "loss": 1 - ap, **halves}

    def epoch(at: int) -> dict[str, Any]:
        ap = 0.5 + 0.4 * good * at / num_epochs
        losses = ("adversarial", "classification", "hsic", "invariance", "sparsity", "total")
        masks = ("adversary_accuracy", "entropy", "mean", "std_dimensions", "std_images")
        return {
            "epoch": at,
            "kept": 0,
            "steps": 25 * at,
            "time_s": 0.1,
            "generator_ap/cycle gan+": ap,
            "generator_ap/progan": ap - 0.05,
            **{f"validation/{name}": ap for name in ("ap", "accuracy", "loss")},
            **{f"loss/{name}": 1 / at for name in losses},
            **{f"mask/{name}": 0.3 for name in masks},
        }

    ap = 0.5 + 0.4 * good
    return TrialRecord(
        number=number,
        id=trial_id(number, config),
        state="finished",
        config=config,
        seed=number,
        epochs=[epoch(at) for at in range(1, num_epochs + 1)],
        best_epoch=num_epochs,
        validation=metrics(ap),
        generators={"cycle gan+": metrics(ap), "progan": metrics(ap - 0.05)},
        mask={"mean": 0.3, "entropy": 0.6, "std_images": 0.1, "std_dimensions": 0.1},
        stopped_by="max_epochs",
        steps=25 * num_epochs,
        timings={"training_s": 1.0, "evaluation_s": 0.1, "total_s": 1.1, "trial_s": 1.2},
        versions={"python": "3.11", "torch": "2.14"},
        ended_at=1_700_000_000.0 + number,
    )
