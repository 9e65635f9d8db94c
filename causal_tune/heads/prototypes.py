"""Few-shot class means, after prototypical networks (Snell et al., arXiv 1703.05175) on frozen features."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tune.errors import TrialFailed

__all__ = ["PrototypesHead", "PrototypesSettings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrototypesSettings:
    """What the prototypes are made of."""

    shots: int
    """K: images of each class whose mean is its prototype."""


@final
class PrototypesHead(nn.Module):
    """The mean of K real and of K generated training images; an image is of the class whose mean is nearer.

    Which K images is drawn by the trial's seed: at small K the seeds differ by several points. Both classes have K
    images, so there is nothing for `class_balance` to do.

    >>> head = PrototypesHead(1, PrototypesSettings(shots=2), torch.Generator())
    >>> features, labels = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> _ = head.fit(features, labels, torch.Generator())
    >>> head.logits(torch.tensor([[0.0], [1.0]]))
    tensor([0., 8.])
    """

    Settings: ClassVar[type] = PrototypesSettings

    def __init__(self, width: int, settings: PrototypesSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        self.settings = settings
        self.real: Tensor
        self.generated: Tensor
        for name in ("real", "generated"):
            self.register_buffer(name, torch.zeros(width))

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain values, from which the same head is built again."""
        return asdict(self.settings)

    @property
    def num_parameters(self) -> int:
        """Two means."""
        return self.real.numel() + self.generated.numel()

    def logits(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """|z - real|^2 - |z - generated|^2: log odds of a softmax over negative squared distances."""
        real, generated = ((features - mean).square().sum(dim=1) for mean in (self.real, self.generated))
        return real - generated

    def mask_statistics(self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"]) -> None:
        """None: this head has no mask."""

    def fit(
        self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"], generator: torch.Generator
    ) -> Mapping[str, float]:
        """Draw K images of each class and take their means; there is no loss: `total` is 0.

        `TrialFailed` where a class has fewer than K images.
        """
        for name, rows in (("real", features[labels < 0.5]), ("generated", features[labels > 0.5])):
            if len(rows) < self.settings.shots:
                raise TrialFailed(
                    f"shots is {self.settings.shots}, and the training set has {len(rows)} {name} images. Lower "
                    "shots in the search space, or train on more images."
                )
            chosen = torch.randperm(len(rows), generator=generator, device=generator.device)
            setattr(self, name, rows[chosen[: self.settings.shots].to(rows.device)].mean(dim=0))
        return {"total": 0.0}
