"""What is done to the features before any head sees them, and a head together with it."""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tune.heads.protocol import Head

__all__ = ["NORMALISATIONS", "NormalisedHead", "Normaliser"]

NORMALISATIONS: Mapping[str, str] = {
    "none": "the features as the encoder gives them (the paper)",
    "l2": "each image's features divided by their length",
    "standardised": "each dimension with mean 0 and standard deviation 1 on the training set",
}

_SMALLEST = 1e-6
"""Lengths and standard deviations below this are taken for it: a constant dimension stays 0."""


@final
class Normaliser(nn.Module):
    """One of `NORMALISATIONS`. `fit` learns what `standardised` needs; the others need nothing.

    >>> normaliser = Normaliser("l2", 2)
    >>> normaliser(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.mean: Tensor
        self.std: Tensor
        if kind == "standardised":
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("std", torch.ones(width))

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "N d"]) -> "Normaliser":
        """Take mean and standard deviation from the training set; returns itself."""
        if self.kind == "standardised":
            self.mean = features.mean(dim=0)
            self.std = features.std(dim=0, correction=0).clamp(min=_SMALLEST)
        return self

    def forward(self, features: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        """The features as a head is to see them."""
        if self.kind == "l2":
            lengths: Tensor = features.norm(dim=1, keepdim=True)
            return features / lengths.clamp(min=_SMALLEST)
        if self.kind == "standardised":
            standardised: Tensor = (features - self.mean) / self.std
            return standardised
        return features


@final
class NormalisedHead:
    """A trained head behind its normaliser: takes the encoder's features, as every detector does."""

    def __init__(self, normaliser: Normaliser, head: Head) -> None:
        self.normaliser = normaliser
        self.head = head

    def logits(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Scores; above 0 the head holds an image for generated."""
        return self.head.logits(self.normaliser(features))
