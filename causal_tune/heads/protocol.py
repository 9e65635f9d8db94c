"""What a head is: it scores features, has plain tensors as its state, and knows how it is trained.

A `SteppedHead` learns batch by batch, with early stopping; a `FittedHead` at once, from the whole training set.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tune.heads.balance import ClassWeights

__all__ = ["FittedHead", "Head", "Scorer", "SteppedHead", "Trainer"]


class Trainer(Protocol):
    """The training of one head: optimisers, noise and all else that is not needed for scoring."""

    def step(self, features: Float[Tensor, "B d"], labels: Float[Tensor, " B"]) -> Mapping[str, float]:
        """Update the head once on one batch; the loss terms by name, `total` first."""


class Scorer(Protocol):
    """What a detector needs of a trained head."""

    def logits(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Scores, the same for the same features every time; above 0 means generated."""


class Head(Scorer, Protocol):
    """A detector on features. Implementations are final classes, listed in `HEADS`."""

    Settings: ClassVar[type]
    """A dataclass: the hyperparameters that a head is built from, by the names they have in a trial."""

    def __init__(self, width: int, settings: Any, generator: torch.Generator) -> None:
        """A head for features of `width` dimensions; its start comes from `generator` (on the CPU) alone."""

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain JSON values, from which the same head is built again."""

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""

    def mask_statistics(
        self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"]
    ) -> dict[str, float] | None:
        """What the head's mask does to these features; None for a head without a mask."""

    def to(self, device: Any) -> Any:
        """Move the head; returns it."""

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters by name."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Take the parameters of `state_dict`; other names or shapes are an error."""


@runtime_checkable
class SteppedHead(Head, Protocol):
    """A head that is trained by gradient steps on batches."""

    def trainer(self, generator: torch.Generator, class_weights: ClassWeights | None = None) -> Trainer:
        """What trains this head in place, its noise drawn from `generator`; the loss weighted by class."""


@runtime_checkable
class FittedHead(Head, Protocol):
    """A head that is fitted to the whole training set at once, without steps.

    It counts the classes itself, and balances them where its setting `class_balance` says so.
    """

    def fit(
        self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"], generator: torch.Generator
    ) -> Mapping[str, float]:
        """Fit in place, what is drawn coming from `generator`; the loss terms by name, `total` first.

        `TrialFailed` where the training set does not have what the head needs.
        """
