"""A linear support vector machine (Cozzolino et al., "Raising the Bar of AI-generated Image Detection with CLIP",
CVPR 2024, arXiv 2312.00195)."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tune.causal.layers import probe
from causal_tune.errors import TrialFailed

__all__ = ["SvmHead", "SvmSettings"]

_ITERATIONS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SvmSettings:
    """What the machine is fitted with."""

    svm_c: float
    """C: inverse strength of the regularisation."""
    class_balance: str = "none"
    """A name of `CLASS_BALANCES`: with `balanced` C is multiplied by the weight of each image's class."""


@final
class SvmHead(nn.Module):
    """scikit-learn's `LinearSVC` (squared hinge loss); what it finds is kept as one linear layer.

    The paper normalises the features (`normalisation="l2"`), and fits on them before CLIP's projection (the
    layer `pre`).

    >>> head = SvmHead(1, SvmSettings(svm_c=100.0), torch.Generator().manual_seed(0))
    >>> features, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.0, 1.0])
    >>> _ = head.fit(features, labels, torch.Generator().manual_seed(0))
    >>> [round(margin, 2) for margin in head.logits(features).tolist()]
    [-1.0, 1.0]
    """

    Settings: ClassVar[type] = SvmSettings

    def __init__(self, width: int, settings: SvmSettings, generator: torch.Generator) -> None:
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
        """Margins; above 0 generated. Not log odds: a machine gives no probabilities."""
        logits: Tensor = self.classifier(features)[:, 0]
        return logits

    def mask_statistics(self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"]) -> None:
        """None: this head has no mask."""

    @torch.no_grad()
    def fit(
        self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"], generator: torch.Generator
    ) -> Mapping[str, float]:
        """Fit in place; `total` is the mean squared hinge loss of the training set.

        `TrialFailed` where it does not converge.
        """
        # here, for it takes a second that the workers of other heads need not wait
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        machine = LinearSVC(
            C=self.settings.svm_c,
            class_weight=None if self.settings.class_balance == "none" else "balanced",
            dual="auto",
            random_state=seed,
            max_iter=_ITERATIONS,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                machine.fit(features.cpu().numpy(), labels.cpu().numpy() > 0.5)
            except ConvergenceWarning as warning:
                raise TrialFailed(
                    f"The support vector machine did not converge in {_ITERATIONS:,} iterations at svm_c "
                    f"{self.settings.svm_c:g}. Lower svm_c in the search space, or use normalised features "
                    "(normalisation l2 or standardised)."
                ) from warning
        weight, bias = self.classifier.weight, self.classifier.bias
        weight.copy_(torch.from_numpy(machine.coef_).to(weight))
        bias.copy_(torch.from_numpy(machine.intercept_).to(bias))
        slack = (1 - (2 * labels - 1) * self.logits(features)).clamp(min=0)
        return {"total": slack.square().mean().item()}
