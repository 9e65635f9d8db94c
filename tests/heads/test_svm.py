import pytest
import torch
from sklearn.svm import LinearSVC

from causal_tune.errors import TrialFailed
from causal_tune.heads import svm
from causal_tune.heads.svm import SvmHead, SvmSettings

WIDTH = 5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(n: int, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    labels = (torch.arange(n) % 2).float()
    features = torch.randn(n, width, generator=generator(0))
    features[:, 0] += 1.5 * labels  # the classes overlap, so that some images are inside of the margin
    return features, labels


def fitted(features: torch.Tensor, labels: torch.Tensor, svm_c: float) -> tuple[SvmHead, float]:
    head = SvmHead(features.shape[1], SvmSettings(svm_c=svm_c), generator(0))
    return head, head.fit(features, labels, generator(1))["total"]


@pytest.mark.parametrize("svm_c", [1e-2, 1.0, 10.0])
@pytest.mark.parametrize(("n", "width"), [(200, WIDTH), (30, 60)])  # solved in the primal, and in the dual
def test_the_fit_minimises_the_objective_of_the_machine(svm_c, n, width):
    """1/2 |(w, b)|^2 + C sum of squared hinges (LinearSVC counts the bias among the weights). It is strictly
    convex, so a point that is lower than all around it is the minimum."""
    features, labels = draw(n, width)
    head, _ = fitted(features, labels, svm_c)
    signs = (2 * labels - 1).double()

    def objective(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        slack = (1 - signs * (features.double() @ weight + bias)).clamp(min=0)
        return 0.5 * (weight.square().sum() + bias.square()) + svm_c * slack.square().sum()

    weight, bias = head.classifier.weight[0].detach().double(), head.classifier.bias[0].detach().double()
    found = objective(weight, bias)
    for seed in range(20):
        for size in (1e-2, 1e-1):
            step = size * torch.randn(width + 1, generator=generator(seed), dtype=torch.float64)
            assert objective(weight + step[1:], bias + step[0]) > found


def test_scores_are_the_decision_function_of_scikit_learn():
    features, labels = draw(100)
    head, _ = fitted(features, labels, 1.0)
    machine = LinearSVC(C=1.0, dual="auto", random_state=0).fit(features.numpy(), labels.numpy() > 0.5)
    expected = torch.from_numpy(machine.decision_function(features.numpy())).float()
    torch.testing.assert_close(head.logits(features).detach(), expected, rtol=1e-3, atol=1e-3)


def test_what_is_kept_is_one_linear_layer():
    head, _ = fitted(*draw(40), svm_c=1.0)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes == {"classifier.weight": (1, WIDTH), "classifier.bias": (1,)}


def test_the_loss_is_the_mean_squared_hinge_of_the_training_set():
    features, labels = draw(100)
    head, total = fitted(features, labels, 1.0)
    margins = [
        (score if label else -score)
        for score, label in zip(head.logits(features).tolist(), labels.tolist(), strict=True)
    ]
    assert total == pytest.approx(sum(max(0.0, 1 - margin) ** 2 for margin in margins) / 100)


def test_a_larger_c_fits_the_training_set_closer_with_larger_weights():
    losses, norms = [], []
    for svm_c in (1e-3, 1e-2, 1e-1):
        head, total = fitted(*draw(100), svm_c=svm_c)
        losses.append(total)
        norms.append(head.classifier.weight.norm().item())
    assert losses == sorted(losses, reverse=True)
    assert norms == sorted(norms)


def test_a_machine_that_does_not_converge_fails_the_trial(monkeypatch):
    monkeypatch.setattr(svm, "_ITERATIONS", 1)
    with pytest.raises(TrialFailed, match=r"did not converge in 1 iterations at svm_c 100\. Lower svm_c"):
        fitted(*draw(30, 60), svm_c=100.0)


def test_balanced_classes_multiply_c_by_the_weight_of_the_class():
    """As if the images of the rare class were there several times, at a C that makes up for their number."""
    features, labels = draw(100)
    rare = (labels < 0.5) | (torch.arange(100) % 10 == 1)  # 50 real, 10 generated
    x, y = features[rare], labels[rare]
    head = SvmHead(WIDTH, SvmSettings(svm_c=1.0, class_balance="balanced"), generator(0))
    head.fit(x, y, generator(1))
    copies = torch.repeat_interleave(torch.arange(60), torch.where(y > 0.5, 5, 1))
    repeated, _ = fitted(x[copies], y[copies], 60 / 100)  # w_c = 60 / (2 * 50) and 60 / (2 * 10)
    torch.testing.assert_close(head.logits(x), repeated.logits(x), rtol=1e-3, atol=1e-3)
