"""What each equation must satisfy, as functions of an implementation.

`test_mask.py` and `test_losses.py` run them on the package, `test_sharpness.py` on planted mistakes.
Values are compared with `tests/reference/causal_numpy.py` in float64, to 1e-10 and gradients to 1e-9. The shapes
are fixed where a check is called without any, so that a planted mistake is found or not found every time;
Hypothesis draws others for the package.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tests.reference import causal_numpy as reference

VALUES = {"rtol": 1e-10, "atol": 1e-12}
GRADIENTS = {"rtol": 1e-9, "atol": 1e-10}
SHAPES = ((2, 1), (3, 2), (4, 5), (7, 3))
SIZES = (1, 2, 5, 9)
TEMPERATURES = (0.1, 0.5, 2.0)

Shapes = Sequence[tuple[int, int]]
Function = Callable[..., Tensor]


def draw(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


def tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array)


def labels(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, n).astype(np.float64)


def uniform_mask(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.02, 0.98, shape)


def assert_gradient(function: Callable[[Tensor], Tensor], expected: np.ndarray, x: np.ndarray) -> None:
    variable = tensor(x).requires_grad_()
    (actual,) = torch.autograd.grad(function(variable), variable)
    np.testing.assert_allclose(actual.numpy(), expected, **GRADIENTS)


def assert_rate(hits: Tensor, rate: float) -> None:
    """A share of N independent draws lies within four standard deviations of its expectation."""
    bound = 4 * math.sqrt(rate * (1 - rate) / hits.numel())
    assert abs(hits.double().mean().item() - rate) <= bound


def assert_mask(
    function: Function, expected: Callable[[np.ndarray], np.ndarray], logits: np.ndarray, weights: np.ndarray
) -> None:
    """A mask in value, and in the gradient of a weighted sum of it."""
    np.testing.assert_allclose(function(tensor(logits)).numpy(), expected(logits), **VALUES)
    gradient = reference.gradient(lambda z: float((weights * expected(z)).sum()), logits)
    assert_gradient(lambda z: (tensor(weights) * function(z)).sum(), gradient, logits)


def check_gumbel_sigmoid(
    function: Function, seed: int = 0, shapes: Shapes = SHAPES, temperatures: Sequence[float] = TEMPERATURES
) -> None:
    for shape in shapes:
        for tau in temperatures:
            logits, noise, weights = (draw(seed + i, *shape) for i in range(3))
            assert_mask(
                lambda z, tau=tau, noise=noise: function(z, tau, tensor(noise)),
                lambda z, tau=tau, noise=noise: reference.gumbel_sigmoid(z, tau, noise),
                logits,
                weights,
            )


def check_mask_rate(
    function: Function,
    noise: Callable[[tuple[int, ...], torch.Generator], Tensor],
    distribution: Callable[[float], float] = reference.gumbel_distribution,
) -> None:
    """P(M > 1/2) = 1 - F(-l) at every temperature: 1 - exp(-exp(l)) for the paper's single Gumbel draw."""
    generator = torch.Generator().manual_seed(5)
    for logit in (-1.5, 0.0, 0.7):
        for tau in (0.1, 0.5, 1.0, 2.0):
            logits = torch.full((200, 500), logit)
            mask = function(logits, tau, noise((200, 500), generator))
            assert_rate(mask > 0.5, 1 - distribution(-logit))


def check_quantiles(function: Callable[[int], list[float]], expected: Callable[[int], list[float]]) -> None:
    for number in (1, 2, 7, 32):
        np.testing.assert_allclose(function(number), expected(number), **VALUES)


def check_expected_mask(
    function: Function,
    quantiles: Callable[[int], list[float]] = reference.gumbel_quantiles,
    seed: int = 0,
    shapes: Shapes = SHAPES,
    temperatures: Sequence[float] = TEMPERATURES,
) -> None:
    """`function` of logits, temperature and a number of quantiles."""
    for shape in shapes:
        for tau in temperatures:
            assert_mask(
                lambda z, tau=tau: function(z, tau, 8),
                lambda z, tau=tau: reference.expected_mask(z, tau, 8, quantiles),
                draw(seed, *shape),
                draw(seed + 1, *shape),
            )


def check_noiseless_mask(
    function: Function, seed: int = 0, shapes: Shapes = SHAPES, temperatures: Sequence[float] = TEMPERATURES
) -> None:
    for shape in shapes:
        for tau in temperatures:
            assert_mask(
                lambda z, tau=tau: function(z, tau),
                lambda z, tau=tau: reference.noiseless_mask(z, tau),
                draw(seed, *shape),
                draw(seed + 1, *shape),
            )


def check_mean_noise_mask(
    function: Function,
    mean: float,
    seed: int = 0,
    shapes: Shapes = SHAPES,
    temperatures: Sequence[float] = TEMPERATURES,
) -> None:
    for shape in shapes:
        for tau in temperatures:
            assert_mask(
                lambda z, tau=tau: function(z, tau),
                lambda z, tau=tau: reference.mean_noise_mask(z, tau, mean),
                draw(seed, *shape),
                draw(seed + 1, *shape),
            )


def check_sampled_mask(
    function: Function, seed: int = 0, shapes: Shapes = SHAPES, temperatures: Sequence[float] = TEMPERATURES
) -> None:
    for n, d in shapes:
        for tau in temperatures:
            draws = draw(seed + 2, 3, d)
            assert_mask(
                lambda z, tau=tau, draws=draws: function(z, tau, tensor(draws)),
                lambda z, tau=tau, draws=draws: reference.sampled_mask(z, tau, draws),
                draw(seed, n, d),
                draw(seed + 1, n, d),
            )


def check_hard_mask(
    function: Function,
    distribution: Callable[[float], float] = reference.gumbel_distribution,
    seed: int = 0,
    shapes: Shapes = ((1, 1), (9, 9)),
) -> None:
    edges = np.array([[-0.367, -0.366, -1e-3, 1e-3]])
    for logits in (edges, *(draw(seed, *shape) for shape in shapes)):
        np.testing.assert_array_equal(
            function(tensor(logits)).numpy(), reference.hard_mask(logits, distribution)
        )


def check_annealing(function: Callable[[int, float, float, int], float]) -> None:
    for tau, tau_end, num_steps in ((2.0, 0.1, 10), (0.1, 2.0, 3), (1.0, 1.0, 5), (2.0, 0.5, 1)):
        for step in range(2 * num_steps + 2):
            expected = reference.annealed_tau(step, tau, tau_end, num_steps)
            np.testing.assert_allclose(function(step, tau, tau_end, num_steps), expected, **VALUES)


def check_split(
    function: Callable[..., tuple[Tensor, Tensor]], seed: int = 0, shapes: Shapes = SHAPES
) -> None:
    for n, d in shapes:
        features, mask = draw(seed, n, d), uniform_mask(seed, n, d)
        weights = draw(seed + 1, 2, n, d)
        expected = reference.split(features, mask)
        for part, expected_part in zip(function(tensor(features), tensor(mask)), expected, strict=True):
            np.testing.assert_allclose(part.numpy(), expected_part, **VALUES)

        def weighted(m, features=features, weights=weights):
            return sum(
                (tensor(w) * z).sum() for w, z in zip(weights, function(tensor(features), m), strict=True)
            )

        gradient = reference.gradient(
            lambda m, features=features, weights=weights: float(
                sum((w * z).sum() for w, z in zip(weights, reference.split(features, m), strict=True))
            ),
            mask,
        )
        assert_gradient(weighted, gradient, mask)


def check_counterfactual(
    function: Callable[[Tensor, Tensor], Tensor], seed: int = 0, shapes: Shapes = SHAPES
) -> None:
    for n, d in shapes:
        z, drop, weights = draw(seed, n, d), labels(seed, n * d).reshape(n, d), draw(seed + 1, n, d)
        assert_mask(
            lambda z, drop=drop: function(z, tensor(drop)),
            lambda z, drop=drop: reference.counterfactual(z, drop),
            z,
            weights,
        )


def check_drops(
    noise: Callable[..., Tensor], function: Callable[[Tensor, Tensor], Tensor], seed: int = 0
) -> None:
    """p is the probability that a dimension is dropped, and what is kept is not rescaled."""
    generator = torch.Generator().manual_seed(seed)
    for p in (0.0, 0.1, 0.4, 1.0):
        features = torch.full((200, 500), 3.0)
        result = function(features, noise((200, 500), p, generator))
        assert_rate(result == 0, p)
        assert ((result == 0) | (result == 3.0)).all()
    check_counterfactual(function, seed)


def check_cross_entropy(
    function: Callable[[Tensor, Tensor], Tensor],
    expected: Callable[..., float],
    seed: int = 0,
    sizes: Sequence[int] = SIZES,
) -> None:
    """A loss of logits and labels in value and gradient; away from the corner of one that is cut off."""
    for n in sizes:
        z, y = draw(seed, n, scale=4.0), labels(seed, n)
        np.testing.assert_allclose(function(tensor(z), tensor(y)).item(), expected(z, y), **VALUES)
        if abs(reference.adversarial(z, y) - math.log(2)) > 0.02:
            gradient = reference.gradient(lambda z, y=y: expected(z, y), z)
            assert_gradient(lambda z, y=y: function(z, tensor(y)), gradient, z)


def check_clamped(function: Callable[[Tensor, Tensor], Tensor], seed: int = 0) -> None:
    """On both sides of log 2: labels that agree with the logits, and labels that contradict them."""
    for n in (1, 4):
        z = np.abs(draw(seed, n)) + 0.5
        for y in (np.ones(n), np.zeros(n)):
            np.testing.assert_allclose(
                function(tensor(z), tensor(y)).item(), reference.clamped_adversarial(z, y), **VALUES
            )
            gradient = reference.gradient(lambda z, y=y: reference.clamped_adversarial(z, y), z)
            assert_gradient(lambda z, y=y: function(z, tensor(y)), gradient, z)


def check_sparsity(
    function: Callable[[Tensor], Tensor],
    expected: Callable[[np.ndarray], float] = reference.sparsity,
    seed: int = 0,
    shapes: Shapes = SHAPES,
) -> None:
    for n, d in shapes:
        mask = uniform_mask(seed, n, d)
        np.testing.assert_allclose(function(tensor(mask)).item(), expected(mask), **VALUES)
        assert_gradient(function, reference.gradient(expected, mask), mask)


def check_hsic(
    function: Callable[[Tensor, Tensor], Tensor],
    expected: Callable[..., float] = reference.hsic,
    seed: int = 0,
    shapes: Shapes = SHAPES,
) -> None:
    for n, d in shapes:
        x, y = draw(seed, n, d), draw(seed + 1, n, d + 1) + draw(seed, n, d)[:, :1]
        np.testing.assert_allclose(
            function(tensor(x), tensor(y)).item(), expected(x, y), rtol=1e-10, atol=1e-14
        )
        # the bandwidths are constants of the gradient, and the scale that differences must be small on
        s = (
            reference.median_bandwidth(reference.squared_distances(x)),
            reference.median_bandwidth(reference.squared_distances(y)),
        )
        gradient = reference.gradient(lambda x, y=y, s=s: expected(x, y, s), x, step=1e-3 * min(1, s[0]))
        assert_gradient(lambda x, y=y: function(x, tensor(y)), gradient, x)
        gradient = reference.gradient(lambda y, x=x, s=s: expected(x, y, s), y, step=1e-3 * min(1, s[1]))
        assert_gradient(lambda y, x=x: function(tensor(x), y), gradient, y)


def check_invariance(
    function: Callable[[Tensor, Tensor], Tensor],
    expected: Callable[..., float] = reference.invariance,
    seed: int = 0,
    sizes: Sequence[int] = SIZES,
    *,
    fixed_target: bool = False,
) -> None:
    """A divergence in value and in both gradients; with `fixed_target` the first of them is zero."""
    for n in sizes:
        a, b = draw(seed, n, scale=3.0), draw(seed + 1, n, scale=3.0)
        np.testing.assert_allclose(function(tensor(a), tensor(b)).item(), expected(a, b), **VALUES)
        gradient = reference.gradient(lambda a, b=b: expected(a, b), a)
        if fixed_target:
            gradient = np.zeros_like(a)
        # without `0 * a` a function that ignores its first argument would have no gradient to take
        assert_gradient(lambda a, b=b: function(a, tensor(b)) + 0 * a.sum(), gradient, a)
        gradient = reference.gradient(lambda b, a=a: expected(a, b), b)
        assert_gradient(lambda b, a=a: function(tensor(a), b), gradient, b)


def check_total(function: Callable[..., Tensor], seed: int = 0) -> None:
    values, drawn = np.abs(draw(seed, 5)), np.abs(draw(seed + 1, 4))
    names = ("classification", "adversarial", "sparsity", "hsic", "invariance")
    terms = dict(zip(names, values.tolist(), strict=True))
    weights = dict(zip(("alpha", "lambda1", "lambda2", "beta"), drawn.tolist(), strict=True))
    actual = function(**{name: tensor(np.array(value)) for name, value in terms.items()}, **weights)
    np.testing.assert_allclose(actual.item(), reference.total(terms, **weights), **VALUES)
