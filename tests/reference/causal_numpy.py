"""The equations of CausalCLIP (arXiv 2512.13285) in float64, element by element, written from the paper.

Slow and obvious on purpose: nothing here is shared with, or arranged like, `causal_tune.causal`.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def gumbel_noise(uniform: Array) -> Array:
    """Gumbel(0, 1) by inversion of its distribution function exp(-exp(-x))."""
    result = np.empty_like(uniform)
    for index in np.ndindex(uniform.shape):
        result[index] = -math.log(-math.log(uniform[index]))
    return result


def gumbel_sigmoid(logits: Array, tau: float, gumbel: Array) -> Array:
    """Eq. (5): M = sigma((MLP(E) + g) / tau), the logits standing for MLP(E)."""
    mask = np.empty_like(logits)
    for i, j in np.ndindex(logits.shape):
        mask[i, j] = _sigma((logits[i, j] + gumbel[i, j]) / tau)
    return mask


def gumbel_quantiles(num_quantiles: int) -> list[float]:
    """x with F(x) = (i - 1/2) / n, F the distribution function of Gumbel(0, 1); found by bisection."""
    quantiles = []
    for i in range(1, num_quantiles + 1):
        low, high = -10.0, 60.0
        for _ in range(200):
            middle = (low + high) / 2
            if math.exp(-math.exp(-middle)) < (i - 0.5) / num_quantiles:
                low = middle
            else:
                high = middle
        quantiles.append((low + high) / 2)
    return quantiles


def expected_mask(logits: Array, tau: float, quantiles: int) -> Array:
    """The mean of Eq. (5) over mid-point quantiles of g."""
    mask = np.empty_like(logits)
    points = gumbel_quantiles(quantiles)
    for i, j in np.ndindex(logits.shape):
        mask[i, j] = sum(_sigma((logits[i, j] + g) / tau) for g in points) / quantiles
    return mask


def expected_mask_exact(logit: float, tau: float) -> float:
    """The mean of Eq. (5) over all of g: sigma against the Gumbel density, by the trapezium rule."""
    grid = np.linspace(-6.0, 40.0, 200_001)
    density = np.exp(-grid - np.exp(-grid))
    values = np.array([_sigma((logit + g) / tau) for g in grid]) * density
    return float(((values[1:] + values[:-1]) / 2).sum() * (grid[1] - grid[0]))


def mask_statistics(mask: Array) -> dict[str, float]:
    """Mean, the two spreads and the entropy of a mask, by their definitions."""
    n, d = mask.shape

    def spread(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))

    def entropy(m: float) -> float:
        return sum(-share * math.log(share) for share in (m, 1 - m) if share > 0)

    return {
        "mean": sum(mask[i, j] for i, j in np.ndindex(n, d)) / (n * d),
        "std_images": sum(spread([mask[i, j] for i in range(n)]) for j in range(d)) / d,
        "std_dimensions": spread([sum(mask[i, j] for i in range(n)) / n for j in range(d)]),
        "entropy": sum(entropy(mask[i, j]) for i, j in np.ndindex(n, d)) / (n * d),
    }


def split(features: Array, mask: Array) -> tuple[Array, Array]:
    """Eq. (4): Zc = M o E, Znc = (1 - M) o E."""
    zc, znc = np.empty_like(features), np.empty_like(features)
    for i, j in np.ndindex(features.shape):
        zc[i, j] = mask[i, j] * features[i, j]
        znc[i, j] = (1 - mask[i, j]) * features[i, j]
    return zc, znc


def counterfactual(z: Array, drop: Array) -> Array:
    """Eq. (11): a dimension with B = 1 becomes 0, the others stay."""
    result = np.empty_like(z)
    for i, j in np.ndindex(z.shape):
        result[i, j] = 0.0 if drop[i, j] == 1 else z[i, j]
    return result


def _log_sigma(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z >= 0 else z - math.log1p(math.exp(z))


def classification(logits: Array, y: Array) -> float:
    """Eq. (6): -E[Y log h + (1 - Y) log(1 - h)]."""
    result = 0.0
    for z, label in zip(logits, y, strict=True):
        result -= label * _log_sigma(z) + (1 - label) * _log_sigma(-z)
    return result / len(y)


def adversarial(logits: Array, y: Array) -> float:
    """Eqs. (7), (8) and their sum (9): each an expectation over the whole batch."""
    positive = -sum(label * _log_sigma(z) for z, label in zip(logits, y, strict=True)) / len(y)
    negative = -sum((1 - label) * _log_sigma(-z) for z, label in zip(logits, y, strict=True)) / len(y)
    return positive + negative


def sparsity(mask: Array) -> float:
    """||M||_1 of Eq. (10) for each image, mean over images."""
    n, d = mask.shape
    return sum(sum(abs(mask[i, j]) for j in range(d)) for i in range(n)) / n


def squared_distances(x: Array) -> Array:
    """Squared Euclidean distances of all rows."""
    n = len(x)
    result = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            result[i, j] = sum((a - b) ** 2 for a, b in zip(x[i], x[j], strict=True))
    return result


def median_bandwidth(squared: Array) -> float:
    """The median distance of two different rows."""
    n = len(squared)
    distances = sorted(math.sqrt(squared[i, j]) for i in range(n) for j in range(i + 1, n))
    middle = len(distances) // 2
    if len(distances) % 2:
        return max(distances[middle], 1e-6)
    return max((distances[middle - 1] + distances[middle]) / 2, 1e-6)


def gaussian_kernel(squared: Array, bandwidth: float) -> Array:
    """exp(-D^2 / (2 s^2))."""
    kernel = np.empty_like(squared)
    for index in np.ndindex(squared.shape):
        kernel[index] = math.exp(-squared[index] / (2 * bandwidth * bandwidth))
    return kernel


def hsic_of_kernels(K: Array, L: Array) -> float:
    """The biased estimator of Gretton et al. (2005) as its sum over index tuples, scaled by 1 / (n - 1)^2:

    sum_ij K_ij L_ij + (1/n^2) sum_ijqr K_ij L_qr - (2/n) sum_ijq K_ij L_iq.
    """
    n = len(K)
    pairs = sum(K[i, j] * L[i, j] for i in range(n) for j in range(n))
    quadruples = sum(K[i, j] for i in range(n) for j in range(n)) * sum(
        L[q, r] for q in range(n) for r in range(n)
    )
    triples = sum(K[i, j] * L[i, q] for i in range(n) for j in range(n) for q in range(n))
    return (pairs + quadruples / n**2 - 2 * triples / n) / (n - 1) ** 2


def hsic(x: Array, y: Array, bandwidths: tuple[float, float] | None = None) -> float:
    """The HSIC of Eq. (10); `bandwidths` holds the two s fixed, else each is the median heuristic's."""
    squared_x, squared_y = squared_distances(x), squared_distances(y)
    s_x, s_y = bandwidths or (median_bandwidth(squared_x), median_bandwidth(squared_y))
    return hsic_of_kernels(gaussian_kernel(squared_x, s_x), gaussian_kernel(squared_y, s_y))


def invariance(logits: Array, counterfactual_logits: Array) -> float:
    """Eq. (12): the divergence of Bernoulli(h(Zc)) from Bernoulli(h(Zcf)), mean over the batch."""
    result = 0.0
    for a, b in zip(logits, counterfactual_logits, strict=True):
        result += _sigma(a) * (_log_sigma(a) - _log_sigma(b))
        result += _sigma(-a) * (_log_sigma(-a) - _log_sigma(-b))
    return result / len(logits)


def total(terms: dict[str, float], alpha: float, lambda1: float, lambda2: float, beta: float) -> float:
    """Eq. (13) with L_mask of Eq. (10) written out."""
    mask = lambda1 * terms["sparsity"] + lambda2 * terms["hsic"]
    return terms["classification"] - alpha * terms["adversarial"] + mask + beta * terms["invariance"]


def gradient(function: Callable[[Array], float], x: Array, step: float = 1e-3, levels: int = 4) -> Array:
    """Central differences of a scalar function at steps h, 2h, 4h, 8h, extrapolated to h = 0 (Romberg)."""
    result = np.empty_like(x)
    for index in np.ndindex(x.shape):
        slopes = []
        for level in range(levels):
            h = step * 2**level
            up, down = x.copy(), x.copy()
            up[index] += h
            down[index] -= h
            slopes.append((function(up) - function(down)) / (2 * h))
        for order in range(1, levels):
            slopes = [
                (4**order * fine - coarse) / (4**order - 1) for fine, coarse in itertools.pairwise(slopes)
            ]
        result[index] = slopes[0]
    return result
