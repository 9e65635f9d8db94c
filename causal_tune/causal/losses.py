"""The loss terms of CausalCLIP (arXiv 2512.13285), Eqs. (6)-(10), (12) and their sum, Eq. (13).

Symbols are the paper's; B is the batch and d the width of the features:

    Y    [B]     labels, 1 generated, 0 real    h  the classifier, reads the causal features Zc [B, d]
    M    [B, d]  mask, in (0, 1)                d  the adversary, reads the non-causal features Znc [B, d]

Classifier and adversary enter as their logits [B]. A term returns its plain value, the mean over the
batch; the weights alpha, lambda1, lambda2 and beta, and every sign, are in `total`. The terms that read labels take
a weight of each image, `image_weights`, beside them: E becomes the mean of w times what is averaged.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = [
    "ADVERSARY_LOSSES",
    "DIVERGENCES",
    "HSIC_ESTIMATORS",
    "SPARSITIES",
    "adversarial",
    "clamped_adversarial",
    "classification",
    "confusion",
    "gaussian_kernel",
    "gradients",
    "hsic",
    "image_weights",
    "invariance",
    "mean_sparsity",
    "median_bandwidth",
    "normalised_hsic",
    "sparsity",
    "squared_distances",
    "stop_gradient_invariance",
    "symmetric_invariance",
    "total",
    "total_weights",
    "unbiased_hsic",
    "with_gradients",
]

Scalar = TypeVar("Scalar", Tensor, float)
ValueAndGradients: TypeAlias = tuple[Tensor, tuple[Tensor, ...]]

_SMALLEST_BANDWIDTH = 1e-6
"""Rows closer than this count as equal: a collapsed part (all zero) has dependence 0, not 0/0."""
_NUM_BINS = 2**14
"""Bins that `_ascending` counts in: in float32 2^11 for each power of 2."""
_SMALLEST_SCALE = 1e-12
"""As the smallest bandwidth, for the scale of `normalised_hsic`, a product of two sums of squares."""


def image_weights(
    y: Float[Tensor, " B"], class_weights: tuple[float, float] | None
) -> Float[Tensor, " B"] | None:
    """The weight of each image, from those of a real and of a generated one; None where all are 1.

    >>> image_weights(torch.tensor([0.0, 1.0]), (0.5, 2.0))
    tensor([0.5000, 2.0000])
    """
    if class_weights is None:
        return None
    of_real, of_generated = class_weights
    return y * (of_generated - of_real) + of_real


def classification(
    logits: Float[Tensor, " B"], y: Float[Tensor, " B"], weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, ""]:
    """L_cls, Eq. (6): the binary cross-entropy of the classifier, -E[Y log h + (1 - Y) log(1 - h)].

    >>> round(classification(torch.zeros(4), torch.tensor([0.0, 1.0, 1.0, 0.0])).item(), 4)  # log 2
    0.6931
    """
    return functional.binary_cross_entropy_with_logits(logits, y, weights)


def adversarial(
    logits: Float[Tensor, " B"], y: Float[Tensor, " B"], weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, ""]:
    """L_adv, Eqs. (7)-(9): the positive and the negative half of the adversary's cross-entropy, summed.

    Both halves are expectations over the whole batch, so the sum is the adversary's binary cross-entropy. The
    adversary minimises it (the paper's "maximize its ability to recover Y"), the mask maximises it through
    the minus sign of Eq. (13). It has no upper bound: it grows with how confidently wrong the adversary is.

    >>> adversarial(torch.tensor([20.0, -20.0]), torch.tensor([0.0, 1.0])).item()
    20.0
    """
    return functional.binary_cross_entropy_with_logits(logits, y, weights)


def _cross_entropy_gradient(logits: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[Tensor]:
    """Of `classification` and `adversarial`: w (sigmoid(l) - Y) / B by a logit l."""
    errors = torch.sigmoid(logits).sub_(y)
    return ((errors if weights is None else errors.mul_(weights)).div_(logits.numel()),)


def clamped_adversarial(
    logits: Float[Tensor, " B"], y: Float[Tensor, " B"], weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, ""]:
    """min(L_adv, log 2): the mask gains nothing by an adversary that is worse than a coin.

    Not in the paper. Bounded, where -alpha L_adv of Eq. (13) has no lower bound; above log 2 it has no gradient.

    >>> round(clamped_adversarial(torch.tensor([20.0, -20.0]), torch.tensor([0.0, 1.0])).item(), 4)
    0.6931
    """
    return adversarial(logits, y, weights).clamp(max=math.log(2))


def confusion(
    logits: Float[Tensor, " B"], y: Float[Tensor, " B"], weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, ""]:
    """-CE(d, 1/2) = E[(log d + log(1 - d)) / 2]: at most -log 2, reached where the adversary is undecided.

    Not in the paper. With the minus sign of Eq. (13) the mask minimises alpha CE(d, 1/2), which is bounded
    below and does not reward an adversary that is confidently wrong. The labels `y` are not used.

    >>> round(confusion(torch.zeros(2), torch.tensor([0.0, 1.0])).item(), 4)
    -0.6931
    """
    each = (functional.logsigmoid(logits) + functional.logsigmoid(-logits)) / 2
    return (each if weights is None else weights * each).mean()


ADVERSARY_LOSSES: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"paper": adversarial, "clamped": clamped_adversarial, "confusion": confusion}
)
"""What stands for L_adv when the mask minimises Eq. (13); the adversary itself minimises `adversarial`."""


def sparsity(mask: Float[Tensor, "B d"]) -> Float[Tensor, ""]:
    """||M||_1 of Eq. (10): summed over the d dimensions (M is never negative), mean over the batch.

    Between 0 and d; about 0.6 d before training. With a mean over dimensions lambda1 would be d times larger.

    >>> sparsity(torch.tensor([[1.0, 0.5], [0.0, 0.5]])).item()
    1.0
    """
    return mask.sum(dim=1).mean()


def _sparsity_gradient(mask: Tensor) -> tuple[Tensor]:
    return (mask.new_full((1, 1), 1 / mask.shape[0]),)


def mean_sparsity(mask: Float[Tensor, "B d"]) -> Float[Tensor, ""]:
    """||M||_1 / d: the mean over the batch and the dimensions, between 0 and 1. Not in the paper.

    >>> mean_sparsity(torch.tensor([[1.0, 0.5], [0.0, 0.5]])).item()
    0.5
    """
    return mask.mean()


SPARSITIES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"sum": sparsity, "mean": mean_sparsity}
)
"""The L1 norm of Eq. (10), summed or averaged over dimensions: for `mean`, lambda1 is d times larger."""


def squared_distances(x: Float[Tensor, "n d"], products: torch.dtype | None = None) -> Float[Tensor, "n n"]:
    """Squared Euclidean distance of every pair of rows; exactly 0 on the diagonal, never negative.

    products: number format of the matrix products forward and backward; None for that of `x`. In bfloat16
    the error is of the order of 1e-4 |x|^2: only scalar products of centred rows are rounded, not lengths.

    >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[ 0., 25.],
            [25.,  0.]])
    """
    # Distances do not change when x moves; centred rows are short, so the difference below keeps digits.
    distances: Tensor = _SquaredDistances.apply(x - x.mean(dim=0, keepdim=True), products or x.dtype)
    return distances


def _pairwise(x: Float[Tensor, "*k n d"], rounded: Float[Tensor, "*k n d"]) -> Float[Tensor, "*k n n"]:
    """Squared distances of centred rows; `rounded` is `x` in the number format of the product."""
    gram = rounded @ rounded.mT
    norms = gram.diagonal(dim1=-2, dim2=-1) if rounded is x else torch.linalg.vecdot(x, x)
    squared = torch.add(norms[..., :, None], norms[..., None, :]).sub_(gram, alpha=2).clamp_(min=0)
    squared.diagonal(dim1=-2, dim2=-1).zero_()
    return squared


def _laplacian_product(
    weights: Float[Tensor, "*k n n"], x: Float[Tensor, "*k n d"], rounded: Float[Tensor, "*k n d"]
) -> Float[Tensor, "*k n d"]:
    """(diag(W 1) - W) x: the gradient of sum_ij W_ij D_ij / 4 by x, for symmetric W and squared distances D."""
    return (weights.sum(dim=-1, keepdim=True) * x).sub_(weights.to(rounded.dtype) @ rounded)


class _SquaredDistances(torch.autograd.Function):
    """Squared distances of rows by one matrix product forward and one backward; autograd takes two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, products: torch.dtype) -> Tensor:
        rounded = x.to(products)
        ctx.save_for_backward(x, rounded)
        return _pairwise(x, rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # D_ij = |x_i - x_j|^2 depends on x_i through row i and through column i
        weights = gradients[0] + gradients[0].T
        return _laplacian_product(2 * weights, *ctx.saved_tensors), None


def median_bandwidth(squared: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """The bandwidth s of the median heuristic: the median distance of two different rows; a constant.

    `squared` holds squared distances, n >= 2. Of an even number of pairs the middle two are averaged.
    Carries no gradient, and is at least 1e-6.

    >>> median_bandwidth(torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 9.0], [4.0, 9.0, 0.0]])).item()
    2.0
    """
    n = squared.shape[0]
    pairs = squared.detach().flatten().index_select(0, _upper_triangle(n, squared.device))
    first, last = (pairs.numel() - 1) // 2, pairs.numel() // 2  # the same for an odd number
    if pairs.device.type == "cpu":
        middle = torch.from_numpy(_ascending(pairs.numpy(), first, last))
    else:
        middle = pairs.sort().values[first : last + 1]
    median: Tensor = middle.sqrt().mean()
    return median.clamp_(min=_SMALLEST_BANDWIDTH)


def _ascending(values: NDArray[np.floating], first: int, last: int) -> NDArray[np.floating]:
    """The values of places `first` to `last` in ascending order, of values that are not negative.

    The upper bits of such numbers order them, and counting needs no branches: what is left to be ordered are those
    that share them with a value that is asked for. A quarter of the time of `np.partition`.

    >>> _ascending(np.array([3.0, 1.0, 2.0, 4.0]), 1, 2)
    array([2., 3.])
    """
    bins = values.view(f"i{values.itemsize}") >> (8 * values.itemsize - 20)
    bins -= bins.max() - _NUM_BINS + 1
    np.maximum(bins, 0, out=bins)  # all that is far below the largest, and -0.0
    up_to = np.bincount(bins).cumsum()
    low, high = np.searchsorted(up_to, (first, last), side="right")
    candidates = np.sort(values[(bins == low) if low == high else (bins >= low) & (bins <= high)])
    num_below = up_to[low - 1] if low else 0
    found: NDArray[np.floating] = candidates[first - num_below : last + 1 - num_below]
    return found


@cache
def _upper_triangle(n: int, device: torch.device) -> Tensor:
    """Places above the diagonal in a flattened n x n matrix."""
    rows, columns = torch.triu_indices(n, n, offset=1, device=device)
    places: Tensor = rows * n + columns
    return places


def gaussian_kernel(squared: Float[Tensor, "n n"], bandwidth: Float[Tensor, ""]) -> Float[Tensor, "n n"]:
    """The Gaussian kernel exp(-D^2 / (2 s^2)) of squared distances `squared` = D^2 at the bandwidth s.

    >>> gaussian_kernel(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor(1.0))
    tensor([[1.0000, 0.3679],
            [0.3679, 1.0000]])
    """
    return torch.exp(squared * (-0.5 / bandwidth**2))


def hsic(
    x: Float[Tensor, "n d1"], y: Float[Tensor, "n d2"], products: torch.dtype | None = None
) -> Float[Tensor, ""]:
    """The dependence of two samples, the HSIC of Eq. (10), by Gaussian kernels of median bandwidth.

        HSIC = tr(K H L H) / (n - 1)^2,    H = I - 11^T / n

    The biased estimator; K and L are the kernels of x and of y, each with its own `median_bandwidth`.
    Never negative, symmetric, 0 when x or y is constant, unchanged when either moves or is scaled. n >= 2.
    Independent samples do not give 0: about 6e-4 at n = 256 in high dimension. `products` as in
    `squared_distances`.

    >>> two = torch.tensor([[0.0], [1.0]])
    >>> round(hsic(two, two).item(), 4)  # by hand: (1 - exp(-1/2))^2
    0.1548
    """
    K, L = _kernel(x, products), _kernel(y, products)
    return torch.dot(_centred(K).flatten(), L.flatten()) / (x.shape[0] - 1) ** 2


def _hsic_with_gradients(x: Tensor, y: Tensor, products: torch.dtype | None = None) -> ValueAndGradients:
    """`hsic` of samples of one width, side by side so that they take each operation together.

    With A = H L H / (n - 1)^2 the gradient by K is A, by the squared distances D of x it is G = -A K / (2 s^2)
    element by element, and by x it is 4 (diag(G 1) - G) x, since G is symmetric.
    """
    samples = x.new_empty(2, *x.shape)
    for sample, centred in zip((x, y), samples, strict=True):
        torch.sub(sample, sample.mean(dim=0), out=centred)
    rounded = samples.to(products or x.dtype)
    squared = _pairwise(samples, rounded)
    factors = torch.stack([-0.5 / median_bandwidth(one) ** 2 for one in squared])[:, None, None]
    kernels = squared.mul_(factors).exp_()
    of_kernels = _centred(kernels).mul_(1 / (x.shape[0] - 1) ** 2)
    value = torch.dot(of_kernels[0].flatten(), kernels[1].flatten())
    kernels[0].mul_(of_kernels[1])
    kernels[1].mul_(of_kernels[0])
    return value, _laplacian_product(kernels.mul_(4 * factors), samples, rounded).unbind()


def unbiased_hsic(
    x: Float[Tensor, "n d1"], y: Float[Tensor, "n d2"], products: torch.dtype | None = None
) -> Float[Tensor, ""]:
    """The unbiased estimator of HSIC (Song et al., JMLR 2012, Eq. 5), kernels as in `hsic`; n >= 4.

        HSIC_u = [tr(K L) + 1'K1 1'L1 / ((n - 1) (n - 2)) - 2 1'KL1 / (n - 2)] / (n (n - 3))

    with the diagonals of K and L set to 0. Not in the paper. For independent samples its mean is 0, so it
    can be negative.

    >>> x = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    >>> round(unbiased_hsic(x, x).item(), 4)  # by hand: 2/3 (1 - exp(-1/2))^2, at a bandwidth of 1
    0.1032
    """
    n = x.shape[0]
    off_diagonal = 1 - torch.eye(n, dtype=x.dtype, device=x.device)
    K, L = _kernel(x, products) * off_diagonal, _kernel(y, products) * off_diagonal
    rows_k, rows_l = K.sum(dim=1), L.sum(dim=1)
    total_ = (K * L).sum() + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2))
    return (total_ - 2 * (rows_k * rows_l).sum() / (n - 2)) / (n * (n - 3))


def normalised_hsic(
    x: Float[Tensor, "n d1"], y: Float[Tensor, "n d2"], products: torch.dtype | None = None
) -> Float[Tensor, ""]:
    """HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), by `hsic`: in [0, 1], 0 when x or y is constant.

    Known as centred kernel alignment (Cortes et al., JMLR 2012). Not in the paper.

    >>> two = torch.tensor([[0.0], [1.0]])
    >>> round(normalised_hsic(two, 3 * two).item(), 4)
    1.0
    """
    K, L = _kernel(x, products), _kernel(y, products)
    centred_k, centred_l = _centred(K), _centred(L)
    scale = (centred_k * K).sum() * (centred_l * L).sum()
    return (centred_k * L).sum() / scale.clamp(min=_SMALLEST_SCALE).sqrt()


HSIC_ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor, torch.dtype | None], Tensor]] = MappingProxyType(
    {"biased": hsic, "unbiased": unbiased_hsic, "normalised": normalised_hsic}
)
"""Estimators of the HSIC term of Eq. (10); sound weights are 0.1..10, and 0.001..10 for `normalised`."""


def _kernel(x: Float[Tensor, "n d"], products: torch.dtype | None) -> Float[Tensor, "n n"]:
    squared = squared_distances(x, products)
    return gaussian_kernel(squared, median_bandwidth(squared))


def _centred(kernel: Float[Tensor, "*k n n"]) -> Float[Tensor, "*k n n"]:
    # H K H by its row means. tr(K H L H) is the sum of (H K H) * L element by element: no n^3 products.
    row_means = kernel.mean(dim=-1)
    rest = row_means - row_means.mean(dim=-1, keepdim=True)
    return kernel - torch.add(rest[..., :, None], row_means[..., None, :])


def invariance(logits: Float[Tensor, " B"], counterfactual_logits: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """L_inv, Eq. (12): KL( h(Zc) || h(Zcf) ) of two Bernoulli distributions, from their logits, batch mean.

        KL = q log(q / r) + (1 - q) log((1 - q) / (1 - r)),    q = h(Zc), r = h(Zcf)

    Both halves, so it is never negative; the gradient flows through both arguments. Finite for any logits.

    >>> round(invariance(torch.tensor([0.0]), torch.tensor([1.0])).item(), 4)
    0.1201
    >>> invariance(torch.tensor([800.0]), torch.tensor([-800.0])).item()
    800.0
    """
    log_ratio = functional.logsigmoid(logits) - functional.logsigmoid(counterfactual_logits)
    # log (1 - q) = log q - l, and so for r
    log_ratio_complement = log_ratio - (logits - counterfactual_logits)
    return torch.lerp(log_ratio_complement, log_ratio, torch.sigmoid(logits)).mean()


def _invariance_gradients(logits: Tensor, counterfactual_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of `invariance`: q (1 - q) (l - l') / B by l, and (r - q) / B by l'."""
    q, r, n = torch.sigmoid(logits), torch.sigmoid(counterfactual_logits), logits.numel()
    of_logits = torch.ops.aten.sigmoid_backward(logits - counterfactual_logits, q)
    return of_logits.div_(n), r.sub_(q).div_(n)


def stop_gradient_invariance(
    logits: Float[Tensor, " B"], counterfactual_logits: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """`invariance` with h(Zc) as a fixed target: the gradient flows through h(Zcf) only. Not in the paper.

    >>> logits = torch.zeros(1, requires_grad=True)
    >>> stop_gradient_invariance(logits, torch.ones(1)).requires_grad
    False
    """
    return invariance(logits.detach(), counterfactual_logits)


def symmetric_invariance(
    logits: Float[Tensor, " B"], counterfactual_logits: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """The Jensen-Shannon divergence of h(Zc) and h(Zcf): symmetric, at most log 2. Not in the paper.

        JS = (KL(q || m) + KL(r || m)) / 2,    m = (q + r) / 2, q = h(Zc), r = h(Zcf)

    >>> round(symmetric_invariance(torch.tensor([50.0]), torch.tensor([-50.0])).item(), 4)
    0.6931
    """
    result = torch.zeros_like(logits)
    for sign in (1, -1):  # generated, then real
        log_q = functional.logsigmoid(sign * logits)
        log_r = functional.logsigmoid(sign * counterfactual_logits)
        log_m = torch.logaddexp(log_q, log_r) - math.log(2)
        result = result + (log_q.exp() * (log_q - log_m) + log_r.exp() * (log_r - log_m)) / 2
    return result.mean()


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"full": invariance, "stop_gradient": stop_gradient_invariance, "symmetric": symmetric_invariance}
)
"""Divergences for L_inv, Eq. (12)."""


def total_weights(*, alpha: float, lambda1: float, lambda2: float, beta: float) -> dict[str, float]:
    """The weight of each term in L_total, Eq. (13) with Eq. (10).

    >>> total_weights(alpha=0.5, lambda1=0.25, lambda2=2.0, beta=1.0)
    {'classification': 1.0, 'adversarial': -0.5, 'sparsity': 0.25, 'hsic': 2.0, 'invariance': 1.0}
    """
    return {
        "classification": 1.0,
        "adversarial": -alpha,
        "sparsity": lambda1,
        "hsic": lambda2,
        "invariance": beta,
    }


def total(
    *,
    classification: Scalar,
    adversarial: Scalar,
    sparsity: Scalar,
    hsic: Scalar,
    invariance: Scalar,
    alpha: float,
    lambda1: float,
    lambda2: float,
    beta: float,
) -> Scalar:
    """L_total, Eq. (13) with Eq. (10): L_cls - alpha L_adv + lambda1 ||M||_1 + lambda2 HSIC + beta L_inv.

    What the mask minimises; of terms as scalars or as numbers. A weight of 0 switches its term off.

    >>> one = torch.tensor(1.0)
    >>> total(classification=one, adversarial=one, sparsity=one, hsic=one, invariance=one,
    ...       alpha=0.5, lambda1=0.25, lambda2=2.0, beta=1.0).item()
    3.75
    """
    weights = total_weights(alpha=alpha, lambda1=lambda1, lambda2=lambda2, beta=beta)
    return (
        weights["classification"] * classification
        + weights["adversarial"] * adversarial
        + weights["sparsity"] * sparsity
        + weights["hsic"] * hsic
        + weights["invariance"] * invariance
    )


_GRADIENTS: Mapping[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]]] = MappingProxyType(
    {
        classification: _cross_entropy_gradient,
        adversarial: _cross_entropy_gradient,
        sparsity: _sparsity_gradient,
        invariance: _invariance_gradients,
    }
)
"""In closed form, of the paper's terms."""
_WITH_GRADIENTS: Mapping[Callable[..., Tensor], Callable[..., ValueAndGradients]] = MappingProxyType(
    {hsic: _hsic_with_gradients}
)
"""Where value and gradients share their work, of variables of one shape."""


def gradients(term: Callable[..., Tensor], *variables: Tensor, **given: Any) -> tuple[Tensor, ...]:
    """The gradient of a term by each of `variables`, with what else it takes `given`.

    In closed form for the paper's terms, which is what makes a step fast; by autograd for any other. That of
    `sparsity` is one number [1, 1] for all elements.

    >>> gradients(adversarial, torch.zeros(2), y=torch.tensor([0.0, 1.0]))
    (tensor([ 0.2500, -0.2500]),)
    """
    if term in _GRADIENTS:
        return _GRADIENTS[term](*variables, **given)
    return with_gradients(term, *variables, **given)[1]


def with_gradients(term: Callable[..., Tensor], *variables: Tensor, **given: Any) -> ValueAndGradients:
    """The value of a term, and its `gradients`.

    >>> with_gradients(adversarial, torch.zeros(2), y=torch.tensor([0.0, 1.0]))
    (tensor(0.6931), (tensor([ 0.2500, -0.2500]),))
    """
    if term in _WITH_GRADIENTS and len({variable.shape for variable in variables}) == 1:
        return _WITH_GRADIENTS[term](*variables, **given)
    if term in _GRADIENTS:
        return term(*variables, **given), _GRADIENTS[term](*variables, **given)
    variables = tuple(variable.detach().requires_grad_() for variable in variables)
    with torch.enable_grad():
        value = term(*variables, **given)
    return value.detach(), torch.autograd.grad(value, variables, materialize_grads=True)
