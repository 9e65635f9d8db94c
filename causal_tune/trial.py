"""The configuration of one trial: what a search space searches and a study records."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

from causal_tune.causal.head import MASK_SCOPES
from causal_tune.causal.losses import ADVERSARY_LOSSES, DIVERGENCES, HSIC_ESTIMATORS, SPARSITIES
from causal_tune.causal.mask import EVALUATION_MASKS, NOISES
from causal_tune.causal.trainer import UPDATES
from causal_tune.errors import InvalidConfig
from causal_tune.heads import HEADS
from causal_tune.heads.balance import CLASS_BALANCES
from causal_tune.heads.normaliser import NORMALISATIONS
from causal_tune.registry import look_up

__all__ = ["EARLY_STOPPING", "TrialConfig", "completed"]

EARLY_STOPPING = {
    "loss": "the cross-entropy on the validation split of the training generators",
    "val_generators": "the mean AP over the validation generators",
    "worst_generator": "the lowest AP of a validation generator",
}
"""What the kept epoch is the best at."""

_CHOICES: Mapping[str, Mapping[str, Any]] = {
    "head": HEADS,
    "update": UPDATES,
    "noise": NOISES,
    "evaluation_mask": EVALUATION_MASKS,
    "mask_scope": MASK_SCOPES,
    "sparsity": SPARSITIES,
    "hsic": HSIC_ESTIMATORS,
    "divergence": DIVERGENCES,
    "adversary_loss": ADVERSARY_LOSSES,
    "normalisation": NORMALISATIONS,
    "class_balance": CLASS_BALANCES,
    "early_stopping": EARLY_STOPPING,
    "precision": dict.fromkeys(("auto", "float32", "bfloat16")),
}
"""The options of a trial that are names of a table."""


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
    views: int = 0
    """Augmented views of each training image that train beside it, of those that the store has; >= 0."""
    lambda1: float = 1e-4
    """Weight of the mask's L1 norm, summed over dimensions, Eq. (10); >= 0, sound in 3e-5..1e-3."""
    lambda2: float = 10.0
    """Weight of the HSIC independence term, Eq. (10); >= 0, sound in 0.1..10: above some 1e5 lambda1 masks open."""
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
    precision: str = "auto"
    """Of the causal head's matrix products in training: `float32`, `bfloat16`, or `auto`: the latter where the
    processor multiplies it faster. Parameters, losses and all else are float32."""
    normalisation: str = "none"
    """Of the features, for every head: `none` (the paper), `l2`, or `standardised` by the training set."""
    class_balance: str = "none"
    """For every head: `balanced` lets either class count half, in training and in the validation loss that stops it,
    `heads.balance`; `none`, which a configuration without the field means, lets every image count the same. Studies
    are `balanced` where their search space does not name it."""
    early_stopping: str = "loss"
    """What the kept epoch is best at, a name of `EARLY_STOPPING`; all but `loss` read validation generators."""

    update: str = "alternating"
    """`alternating` moves adversary, classifier and mask in this order; `simultaneous` all at the old parameters."""
    noise: str = "gumbel"
    """Noise of the mask, Eq. (5): `gumbel`, or `logistic` (binary concrete)."""
    evaluation_mask: str = "expected"
    """The mask that scores: `expected` over the noise, `none` (g = 0), `mean` (g at its mean), `sample`, `hard`."""
    tau_end: float | None = None
    """Temperature that training ends at, > 0; None: fixed, as in the paper."""
    anneal_steps: int = 500
    """Steps in which the temperature falls from `tau` to `tau_end`; >= 1."""
    mask_scope: str = "instance"
    """`instance` (the paper), `global`: one mask for all images, or `none`: no mask, only the counterfactuals."""
    mask_width: int | None = None
    """Units of a hidden layer of the mask network; None: as many as the features have dimensions."""
    mask_depth: int = 1
    """Hidden layers of the mask network; >= 0."""
    mask_bias: float = 0.0
    """Start of the bias of the mask's logits; 2 lets the mask start open."""
    mask_norm: bool = False
    """Whether the mask network starts with a LayerNorm."""
    sparsity: str = "sum"
    """The L1 norm of Eq. (10): `sum` over dimensions, or `mean` (then lambda1 is d times larger)."""
    hsic: str = "biased"
    """Estimator of HSIC, Eq. (10): `biased`, `unbiased`, or `normalised` into [0, 1]."""
    divergence: str = "full"
    """L_inv, Eq. (12): `full` KL, `stop_gradient` (the first argument is fixed), `symmetric` (Jensen-Shannon)."""
    rescale: bool = False
    """Whether the counterfactual divides what it keeps by 1 - p, as dropout does."""
    adversary_loss: str = "paper"
    """What the mask does to the adversary, Eq. (13): `paper` maximises its loss without bound, `clamped` up to
    log 2, `confusion` drives it to 1/2."""
    adversary_depth: int = 0
    """Hidden layers of the adversary; >= 0. The default is linear, of the classifier's family."""
    adversary_width: int = 256
    """Units of a hidden layer of the adversary; >= 1."""
    adversary_steps: int = 1
    """Updates of the adversary in a step; >= 1."""
    adversary_rate: float = 1.0
    """Step size of the adversary relative to `learning_rate`; > 0."""
    alpha_warmup: int = 0
    """Steps in which alpha rises linearly from 0; >= 0."""

    neighbours: int = 1
    """Head `nearest`: how many neighbours vote; odd."""
    svm_c: float = 1.0
    """Head `svm`: inverse strength of the regularisation; > 0."""
    shots: int = 10
    """Head `prototypes`: images of each class that make its mean; >= 1. `seed` chooses them."""
    bottleneck: int = 256
    """Head `vib`: width of the stochastic code; >= 1."""
    vib_beta: float = 1e-3
    """Head `vib`: weight of the information term; >= 0."""
    dropout: float = 0.5
    """Heads `vib` and `mlp`: share of dropped inputs (`vib`) or hidden units (`mlp`); in [0, 1)."""
    weight_decay: float = 0.0
    """Head `mlp`: AdamW's decoupled weight decay; >= 0."""
    mlp_width: int = 256
    """Head `mlp`: units of a hidden layer; >= 1."""
    mlp_depth: int = 1
    """Head `mlp`: hidden layers; >= 1."""
    seed: int = 0
    """Decides the start, the order of the batches and the noise; >= 0."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            look_up(name, choices, getattr(self, name))
        for name in (
            "lambda1",
            "lambda2",
            "alpha",
            "beta",
            "p",
            "dropout",
            "vib_beta",
            "weight_decay",
            "min_progress",
            "grad_clip",
        ):
            self._require(name, float, self._number(name) >= 0, "0 or above")
        for name in ("p", "dropout"):
            self._require(name, float, getattr(self, name) < 1, "below 1 (1 would drop every dimension)")
        for name in ("tau", "learning_rate", "adversary_rate", "svm_c"):
            self._require(name, float, self._number(name) > 0, "above 0")
        if self.tau_end is not None:
            self._require("tau_end", float, self._number("tau_end") > 0, "above 0, or None")
        self._number("mask_bias")
        for name, least in (
            ("batch_size", 4),
            ("max_epochs", 1),
            ("patience", 1),
            ("min_epoch_steps", 1),
            ("anneal_steps", 1),
            ("alpha_warmup", 0),
            ("mask_depth", 0),
            ("adversary_depth", 0),
            ("adversary_width", 1),
            ("adversary_steps", 1),
            ("neighbours", 1),
            ("shots", 1),
            ("bottleneck", 1),
            ("mlp_width", 1),
            ("mlp_depth", 1),
            ("views", 0),
            ("seed", 0),
        ):
            self._require(name, int, self._number(name) >= least, f"{least} or above")
        self._require("neighbours", int, self.neighbours % 2 == 1, "odd, so that no vote is a tie")
        for name in ("mask_norm", "rescale"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidConfig(f"{name} is {getattr(self, name)!r}; it must be True or False.")
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
        causal_tune.errors.InvalidConfig: A trial has no field 'lamda1'. It has: head, layer, views, lambda1, ...
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


@cache
def _defaults() -> dict[str, Any]:
    return {key: value for key, value in TrialConfig().to_dict().items() if key != "seed"}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the fields that are younger than it, which have their defaults there.

    >>> completed({"head": "linear", "seed": 3})["class_balance"]
    'none'
    """
    return {**_defaults(), **config}
