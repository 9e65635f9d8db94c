"""The optimisation of CausalCLIP (arXiv 2512.13285, section "Optimization Objective"), one batch at a time."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adam import adam

from causal_tune.causal import losses
from causal_tune.causal.mask import NOISES, annealed_tau, drop_noise, training_parts
from causal_tune.causal.products import in_bfloat16

if TYPE_CHECKING:
    from causal_tune.causal.head import CausalHead, CausalSettings

__all__ = ["UPDATES", "CausalTrainer"]

UPDATES: Mapping[str, str] = MappingProxyType(
    {
        "alternating": "adversary, classifier, mask; each with the new ones before it (the paper)",
        "simultaneous": "all three by their gradients at the old parameters",
    }
)


@final
class CausalTrainer:
    """What trains a `CausalHead` in place.

    A step has three parts, each with its own Adam: the adversary d minimises its cross-entropy on Znc, then
    the classifier h minimises L_cls + beta L_inv on Zc, then the mask minimises L_total, Eq. (13), with
    the new h and d held fixed (`alternating`; with `simultaneous` all three move at the end). One draw of the
    noise g and one of the drops B serve all three, so the mask network runs forward once and backward once.
    """

    def __init__(self, head: "CausalHead", settings: "CausalSettings", generator: torch.Generator) -> None:
        self.head = head
        self.settings = settings
        self.generator = generator
        self.num_steps = 0
        self._products = None if settings.precision == "float32" else torch.bfloat16
        rate = settings.learning_rate
        self._classifier = _Part(head.classifier.parameters(), rate, grad_clip=0.0)
        if head.mask_network is not None and head.adversary is not None:
            self._mask = _Part(head.mask_network.parameters(), rate, grad_clip=settings.grad_clip)
            self._adversary = _Part(
                head.adversary.parameters(), rate * settings.adversary_rate, grad_clip=settings.grad_clip
            )

    def step(self, features: Float[Tensor, "B d"], labels: Float[Tensor, " B"]) -> Mapping[str, float]:
        """Update d, h and the mask once; the terms of Eq. (13) as the mask saw them.

        Terms that are switched off by a weight of 0 are not computed and not in the result, except
        `adversarial`: the adversary is trained whatever alpha is, so that its accuracy can be compared. It is
        always the adversary's cross-entropy, whatever stands for it in the mask's loss.
        """
        terms = (
            self._step(features, labels) if self.head.mask_network else self._step_unmasked(features, labels)
        )
        self.num_steps += 1
        return dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))

    def _step(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        head, s = self.head, self.settings
        assert head.mask_network is not None
        shape = (features.shape[0], features.shape[1])
        noise = NOISES[s.noise].draw(shape, self.generator)
        drop = drop_noise(shape, s.p, self.generator)
        logits = self._compute(head.mask_network, features)
        mask, zc, znc, zcf = training_parts(logits, self._tau(), noise, features, self._keep(drop))

        # (a) the adversary
        for _ in range(s.adversary_steps):
            adversarial = losses.adversarial(self._adversary_logits(znc.detach()), labels)
            self._adversary.descend(adversarial, wait=s.update == "simultaneous")

        # (b) the classifier
        self._classifier.descend(
            self._classifier_loss(zc.detach(), zcf.detach(), labels)[0], wait=s.update == "simultaneous"
        )

        # (c) the mask: gradients are asked for the mask's parameters only, which leaves h and d alone
        alpha = s.alpha * min(1.0, (self.num_steps + 1) / s.alpha_warmup) if s.alpha_warmup else s.alpha
        terms = self._terms_of(mask, zc, znc, zcf, labels, alpha)
        self._mask.descend(terms["total"])
        if s.update == "simultaneous":
            self._adversary.move()
            self._classifier.move()

        if s.alpha == 0 or s.adversary_loss != "paper":
            terms["adversarial"] = adversarial
        off = {"hsic": s.lambda2 == 0, "invariance": s.beta == 0}
        return {name: value for name, value in terms.items() if not off.get(name)}

    def _terms_of(
        self, mask: Tensor, zc: Tensor, znc: Tensor, zcf: Tensor, labels: Tensor, alpha: float
    ) -> dict[str, Tensor]:
        """L_total, Eq. (13), and its terms; those whose weight is 0 are 0."""
        s = self.settings
        _, classification, invariance = self._classifier_loss(zc, zcf, labels)
        off = classification.new_zeros(())
        terms = {
            "classification": classification,
            "adversarial": losses.ADVERSARY_LOSSES[s.adversary_loss](self._adversary_logits(znc), labels)
            if s.alpha > 0
            else off,
            "sparsity": losses.SPARSITIES[s.sparsity](mask),
            "hsic": losses.HSIC_ESTIMATORS[s.hsic](zc, znc, self._products) if s.lambda2 > 0 else off,
            "invariance": invariance,
        }
        total = losses.total(**terms, alpha=alpha, lambda1=s.lambda1, lambda2=s.lambda2, beta=s.beta)
        return {"total": total, **terms}

    def _step_unmasked(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        drop = drop_noise((features.shape[0], features.shape[1]), self.settings.p, self.generator)
        total, classification, invariance = self._classifier_loss(
            features, features * self._keep(drop), labels
        )
        self._classifier.descend(total)
        terms = {"total": total, "classification": classification}
        return {**terms, "invariance": invariance} if self.settings.beta > 0 else terms

    def _classifier_loss(self, zc: Tensor, zcf: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_cls + beta L_inv, L_cls, L_inv."""
        logits = self.head.classifier(zc)[:, 0]
        classification = losses.classification(logits, labels)
        if self.settings.beta == 0:
            return classification, classification, classification.new_zeros(())
        invariance = losses.DIVERGENCES[self.settings.divergence](logits, self.head.classifier(zcf)[:, 0])
        return classification + self.settings.beta * invariance, classification, invariance

    def _adversary_logits(self, znc: Tensor) -> Tensor:
        assert self.head.adversary is not None
        return self._compute(self.head.adversary, znc)[:, 0]

    def _keep(self, drop: Tensor) -> Tensor:
        """What Eq. (11) multiplies Zc with: 1 - B."""
        keep = 1 - drop
        return keep / (1 - self.settings.p) if self.settings.rescale else keep

    def _tau(self) -> float:
        s = self.settings
        if s.tau_end is None:
            return s.tau
        self.head.tau.fill_(annealed_tau(self.num_steps, s.tau, s.tau_end, s.anneal_steps))
        return self.head.temperature

    def _compute(self, network: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = in_bfloat16(network, x) if self._products else network(x)
        return found


class _Part:
    """The parameters of one of the three players, and their Adam."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, grad_clip: float) -> None:
        self._parameters: list[Tensor] = list(parameters)
        self._learning_rate, self._grad_clip = learning_rate, grad_clip
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = [torch.zeros((), device=parameter.device) for parameter in self._parameters]
        self.gradients: list[Tensor] = []

    def descend(self, loss: Float[Tensor, ""], *, wait: bool = False) -> None:
        """Take the gradients of `loss`, and move unless `wait`."""
        self.gradients = list(torch.autograd.grad(loss, self._parameters))
        if self._grad_clip > 0:
            # as nn.utils.clip_grad_norm_
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients)))
            torch._foreach_mul_(self.gradients, (self._grad_clip / (norm + 1e-6)).clamp(max=1.0))
        if not wait:
            self.move()

    @torch.no_grad()
    def move(self) -> None:
        """One step of Adam by the gradients that were taken."""
        # the function behind torch.optim.Adam: the object's bookkeeping takes as long as a small part's step
        adam(
            self._parameters,
            self.gradients,
            self._means,
            self._squares,
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
