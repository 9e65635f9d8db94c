"""The head of CausalCLIP (arXiv 2512.13285): mask network, classifier h, adversary d. `trainer` trains it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tune.causal.layers import chunks, mlp, probe
from causal_tune.causal.mask import EVALUATION_MASKS, NOISES, mask_statistics, split
from causal_tune.causal.trainer import CausalTrainer

__all__ = ["MASK_SCOPES", "CausalHead", "CausalSettings"]

_CPU_ROWS = 64
"""Rows scored at a time on a CPU: what 32 passes over a mask touch stays in its cache, 3 times as fast."""
_DEVICE_ROWS = 4096
"""Rows scored at a time elsewhere: large enough to fill a GPU, small enough for its memory."""

MASK_SCOPES = {
    "instance": "a network reads the mask off the features of each image (the paper)",
    "global": "one mask for all images: d logits that are trained themselves",
    "none": "no mask: M = 1, so that the method is a linear probe with counterfactual consistency",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalSettings:
    """What a causal head is built and trained with; the symbols are the paper's.

    Defaults are those of heads that were stored before the option existed; a trial's are in `TrialConfig`.
    """

    lambda1: float
    """Weight of the mask's L1 norm, Eq. (10)."""
    lambda2: float
    """Weight of the HSIC term, Eq. (10)."""
    alpha: float
    """Weight of the adversary's loss in what the mask minimises, Eq. (13)."""
    beta: float
    """Weight of the counterfactual consistency, Eq. (13)."""
    tau: float
    """Temperature of the mask, Eq. (5)."""
    p: float
    """Probability that the counterfactual drops a dimension, Eq. (11)."""
    learning_rate: float
    """Step size of all three Adam optimisers."""
    grad_clip: float
    """Largest norm of the gradient of the mask network, and of the adversary; 0 does not clip."""
    mask_width: int | None
    """Units of each hidden layer of the mask network; None: as many as the features have dimensions."""
    adversary_width: int
    """Units of each hidden layer of the adversary."""
    update: str = "alternating"
    """A name of `trainer.UPDATES`."""
    noise: str = "gumbel"
    """A name of `mask.NOISES`."""
    tau_end: float | None = None
    """Temperature after `anneal_steps`, `mask.annealed_tau`; None: fixed."""
    anneal_steps: int = 500
    """Steps in which the temperature falls to `tau_end`."""
    alpha_warmup: int = 0
    """Steps in which alpha rises linearly from 0."""
    mask_scope: str = "instance"
    """A name of `MASK_SCOPES`."""
    mask_depth: int = 1
    """Hidden layers of the mask network."""
    mask_bias: float = 0.0
    """Start of the biases that the mask's logits have; 2 opens the mask."""
    mask_norm: bool = False
    """Whether the mask network normalises the features of each image first (LayerNorm)."""
    adversary_depth: int = 1
    """Hidden layers of the adversary; 0: linear."""
    adversary_steps: int = 1
    """Updates of the adversary in one step."""
    adversary_rate: float = 1.0
    """Step size of the adversary, relative to `learning_rate`."""
    adversary_loss: str = "paper"
    """A name of `losses.ADVERSARY_LOSSES`."""
    sparsity: str = "sum"
    """A name of `losses.SPARSITIES`."""
    hsic: str = "biased"
    """A name of `losses.HSIC_ESTIMATORS`."""
    divergence: str = "full"
    """A name of `losses.DIVERGENCES`."""
    rescale: bool = False
    """Whether the counterfactual divides by 1 - p, as dropout does; the paper does not."""
    precision: str = "float32"
    """Of the matrix products in training: `float32`, or `bfloat16` over float32 parameters."""
    evaluation_mask: str = "expected"
    """A name of `mask.EVALUATION_MASKS`: the mask that images are scored with."""
    evaluation_quantiles: int = 32
    """Quantiles of the expected mask; draws of the sampled one."""
    class_balance: str = "none"
    """A name of `heads.balance.CLASS_BALANCES`: with `balanced` L_cls and L_adv are weighted by class."""


@final
class CausalHead(nn.Module):
    """A mask over features, and a linear classifier on what the mask lets through.

    Scores are deterministic, by the evaluation mask. Training is the business of `trainer`.
    """

    Settings: ClassVar[type] = CausalSettings

    def __init__(self, width: int, settings: CausalSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        self.settings = settings
        self.mask_network: nn.Module | None = _mask_network(width, settings, generator)
        self.classifier = probe(width, generator)
        self.adversary: nn.Module | None = None
        if self.mask_network is not None:
            hidden = [settings.adversary_width] * settings.adversary_depth
            self.adversary = mlp([width, *hidden, 1], generator)
        self.tau: Tensor
        if settings.tau_end is not None:
            # the temperature moves in training, and scores need the one that belongs to the parameters
            self.register_buffer("tau", torch.tensor(settings.tau))

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain values, from which the same head is built again."""
        return asdict(self.settings)

    @property
    def num_parameters(self) -> int:
        """Trained numbers, the adversary's included."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def temperature(self) -> float:
        """tau of Eq. (5) as it stands."""
        return float(self.tau) if self.settings.tau_end is not None else self.settings.tau

    def mask(self, features: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        """The mask of evaluation: the mean of Eq. (5) over its noise, or what `evaluation_mask` names."""
        return torch.cat([self._mask_of_rows(rows) for rows in self._rows(features)])

    def logits(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Scores; above 0 the head holds an image for generated, and sigmoid makes them probabilities."""
        return torch.cat(
            [self.classifier(self._mask_of_rows(rows) * rows)[:, 0] for rows in self._rows(features)]
        )

    def mask_statistics(
        self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"]
    ) -> dict[str, float] | None:
        """`causal.mask.mask_statistics` of the evaluation mask, and `adversary_accuracy`; None without a mask.

        The latter is how often the adversary reads the label off the non-causal features: 0.5 on balanced
        labels when nothing is left in them (or when the mask is all ones and leaves nothing at all).
        """
        if self.adversary is None:
            return None
        mask = self.mask(features)
        _, znc = split(features, mask)
        right = (self.adversary(znc)[:, 0] > 0) == (labels > 0.5)
        return {**mask_statistics(mask), "adversary_accuracy": right.float().mean().item()}

    def trainer(
        self, generator: torch.Generator, class_weights: tuple[float, float] | None = None
    ) -> CausalTrainer:
        """What trains this head in place, its noise drawn from `generator` (on the features' device)."""
        return CausalTrainer(self, self.settings, generator, class_weights)

    def _mask_of_rows(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        if self.mask_network is None:
            return torch.ones_like(rows)
        evaluate = EVALUATION_MASKS[self.settings.evaluation_mask]
        noise = NOISES[self.settings.noise]
        return evaluate(self.mask_network(rows), self.temperature, noise, self.settings.evaluation_quantiles)

    def _rows(self, features: Float[Tensor, "N d"]) -> Iterator[Tensor]:
        return iter(chunks(features, _CPU_ROWS if features.device.type == "cpu" else _DEVICE_ROWS))


@final
class GlobalLogits(nn.Module):
    """Logits of a mask that is the same for every image."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((width,), bias))

    def forward(self, features: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
        """The logits, once for each image."""
        return self.logits.expand_as(features)


def _mask_network(width: int, settings: CausalSettings, generator: torch.Generator) -> nn.Module | None:
    if settings.mask_scope == "none":
        return None
    if settings.mask_scope == "global":
        return GlobalLogits(width, settings.mask_bias)
    hidden = [settings.mask_width or width] * settings.mask_depth
    network = mlp([width, *hidden, width], generator, last_bias=settings.mask_bias)
    return nn.Sequential(nn.LayerNorm(width), *network) if settings.mask_norm else network
