"""The training step written the obvious way: three forward passes, unfused optimisers, `backward()`.

What `CausalTrainer` must equal; it shares with it the loss functions (checked against the reference
elsewhere) and the noise, and nothing of how the gradients are taken.
"""

import torch
from torch import Tensor, nn

from causal_tune.causal import losses, mask
from causal_tune.causal.head import CausalHead


class PlainTrainer:
    def __init__(
        self,
        head: CausalHead,
        generator: torch.Generator,
        class_weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.head = head
        self.generator = generator
        self.class_weights = class_weights
        self.parts = (head.adversary, head.classifier, head.mask_network)
        self.optimisers = [
            torch.optim.Adam(part.parameters(), lr=head.settings.learning_rate, foreach=False, fused=False)
            for part in self.parts
        ]

    def step(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        s = self.head.settings
        noise = mask.gumbel_noise(tuple(features.shape), self.generator)
        drop = mask.drop_noise(tuple(features.shape), s.p, self.generator)

        def parts() -> tuple[Tensor, Tensor, Tensor]:
            M = mask.gumbel_sigmoid(self.head.mask_network(features), s.tau, noise)
            zc = M * features
            return M, zc, (1 - M) * features

        # (a)
        M, zc, znc = parts()
        self.update(0, self.cross_entropy(self.head.adversary(znc).squeeze(1), labels))
        # (b)
        M, zc, znc = parts()
        logits = self.head.classifier(zc).squeeze(1)
        other = self.head.classifier(zc * (1 - drop)).squeeze(1)
        self.update(1, self.cross_entropy(logits, labels) + s.beta * losses.invariance(logits, other))
        # (c)
        M, zc, znc = parts()
        logits = self.head.classifier(zc).squeeze(1)
        other = self.head.classifier(zc * (1 - drop)).squeeze(1)
        terms = {
            "classification": self.cross_entropy(logits, labels),
            "adversarial": self.cross_entropy(self.head.adversary(znc).squeeze(1), labels),
            "sparsity": losses.sparsity(M),
            "hsic": losses.hsic(zc, znc),
            "invariance": losses.invariance(logits, other),
        }
        total = (
            terms["classification"]
            - s.alpha * terms["adversarial"]
            + s.lambda1 * terms["sparsity"]
            + s.lambda2 * terms["hsic"]
            + s.beta * terms["invariance"]
        )
        self.update(2, total)
        return {name: value.item() for name, value in {"total": total, **terms}.items()}

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        of_real, of_generated = self.class_weights
        each = labels * of_generated * -nn.functional.logsigmoid(logits)
        return (each + (1 - labels) * of_real * -nn.functional.logsigmoid(-logits)).mean()

    def update(self, which: int, loss: Tensor) -> None:
        for part in self.parts:
            part.zero_grad()
        loss.backward()
        if which != 1 and self.head.settings.grad_clip > 0:
            nn.utils.clip_grad_norm_(self.parts[which].parameters(), self.head.settings.grad_clip)
        self.optimisers[which].step()
