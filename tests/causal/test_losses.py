import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from causal_tune.causal import losses
from tests.causal import checks
from tests.reference import causal_numpy as reference

SEEDS = st.integers(0, 2**31)


def test_classification_is_the_reference_in_value_and_gradient():
    checks.check_cross_entropy(losses.classification, reference.classification)


def test_adversarial_is_the_sum_of_its_halves_in_value_and_gradient():
    checks.check_cross_entropy(losses.adversarial, reference.adversarial)


def test_sparsity_is_the_reference_in_value_and_gradient():
    checks.check_sparsity(losses.sparsity)


def test_hsic_is_the_reference_in_value_and_gradient():
    checks.check_hsic(losses.hsic)


def test_invariance_is_the_reference_in_value_and_gradient():
    checks.check_invariance(losses.invariance)


def test_total_is_the_reference():
    checks.check_total(losses.total)


def test_the_weights_of_the_total_are_its_slopes():
    given = {"alpha": 0.3, "lambda1": 0.7, "lambda2": 11.0, "beta": 2.0}
    weights = losses.total_weights(**given)
    terms = {name: torch.tensor(1.0, dtype=torch.float64, requires_grad=True) for name in weights}
    slopes = torch.autograd.grad(losses.total(**terms, **given), list(terms.values()))
    assert [slope.item() for slope in slopes] == pytest.approx(list(weights.values()), rel=1e-12)
    assert losses.total(**dict.fromkeys(weights, 1.0), **given) == pytest.approx(sum(weights.values()))


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 8), d1=st.integers(1, 6), d2=st.integers(1, 6), seed=SEEDS)
def test_hsic_of_any_shape_is_the_reference(n, d1, d2, seed):
    x, y = checks.draw(seed, n, d1), checks.draw(seed + 1, n, d2)
    actual = losses.hsic(checks.tensor(x), checks.tensor(y)).item()
    np.testing.assert_allclose(actual, reference.hsic(x, y), rtol=1e-10, atol=1e-14)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 9), d=st.integers(1, 5), seed=SEEDS)
def test_kernel_parts_are_the_reference(n, d, seed):
    x = checks.draw(seed, n, d)
    squared = losses.squared_distances(checks.tensor(x))
    np.testing.assert_allclose(squared.numpy(), reference.squared_distances(x), rtol=1e-10, atol=1e-12)
    bandwidth = losses.median_bandwidth(squared)
    np.testing.assert_allclose(
        bandwidth.item(), reference.median_bandwidth(reference.squared_distances(x)), rtol=1e-10
    )
    np.testing.assert_allclose(
        losses.gaussian_kernel(squared, bandwidth).numpy(),
        reference.gaussian_kernel(reference.squared_distances(x), bandwidth.item()),
        rtol=1e-10,
    )


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 9), scale=st.floats(0.1, 30.0), seed=SEEDS)
def test_invariance_of_any_logits_is_the_reference_and_not_negative(n, scale, seed):
    a, b = checks.draw(seed, n, scale=scale), checks.draw(seed + 1, n, scale=scale)
    actual = losses.invariance(checks.tensor(a), checks.tensor(b)).item()
    np.testing.assert_allclose(actual, reference.invariance(a, b), **checks.VALUES)
    assert actual >= -1e-12


def test_hsic_of_the_worked_example():
    """Two points have one distance, so each kernel is [[1, e], [e, 1]] with e = exp(-1/2)."""
    x, y = torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    assert losses.hsic(x, y).item() == pytest.approx((1 - math.exp(-0.5)) ** 2, rel=1e-6)


@pytest.mark.parametrize("constant", [0.0, 7.3])
def test_hsic_with_a_constant_is_zero_and_so_is_its_gradient(constant):
    x = torch.full((8, 3), constant, requires_grad=True)
    y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = losses.hsic(x, y)
    by_autograd = (value.detach(), torch.autograd.grad(value, (x, y)))
    with torch.no_grad():
        for value, gradients in (by_autograd, losses.with_gradients(losses.hsic, x, y)):
            assert abs(value.item()) < 1e-7
            for gradient in gradients:
                assert gradient.isfinite().all()
                assert gradient.abs().max() < 1e-6


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 8), seed=SEEDS)
def test_hsic_is_symmetric_and_blind_to_order_shift_and_scale(n, seed):
    x, y = checks.tensor(checks.draw(seed, n, 3)), checks.tensor(checks.draw(seed + 1, n, 4))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    expected = losses.hsic(x, y).item()
    assert expected >= -1e-15
    for same in (losses.hsic(y, x), losses.hsic(x[order], y[order]), losses.hsic(3 * x + 5, y - 2)):
        np.testing.assert_allclose(same.item(), expected, rtol=1e-9, atol=1e-14)


def test_hsic_sees_dependence_and_has_a_floor_without_it():
    """At n = 256 in high dimension independent samples give about (1 - exp(-1/2))^2 / n = 6e-4."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(256, 512, generator=generator) for _ in range(2))
    floor = losses.hsic(x, y).item()
    assert floor == pytest.approx(6e-4, rel=0.15)
    assert losses.hsic(x[:, :1], x[:, :1].square()).item() > 10 * floor


def test_hsic_in_float32_keeps_three_digits():
    """Stated bound for float32 at the size of a batch: 1e-3 relative, also far from the origin."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 64)) + 20
    y = 0.1 * x[:, :32] + rng.normal(size=(256, 32))
    exact = losses.hsic(checks.tensor(x), checks.tensor(y)).item()
    single = losses.hsic(checks.tensor(x).float(), checks.tensor(y).float()).item()
    assert single == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("name", losses.HSIC_ESTIMATORS)
def test_hsic_with_bfloat16_products_keeps_two_digits(name):
    """Value and gradient at the size of a batch; rows far from the origin, and one beside another."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 512, generator=draw) + 5
    x[1] = x[0] + 1e-3
    y = 0.3 * x[:, :256] + torch.randn(256, 256, generator=draw)
    x.requires_grad_()
    found = []
    for products in (None, torch.bfloat16):
        value = losses.HSIC_ESTIMATORS[name](x, y, products)
        found.append((value.item(), torch.autograd.grad(value, x)[0]))
    (exact, of_exact), (rounded, of_rounded) = found
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert rounded != exact
    assert (of_rounded - of_exact).norm() <= 2e-2 * of_exact.norm()


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.integers(1, 200),
        elements=st.floats(0, 1e4, width=32),
    ),
    st.data(),
)
def test_places_in_ascending_order_are_those_of_a_sort(values, data):
    first = data.draw(st.integers(0, len(values) - 1))
    last = data.draw(st.integers(first, len(values) - 1))
    found = losses._ascending(values, first, last)
    np.testing.assert_array_equal(found, np.sort(values)[first : last + 1])


TERMS = {
    **{name: (loss, 1) for name, loss in losses.ADVERSARY_LOSSES.items()},
    **{name: (loss, 2) for name, loss in losses.DIVERGENCES.items()},
    **{name: (loss, 1) for name, loss in losses.SPARSITIES.items()},
    **{name: (loss, 2) for name, loss in losses.HSIC_ESTIMATORS.items()},
    "classification": (losses.classification, 1),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("widths", [(3, 3), (3, 4)])
def test_gradients_of_every_term_are_those_of_autograd(name, widths):
    """What the trainer takes in place of autograd; of samples of two widths too where there are two."""
    term, number = TERMS[name]
    of_rows = term in (*losses.SPARSITIES.values(), *losses.HSIC_ESTIMATORS.values())
    shapes = [(9, width) if of_rows else (9,) for width in widths[:number]]
    variables = [
        checks.tensor(checks.draw(seed, *shape)).requires_grad_() for seed, shape in enumerate(shapes)
    ]
    labelled = term in (losses.classification, *losses.ADVERSARY_LOSSES.values())
    given = {"y": checks.tensor(checks.labels(2, 9))} if labelled else {}
    value = term(*variables, **given)
    expected = torch.autograd.grad(value, variables, materialize_grads=True)
    with torch.no_grad():
        found, of_variables = losses.with_gradients(term, *variables, **given)
        alone = losses.gradients(term, *variables, **given)
    assert not found.requires_grad
    torch.testing.assert_close(found, value.detach(), rtol=1e-12, atol=1e-14)
    for one, again, exact in zip(of_variables, alone, expected, strict=True):
        torch.testing.assert_close(one.expand_as(exact), exact, rtol=1e-10, atol=1e-14)
        assert torch.equal(one, again)


def test_distances_have_the_gradient_of_any_function_of_them():
    """Also of one that treats a pair and its mirror image differently, as no kernel does."""
    x, weights = checks.draw(0, 5, 3), checks.draw(1, 5, 5)
    expected = reference.gradient(lambda x: float((weights * reference.squared_distances(x)).sum()), x)
    checks.assert_gradient(
        lambda x: (checks.tensor(weights) * losses.squared_distances(x)).sum(), expected, x
    )


def test_bandwidth_carries_no_gradient_and_has_a_floor():
    squared = torch.tensor([[0.0, 4.0], [4.0, 0.0]], requires_grad=True)
    assert not losses.median_bandwidth(squared).requires_grad
    assert losses.median_bandwidth(torch.zeros(3, 3)).item() == pytest.approx(1e-6)


def test_bandwidth_with_ties_is_the_reference():
    """Of 6 pairs the two in the middle are equal in one case and not in the other."""
    for x in ([[0.0], [1.0], [2.0], [3.0]], [[0.0], [0.0], [0.0], [3.0]], [[0.0], [1.0], [1.0], [5.0]]):
        squared = reference.squared_distances(np.array(x))
        actual = losses.median_bandwidth(checks.tensor(squared)).item()
        assert actual == pytest.approx(reference.median_bandwidth(squared), rel=1e-12)


@pytest.mark.parametrize("logit", [0.0, 30.0, 1e4])
def test_losses_of_extreme_logits_are_finite_with_finite_gradients(logit):
    z = torch.tensor([logit, -logit], requires_grad=True)
    other = torch.tensor([-logit, logit], requires_grad=True)
    value = losses.invariance(z, other) + losses.classification(z, torch.tensor([0.0, 1.0]))
    gradients = torch.autograd.grad(value, (z, other))
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_invariance_of_equal_logits_is_zero():
    z = torch.linspace(-50, 50, 101)
    assert losses.invariance(z, z.clone()).item() == 0.0


def test_float32_agrees_with_float64():
    """Stated bound for float32: 1e-5 relative for every term but HSIC."""
    z, w, y = checks.draw(0, 64, scale=3.0), checks.draw(1, 64, scale=3.0), checks.labels(2, 64)
    m = checks.uniform_mask(3, 64, 32)
    for function, arguments in (
        (losses.classification, (z, y)),
        (losses.adversarial, (z, y)),
        (losses.invariance, (z, w)),
        (losses.sparsity, (m,)),
    ):
        exact = function(*map(checks.tensor, arguments)).item()
        single = function(*(checks.tensor(argument).float() for argument in arguments)).item()
        assert single == pytest.approx(exact, rel=1e-5)


def test_options_of_the_losses_are_the_reference_in_value_and_gradient():
    checks.check_cross_entropy(losses.confusion, reference.confusion)
    checks.check_cross_entropy(losses.clamped_adversarial, reference.clamped_adversarial)
    checks.check_clamped(losses.clamped_adversarial)
    checks.check_sparsity(losses.mean_sparsity, reference.mean_sparsity)
    checks.check_invariance(losses.symmetric_invariance, reference.symmetric_invariance)
    checks.check_invariance(losses.stop_gradient_invariance, fixed_target=True)
    big = ((4, 1), (5, 2), (6, 3))
    checks.check_hsic(losses.unbiased_hsic, reference.unbiased_hsic, shapes=big)
    checks.check_hsic(losses.normalised_hsic, reference.normalised_hsic, shapes=((3, 2), *big))


@settings(deadline=None, max_examples=10)
@given(n=st.integers(1, 8), d=st.integers(1, 5), seed=SEEDS)
def test_losses_of_any_shape_are_the_reference_in_value_and_gradient(n, d, seed):
    checks.check_cross_entropy(losses.classification, reference.classification, seed, (n,))
    checks.check_cross_entropy(losses.adversarial, reference.adversarial, seed, (n,))
    checks.check_cross_entropy(losses.confusion, reference.confusion, seed, (n,))
    checks.check_sparsity(losses.sparsity, reference.sparsity, seed, ((n, d),))
    checks.check_sparsity(losses.mean_sparsity, reference.mean_sparsity, seed, ((n, d),))
    checks.check_invariance(losses.invariance, reference.invariance, seed, (n,))
    checks.check_invariance(losses.symmetric_invariance, reference.symmetric_invariance, seed, (n,))
    checks.check_total(losses.total, seed)


@settings(deadline=None, max_examples=10)
@given(n=st.integers(4, 6), d=st.integers(1, 4), seed=SEEDS)
def test_hsic_estimators_of_any_shape_are_the_reference(n, d, seed):
    x, y = checks.draw(seed, n, d), checks.draw(seed + 1, n, d + 1)
    for name, expected in (("unbiased", reference.unbiased_hsic), ("normalised", reference.normalised_hsic)):
        actual = losses.HSIC_ESTIMATORS[name](checks.tensor(x), checks.tensor(y), None).item()
        np.testing.assert_allclose(actual, expected(x, y), rtol=1e-10, atol=1e-13)


def test_unbiased_hsic_of_independent_samples_has_mean_zero_where_the_biased_has_not():
    rng = np.random.default_rng(0)
    pairs = [
        (checks.tensor(rng.normal(size=(16, 3))), checks.tensor(rng.normal(size=(16, 3)))) for _ in range(400)
    ]
    values = np.array([losses.unbiased_hsic(x, y).item() for x, y in pairs])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert np.mean([losses.hsic(x, y).item() for x, y in pairs]) > 0.005


def test_normalised_hsic_is_between_0_and_1_and_finite_for_an_empty_part():
    x = checks.tensor(checks.draw(0, 12, 3))
    assert losses.normalised_hsic(x, 2 * x - 1).item() == pytest.approx(1.0)
    empty = torch.zeros_like(x).requires_grad_()
    value = losses.normalised_hsic(x, empty)
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.autograd.grad(value, empty)[0].isfinite().all()


def test_bounded_adversaries_reward_no_confident_mistake():
    y = torch.tensor([0.0, 1.0])
    wrong, undecided = torch.tensor([30.0, -30.0]), torch.zeros(2)
    assert losses.adversarial(wrong, y) > 20
    assert losses.clamped_adversarial(wrong, y).item() == pytest.approx(math.log(2))
    assert losses.confusion(undecided, y).item() == pytest.approx(-math.log(2))
    # the mask maximises it, and an undecided adversary is its maximum
    assert losses.confusion(undecided, y) > losses.confusion(0.1 * wrong, y) > losses.confusion(wrong, y)


def test_bfloat16_terms_agree_within_their_bound():
    """Stated bound for bfloat16 inputs: 3e-2 relative against the reference of the same rounded inputs."""
    z, w = (torch.from_numpy(checks.draw(seed, 64, scale=3.0)).bfloat16() for seed in (0, 1))
    y = torch.from_numpy(checks.labels(2, 64)).bfloat16()
    exact = {name: value.double().numpy() for name, value in (("z", z), ("w", w), ("y", y))}
    for actual, expected in (
        (losses.classification(z, y), reference.classification(exact["z"], exact["y"])),
        (losses.invariance(z, w), reference.invariance(exact["z"], exact["w"])),
        (losses.symmetric_invariance(z, w), reference.symmetric_invariance(exact["z"], exact["w"])),
    ):
        assert actual.item() == pytest.approx(expected, rel=3e-2)


@pytest.mark.parametrize("term", [losses.classification, *losses.ADVERSARY_LOSSES.values()])
def test_an_image_of_weight_3_counts_as_three_images(term):
    """In value and gradient, divided by the number of images and not by the sum of their weights."""
    z = torch.linspace(-0.4, 0.3, 5, dtype=torch.float64)
    y = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    weights = losses.image_weights(y, (1.0, 3.0))
    assert weights.tolist() == [1, 3, 1, 1, 3]
    copies = torch.repeat_interleave(torch.arange(5), weights.long())
    value, (gradient,) = losses.with_gradients(term, z, y=y, weights=0.5 * weights)
    expected, (of_copies,) = losses.with_gradients(term, z[copies], y=y[copies])
    torch.testing.assert_close(value, expected * len(copies) / 5 * 0.5)
    summed = torch.zeros(5, dtype=torch.float64).index_add(0, copies, of_copies)
    torch.testing.assert_close(gradient, summed * len(copies) / 5 * 0.5)


def test_without_class_weights_there_is_nothing_to_weight_by():
    assert losses.image_weights(torch.ones(2), None) is None
