"""The head of CausalCLIP (arXiv 2512.13285): mask network, classifier h, adversary d, and their training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tune.causal import losses
from causal_tune.causal.layers import linear, probe
from causal_tune.causal.mask import (
    counterfactual,
    drop_noise,
    expected_mask,
    gumbel_noise,
    gumbel_sigmoid,
    mask_statistics,
    split,
)

__all__ = ["CausalHead", "CausalSettings", "CausalTrainer"]

_CPU_ROWS = 64
"""Rows scored at a time on a CPU: what 32 passes over a mask touch stays in its cache, 3 times as fast."""
_DEVICE_ROWS = 4096
"""Rows scored at a time elsewhere: large enough to fill a GPU, small enough for its memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalSettings:
    """What a causal head is built and trained with; the names are the paper's symbols."""

    lambda1: float
    """Weight of the mask's L1 norm (summed over dimensions), Eq. (10)."""
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
    """Hidden units of the mask network; None: as many as the features have dimensions."""
    adversary_width: int
    """Hidden units of the adversary."""
    evaluation_mask: str = "expected"
    """Which mask images are scored with: the mean over its noise (`expected_mask`)."""
    evaluation_quantiles: int = 32
    """Quantiles of that mean."""


@final
class CausalHead(nn.Module):
    """A mask over features, and a linear classifier on what the mask lets through.

    Scores are deterministic: they use the expected mask. Training is the business of `trainer`.
    """

    Settings: ClassVar[type] = CausalSettings

    def __init__(self, width: int, settings: CausalSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = width
        self.settings = settings
        hidden = settings.mask_width or width
        self.mask_network = nn.Sequential(
            linear(width, hidden, generator), nn.ReLU(), linear(hidden, width, generator)
        )
        self.classifier = probe(width, generator)
        self.adversary = nn.Sequential(
            linear(width, settings.adversary_width, generator),
            nn.ReLU(),
            linear(settings.adversary_width, 1, generator),
        )

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain values, from which the same head is built again."""
        return asdict(self.settings)

    @property
    def num_parameters(self) -> int:
        """Trained numbers, the adversary's included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def mask(self, features: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        """The mask of evaluation: the mean of Eq. (5) over its noise."""
        return torch.cat([self._mask_of_rows(rows) for rows in self._rows(features)])

    def logits(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """Scores; above 0 the head holds an image for generated, and sigmoid makes them probabilities."""
        return torch.cat(
            [self.classifier(self._mask_of_rows(rows) * rows)[:, 0] for rows in self._rows(features)]
        )

    def mask_statistics(
        self, features: Float[Tensor, "N d"], labels: Float[Tensor, " N"]
    ) -> dict[str, float]:
        """`causal.mask.mask_statistics` of the evaluation mask, and `adversary_accuracy`.

        The latter is how often the adversary reads the label off the non-causal features: 0.5 on balanced
        labels when nothing is left in them (or when the mask is all ones and leaves nothing at all).
        """
        mask = self.mask(features)
        _, znc = split(features, mask)
        right = (self.adversary(znc)[:, 0] > 0) == (labels > 0.5)
        return {**mask_statistics(mask), "adversary_accuracy": right.float().mean().item()}

    def trainer(self, generator: torch.Generator) -> "CausalTrainer":
        """What trains this head in place, its noise drawn from `generator` (on the features' device)."""
        return CausalTrainer(self, generator)

    def _mask_of_rows(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return expected_mask(self.mask_network(rows), self.settings.tau, self.settings.evaluation_quantiles)

    def _rows(self, features: Float[Tensor, "N d"]) -> tuple[Tensor, ...]:
        return torch.split(features, _CPU_ROWS if features.device.type == "cpu" else _DEVICE_ROWS)


@final
class CausalTrainer:
    """The alternating optimisation of the paper's section "Optimization Objective", one batch at a time.

    A step has three parts, each with its own Adam: the adversary d minimises its cross-entropy on Znc, then
    the classifier h minimises L_cls + beta L_inv on Zc, then the mask minimises L_total, Eq. (13), with
    the new h and d held fixed. One draw of the Gumbel noise g and one of the drops B serve all three, so the
    mask network runs forward once and backward once.
    """

    def __init__(self, head: CausalHead, generator: torch.Generator) -> None:
        self.head = head
        self.generator = generator
        self._mask_parameters = list(head.mask_network.parameters())
        self._classifier_parameters = list(head.classifier.parameters())
        self._adversary_parameters = list(head.adversary.parameters())
        # fused: a quarter of the time of the default on a CPU
        self._mask_optimiser, self._classifier_optimiser, self._adversary_optimiser = (
            torch.optim.Adam(parameters, lr=head.settings.learning_rate, fused=True)
            for parameters in (
                self._mask_parameters,
                self._classifier_parameters,
                self._adversary_parameters,
            )
        )

    def step(self, features: Float[Tensor, "B d"], labels: Float[Tensor, " B"]) -> Mapping[str, float]:
        """Update d, h and the mask once; the terms of Eq. (13) as the mask saw them.

        Terms that are switched off by a weight of 0 are not computed and not in the result, except
        `adversarial`: the adversary is trained whatever alpha is, so that its accuracy can be compared.
        """
        head, weights = self.head, self.head.settings
        shape = (features.shape[0], features.shape[1])
        gumbel = gumbel_noise(shape, self.generator)
        drop = drop_noise(shape, weights.p, self.generator)
        mask = gumbel_sigmoid(head.mask_network(features), weights.tau, gumbel)
        zc, znc = split(features, mask)
        zcf = counterfactual(zc, drop)

        # (a) the adversary
        adversary_loss = losses.adversarial(head.adversary(znc.detach())[:, 0], labels)
        self._descend(
            adversary_loss, self._adversary_parameters, self._adversary_optimiser, weights.grad_clip
        )

        # (b) the classifier
        classifier_logits = head.classifier(zc.detach())[:, 0]
        classifier_loss = losses.classification(classifier_logits, labels)
        if weights.beta > 0:
            counterfactual_logits = head.classifier(zcf.detach())[:, 0]
            classifier_loss = classifier_loss + weights.beta * losses.invariance(
                classifier_logits, counterfactual_logits
            )
        self._descend(classifier_loss, self._classifier_parameters, self._classifier_optimiser, 0.0)

        # (c) the mask: gradients are asked for the mask's parameters only, which leaves h and d alone
        off = features.new_zeros(())
        classifier_logits = head.classifier(zc)[:, 0]
        terms = {
            "classification": losses.classification(classifier_logits, labels),
            "adversarial": losses.adversarial(head.adversary(znc)[:, 0], labels)
            if weights.alpha > 0
            else off,
            "sparsity": losses.sparsity(mask),
            "hsic": losses.hsic(zc, znc) if weights.lambda2 > 0 else off,
            "invariance": (
                losses.invariance(classifier_logits, head.classifier(zcf)[:, 0]) if weights.beta > 0 else off
            ),
        }
        total = losses.total(
            **terms,
            alpha=weights.alpha,
            lambda1=weights.lambda1,
            lambda2=weights.lambda2,
            beta=weights.beta,
        )
        self._descend(total, self._mask_parameters, self._mask_optimiser, weights.grad_clip)

        if weights.alpha == 0:
            terms["adversarial"] = adversary_loss
        if weights.lambda2 == 0:
            del terms["hsic"]
        if weights.beta == 0:
            del terms["invariance"]
        values = torch.stack([total, *terms.values()]).tolist()
        return dict(zip(["total", *terms], values, strict=True))

    @staticmethod
    def _descend(
        loss: Float[Tensor, ""],
        parameters: list[nn.Parameter],
        optimiser: torch.optim.Optimizer,
        grad_clip: float,
    ) -> None:
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if grad_clip > 0:
            nn.utils.clip_grad_norm_(parameters, grad_clip)
        optimiser.step()
