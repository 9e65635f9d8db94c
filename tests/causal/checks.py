"""What each equation must satisfy, as functions of an implementation.

`test_mask.py` and `test_losses.py` run them on the package, `test_sharpness.py` on planted mistakes.
Values are compared with `tests/reference/causal_numpy.py` in float64, to 1e-10 and gradients to 1e-9.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.reference import causal_numpy as reference

VALUES = {"rtol": 1e-10, "atol": 1e-12}
GRADIENTS = {"rtol": 1e-9, "atol": 1e-10}
SHAPES = ((2, 1), (3, 2), (4, 5), (7, 3))


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


def check_gumbel_sigmoid(function: Callable[..., Tensor], seed: int = 0) -> None:
    for n, d in SHAPES:
        for tau in (0.1, 0.5, 2.0):
            logits, noise, weights = draw(seed, n, d), draw(seed + 1, n, d), draw(seed + 2, n, d)

            np.testing.assert_allclose(
                function(tensor(logits), tau, tensor(noise)).numpy(),
                reference.gumbel_sigmoid(logits, tau, noise),
                **VALUES,
            )
            expected = reference.gradient(
                lambda z, tau=tau, noise=noise, weights=weights: float(
                    (weights * reference.gumbel_sigmoid(z, tau, noise)).sum()
                ),
                logits,
            )
            assert_gradient(
                lambda z, tau=tau, noise=noise, weights=weights: (
                    tensor(weights) * function(z, tau, tensor(noise))
                ).sum(),
                expected,
                logits,
            )


def check_mask_rate(
    function: Callable[..., Tensor], noise: Callable[[tuple[int, ...], torch.Generator], Tensor]
) -> None:
    """P(M > 1/2) = 1 - exp(-exp(l)) at every temperature, for the paper's single Gumbel draw."""
    generator = torch.Generator().manual_seed(5)
    for logit in (-1.5, 0.0, 0.7):
        for tau in (0.1, 0.5, 1.0, 2.0):
            logits = torch.full((200, 500), logit)
            mask = function(logits, tau, noise((200, 500), generator))
            assert_rate(mask > 0.5, 1 - math.exp(-math.exp(logit)))


def check_split(function: Callable[..., tuple[Tensor, Tensor]], seed: int = 0) -> None:
    for n, d in SHAPES:
        features, mask = draw(seed, n, d), uniform_mask(seed, n, d)
        expected = reference.split(features, mask)
        for part, expected_part in zip(function(tensor(features), tensor(mask)), expected, strict=True):
            np.testing.assert_allclose(part.numpy(), expected_part, **VALUES)


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
    z, drop = draw(seed, 4, 5), labels(seed, 20).reshape(4, 5)
    np.testing.assert_allclose(
        function(tensor(z), tensor(drop)).numpy(), reference.counterfactual(z, drop), **VALUES
    )


def check_cross_entropy(
    function: Callable[[Tensor, Tensor], Tensor], expected: Callable[..., float], seed: int = 0
) -> None:
    for n in (1, 2, 5, 9):
        z, y = draw(seed, n, scale=4.0), labels(seed, n)
        np.testing.assert_allclose(function(tensor(z), tensor(y)).item(), expected(z, y), **VALUES)
        gradient = reference.gradient(lambda z, y=y: expected(z, y), z)
        assert_gradient(lambda z, y=y: function(z, tensor(y)), gradient, z)


def check_sparsity(function: Callable[[Tensor], Tensor], seed: int = 0) -> None:
    for n, d in SHAPES:
        mask = uniform_mask(seed, n, d)
        np.testing.assert_allclose(function(tensor(mask)).item(), reference.sparsity(mask), **VALUES)
        assert_gradient(function, reference.gradient(reference.sparsity, mask), mask)


def check_hsic(function: Callable[[Tensor, Tensor], Tensor], seed: int = 0) -> None:
    for n, d in SHAPES:
        x, y = draw(seed, n, d), draw(seed + 1, n, d + 1) + draw(seed, n, d)[:, :1]
        np.testing.assert_allclose(
            function(tensor(x), tensor(y)).item(), reference.hsic(x, y), rtol=1e-10, atol=1e-14
        )
        # the bandwidths are constants of the gradient
        bandwidths = (
            reference.median_bandwidth(reference.squared_distances(x)),
            reference.median_bandwidth(reference.squared_distances(y)),
        )
        expected = reference.gradient(lambda x, y=y, s=bandwidths: reference.hsic(x, y, s), x)
        assert_gradient(lambda x, y=y: function(x, tensor(y)), expected, x)
        expected = reference.gradient(lambda y, x=x, s=bandwidths: reference.hsic(x, y, s), y)
        assert_gradient(lambda y, x=x: function(tensor(x), y), expected, y)


def check_invariance(function: Callable[[Tensor, Tensor], Tensor], seed: int = 0) -> None:
    for n in (1, 2, 5, 9):
        a, b = draw(seed, n, scale=3.0), draw(seed + 1, n, scale=3.0)
        np.testing.assert_allclose(
            function(tensor(a), tensor(b)).item(), reference.invariance(a, b), **VALUES
        )
        expected = reference.gradient(lambda a, b=b: reference.invariance(a, b), a)
        assert_gradient(lambda a, b=b: function(a, tensor(b)), expected, a)
        expected = reference.gradient(lambda b, a=a: reference.invariance(a, b), b)
        assert_gradient(lambda b, a=a: function(tensor(a), b), expected, b)


def check_total(function: Callable[..., Tensor], seed: int = 0) -> None:
    values = np.abs(draw(seed, 5))
    names = ("classification", "adversarial", "sparsity", "hsic", "invariance")
    terms = dict(zip(names, values.tolist(), strict=True))
    weights = {"alpha": 0.3, "lambda1": 0.01, "lambda2": 7.0, "beta": 2.0}
    actual = function(**{name: tensor(np.array(value)) for name, value in terms.items()}, **weights)
    np.testing.assert_allclose(actual.item(), reference.total(terms, **weights), **VALUES)
