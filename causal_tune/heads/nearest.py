"""The nearest-neighbour detector of UnivFD (Ojha et al., CVPR 2023, arXiv 2302.10174)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tune.causal.layers import chunks
from causal_tune.errors import TrialFailed
from causal_tune.heads.normaliser import Normaliser

__all__ = ["NearestHead", "NearestSettings"]

_DISTANCES = 2**24
"""Distances held at a time (64 MiB): as many images are scored at once as that allows, whatever the bank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearestSettings:
    """What the nearest-neighbour detector is built with."""

    neighbours: int
    """k: how many neighbours vote; odd."""
    class_balance: str = "none"
    """A name of `CLASS_BALANCES`: with `balanced` the larger bank has to bring more neighbours."""


@final
class NearestHead(nn.Module):
    """Cosine distances to a bank of real and a bank of generated training images, both kept.

    The score is d_real(m) - d_generated(m) with m = (k + 1) / 2, d(m) being the m-th smallest distance to a
    bank: for k = 1 UnivFD's rule. For any odd k its sign is the majority vote of the k nearest images of both
    banks, since the m-th generated image is among them exactly if it is nearer than the m-th real one.

    Of two banks the larger one has the nearer neighbours, whatever the image. Balanced, class c is asked for neighbour
    m_c = 1/3 + (m - 1/3) n_c / min(n_0, n_1), rounded: of n draws the m-th smallest has its median near the quantile
    (m - 1/3) / n, so that where both classes are as common, either bank is nearer as often, whatever its size.

    >>> head = NearestHead(2, NearestSettings(neighbours=1), torch.Generator())
    >>> features, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0])
    >>> _ = head.fit(features, labels, torch.Generator())
    >>> head.logits(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    tensor([-1.,  1.])
    """

    Settings: ClassVar[type] = NearestSettings

    def __init__(self, width: int, settings: NearestSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        self.settings = settings
        self.real: Tensor
        self.generated: Tensor
        for name in ("real", "generated"):
            self.register_buffer(name, torch.empty(0, width))
        # how many images a bank holds is known only from the stored head
        self.register_load_state_dict_pre_hook(_take_sizes)  # type: ignore[no-untyped-call]

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain values, from which the same head is built again."""
        return asdict(self.settings)

    @property
    def num_parameters(self) -> int:
        """Numbers in both banks."""
        return self.real.numel() + self.generated.numel()

    def logits(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Differences of cosine distances; above 0 generated. Not log odds: their sigmoid is near 1/2."""
        if not len(self.real):
            return features.new_zeros(len(features))  # no bank: undecided
        rows_at_once = max(1, _DISTANCES // max(len(self.real), len(self.generated)))
        return torch.cat([self._score(rows) for rows in chunks(_unit(features), rows_at_once)])

    def _score(self, unit: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        # distance = 1 - similarity, so the m-th smallest distance is the m-th largest similarity
        real, generated = (
            (unit @ bank.T).topk(self._rank(len(bank)), dim=1).values[:, -1]
            for bank in (self.real, self.generated)
        )
        return generated - real

    def _rank(self, size: int) -> int:
        """m of a bank of `size` images."""
        m = (self.settings.neighbours + 1) // 2
        if self.settings.class_balance == "none":
            return m
        return round(1 / 3 + (m - 1 / 3) * size / min(len(self.real), len(self.generated)))

    def mask_statistics(self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"]) -> None:
        """None: this head has no mask."""

    def fit(
        self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"], generator: torch.Generator
    ) -> Mapping[str, float]:
        """Keep the training images; nothing is drawn and there is no loss: `total` is 0.

        `TrialFailed` where a class has fewer images than neighbours can be asked of it.
        """
        real, generated = features[labels < 0.5], features[labels > 0.5]
        k = self.settings.neighbours
        if min(len(real), len(generated)) < k:
            raise TrialFailed(
                f"neighbours is {k}, and the training set has {len(real)} real and {len(generated)} generated "
                f"images; each class needs {k}. Lower neighbours in the search space, or train on more images."
            )
        self.real, self.generated = _unit(real), _unit(generated)
        return {"total": 0.0}


def _unit(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    unit: Tensor = Normaliser("l2", features.shape[1])(features)
    return unit


def _take_sizes(head: NearestHead, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    for name in ("real", "generated"):
        stored = state_dict.get(prefix + name)
        if stored is not None and stored.ndim == 2:  # any other shape is refused as a size mismatch
            setattr(head, name, getattr(head, name).new_empty(len(stored), head.width))
