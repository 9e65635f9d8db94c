"""The linear probe of UnivFD (Ojha et al., CVPR 2023, arXiv 2302.10174): the baseline of every study."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tune.causal import losses
from causal_tune.causal.layers import probe
from causal_tune.heads.balance import ClassWeights

__all__ = ["LinearHead", "LinearSettings", "LinearTrainer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearSettings:
    """What a linear probe is trained with."""

    learning_rate: float
    """Step size of Adam."""
    class_balance: str = "none"
    """A name of `CLASS_BALANCES`: with `balanced` the loss is weighted by class."""


@final
class LinearHead(nn.Module):
    """One linear layer on the raw features, trained by binary cross-entropy."""

    Settings: ClassVar[type] = LinearSettings

    def __init__(self, width: int, settings: LinearSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        self.settings = settings
        self.classifier = probe(width, generator)

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain values, from which the same head is built again."""
        return asdict(self.settings)

    @property
    def num_parameters(self) -> int:
        """One weight a dimension, and a bias."""
        return sum(parameter.numel() for parameter in self.parameters())

    def logits(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Scores; above 0 the head holds an image for generated, and sigmoid makes them probabilities."""
        logits: Tensor = self.classifier(features)[:, 0]
        return logits

    def mask_statistics(self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"]) -> None:
        """None: this head has no mask."""

    def trainer(
        self, generator: torch.Generator, class_weights: ClassWeights | None = None
    ) -> "LinearTrainer":
        """What trains this head in place; it draws nothing from `generator`."""
        return LinearTrainer(self, class_weights)


@final
class LinearTrainer:
    """Adam on the binary cross-entropy."""

    def __init__(self, head: LinearHead, class_weights: ClassWeights | None = None) -> None:
        self.head = head
        self._class_weights = class_weights
        self._optimiser = torch.optim.Adam(head.parameters(), lr=head.settings.learning_rate, fused=True)

    def step(self, features: Float[Tensor, "B d"], labels: Float[Tensor, " B"]) -> Mapping[str, float]:
        """Update the probe once; its loss, as `total` and as the term it is."""
        weights = losses.image_weights(labels, self._class_weights)
        loss = losses.classification(self.head.logits(features), labels, weights)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        value = loss.item()
        return {"total": value, "classification": value}
