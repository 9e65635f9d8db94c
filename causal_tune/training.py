"""One trial: train one head on fixed features, stop early, measure it on every generator."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causal_tune.errors import InvalidConfig, TrialFailed
from causal_tune.features import FeatureSet, StudyData
from causal_tune.heads import HEADS, Head, build_head
from causal_tune.metrics import Metrics, score_metrics
from causal_tune.registry import look_up

__all__ = ["TrialConfig", "TrialResult", "train"]

COLLAPSED_ONES = 0.99
"""A mask whose mean is above this lets everything through: it selects nothing."""
COLLAPSED_ZEROS = 0.01
"""A mask whose mean is below this lets nothing through."""
_EXPLODED = 1e4
"""A cross-entropy or divergence this large (in nats) has left the range in which anything is learnt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """Everything that decides the outcome of one trial, but for the data.

    The defaults are a middle of the search spaces' ranges; the paper states no value but `learning_rate` and
    `batch_size`. Values out of range raise `InvalidConfig`.

    >>> TrialConfig(head="linear", seed=3).learning_rate
    0.0001
    >>> TrialConfig(tau=0)
    Traceback (most recent call last):
    causal_tune.errors.InvalidConfig: tau is 0; it must be above 0. Mend the configuration or search space.
    """

    head: str = "causal"
    """A name of `HEADS`."""
    layer: str = "proj"
    """Which of the store's feature layers the trial uses; whoever loads the data reads it."""
    lambda1: float = 1e-4
    """Weight of the mask's L1 norm, summed over dimensions, Eq. (10); >= 0, sound in 1e-5..1e-2."""
    lambda2: float = 10.0
    """Weight of the HSIC independence term, Eq. (10); >= 0."""
    alpha: float = 0.1
    """Weight of the adversary in what the mask minimises, Eq. (13); >= 0."""
    beta: float = 1.0
    """Weight of the counterfactual consistency, Eq. (13); >= 0."""
    tau: float = 0.5
    """Temperature of the Gumbel-sigmoid mask, Eq. (5); > 0, lower is closer to a 0/1 mask."""
    p: float = 0.2
    """Probability that the counterfactual drops a dimension, Eq. (11); in [0, 1)."""
    learning_rate: float = 1e-4
    """Step size of Adam, > 0; the paper's."""
    batch_size: int = 256
    """Rows in a batch at most; >= 4. The paper's. A pass is cut into equal batches, see `train`."""
    max_epochs: int = 30
    """Epochs at most; >= 1. With the default `min_epoch_steps` that is 750 steps or more."""
    patience: int = 10
    """Epochs without progress of the validation loss after which training stops; >= 1."""
    min_progress: float = 1e-3
    """What counts as progress: a validation loss lower by this many nats; >= 0."""
    min_epoch_steps: int = 25
    """Steps in an epoch at least; >= 1. Where a pass over the data has fewer, an epoch is several passes."""
    grad_clip: float = 1.0
    """Largest gradient norm of the mask network, and of the adversary; 0 does not clip. Not in the paper."""
    mask_width: int | None = None
    """Hidden units of the mask network; None: as many as the features have dimensions."""
    adversary_width: int = 256
    """Hidden units of the adversary; >= 1."""
    update: str = "alternating"
    """Order of the updates in one step: `alternating` is adversary, classifier, mask."""
    seed: int = 0
    """Decides the start, the order of the batches and the noise; >= 0."""

    def __post_init__(self) -> None:
        look_up("head", HEADS, self.head)
        look_up("update", {"alternating": None}, self.update)
        for name in ("lambda1", "lambda2", "alpha", "beta", "p", "min_progress", "grad_clip"):
            self._require(name, float, self._number(name) >= 0, "0 or above")
        self._require("p", float, self.p < 1, "below 1 (1 would drop every dimension)")
        for name in ("tau", "learning_rate"):
            self._require(name, float, self._number(name) > 0, "above 0")
        for name, least in (
            ("batch_size", 4),
            ("max_epochs", 1),
            ("patience", 1),
            ("min_epoch_steps", 1),
            ("adversary_width", 1),
            ("seed", 0),
        ):
            self._require(name, int, self._number(name) >= least, f"{least} or above")
        if self.mask_width is not None:
            self._require("mask_width", int, self._number("mask_width") >= 1, "1 or above, or None")
        if not isinstance(self.layer, str) or not self.layer:
            raise InvalidConfig(f"layer is {self.layer!r}; it must name a layer of the feature store.")

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidConfig(
                f"{name} is {value!r}; it must be a finite number. Mend the configuration or search space."
            )
        return value

    def _require(self, name: str, kind: type, holds: bool, expected: str) -> None:
        value = getattr(self, name)
        if kind is int and not isinstance(value, int):
            holds, expected = False, f"a whole number, {expected}"
        if not holds:
            raise InvalidConfig(
                f"{name} is {value!r}; it must be {expected}. Mend the configuration or search space."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrialConfig":
        """A configuration from plain values, the rest by default; an unknown key raises `InvalidConfig`.

        >>> TrialConfig.from_dict({"tau": 1.0, "lamda1": 0.1})
        Traceback (most recent call last):
        causal_tune.errors.InvalidConfig: A trial has no field 'lamda1'. It has: head, layer, lambda1, ...
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(values.keys() - set(known))
        if unknown:
            raise InvalidConfig(
                f"A trial has no field {', '.join(map(repr, unknown))}. It has: {', '.join(known)}."
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Every field as a plain value; `from_dict` gives the same configuration back."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """What one trial found: metrics and state of the epoch with the lowest validation loss."""

    best_epoch: int
    """Counted from 1."""
    num_steps: int
    """Optimisation steps taken in all, those after the best epoch included."""
    stopped_by: str
    """`patience`, or `max_epochs`: then the head might have become better still."""
    epochs: list[dict[str, Any]]
    """One flat record of JSON values per epoch: the means of the loss terms (`loss/...`), `validation/...`,
    `generator_ap/...`, mask statistics (`mask/...`), `steps` taken so far and `time_s`."""
    validation: Metrics
    """On the validation split of the training generator."""
    generators: dict[str, Metrics]
    """By generator, validation and test generators alike."""
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


def train(config: TrialConfig, data: StudyData, *, device: str = "cpu") -> TrialResult:
    """Train the head that `config` describes on `data.train` and measure it on all other sets.

    An epoch is one pass over the training set in random order, or as many passes as make `min_epoch_steps`
    steps: on a few hundred images a pass is one or two steps, far too few to judge progress by at a learning
    rate of 1e-4. A pass has ceil(N / batch_size) batches of equal size; the few rows (fewer than there are
    batches) that this leaves over are others in each pass. So HSIC always sees the same number of rows.

    After each epoch all sets are scored. Training stops once `patience` epochs in a row did not bring the
    validation loss down by `min_progress`, or after `max_epochs`; the state with the lowest loss is kept.

    The same `config`, `data` and machine give the same result; the global random state is neither read nor
    changed. Raises `TrialFailed` when the data cannot be trained on, or when a loss, a parameter or a score
    is not finite or a loss is out of all proportion (above 10,000 nats).
    """
    started = time.perf_counter()
    _check_data(data)
    train_features, train_labels = data.train.features.to(device), data.train.labels.to(device)
    sets = {"": data.validation, **data.generators}  # the empty name is no generator's
    judged_features = torch.cat([one.features for one in sets.values()]).to(device)
    validation_labels = data.validation.labels.to(device)

    start_seed, order_seed, noise_seed = _seeds(config.seed, 3)
    order = torch.Generator().manual_seed(order_seed)
    head = _new_head(config, train_features.shape[1], torch.Generator().manual_seed(start_seed)).to(device)
    trainer = head.trainer(torch.Generator(device=device).manual_seed(noise_seed))

    num_batches = math.ceil(len(train_labels) / config.batch_size)
    batch_size = len(train_labels) // num_batches
    num_passes = math.ceil(config.min_epoch_steps / num_batches)

    epochs: list[dict[str, Any]] = []
    best_loss, progress_loss, progress_epoch = math.inf, math.inf, 0
    num_steps, training_s, evaluation_s = 0, 0.0, 0.0
    stopped_by = "max_epochs"
    for epoch in range(1, config.max_epochs + 1):
        clock = time.perf_counter()
        sums: dict[str, float] = {}
        for _ in range(num_passes):
            rows = torch.randperm(len(train_labels), generator=order)[: num_batches * batch_size]
            for batch in rows.to(device).view(num_batches, batch_size):
                terms = trainer.step(train_features[batch], train_labels[batch])
                num_steps += 1
                _check_terms(terms, config, epoch, num_steps)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
        training_s += time.perf_counter() - clock

        clock = time.perf_counter()
        with torch.inference_mode():
            logits = head.logits(judged_features).cpu()
            mask = head.mask_statistics(judged_features[: len(validation_labels)], validation_labels)
        _check_state(head, logits, config, epoch, num_steps)
        parts = logits.split([len(one.labels) for one in sets.values()])
        judged = {
            name: score_metrics(part.numpy(), one.labels.numpy())
            for (name, one), part in zip(sets.items(), parts, strict=True)
        }
        validation = judged.pop("")
        evaluation_s += time.perf_counter() - clock
        epochs.append(
            {
                "epoch": epoch,
                "steps": num_steps,
                "time_s": time.perf_counter() - started,
                **{f"loss/{name}": value / (num_passes * num_batches) for name, value in sums.items()},
                **{f"validation/{name}": validation[name] for name in ("loss", "ap", "accuracy")},
                **{f"generator_ap/{name}": metrics["ap"] for name, metrics in judged.items()},
                **{f"mask/{name}": value for name, value in (mask or {}).items()},
            }
        )

        if validation["loss"] < best_loss:
            best_loss = validation["loss"]
            best = (epoch, validation, judged, mask)
            best_state = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}
        if validation["loss"] < progress_loss - config.min_progress:
            progress_loss, progress_epoch = validation["loss"], epoch
        elif epoch - progress_epoch >= config.patience:
            stopped_by = "patience"
            break

    best_epoch, validation, judged, mask = best
    return TrialResult(
        best_epoch=best_epoch,
        num_steps=num_steps,
        stopped_by=stopped_by,
        epochs=epochs,
        validation=validation,
        generators=judged,
        mask=mask,
        collapsed=_collapsed(mask),
        head_state=best_state,
        head_config={"head": config.head, "width": train_features.shape[1], **head.config},
        timings={
            "training_s": training_s,
            "evaluation_s": evaluation_s,
            "total_s": time.perf_counter() - started,
        },
    )


def _new_head(config: TrialConfig, width: int, generator: torch.Generator) -> Head:
    known = {field.name for field in fields(HEADS[config.head].Settings)}
    settings = {name: value for name, value in config.to_dict().items() if name in known}
    return build_head(config.head, width, settings, generator)


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
