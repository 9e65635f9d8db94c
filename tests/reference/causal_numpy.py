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


def logistic_noise(uniform: Array) -> Array:
    """Logistic(0, 1) by inversion of its distribution function 1 / (1 + exp(-x))."""
    result = np.empty_like(uniform)
    for index in np.ndindex(uniform.shape):
        result[index] = math.log(uniform[index]) - math.log1p(-uniform[index])
    return result


def gumbel_distribution(x: float) -> float:
    """P(g <= x) of Gumbel(0, 1)."""
    return math.exp(-math.exp(-x))


def logistic_distribution(x: float) -> float:
    """P(g <= x) of Logistic(0, 1)."""
    return (1 + math.tanh(x / 2)) / 2


def gumbel_density(x: float) -> float:
    """The derivative of `gumbel_distribution`."""
    return math.exp(-x - math.exp(-x))


def logistic_density(x: float) -> float:
    """The derivative of `logistic_distribution`."""
    return 1 / (4 * math.cosh(x / 2) ** 2)


def _quantile(distribution: Callable[[float], float], share: float) -> float:
    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        if distribution(middle) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def gumbel_quantiles(num_quantiles: int) -> list[float]:
    """x with F(x) = (i - 1/2) / n, F the distribution function of Gumbel(0, 1); found by bisection."""
    return [_quantile(gumbel_distribution, (i - 0.5) / num_quantiles) for i in range(1, num_quantiles + 1)]


def logistic_quantiles(num_quantiles: int) -> list[float]:
    """The same of Logistic(0, 1)."""
    return [_quantile(logistic_distribution, (i - 0.5) / num_quantiles) for i in range(1, num_quantiles + 1)]


def _integral(function: Callable[[float], float], density: Callable[[float], float]) -> float:
    """The mean of a function of the noise, by the trapezium rule."""
    grid = np.linspace(-40.0, 40.0, 80_001)
    values = np.array([function(g) * density(g) for g in grid])
    return float(((values[1:] + values[:-1]) / 2).sum() * (grid[1] - grid[0]))


def noise_mean(density: Callable[[float], float]) -> float:
    """The mean of the noise."""
    return _integral(lambda g: g, density)


def annealed_tau(step: int, tau: float, tau_end: float, num_steps: int) -> float:
    """A temperature that is multiplied by the same factor at each of `num_steps` steps, then stays."""
    factor = math.exp((math.log(tau_end) - math.log(tau)) / num_steps)
    for _ in range(min(step, num_steps)):
        tau *= factor
    return tau


def expected_mask(
    logits: Array,
    tau: float,
    quantiles: int,
    points_of: Callable[[int], list[float]] = gumbel_quantiles,
) -> Array:
    """The mean of Eq. (5) over mid-point quantiles of g."""
    mask = np.empty_like(logits)
    points = points_of(quantiles)
    for i, j in np.ndindex(logits.shape):
        mask[i, j] = sum(_sigma((logits[i, j] + g) / tau) for g in points) / quantiles
    return mask


def expected_mask_exact(
    logit: float, tau: float, density: Callable[[float], float] = gumbel_density
) -> float:
    """The mean of Eq. (5) over all of g: sigma against the density of the noise."""
    return _integral(lambda g: _sigma((logit + g) / tau), density)


def noiseless_mask(logits: Array, tau: float) -> Array:
    """Eq. (5) with g = 0."""
    return gumbel_sigmoid(logits, tau, np.zeros_like(logits))


def mean_noise_mask(logits: Array, tau: float, mean: float) -> Array:
    """Eq. (5) with g = E g, the mean of `noise_mean`."""
    return gumbel_sigmoid(logits, tau, np.full_like(logits, mean))


def sampled_mask(logits: Array, tau: float, draws: Array) -> Array:
    """The mean of Eq. (5) over rows of draws, each of which serves all images."""
    mask = np.empty_like(logits)
    for i, j in np.ndindex(logits.shape):
        mask[i, j] = sum(_sigma((logits[i, j] + draw[j]) / tau) for draw in draws) / len(draws)
    return mask


def hard_mask(logits: Array, distribution: Callable[[float], float] = gumbel_distribution) -> Array:
    """1 where P(M > 1/2) = P(l + g > 0) = 1 - F(-l) is above 1/2."""
    mask = np.empty_like(logits)
    for i, j in np.ndindex(logits.shape):
        mask[i, j] = 1.0 if 1 - distribution(-logits[i, j]) > 0.5 else 0.0
    return mask


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


def clamped_adversarial(logits: Array, y: Array) -> float:
    """The adversary's loss, but never more than that of a coin."""
    loss, coin = adversarial(logits, y), -math.log(0.5)
    return loss if loss < coin else coin


def confusion(logits: Array, y: Array) -> float:
    """Minus the cross-entropy of the adversary against labels that are all 1/2."""
    return -classification(logits, np.full_like(logits, 0.5))


def sparsity(mask: Array) -> float:
    """||M||_1 of Eq. (10) for each image, mean over images."""
    n, d = mask.shape
    return sum(sum(abs(mask[i, j]) for j in range(d)) for i in range(n)) / n


def mean_sparsity(mask: Array) -> float:
    """The mean of all elements."""
    n, d = mask.shape
    return sum(abs(mask[i, j]) for i, j in np.ndindex(n, d)) / (n * d)


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


def unbiased_hsic_of_kernels(K: Array, L: Array) -> float:
    """HSIC as a U-statistic (Song et al., JMLR 2012): the mean over all ordered tuples of four different
    indices of K_st (L_st + L_uv - 2 L_su)."""
    terms = [
        K[s, t] * (L[s, t] + L[u, v] - 2 * L[s, u]) for s, t, u, v in itertools.permutations(range(len(K)), 4)
    ]
    return sum(terms) / len(terms)


def normalised_hsic_of_kernels(K: Array, L: Array) -> float:
    """Centred kernel alignment: the cosine of the angle between two centred kernels (Cortes et al., JMLR 2012).

    Kernels centred by subtracting the mean of their column, of their row, and adding that of all.
    """
    n = len(K)

    def centred(kernel: Array) -> Array:
        result = np.empty_like(kernel)
        everything = sum(kernel[i, j] for i, j in np.ndindex(n, n)) / n**2
        for i, j in np.ndindex(n, n):
            row = sum(kernel[i, q] for q in range(n)) / n
            column = sum(kernel[q, j] for q in range(n)) / n
            result[i, j] = kernel[i, j] - row - column + everything
        return result

    def product(one: Array, other: Array) -> float:
        return sum(one[i, j] * other[i, j] for i, j in np.ndindex(n, n))

    K, L = centred(K), centred(L)
    lengths = math.sqrt(product(K, K) * product(L, L))
    return product(K, L) / lengths if lengths > 0 else 0.0


def _of_samples(estimate: Callable[[Array, Array], float]) -> Callable[..., float]:
    """The HSIC of Eq. (10) of two samples; `bandwidths` holds the two s fixed, else the median heuristic."""

    def dependence(x: Array, y: Array, bandwidths: tuple[float, float] | None = None) -> float:
        squared_x, squared_y = squared_distances(x), squared_distances(y)
        s_x, s_y = bandwidths or (median_bandwidth(squared_x), median_bandwidth(squared_y))
        return estimate(gaussian_kernel(squared_x, s_x), gaussian_kernel(squared_y, s_y))

    return dependence


hsic = _of_samples(hsic_of_kernels)
unbiased_hsic = _of_samples(unbiased_hsic_of_kernels)
normalised_hsic = _of_samples(normalised_hsic_of_kernels)


def invariance(logits: Array, counterfactual_logits: Array) -> float:
    """Eq. (12): the divergence of Bernoulli(h(Zc)) from Bernoulli(h(Zcf)), mean over the batch."""
    result = 0.0
    for a, b in zip(logits, counterfactual_logits, strict=True):
        result += _sigma(a) * (_log_sigma(a) - _log_sigma(b))
        result += _sigma(-a) * (_log_sigma(-a) - _log_sigma(-b))
    return result / len(logits)


def symmetric_invariance(logits: Array, counterfactual_logits: Array) -> float:
    """The Jensen-Shannon divergence of the two Bernoulli distributions, from its definition; batch mean."""

    def divergence(one: list[float], other: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(one, other, strict=True) if a > 0)

    result = 0.0
    for a, b in zip(logits, counterfactual_logits, strict=True):
        q, r = [_sigma(a), _sigma(-a)], [_sigma(b), _sigma(-b)]
        middle = [(q[0] + r[0]) / 2, (q[1] + r[1]) / 2]
        result += (divergence(q, middle) + divergence(r, middle)) / 2
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
