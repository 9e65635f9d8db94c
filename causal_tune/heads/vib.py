"""VIB-Net: a variational information bottleneck on frozen features (Zhang et al., CVPR 2025).

Layers and dropout are those of its public code; the bottleneck is Alemi et al.'s (arXiv 1612.00410).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from causal_tune.causal import losses
from causal_tune.causal.layers import mlp, probe
from causal_tune.heads.balance import ClassWeights
from causal_tune.heads.mlp import dropped

__all__ = ["VibHead", "VibSettings", "VibTrainer", "information"]

_HIDDEN = 1024
_SHIFT = -5.0
"""Of the softplus: standard deviations start near 0.007, so that the code starts almost deterministic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VibSettings:
    """What VIB-Net is built and trained with."""

    vib_beta: float
    """Weight of the information term; its authors do not publish theirs."""
    dropout: float
    """Share of the features that a training step drops; the others are scaled up."""
    bottleneck: int
    """Width of the code t."""
    learning_rate: float
    """Step size of Adam."""
    class_balance: str = "none"
    """A name of `CLASS_BALANCES`: with `balanced` the loss is weighted by class."""


def information(mu: Float[Tensor, "B k"], std: Float[Tensor, "B k"]) -> Float[Tensor, ""]:
    """KL( N(mu, std^2) || N(0, 1) ) in nats, summed over the code, mean over the batch; an upper bound of I(E; t).

    >>> information(torch.zeros(2, 3), torch.ones(2, 3)).item()
    0.0
    """
    return (0.5 * (mu.square() + std.square() - 1) - std.log()).sum(dim=1).mean()


@final
class VibHead(nn.Module):
    """Features -> dropout -> 1024 -> 1024 -> a Gaussian code (mu, std) -> one logit of a draw t of it.

    Scores use t = mu. VIB-Net's code draws t when it scores too, which makes its scores random.

    >>> settings = VibSettings(vib_beta=1e-3, dropout=0.5, bottleneck=16, learning_rate=1e-4)
    >>> mu, std = VibHead(4, settings, torch.Generator().manual_seed(0)).code(torch.ones(3, 4))
    >>> mu.shape, bool((std < 0.01).all())
    (torch.Size([3, 16]), True)
    """

    Settings: ClassVar[type] = VibSettings

    def __init__(self, width: int, settings: VibSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        self.settings = settings
        self.encoder = mlp([width, _HIDDEN, _HIDDEN, 2 * settings.bottleneck], generator)
        self.classifier = probe(settings.bottleneck, generator)

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain values, from which the same head is built again."""
        return asdict(self.settings)

    @property
    def num_parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def code(self, features: Float[Tensor, "N d"]) -> tuple[Float[Tensor, "N k"], Float[Tensor, "N k"]]:
        """mu and std = softplus(x - 5) of the code."""
        mu, raw = self.encoder(features).chunk(2, dim=1)
        return mu, functional.softplus(raw + _SHIFT)

    def logits(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Scores at the mean of the code; above 0 the head holds an image for generated."""
        logits: Tensor = self.classifier(self.code(features)[0])[:, 0]
        return logits

    def mask_statistics(self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"]) -> None:
        """None: this head has no mask."""

    def trainer(self, generator: torch.Generator, class_weights: ClassWeights | None = None) -> "VibTrainer":
        """What trains this head in place, dropout and codes drawn from `generator`."""
        return VibTrainer(self, generator, class_weights)


@final
class VibTrainer:
    """Adam on the binary cross-entropy plus `vib_beta` times the information."""

    def __init__(
        self, head: VibHead, generator: torch.Generator, class_weights: ClassWeights | None = None
    ) -> None:
        self.head = head
        self.generator = generator
        self._class_weights = class_weights
        self._optimiser = torch.optim.Adam(head.parameters(), lr=head.settings.learning_rate, fused=True)

    def step(self, features: Float[Tensor, "B d"], labels: Float[Tensor, " B"]) -> Mapping[str, float]:
        """Update the head once; the loss and its two terms."""
        head, settings = self.head, self.head.settings
        mu, std = head.code(dropped(features, settings.dropout, self.generator))
        epsilon = torch.randn(mu.shape, generator=self.generator, device=mu.device)
        weights = losses.image_weights(labels, self._class_weights)
        classification = losses.classification(head.classifier(mu + epsilon * std)[:, 0], labels, weights)
        nats = information(mu, std)
        total = classification + settings.vib_beta * nats
        self._optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        values = torch.stack([total, classification, nats]).tolist()
        return dict(zip(("total", "classification", "information"), values, strict=True))
