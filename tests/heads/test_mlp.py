import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from causal_tune.causal.mask import drop_noise
from causal_tune.heads.mlp import MlpHead, MlpSettings, dropped

WIDTH = 6


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(**changes: float) -> MlpHead:
    values = {"mlp_width": 8, "mlp_depth": 2, "dropout": 0.5, "weight_decay": 0.0, "learning_rate": 1e-2}
    return MlpHead(WIDTH, MlpSettings(**{**values, **changes}), generator(0))


def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = (torch.arange(n) % 2).float()
    return torch.randn(n, WIDTH, generator=generator(1)) + labels[:, None], labels


@pytest.mark.parametrize("mlp_depth", [1, 2, 3])
def test_there_are_as_many_hidden_layers_of_that_width(mlp_depth):
    head = build(mlp_depth=mlp_depth, mlp_width=7)
    layers = [layer for layer in head.network if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in layers] == [WIDTH] + [7] * mlp_depth
    assert [layer.out_features for layer in layers] == [7] * mlp_depth + [1]
    assert sum(isinstance(layer, nn.ReLU) for layer in head.network) == mlp_depth


def test_dropout_drops_its_share_and_keeps_the_mean():
    n, rate = 40_000, 0.3
    values = dropped(torch.ones(n // 100, 100), rate, generator(0))
    error = 4 * math.sqrt(rate * (1 - rate) / n)
    assert (values == 0).float().mean().item() == pytest.approx(rate, abs=error)
    torch.testing.assert_close(values[values != 0].unique(), torch.tensor([1 / 0.7]))
    assert values.mean().item() == pytest.approx(1, abs=error / 0.7)


def test_a_step_drops_the_units_of_each_hidden_layer_and_nothing_else():
    features, labels = draw(20)
    head = build()
    first, _, second, _, last = head.network
    noise = generator(5)
    with torch.no_grad():
        hidden = features
        for layer in (first, second):
            hidden = layer(hidden).clamp(min=0) * (1 - drop_noise((20, 8), 0.5, noise)) * 2
        expected = functional.binary_cross_entropy_with_logits(last(hidden)[:, 0], labels).item()
    used = generator(5)
    terms = head.trainer(used).step(features, labels)
    assert terms == pytest.approx({"total": expected, "classification": expected})
    assert torch.equal(used.get_state(), noise.get_state())


def test_scoring_drops_nothing():
    features, labels = draw(20)
    head = build(dropout=0.0)
    noise = generator(0)
    before = noise.get_state()
    expected = functional.binary_cross_entropy_with_logits(head.logits(features), labels).item()
    assert head.trainer(noise).step(features, labels)["total"] == pytest.approx(expected)
    assert torch.equal(noise.get_state(), before)


def test_weight_decay_is_decoupled_from_the_gradient():
    """On features of 0 the first layer has no gradient: a step then only shrinks it, by 1 - rate * decay."""
    head = build(weight_decay=2.0, learning_rate=1e-2)
    before = head.network[0].weight.detach().clone()
    head.trainer(generator(0)).step(torch.zeros(4, WIDTH), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(head.network[0].weight.detach(), before * (1 - 1e-2 * 2.0))


def test_a_hidden_layer_learns_what_no_linear_head_can():
    """Exclusive or: the label is the sign of the product of two dimensions."""
    features = torch.randn(400, WIDTH, generator=generator(0))
    labels = (features[:, 0] * features[:, 1] > 0).float()
    head = build(mlp_width=32, dropout=0.1)
    trainer = head.trainer(generator(1))
    for _ in range(80):
        trainer.step(features, labels)
    right = (head.logits(features) > 0) == (labels > 0.5)
    assert right.float().mean() > 0.9
