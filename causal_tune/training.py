"""One trial: train one head on fixed features, stop early, measure it on every generator."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causal_tune.causal.losses import classification, image_weights
from causal_tune.errors import TrialFailed, TrialPruned
from causal_tune.features import FeatureSet, StudyData
from causal_tune.heads import HEADS, FittedHead, Head, SteppedHead, build_head
from causal_tune.heads.balance import class_weights
from causal_tune.heads.normaliser import Normaliser
from causal_tune.memory import keep_freed_memory
from causal_tune.metrics import Metrics, best_threshold, score_metrics
from causal_tune.processor import has_bfloat16
from causal_tune.trial import TrialConfig

__all__ = ["Stop", "TrialResult", "train"]

COLLAPSED_ONES = 0.99
"""A mask whose mean is above this lets everything through: it selects nothing."""
COLLAPSED_ZEROS = 0.01
"""A mask whose mean is below this lets nothing through."""
_EXPLODED = 1e4
"""A cross-entropy or divergence this large (in nats) has left the range in which anything is learnt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """What one trial found: metrics and state of the epoch that early stopping keeps."""

    best_epoch: int
    """Counted from 1."""
    num_steps: int
    """Optimisation steps taken in all, those after the best epoch included."""
    stopped_by: str
    """`patience`; `max_epochs`: then the head might have become better still; or `fit`: it is fitted at once."""
    epochs: list[dict[str, Any]]
    """One flat record of JSON values per epoch: the means of the loss terms (`loss/...`), `validation/...`,
    `generator_ap/...`, mask statistics (`mask/...`), `steps` and `kept` (the best epoch)
    so far, and `time_s`."""
    validation: Metrics
    """On the validation split of the training generator."""
    threshold: float
    """On logits: `best_threshold` of the validation split, at which `accuracy_val_threshold` is counted."""
    generators: dict[str, Metrics]
    """By generator, validation and test generators alike."""
    perturbed: dict[str, Metrics]
    """Of the validation split in degraded views, by view; empty where the store has none."""
    mask: dict[str, float] | None
    """Statistics of the mask on the validation split; None for a head without one."""
    collapsed: str | None
    """`ones` or `zeros` when the mean of the mask is above 0.99 or below 0.01: it selects nothing."""
    head_state: dict[str, Tensor]
    """The head's parameters, on the CPU."""
    head_config: dict[str, Any]
    """Name, width and settings of the head: with `head_state` all that `load_head` needs."""
    timings: dict[str, float]
    """Seconds: `training_s`, `evaluation_s`, `total_s`. All else in a result is repeatable; this is not."""
    left_out: dict[str, Metrics] = field(default_factory=dict)
    """By training generator, its metrics under heads that were trained without it; filled by who trains those."""


Stop = Callable[[Sequence[Mapping[str, Any]]], str | None]
"""Given the epochs so far, why the trial is not worth its remaining ones; None: it goes on."""


def train(
    config: TrialConfig, data: StudyData, *, device: str = "cpu", stop: Stop | None = None
) -> TrialResult:
    """Train the head that `config` describes on `data.train` and measure it on all other sets.

    An epoch is one pass over the training set in random order, or as many passes as make `min_epoch_steps`
    steps: on a few hundred images a pass is one or two steps, far too few to judge progress by at a learning
    rate of 1e-4. A pass has ceil(N / batch_size) batches of equal size; the few rows (fewer than there are
    batches) that this leaves over are others in each pass. So HSIC always sees the same number of rows.

    After each epoch all sets are scored. Training stops once `patience` epochs in a row did not better the
    validation loss (or what `early_stopping` names) by `min_progress`, or after `max_epochs`; the best state is
    kept. A head that is fitted at once has one epoch of no steps.

    The same `config`, `data` and machine give the same result; the global random state is neither read nor
    changed. Raises `TrialFailed` when the data cannot be trained on, or when a loss, a parameter or a score
    is not finite or a loss is out of all proportion (above 10,000 nats); `TrialPruned` when `stop`, which is asked
    after every epoch but the last, gives a reason.
    """
    started = time.perf_counter()
    keep_freed_memory()
    _check_data(data)
    normaliser = Normaliser(config.normalisation, data.train.features.shape[1])
    normaliser.fit(data.train.features).to(device)
    train_features = normaliser(data.train.features.to(device))
    train_labels = data.train.labels.to(device)
    sets = {"": data.validation, **data.generators}  # the empty name is no generator's
    judged_features = normaliser(torch.cat([one.features for one in sets.values()]).to(device))
    validation_labels = data.validation.labels.to(device)

    start_seed, order_seed, noise_seed = _seeds(config.seed, 3)
    order = torch.Generator().manual_seed(order_seed)
    noise = torch.Generator(device=device).manual_seed(noise_seed)

    num_batches = math.ceil(len(train_labels) / config.batch_size)
    batch_size = len(train_labels) // num_batches
    num_passes = math.ceil(config.min_epoch_steps / num_batches)
    num_steps = 0
    head = _new_head(
        config,
        train_features.shape[1],
        torch.Generator().manual_seed(start_seed),
        device=device,
    )
    weights = class_weights(config.class_balance, data.train.num_real, data.train.num_generated)
    trainer = head.trainer(noise, weights) if isinstance(head, SteppedHead) else None

    def learn(epoch: int) -> dict[str, float]:
        """One epoch; the means of the loss terms over its steps."""
        nonlocal num_steps
        if trainer is None:
            assert isinstance(head, FittedHead)
            return dict(head.fit(train_features, train_labels, noise))
        sums: dict[str, float] = {}
        for _ in range(num_passes):
            rows = torch.randperm(len(train_labels), generator=order)[: num_batches * batch_size]
            for batch in rows.to(device).view(num_batches, batch_size):
                terms = trainer.step(train_features[batch], train_labels[batch])
                num_steps += 1
                _check_terms(terms, config, epoch, num_steps)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
        return {name: value / (num_passes * num_batches) for name, value in sums.items()}

    epochs: list[dict[str, Any]] = []
    best_score, progress_score, progress_epoch = -math.inf, -math.inf, 0
    training_s, evaluation_s = 0.0, 0.0
    stopped_by = "max_epochs" if trainer else "fit"
    for epoch in range(1, config.max_epochs + 1 if trainer else 2):
        clock = time.perf_counter()
        terms = learn(epoch)
        training_s += time.perf_counter() - clock

        clock = time.perf_counter()
        with torch.inference_mode():
            logits = head.logits(judged_features).cpu()
            mask = head.mask_statistics(judged_features[: len(validation_labels)], validation_labels)
        _check_state(head, logits, config, epoch, num_steps)
        parts = torch.split(logits, [len(one.labels) for one in sets.values()])
        threshold = best_threshold(parts[0].numpy(), data.validation.labels.numpy())
        judged = {
            name: score_metrics(part.numpy(), one.labels.numpy(), threshold=threshold)
            for (name, one), part in zip(sets.items(), parts, strict=True)
        }
        validation = judged.pop("")
        evaluation_s += time.perf_counter() - clock
        epochs.append(
            {
                "epoch": epoch,
                "steps": num_steps,
                "time_s": time.perf_counter() - started,
                **{f"loss/{name}": value for name, value in terms.items()},
                **{f"validation/{name}": validation[name] for name in ("loss", "ap", "accuracy")},
                **{f"generator_ap/{name}": metrics["ap"] for name, metrics in judged.items()},
                **{f"mask/{name}": value for name, value in (mask or {}).items()},
            }
        )

        if config.early_stopping == "loss":
            score = -_stopping_loss(config, parts[0], data.validation, validation)
        else:
            score = _stopping_ap(config, [judged[name] for name in data.val_generators])
        if score > best_score:
            best_score = score
            best = (epoch, validation, judged, mask, threshold)
            best_state = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}
        epochs[-1]["kept"] = best[0]
        if score > progress_score + config.min_progress:
            progress_score, progress_epoch = score, epoch
        elif epoch - progress_epoch >= config.patience:
            stopped_by = "patience"
            break
        if stop and trainer and epoch < config.max_epochs and (reason := stop(epochs)):
            raise TrialPruned(reason, epochs)

    best_epoch, validation, judged, mask, threshold = best
    head.load_state_dict(best_state)
    perturbed = {}
    for view, one in data.perturbed.items():
        with torch.inference_mode():
            logits = head.logits(normaliser(one.features.to(device))).cpu()
        perturbed[view] = score_metrics(logits.numpy(), one.labels.numpy(), threshold=threshold)
    head_config = {"head": config.head, "width": train_features.shape[1], **head.config}
    if config.normalisation != "none":
        head_config["normalisation"] = config.normalisation
        best_state |= {f"normaliser.{name}": value.cpu() for name, value in normaliser.state_dict().items()}
    return TrialResult(
        best_epoch=best_epoch,
        num_steps=num_steps,
        stopped_by=stopped_by,
        epochs=epochs,
        validation=validation,
        threshold=threshold,
        generators=judged,
        perturbed=perturbed,
        mask=mask,
        collapsed=_collapsed(mask),
        head_state=best_state,
        head_config=head_config,
        timings={
            "training_s": training_s,
            "evaluation_s": evaluation_s,
            "total_s": time.perf_counter() - started,
        },
    )


def _new_head(config: TrialConfig, width: int, generator: torch.Generator, *, device: str) -> Head:
    known = {field.name for field in fields(HEADS[config.head].Settings)}
    settings = {name: value for name, value in config.to_dict().items() if name in known}
    if settings.get("precision") == "auto":
        settings["precision"] = "bfloat16" if has_bfloat16(torch.device(device)) else "float32"
    head: Head = build_head(config.head, width, settings, generator).to(device)
    return head


def _stopping_loss(config: TrialConfig, logits: Tensor, validation: FeatureSet, metrics: Metrics) -> float:
    """The cross-entropy of the validation split; each class counts half where the head is trained so."""
    weights = class_weights(config.class_balance, validation.num_real, validation.num_generated)
    if weights is None:
        return metrics["loss"]
    return classification(logits, validation.labels, image_weights(validation.labels, weights)).item()


def _stopping_ap(config: TrialConfig, val_generators: Sequence[Metrics]) -> float:
    """What early stopping maximises, `trial.EARLY_STOPPING`, where it reads validation generators."""
    values = [metrics["ap"] for metrics in val_generators]
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        raise TrialFailed(
            f"early_stopping is {config.early_stopping!r}, which reads the AP of validation generators; there are "
            f"{len(values)}, of which {len(present)} have both classes. Name --val-generators, or stop by 'loss'."
        )
    return min(present) if config.early_stopping == "worst_generator" else math.fsum(present) / len(present)


def _seeds(seed: int, count: int) -> list[int]:
    """Independent seeds, so that for one the order of batches does not depend on the head."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(count, np.uint64)]


def _collapsed(mask: Mapping[str, float] | None) -> str | None:
    if mask is None:
        return None
    if mask["mean"] > COLLAPSED_ONES:
        return "ones"
    return "zeros" if mask["mean"] < COLLAPSED_ZEROS else None


def _check_data(data: StudyData) -> None:
    named = {"training set": data.train, "validation set": data.validation}
    named |= {f"generator {name!r}": one for name, one in data.generators.items()}
    width = data.train.features.shape[1]
    for name, one in named.items():
        if len(one.labels) == 0:
            raise TrialFailed(f"The {name} has no images. Choose generators and splits that have some.")
        if one.features.shape[1] != width:
            raise TrialFailed(
                f"The {name} has features of width {one.features.shape[1]}, the training set of {width}. "
                "All must come from one layer of one store."
            )
        # a sum is finite only if all its terms are, and needs no memory; when in doubt look at each
        if not one.features.sum().isfinite() and not one.features.isfinite().all():
            row = int((~one.features.isfinite().all(dim=1)).nonzero()[0])
            raise TrialFailed(
                f"The features of the {name} are not finite (first in row {row}). Training on them can only "
                "diverge: extract them again."
            )
    if data.train.num_real == 0 or data.train.num_generated == 0:
        _raise_one_class(data.train)


def _raise_one_class(train_set: FeatureSet) -> None:
    raise TrialFailed(
        f"The training set has {train_set.num_real} real and {train_set.num_generated} generated images. "
        "A detector needs both: choose a training generator that has both."
    )


def _check_terms(terms: Mapping[str, float], config: TrialConfig, epoch: int, step: int) -> None:
    for name, value in terms.items():
        # not `total` first: it is non-finite whenever a term is, and says less
        if name != "total" and not math.isfinite(value):
            raise TrialFailed(_diverged(f"the loss term {name!r} became {value}", config, epoch, step))
        if name in ("classification", "adversarial", "invariance") and value > _EXPLODED:
            raise TrialFailed(
                _diverged(f"the loss term {name!r} exploded to {value:.3g}", config, epoch, step)
            )
    if not math.isfinite(terms["total"]):
        raise TrialFailed(_diverged(f"the loss became {terms['total']}", config, epoch, step))


def _check_state(head: Head, logits: Tensor, config: TrialConfig, epoch: int, step: int) -> None:
    for name, value in head.state_dict().items():
        if not value.isfinite().all():
            raise TrialFailed(_diverged(f"the parameters {name!r} are not finite", config, epoch, step))
    if not logits.isfinite().all():
        raise TrialFailed(_diverged("some scores are not finite", config, epoch, step))


def _diverged(what: str, config: TrialConfig, epoch: int, step: int) -> str:
    likely = [f"learning_rate {config.learning_rate:g}"]
    if config.head == "causal":
        likely += [f"alpha {config.alpha:g} (the adversary's loss has no upper bound)"] * (config.alpha > 0)
        likely += [f"lambda2 {config.lambda2:g}"] * (config.lambda2 > 0)
        likely += [f"tau {config.tau:g}"]
    return (
        f"Training diverged: {what} in epoch {epoch}, step {step}. Likely too extreme: {', '.join(likely)}."
    )
