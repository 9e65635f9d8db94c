from dataclasses import replace

import pytest
import torch

from causal_tune.causal import losses, mask, trainer
from causal_tune.causal.head import CausalHead, CausalSettings, GlobalLogits
from causal_tune.causal.layers import linear, mlp, probe
from causal_tune.causal.mask import expected_mask, mask_statistics
from causal_tune.causal.products import Pass
from causal_tune.causal.trainer import CausalTrainer, _Part
from tests.causal.plain import PlainTrainer

WIDTH = 12
SETTINGS = CausalSettings(
    lambda1=1e-3,
    lambda2=5.0,
    alpha=0.5,
    beta=2.0,
    tau=0.5,
    p=0.3,
    learning_rate=1e-2,
    grad_clip=1.0,
    mask_width=None,
    adversary_width=7,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(**changes) -> CausalHead:
    return CausalHead(WIDTH, replace(SETTINGS, **changes), generator(0))


def batch(n: int = 32):
    y = (torch.arange(n) % 2).float()
    x = torch.randn(n, WIDTH, generator=generator(1)) + y[:, None] * torch.linspace(-1, 1, WIDTH)
    return x, y


@pytest.mark.parametrize(
    ("grad_clip", "class_weights"),
    [(0.0, (1.0, 1.0)), (1.0, (1.0, 1.0)), (0.01, (1.0, 1.0)), (1.0, (0.625, 2.5))],
)
def test_fifty_steps_equal_the_plain_implementation(grad_clip, class_weights):
    fast, plain = head(grad_clip=grad_clip), head(grad_clip=grad_clip)
    given = () if class_weights == (1.0, 1.0) else (class_weights,)
    fast_trainer = fast.trainer(generator(2), *given)
    plain_trainer = PlainTrainer(plain, generator(2), class_weights)
    x, y = batch()
    for _ in range(50):
        actual, expected = fast_trainer.step(x, y), plain_trainer.step(x, y)
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-5, atol=1e-5)


def test_order_is_adversary_then_classifier_then_mask_each_with_the_new_ones():
    """Wrong orders, or stale partners, give another trajectory than the plain implementation."""

    class Reversed(PlainTrainer):
        def update(self, which, loss):
            if which == 2:
                super().update(which, loss)
            else:  # adversary and classifier move only after the mask
                self.waiting = [*getattr(self, "waiting", []), (which, loss)]

    plain, stale = head(), head()
    x, y = batch()
    expected = PlainTrainer(plain, generator(2)).step(x, y)
    actual = Reversed(stale, generator(2)).step(x, y)
    assert actual["classification"] != pytest.approx(expected["classification"], rel=1e-4)
    # a term of 1e-4 is a difference of numbers near 1
    assert head().trainer(generator(2)).step(x, y) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_each_part_of_a_step_moves_its_own_parameters_only(monkeypatch):
    one = head()
    trainer = one.trainer(generator(2))
    assert isinstance(trainer, CausalTrainer)
    moved: list[set[str]] = []
    original = _Part.descend

    def watched(self, loss, **options):
        before = {name: value.clone() for name, value in one.state_dict().items()}
        original(self, loss, **options)
        after = one.state_dict()
        moved.append({name.split(".")[0] for name in before if not torch.equal(before[name], after[name])})

    monkeypatch.setattr(_Part, "descend", watched)
    trainer.step(*batch())
    assert moved == [{"adversary"}, {"classifier"}, {"mask_network"}]


def test_mask_network_runs_forward_once_and_backward_once_a_step(monkeypatch):
    one = head()
    calls = {"forward": 0, "backward": 0}

    class Counted(Pass):
        def __init__(self, network, *rest):
            super().__init__(network, *rest)
            self.counts = network is one.mask_network
            calls["forward"] += self.counts

        def gradients(self, of_output):
            calls["backward"] += self.counts
            return super().gradients(of_output)

    monkeypatch.setattr(trainer, "Pass", Counted)
    one.trainer(generator(2)).step(*batch())
    assert calls == {"forward": 1, "backward": 1}


@pytest.mark.parametrize(
    ("weight", "absent"), [("lambda2", "hsic"), ("beta", "invariance"), ("alpha", None), ("lambda1", None)]
)
def test_a_weight_of_zero_is_the_limit_of_a_small_one(weight, absent):
    x, y = batch()
    off, small = head(**{weight: 0.0}), head(**{weight: 1e-12})
    for _ in range(5):
        terms = off.trainer(generator(2)).step(x, y)
        small.trainer(generator(2)).step(x, y)
    assert absent not in terms
    for name, value in small.state_dict().items():
        torch.testing.assert_close(off.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_adversary_is_trained_even_when_alpha_is_zero():
    one = head(alpha=0.0)
    before = one.adversary[0].weight.clone()
    terms = one.trainer(generator(2)).step(*batch())
    assert not torch.equal(before, one.adversary[0].weight)
    assert terms["adversarial"] > 0


def test_an_update_without_clipping_scales_with_the_loss_and_with_it_does_not():
    """Adam hides the scale of a single gradient; what clipping changes is the gradient it sees."""
    norms = {}
    for grad_clip in (0.0, 0.01):
        one = head(grad_clip=grad_clip)
        trainer = one.trainer(generator(2))
        trainer.step(*batch())
        gradients = [gradient.flatten() for gradient in trainer._mask.gradients]
        norms[grad_clip] = torch.cat(gradients).norm().item()
    assert norms[0.0] > 0.01
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)


def test_scores_use_the_expected_mask():
    one = head()
    x, _ = batch()
    expected = expected_mask(one.mask_network(x), SETTINGS.tau, SETTINGS.evaluation_quantiles)
    torch.testing.assert_close(one.mask(x), expected)
    torch.testing.assert_close(one.logits(x), one.classifier(expected * x)[:, 0])


def test_scores_do_not_depend_on_the_company():
    one = head()
    x = torch.randn(300, WIDTH, generator=generator(1))
    torch.testing.assert_close(one.logits(x)[7:9], one.logits(x[7:9]), rtol=1e-5, atol=1e-6)


def test_mask_statistics_describe_the_mask_and_the_adversary():
    one = head()
    x, y = batch()
    statistics = one.mask_statistics(x, y)
    accuracy = statistics.pop("adversary_accuracy")
    assert statistics == mask_statistics(one.mask(x))
    znc = (1 - one.mask(x)) * x
    assert accuracy == pytest.approx((((one.adversary(znc)[:, 0] > 0).float() == y).float()).mean().item())


def test_mask_width_is_the_width_of_the_hidden_layer():
    assert head(mask_width=5).mask_network[0].weight.shape == (5, WIDTH)
    assert head(mask_width=None).mask_network[0].weight.shape == (WIDTH, WIDTH)


def test_layers_start_from_their_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    layers = [linear(4, 3, generator(1)), probe(4, generator(1))]
    assert torch.equal(torch.get_rng_state(), state)
    again = [linear(4, 3, generator(1)), probe(4, generator(1))]
    for one, other in zip(layers, again, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert not one.bias.any()


def test_probe_weights_have_the_spread_of_univfd():
    weight = probe(100_000, generator(0)).weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)


def forgetting_the_temperature(of_mask, of_parts, M, tau, features):
    return mask.training_gradient(of_mask, of_parts, M, 1.0, features)


def parts_too_large_by_a_thousandth(of_mask, of_parts, M, tau, features):
    return mask.training_gradient(of_mask, of_parts * (1 + 1e-3), M, tau, features)


@pytest.mark.parametrize("wrong", [forgetting_the_temperature, parts_too_large_by_a_thousandth])
def test_a_wrong_gradient_of_the_mask_is_found(monkeypatch, wrong):
    monkeypatch.setattr(trainer, "training_gradient", wrong)
    with pytest.raises(AssertionError):
        test_fifty_steps_equal_the_plain_implementation(0.0, (0.625, 2.5))


@pytest.mark.parametrize("term", ["classification", "adversarial", "invariance"])
def test_a_wrong_gradient_of_a_term_is_found(monkeypatch, term):
    right = losses._GRADIENTS
    function = getattr(losses, term)

    def wrong(*variables, **given):
        return tuple(1.01 * one for one in right[function](*variables, **given))

    monkeypatch.setattr(losses, "_GRADIENTS", {**right, function: wrong})
    with pytest.raises(AssertionError):
        test_fifty_steps_equal_the_plain_implementation(0.0, (0.625, 2.5))


NETWORKS = {
    "linear": lambda: linear(64, 8, generator(0)),
    "one unit": lambda: probe(64, generator(0)),
    "mlp": lambda: mlp([64, 96, 32], generator(0), last_bias=0.5),
    "norm": lambda: torch.nn.Sequential(torch.nn.LayerNorm(64), *mlp([64, 96, 1], generator(0))),
    "global": lambda: GlobalLogits(64, 0.5),
}


def passes(name: str, products: torch.dtype | None, dtype: torch.dtype):
    """Output and gradients of a pass, and those of autograd."""
    network = NETWORKS[name]().to(dtype)
    x = torch.randn(128, 64, generator=generator(1), dtype=dtype, requires_grad=True)
    exact = network(x)
    weights = torch.randn(exact.shape, generator=generator(2), dtype=dtype)
    expected = torch.autograd.grad(
        (weights * exact).sum(), [x, *network.parameters()], materialize_grads=True
    )
    with torch.no_grad():
        found = Pass(network, x, products)
        of_input = torch.ones_like(x)
        found.add_of_input(weights, of_input)
        return (found.output, of_input - 1, *found.gradients(weights)), (exact, *expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pass_has_the_output_and_the_gradients_of_autograd(name):
    for actual, expected in zip(*passes(name, None, torch.float64), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_products_have_the_values_and_gradients_of_float32(name):
    found, expected = passes(name, torch.bfloat16, torch.float32)
    for actual, exact in zip(found, expected, strict=True):
        assert actual.shape == exact.shape
        # 2^-9 a number; and a hidden unit that rounding moves across 0 takes its gradient along
        assert (actual - exact).norm() <= 5e-2 * exact.norm()
    ends_in_a_product = name in ("linear", "mlp")
    assert found[0].dtype == (torch.bfloat16 if ends_in_a_product else torch.float32)
    assert {one.dtype for one in found[1:]} == {torch.float32}
    # a unit and what is no product are not rounded
    assert torch.equal(found[0], expected[0]) == (name in ("one unit", "global"))


def test_bfloat16_products_leave_parameters_float32_and_stay_near_the_float32_trajectory():
    exact, rounded = head(), head(precision="bfloat16")
    exact_trainer, rounded_trainer = exact.trainer(generator(2)), rounded.trainer(generator(2))
    x, y = batch(256)
    for _ in range(50):
        expected, actual = exact_trainer.step(x, y), rounded_trainer.step(x, y)
        # 8 bits of mantissa: a product is off by 2^-9, a loss after 50 steps by a few times that
        assert actual == pytest.approx(expected, rel=3e-2, abs=1e-3)
    assert actual != expected
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}
    assert rounded.logits(x).dtype == torch.float32
