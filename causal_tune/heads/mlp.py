"""A multilayer perceptron: what more parameters alone do for a detector."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tune.causal import losses
from causal_tune.causal.layers import mlp
from causal_tune.causal.mask import drop_noise
from causal_tune.heads.balance import ClassWeights

__all__ = ["MlpHead", "MlpSettings", "MlpTrainer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpSettings:
    """What a perceptron is built and trained with."""

    mlp_width: int
    """Units of each hidden layer."""
    mlp_depth: int
    """Hidden layers."""
    dropout: float
    """Share of hidden units that a training step drops; the others are scaled up."""
    weight_decay: float
    """AdamW's decoupled weight decay."""
    learning_rate: float
    """Step size of AdamW."""
    class_balance: str = "none"
    """A name of `CLASS_BALANCES`: with `balanced` the loss is weighted by class."""


@final
class MlpHead(nn.Module):
    """Linear layers with ReLU and dropout between them, trained by binary cross-entropy.

    >>> settings = MlpSettings(mlp_width=8, mlp_depth=2, dropout=0.5, weight_decay=0.0, learning_rate=1e-3)
    >>> MlpHead(4, settings, torch.Generator().manual_seed(0)).logits(torch.ones(3, 4)).shape
    torch.Size([3])
    """

    Settings: ClassVar[type] = MlpSettings

    def __init__(self, width: int, settings: MlpSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        self.settings = settings
        self.network = mlp([width, *[settings.mlp_width] * settings.mlp_depth, 1], generator)

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain values, from which the same head is built again."""
        return asdict(self.settings)

    @property
    def num_parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def logits(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Scores; above 0 the head holds an image for generated, and sigmoid makes them probabilities."""
        logits: Tensor = self.network(features)[:, 0]
        return logits

    def mask_statistics(self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"]) -> None:
        """None: this head has no mask."""

    def trainer(self, generator: torch.Generator, class_weights: ClassWeights | None = None) -> "MlpTrainer":
        """What trains this head in place, its dropout drawn from `generator`."""
        return MlpTrainer(self, generator, class_weights)


@final
class MlpTrainer:
    """AdamW on the binary cross-entropy, with dropout."""

    def __init__(
        self, head: MlpHead, generator: torch.Generator, class_weights: ClassWeights | None = None
    ) -> None:
        self.head = head
        self.generator = generator
        self._class_weights = class_weights
        self._optimiser = torch.optim.AdamW(
            head.parameters(),
            lr=head.settings.learning_rate,
            weight_decay=head.settings.weight_decay,
            fused=True,
        )

    def step(self, features: Float[Tensor, "B d"], labels: Float[Tensor, " B"]) -> Mapping[str, float]:
        """Update the head once; its loss, as `total` and as the term it is."""
        hidden = features
        for layer in self.head.network:
            hidden = layer(hidden)
            if isinstance(layer, nn.ReLU):
                hidden = dropped(hidden, self.head.settings.dropout, self.generator)
        weights = losses.image_weights(labels, self._class_weights)
        loss = losses.classification(hidden[:, 0], labels, weights)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        value = loss.item()
        return {"total": value, "classification": value}


def dropped(z: Float[Tensor, "B d"], rate: float, generator: torch.Generator) -> Float[Tensor, "B d"]:
    """Dropout by a given generator: a share `rate` of the entries is 0, the others are scaled by 1 / (1 - rate).

    >>> dropped(torch.ones(1, 2), 0.0, torch.Generator())
    tensor([[1., 1.]])
    """
    if rate == 0:
        return z
    drop = drop_noise((z.shape[0], z.shape[1]), rate, generator)
    return z * (1 - drop) / (1 - rate)
