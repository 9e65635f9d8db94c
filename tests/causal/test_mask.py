import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_tune.causal import mask
from tests.causal import checks
from tests.reference import causal_numpy as reference

SEEDS = st.integers(0, 2**31)
SHAPE = st.tuples(st.integers(1, 5), st.integers(1, 5))
TAU = st.floats(0.05, 5.0)


def test_gumbel_sigmoid_is_the_reference_in_value_and_gradient():
    checks.check_gumbel_sigmoid(mask.gumbel_sigmoid)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 6), d=st.integers(1, 6), tau=st.floats(0.05, 5.0), seed=SEEDS)
def test_gumbel_sigmoid_of_any_shape_and_temperature(n, d, tau, seed):
    logits, noise = checks.draw(seed, n, d, scale=3.0), checks.draw(seed + 1, n, d)
    actual = mask.gumbel_sigmoid(checks.tensor(logits), tau, checks.tensor(noise)).numpy()
    np.testing.assert_allclose(actual, reference.gumbel_sigmoid(logits, tau, noise), **checks.VALUES)


def test_mask_rate_does_not_depend_on_temperature():
    checks.check_mask_rate(mask.gumbel_sigmoid, mask.gumbel_noise)


def test_gumbel_noise_is_the_inversion_of_its_uniform_draws():
    noise = mask.gumbel_noise((3, 4), torch.Generator().manual_seed(7), dtype=torch.float64)
    uniform = torch.rand((3, 4), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    np.testing.assert_allclose(noise.numpy(), reference.gumbel_noise(uniform.numpy()), **checks.VALUES)


def test_gumbel_noise_has_the_mean_and_variance_of_its_distribution():
    noise = mask.gumbel_noise((1000, 1000), torch.Generator().manual_seed(1)).double()
    variance = math.pi**2 / 6
    assert noise.mean().item() == pytest.approx(0.5772157, abs=4 * math.sqrt(variance / 1e6))
    # the fourth central moment of a Gumbel variable is 5.4 variances squared
    assert noise.var().item() == pytest.approx(variance, abs=4 * math.sqrt(4.4 / 1e6) * variance)


def test_gumbel_noise_of_a_uniform_draw_of_zero_is_finite(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert mask.gumbel_noise((2, 2), torch.Generator()).isfinite().all()


def test_noise_depends_on_its_generator_only():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = mask.gumbel_noise((5, 5), torch.Generator().manual_seed(3))
    drops = mask.drop_noise((5, 5), 0.5, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first, mask.gumbel_noise((5, 5), torch.Generator().manual_seed(3)))
    assert torch.equal(drops, mask.drop_noise((5, 5), 0.5, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("num_quantiles", [1, 2, 32])
def test_gumbel_quantiles_are_the_references(num_quantiles):
    np.testing.assert_allclose(
        mask.gumbel_quantiles(num_quantiles), reference.gumbel_quantiles(num_quantiles), **checks.VALUES
    )


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 4), d=st.integers(1, 4), tau=st.floats(0.05, 5.0), seed=SEEDS)
def test_expected_mask_is_the_reference(n, d, tau, seed):
    logits = checks.draw(seed, n, d, scale=3.0)
    actual = mask.expected_mask(checks.tensor(logits), tau, quantiles=8).numpy()
    np.testing.assert_allclose(actual, reference.expected_mask(logits, tau, 8), **checks.VALUES)


def test_expected_mask_has_the_gradient_of_the_reference():
    logits = checks.draw(0, 2, 3)
    expected = reference.gradient(lambda z: float(reference.expected_mask(z, 0.5, 8).sum()), logits)
    checks.assert_gradient(lambda z: mask.expected_mask(z, 0.5, 8).sum(), expected, logits)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize(
    ("tau", "bound"), [(0.05, 1 / 64), (0.1, 1 / 64), (0.5, 1e-3), (1.0, 1e-3), (2.0, 1e-3)]
)
def test_expected_mask_is_close_to_the_integral(logit, tau, bound):
    actual = mask.expected_mask(torch.full((1, 1), logit, dtype=torch.float64), tau).item()
    assert actual == pytest.approx(reference.expected_mask_exact(logit, tau), abs=bound)


@pytest.mark.parametrize(("tau", "mean"), [(0.1, 0.632), (0.5, 0.621), (1.0, 0.596), (2.0, 0.562)])
def test_mean_of_the_training_mask_is_the_evaluation_mask(tau, mean):
    """At logit 0 the mean drifts with the temperature, and evaluation follows training."""
    logits = torch.zeros(1000, 1000)
    trained = mask.gumbel_sigmoid(
        logits, tau, mask.gumbel_noise((1000, 1000), torch.Generator().manual_seed(2))
    )
    assert trained.mean().item() == pytest.approx(mean, abs=4 * 0.5 / 1000)
    assert mask.expected_mask(logits[:1], tau).mean().item() == pytest.approx(mean, abs=1.5e-3)


def test_expected_mask_grows_with_its_logits_and_stays_between_0_and_1():
    logits = torch.linspace(-60, 60, 2001)[None, :]
    for tau in (0.05, 1.0):
        expected = mask.expected_mask(logits, tau)
        assert (expected.diff() >= -1e-6).all()
        assert expected.min() >= 0
        assert expected.max() <= 1 + 1e-6


def test_split_is_the_reference():
    checks.check_split(mask.split)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 6), d=st.integers(1, 6), seed=SEEDS)
def test_the_two_parts_add_up_to_the_features(n, d, seed):
    features = checks.tensor(checks.draw(seed, n, d))
    zc, znc = mask.split(features, checks.tensor(checks.uniform_mask(seed, n, d)))
    torch.testing.assert_close(zc + znc, features)


def test_p_is_the_probability_of_a_drop():
    checks.check_drops(mask.drop_noise, mask.counterfactual)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 5), d=st.integers(1, 5), seed=SEEDS)
def test_mask_statistics_are_the_reference(n, d, seed):
    values = checks.uniform_mask(seed, n, d)
    actual, expected = mask.mask_statistics(checks.tensor(values)), reference.mask_statistics(values)
    assert actual == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_mask_has_no_spread_and_no_entropy(value):
    statistics = mask.mask_statistics(torch.full((5, 4), value))
    assert statistics == {"mean": value, "std_images": 0.0, "std_dimensions": 0.0, "entropy": 0.0}


@settings(deadline=None, max_examples=10)
@given(shape=SHAPE, tau=TAU, seed=SEEDS)
def test_masks_of_any_shape_are_the_reference_in_value_and_gradient(shape, tau, seed):
    where = {"seed": seed, "shapes": (shape,), "temperatures": (max(tau, 0.2),)}
    checks.check_gumbel_sigmoid(mask.gumbel_sigmoid, **where)
    checks.check_expected_mask(mask.expected_mask, **where)
    checks.check_noiseless_mask(mask.noiseless_mask, **where)
    checks.check_mean_noise_mask(
        mask.mean_noise_mask, reference.noise_mean(reference.gumbel_density), **where
    )
    checks.check_sampled_mask(mask.sampled_mask, **where)
    checks.check_hard_mask(mask.hard_mask, seed=seed, shapes=(shape,))


@settings(deadline=None, max_examples=10)
@given(shape=SHAPE, seed=SEEDS)
def test_parts_and_counterfactuals_of_any_shape_are_the_reference_in_value_and_gradient(shape, seed):
    checks.check_split(mask.split, seed, (shape,))
    checks.check_counterfactual(mask.counterfactual, seed, (shape,))


def test_logistic_noise_gives_the_rate_of_the_binary_concrete_distribution():
    checks.check_mask_rate(mask.gumbel_sigmoid, mask.logistic_noise, reference.logistic_distribution)


def test_logistic_noise_is_the_inversion_of_its_uniform_draws_and_finite_at_their_ends(monkeypatch):
    noise = mask.logistic_noise((3, 4), torch.Generator().manual_seed(7), dtype=torch.float64)
    uniform = torch.rand((3, 4), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    np.testing.assert_allclose(noise.numpy(), reference.logistic_noise(uniform.numpy()), **checks.VALUES)
    for end in (0.0, 1.0):
        monkeypatch.setattr(torch, "rand", lambda shape, end=end, **_: torch.full(shape, end))
        assert mask.logistic_noise((2, 2), torch.Generator()).isfinite().all()


def test_quantiles_are_the_references():
    checks.check_quantiles(mask.gumbel_quantiles, reference.gumbel_quantiles)
    checks.check_quantiles(mask.logistic_quantiles, reference.logistic_quantiles)


@pytest.mark.parametrize(
    ("name", "density", "distribution"),
    [
        ("gumbel", reference.gumbel_density, reference.gumbel_distribution),
        ("logistic", reference.logistic_density, reference.logistic_distribution),
    ],
)
def test_mean_and_median_of_each_noise_are_those_of_its_distribution(name, density, distribution):
    noise = mask.NOISES[name]
    assert isinstance(noise, mask.Noise)
    assert noise.mean == pytest.approx(reference.noise_mean(density), abs=1e-6)
    assert distribution(noise.median) == pytest.approx(0.5, abs=1e-12)
    checks.check_hard_mask(lambda logits: mask.hard_mask(logits, noise), distribution)


def test_expected_mask_of_logistic_noise_is_the_reference():
    checks.check_expected_mask(
        lambda z, tau, n: mask.expected_mask(z, tau, n, mask.NOISES["logistic"]), reference.logistic_quantiles
    )


def test_temperature_falls_geometrically_and_then_stays():
    checks.check_annealing(mask.annealed_tau)


def test_masks_of_evaluation_at_logit_0_differ_as_their_definitions_do():
    """Plugging the mean noise in opens the mask, leaving the noise out closes it."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for tau, expected, plugged in (
        (0.1, 0.632, 0.997),
        (0.5, 0.621, 0.76),
        (1.0, 0.596, 0.64),
        (2.0, 0.562, 0.57),
    ):
        assert mask.expected_mask(zero, tau, 1000).item() == pytest.approx(expected, abs=1e-3)
        assert mask.mean_noise_mask(zero, tau).item() == pytest.approx(plugged, abs=5e-3)
        assert mask.noiseless_mask(zero, tau).item() == 0.5


@pytest.mark.parametrize("noise", sorted(mask.NOISES))
@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_expected_and_sampled_masks_are_the_mean_of_the_training_mask(noise, tau):
    chosen = mask.NOISES[noise]
    logits = torch.tensor([[-1.0, 0.0, 1.5]])
    draws = chosen.draw((20_000, 3), torch.Generator().manual_seed(3))
    trained = mask.gumbel_sigmoid(logits.expand(20_000, 3), tau, draws).mean(dim=0)
    torch.testing.assert_close(mask.sampled_mask(logits, tau, draws)[0], trained, rtol=1e-4, atol=1e-5)
    # four standard deviations of the mean, and the error of 32 quantiles
    expected = mask.expected_mask(logits, tau, 32, chosen)[0]
    assert (expected - trained).abs().max() < 4 * 0.5 / math.sqrt(20_000) + 1 / 64


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_single_and_half_precision_masks_agree_with_the_reference_within_their_bound(dtype, bound):
    """Stated bounds: 1e-5 in float32, 2e-2 in bfloat16, whose 8 bits move (l + g) / tau by up to 2^-8 of it."""
    logits, noise = (torch.from_numpy(checks.draw(seed, 16, 8)).to(dtype) for seed in (0, 1))
    exact = reference.gumbel_sigmoid(logits.double().numpy(), 0.5, noise.double().numpy())
    actual = mask.gumbel_sigmoid(logits, 0.5, noise).double().numpy()
    np.testing.assert_allclose(actual, exact, rtol=0, atol=bound)
    for part, expected in zip(
        mask.split(logits, noise),
        reference.split(logits.double().numpy(), noise.double().numpy()),
        strict=True,
    ):
        np.testing.assert_allclose(part.double().numpy(), expected, rtol=bound, atol=5 * bound)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (256, 768)])
def test_drops_are_coins_of_p(p, shape):
    """Each draw is independent of its neighbours, of which four share a word of 64 bits."""
    drop = mask.drop_noise(shape, p, torch.Generator().manual_seed(3))
    assert drop.shape == shape
    assert set(drop.unique().tolist()) <= {0.0, 1.0}
    if p in (0.0, 1.0):
        assert (drop == p).all()
    elif drop.numel() > 1000:
        error = (p * (1 - p) / drop.numel()) ** 0.5
        assert abs(drop.mean().item() - p) < 4 * error
        flat = drop.flatten()
        for place in range(4):
            assert abs(flat[place::4].mean().item() - p) < 8 * error
        for lag in (1, 2, 3, 4):
            both = (flat[:-lag] * flat[lag:]).mean().item()
            assert abs(both - p * p) < 4 * error


def test_training_parts_and_their_gradient_are_those_of_the_equations():
    generator = torch.Generator().manual_seed(0)
    features, gumbel = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    drop = mask.drop_noise((6, 5), 0.4, generator, dtype=torch.float64)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    M = mask.gumbel_sigmoid(logits, 0.7, gumbel)
    zc, znc = mask.split(features, M)
    expected = (M, zc, znc, mask.counterfactual(zc, drop))
    found = mask.training_parts(logits.detach(), 0.7, gumbel, features, drop)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-14, atol=0)

    drawn = [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in expected]
    for ones in ([0], [1], [2], [3], [0, 1, 2, 3]):
        of_mask, of_zc, of_znc, of_zcf = (
            one if number in ones else torch.zeros_like(one) for number, one in enumerate(drawn)
        )
        of_parts = of_zc - of_znc + (1 - drop) * of_zcf
        actual = mask.training_gradient(of_mask, of_parts, found[0], 0.7, features)
        weighted = sum((drawn[one] * expected[one]).sum() for one in ones)
        (wanted,) = torch.autograd.grad(weighted, logits, retain_graph=True)
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-14)
