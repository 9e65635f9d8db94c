"""The optimisation of CausalCLIP (arXiv 2512.13285, section "Optimization Objective"), one batch at a time."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypedDict, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tune.causal import losses
from causal_tune.causal.mask import (
    NOISES,
    annealed_tau,
    counterfactual,
    drop_noise,
    training_gradient,
    training_parts,
)
from causal_tune.causal.products import Pass

if TYPE_CHECKING:
    from causal_tune.causal.head import CausalHead, CausalSettings

__all__ = ["UPDATES", "CausalTrainer"]

UPDATES: Mapping[str, str] = MappingProxyType(
    {
        "alternating": "adversary, classifier, mask; each with the new ones before it (the paper)",
        "simultaneous": "all three by their gradients at the old parameters",
    }
)

_OFF = dict.fromkeys(("classification", "adversarial", "sparsity", "hsic", "invariance"), 0.0)
"""Terms of a weight of 0, which are not computed."""


class Truth(TypedDict):
    """What the terms that read labels are given."""

    y: Tensor
    weights: Tensor | None


@final
class CausalTrainer:
    """What trains a `CausalHead` in place.

    A step has three parts, each with its own Adam: the adversary d minimises its cross-entropy on Znc, then
    the classifier h minimises L_cls + beta L_inv on Zc, then the mask minimises L_total, Eq. (13), with
    the new h and d held fixed (`alternating`; with `simultaneous` all three move at the end). One draw of the
    noise g and one of the drops B serve all three, so the mask network runs forward once and backward once.

    `class_weights`, of a real and of a generated image, weight the terms that read labels: L_cls and L_adv.
    """

    def __init__(
        self,
        head: "CausalHead",
        settings: "CausalSettings",
        generator: torch.Generator,
        class_weights: tuple[float, float] | None = None,
    ) -> None:
        self.head = head
        self.settings = settings
        self.generator = generator
        self._class_weights = class_weights
        self.num_steps = 0
        self._products = None if settings.precision == "float32" else torch.bfloat16
        rate = settings.learning_rate
        self._classifier = _Part(head.classifier.parameters(), rate, grad_clip=0.0)
        if head.mask_network is not None and head.adversary is not None:
            self._mask = _Part(head.mask_network.parameters(), rate, grad_clip=settings.grad_clip)
            self._adversary = _Part(
                head.adversary.parameters(), rate * settings.adversary_rate, grad_clip=settings.grad_clip
            )

    @torch.no_grad()
    def step(self, features: Float[Tensor, "B d"], labels: Float[Tensor, " B"]) -> Mapping[str, float]:
        """Update d, h and the mask once; the terms of Eq. (13) as the mask saw them.

        Terms that are switched off by a weight of 0 are not computed and not in the result, except
        `adversarial`: the adversary is trained whatever alpha is, so that its accuracy can be compared. It is
        always the adversary's cross-entropy, whatever stands for it in the mask's loss.
        """
        s, alpha = self.settings, self._alpha()
        truth: Truth = {"y": labels, "weights": losses.image_weights(labels, self._class_weights)}
        terms = (
            self._step(features, truth) if self.head.mask_network else self._step_unmasked(features, truth)
        )
        self.num_steps += 1
        numbers = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        cross_entropy = numbers.pop("cross_entropy", None)
        total = losses.total(
            **{**_OFF, **numbers}, alpha=alpha, lambda1=s.lambda1, lambda2=s.lambda2, beta=s.beta
        )
        if cross_entropy is not None:
            numbers["adversarial"] = cross_entropy
        return {"total": total, **numbers}

    def _step(self, features: Tensor, truth: Truth) -> dict[str, Tensor]:
        head, s = self.head, self.settings
        assert head.mask_network is not None
        noise = NOISES[s.noise].draw((features.shape[0], features.shape[1]), self.generator)
        drop = self._drop(features)
        tau, wait = self._tau(), s.update == "simultaneous"
        masking = Pass(head.mask_network, features, self._products)
        mask, zc, znc, zcf = training_parts(masking.output, tau, noise, features, drop)

        # (a) the adversary
        for _ in range(s.adversary_steps):
            reading = self._read(znc)
            of_reading = losses.gradients(losses.adversarial, reading.output[:, 0], **truth)[0]
            self._adversary.descend(reading.gradients(of_reading[:, None]), wait=wait)

        # (b) the classifier
        self._descend_classifier(zc, zcf, truth, wait=wait)

        # (c) the mask, with the new h and d held fixed
        terms, of_mask, of_parts = self._of_total(mask, zc, znc, zcf, drop, truth)
        self._mask.descend(masking.gradients(training_gradient(of_mask, of_parts, mask, tau, features)))
        if wait:
            self._adversary.move()
            self._classifier.move()

        if s.alpha == 0 or s.adversary_loss != "paper":
            terms["cross_entropy"] = losses.adversarial(reading.output[:, 0], **truth)
        return terms

    def _of_total(
        self, mask: Tensor, zc: Tensor, znc: Tensor, zcf: Tensor, drop: Tensor, truth: Truth
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The terms of L_total, Eq. (13), and its gradient: by M, and by what M lets through.

        The latter is dZc - dZnc + (1 - B) dZcf, as `training_gradient` takes it.
        """
        s = self.settings
        weights = losses.total_weights(alpha=self._alpha(), lambda1=s.lambda1, lambda2=s.lambda2, beta=s.beta)
        terms = {}

        terms["sparsity"], (of_mask,) = losses.with_gradients(losses.SPARSITIES[s.sparsity], mask)
        of_mask = weights["sparsity"] * of_mask

        logits, other = (self._classify(one).output[:, 0] for one in (zc, zcf))
        of_logits, of_other = self._of_classifier_loss(logits, other, truth)
        terms |= self._classifier_terms(logits, other, truth)

        h = self.head.classifier.weight[0]
        if s.lambda2 > 0:
            estimator = losses.HSIC_ESTIMATORS[s.hsic]
            terms["hsic"], (of_zc, of_znc) = losses.with_gradients(
                estimator, zc, znc, products=self._products
            )
            of_parts = of_zc.sub_(of_znc).addr_(of_logits + of_other, h, beta=weights["hsic"])
        else:
            of_parts = torch.outer(of_logits + of_other, h)
        of_parts.addcmul_(torch.outer(of_other, h), drop, value=-1)

        if s.alpha > 0:
            reading, loss = self._read(znc), losses.ADVERSARY_LOSSES[s.adversary_loss]
            terms["adversarial"], (of_reading,) = losses.with_gradients(loss, reading.output[:, 0], **truth)
            reading.add_of_input(-weights["adversarial"] * of_reading[:, None], of_parts)

        return terms, of_mask, of_parts

    def _step_unmasked(self, features: Tensor, truth: Truth) -> dict[str, Tensor]:
        zcf = counterfactual(features, self._drop(features))
        logits, other = (self._classify(one).output[:, 0] for one in (features, zcf))
        terms = self._classifier_terms(logits, other, truth)
        self._descend_classifier(features, zcf, truth)
        return terms

    def _descend_classifier(self, zc: Tensor, zcf: Tensor, truth: Truth, *, wait: bool = False) -> None:
        reading, other = self._classify(zc), self._classify(zcf)
        of_logits, of_other = self._of_classifier_loss(reading.output[:, 0], other.output[:, 0], truth)
        pairs = zip(reading.gradients(of_logits[:, None]), other.gradients(of_other[:, None]), strict=True)
        self._classifier.descend([one.add_(more) for one, more in pairs], wait=wait)

    def _classify(self, z: Tensor) -> Pass:
        """The classifier's logits [B, 1]."""
        return Pass(self.head.classifier, z)

    def _classifier_terms(self, logits: Tensor, other: Tensor, truth: Truth) -> dict[str, Tensor]:
        """L_cls and L_inv."""
        terms = {"classification": losses.classification(logits, **truth)}
        if self.settings.beta > 0:
            terms["invariance"] = losses.DIVERGENCES[self.settings.divergence](logits, other)
        return terms

    def _of_classifier_loss(self, logits: Tensor, other: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        """The gradient of L_cls + beta L_inv by the logits of Zc and of Zcf."""
        s = self.settings
        (of_logits,) = losses.gradients(losses.classification, logits, **truth)
        if s.beta == 0:
            return of_logits, torch.zeros_like(other)
        by_logits, by_other = losses.gradients(losses.DIVERGENCES[s.divergence], logits, other)
        return of_logits.add_(by_logits, alpha=s.beta), s.beta * by_other

    def _read(self, znc: Tensor) -> Pass:
        """The adversary's logits [B, 1]."""
        assert self.head.adversary is not None
        return Pass(self.head.adversary, znc, self._products)

    def _drop(self, features: Tensor) -> Tensor:
        """B of Eq. (11): the share of Zc that Zcf lacks, negative where `rescale` makes it larger."""
        s = self.settings
        drop = drop_noise((features.shape[0], features.shape[1]), s.p, self.generator)
        return 1 - (1 - drop) / (1 - s.p) if s.rescale else drop

    def _alpha(self) -> float:
        s = self.settings
        return s.alpha * min(1.0, (self.num_steps + 1) / s.alpha_warmup) if s.alpha_warmup else s.alpha

    def _tau(self) -> float:
        s = self.settings
        if s.tau_end is None:
            return s.tau
        self.head.tau.fill_(annealed_tau(self.num_steps, s.tau, s.tau_end, s.anneal_steps))
        return self.head.temperature


class _Part:
    """The parameters of one of the three players, and their Adam."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, grad_clip: float) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self._learning_rate, self._grad_clip = learning_rate, grad_clip
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._num_steps = torch.zeros((), device=self.parameters[0].device)
        self.gradients: list[Tensor] = []
        self._too_long: Tensor | None = None

    def descend(self, gradients: Iterable[Tensor], *, wait: bool = False) -> None:
        """Take the gradients of what the player minimises, and move unless `wait`."""
        self.gradients = list(gradients)
        if self._grad_clip > 0:
            # as nn.utils.clip_grad_norm_, but the division is left to Adam's one pass
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients)))
            self._too_long = norm.add_(1e-6).div_(self._grad_clip).clamp_(min=1.0)
        if not wait:
            self.move()

    def move(self) -> None:
        """One step of Adam by the gradients that were taken, which it clips in place."""
        self._num_steps.add_(1)
        # what torch.optim.Adam comes down to: its bookkeeping takes as long as a small part's step
        torch._fused_adam_(
            self.parameters,
            self.gradients,
            self._means,
            self._squares,
            [],
            [self._num_steps] * len(self.parameters),
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
            grad_scale=self._too_long,
        )
