"""Planted mistakes: the checks that the package passes must fail on each of them."""

import pytest
import torch
from torch.nn import functional

from causal_tune.causal import losses, mask
from tests.causal import checks
from tests.reference import causal_numpy as reference


def kernels(x, y):
    squared = [losses.squared_distances(part) for part in (x, y)]
    return [losses.gaussian_kernel(one, losses.median_bandwidth(one)) for one in squared]


def hsic_without_centring(x, y):
    K, L = kernels(x, y)
    return (K * L).sum() / (len(x) - 1) ** 2


def hsic_as_a_mean(x, y):
    return losses.hsic(x, y) * (len(x) - 1) ** 2 / len(x) ** 2


def hsic_centring_rows_only(x, y):
    K, L = kernels(x, y)
    return ((K - K.mean(dim=1, keepdim=True)) * L).sum() / len(x) ** 2


def hsic_with_one_bandwidth(x, y):
    squared_x, squared_y = losses.squared_distances(x), losses.squared_distances(y)
    s = losses.median_bandwidth(squared_x)
    K, L = losses.gaussian_kernel(squared_x, s), losses.gaussian_kernel(squared_y, s)
    H = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    return torch.trace(K @ H @ L @ H) / (len(x) - 1) ** 2


def hsic_with_the_median_over_the_diagonal_too(x, y):
    n = len(x)
    H = torch.eye(n, dtype=x.dtype) - 1 / n
    K, L = (
        losses.gaussian_kernel(one, one.detach().sqrt().median().clamp(min=1e-6))
        for one in map(losses.squared_distances, (x, y))
    )
    return torch.trace(K @ H @ L @ H) / (n - 1) ** 2


def hsic_with_a_gradient_through_the_bandwidth(x, y):
    n = len(x)
    H = torch.eye(n, dtype=x.dtype) - 1 / n
    K, L = (
        torch.exp(-one / (2 * torch.pdist(part).quantile(0.5) ** 2))
        for one, part in ((losses.squared_distances(x), x), (losses.squared_distances(y), y))
    )
    return torch.trace(K @ H @ L @ H) / (n - 1) ** 2


def one_sided_kl(a, b):
    return (torch.sigmoid(a) * (functional.logsigmoid(a) - functional.logsigmoid(b))).mean()


def reversed_kl(a, b):
    return losses.invariance(b, a)


def kl_without_a_gradient_of_its_first_argument(a, b):
    return losses.invariance(a.detach() + 0 * a, b)


def total_with_a_flipped_adversary(*, adversarial, **rest):
    return losses.total(adversarial=-adversarial, **rest)


def total_with_the_weights_of_the_mask_terms_exchanged(*, lambda1, lambda2, **rest):
    return losses.total(lambda1=lambda2, lambda2=lambda1, **rest)


def noise_after_the_temperature(logits, tau, gumbel):
    return torch.sigmoid(logits / tau + gumbel)


def mask_before_the_noise(logits, tau, gumbel):
    return torch.sigmoid(logits / tau) + gumbel


def temperature_ignored(logits, tau, gumbel):
    return torch.sigmoid(logits + gumbel)


def logistic_noise(shape, generator):
    return mask.gumbel_noise(shape, generator) - mask.gumbel_noise(shape, generator)


def p_as_keep_rate(shape, p, generator):
    return 1 - mask.drop_noise(shape, p, generator)


def rescaled_counterfactual(z, drop):
    return z * (1 - drop) / (1 - drop.mean()).clamp(min=1e-6)


def exchanged_parts(features, m):
    zc, znc = mask.split(features, m)
    return znc, zc


@pytest.mark.parametrize(
    "wrong",
    [
        hsic_without_centring,
        hsic_as_a_mean,
        hsic_centring_rows_only,
        hsic_with_one_bandwidth,
        hsic_with_the_median_over_the_diagonal_too,
        hsic_with_a_gradient_through_the_bandwidth,
    ],
)
def test_wrong_hsic_is_found(wrong):
    with pytest.raises(AssertionError):
        checks.check_hsic(wrong)


@pytest.mark.parametrize("wrong", [one_sided_kl, reversed_kl, kl_without_a_gradient_of_its_first_argument])
def test_wrong_divergence_is_found(wrong):
    with pytest.raises(AssertionError):
        checks.check_invariance(wrong)


@pytest.mark.parametrize("wrong", [noise_after_the_temperature, mask_before_the_noise, temperature_ignored])
def test_wrong_mask_is_found(wrong):
    with pytest.raises(AssertionError):
        checks.check_gumbel_sigmoid(wrong)


@pytest.mark.parametrize("wrong", [noise_after_the_temperature, mask_before_the_noise])
def test_wrong_mask_is_found_by_its_rate_alone(wrong):
    with pytest.raises(AssertionError):
        checks.check_mask_rate(wrong, mask.gumbel_noise)


def test_logistic_noise_is_found():
    with pytest.raises(AssertionError):
        checks.check_mask_rate(mask.gumbel_sigmoid, logistic_noise)


def test_mean_for_sum_is_found():
    with pytest.raises(AssertionError):
        checks.check_sparsity(lambda m: m.mean())
    with pytest.raises(AssertionError):
        checks.check_sparsity(lambda m: m.sum())


def test_sum_for_mean_of_the_cross_entropy_is_found():
    def wrong(z, y):
        return functional.binary_cross_entropy_with_logits(z, y, reduction="sum")

    with pytest.raises(AssertionError):
        checks.check_cross_entropy(wrong, reference.classification)


def test_halves_averaged_over_their_own_class_are_found():
    def wrong(z, y):
        return functional.softplus(-z)[y == 1].sum() / y.sum().clamp(min=1) + functional.softplus(z)[
            y == 0
        ].sum() / (1 - y).sum().clamp(min=1)

    with pytest.raises(AssertionError):
        checks.check_cross_entropy(wrong, reference.adversarial)


@pytest.mark.parametrize(
    "wrong", [total_with_a_flipped_adversary, total_with_the_weights_of_the_mask_terms_exchanged]
)
def test_wrong_total_is_found(wrong):
    with pytest.raises(AssertionError):
        checks.check_total(wrong)


def test_wrong_counterfactuals_are_found():
    with pytest.raises(AssertionError):
        checks.check_drops(p_as_keep_rate, mask.counterfactual)
    with pytest.raises(AssertionError):
        checks.check_drops(mask.drop_noise, rescaled_counterfactual)


def test_exchanged_parts_are_found():
    with pytest.raises(AssertionError):
        checks.check_split(exchanged_parts)


def unbiased_hsic_with_the_diagonal(x, y):
    n = len(x)
    K, L = kernels(x, y)
    rows_k, rows_l = K.sum(1), L.sum(1)
    whole = (
        (K * L).sum()
        + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2))
        - 2 * (rows_k * rows_l).sum() / (n - 2)
    )
    return whole / (n * (n - 3))


def normalised_hsic_without_the_root(x, y):
    return losses.hsic(x, y) / (losses.hsic(x, x) * losses.hsic(y, y))


def one_half_of_the_symmetric_divergence(a, b):
    q, r = torch.sigmoid(a), torch.sigmoid(b)
    m = (q + r) / 2
    return (q * (q / m).log() + (1 - q) * ((1 - q) / (1 - m)).log()).mean()


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (checks.check_expected_mask, lambda z, tau, n: mask.noiseless_mask(z, tau)),
        (checks.check_expected_mask, lambda z, tau, n: mask.expected_mask(z, 1.0, n)),
        (checks.check_noiseless_mask, lambda z, tau: torch.sigmoid(z)),
        (
            checks.check_sampled_mask,
            lambda z, tau, draws: mask.gumbel_sigmoid(z, tau, draws.mean(0).expand_as(z)),
        ),
        (checks.check_hard_mask, lambda z: (z > 0).double()),
        (checks.check_annealing, lambda step, tau, end, n: tau + (end - tau) * min(1.0, step / n)),
        (checks.check_annealing, lambda step, tau, end, n: tau * (end / tau) ** (step / n)),
        (checks.check_clamped, losses.adversarial),
        (checks.check_clamped, lambda z, y: losses.adversarial(z, y).clamp(max=0.5)),
    ],
)
def test_wrong_options_of_the_mask_and_the_adversary_are_found(check, wrong):
    with pytest.raises(AssertionError):
        check(wrong)


def test_wrong_options_of_the_losses_are_found():
    big = {"shapes": ((4, 1), (5, 2))}
    with pytest.raises(AssertionError):
        checks.check_hsic(unbiased_hsic_with_the_diagonal, reference.unbiased_hsic, **big)
    with pytest.raises(AssertionError):
        checks.check_hsic(losses.hsic, reference.unbiased_hsic, **big)
    with pytest.raises(AssertionError):
        checks.check_hsic(normalised_hsic_without_the_root, reference.normalised_hsic, **big)
    with pytest.raises(AssertionError):
        checks.check_invariance(one_half_of_the_symmetric_divergence, reference.symmetric_invariance)
    with pytest.raises(AssertionError):
        checks.check_invariance(losses.invariance, fixed_target=True)
    with pytest.raises(AssertionError):
        checks.check_cross_entropy(lambda z, y: -losses.confusion(z, y), reference.confusion)
    with pytest.raises(AssertionError):
        checks.check_sparsity(losses.sparsity, reference.mean_sparsity)
