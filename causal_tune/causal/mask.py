"""The mask of CausalCLIP and what it does to the features (arXiv 2512.13285), Eqs. (4), (5), (11).

Symbols are the paper's; B is the batch and d the width of the features:

    E    [B, d]  frozen CLIP features          g  [B, d]  Gumbel(0, 1) noise
    l    [B, d]  logits of the mask, MLP(E)    M  [B, d]  mask, in (0, 1)
    Zc   [B, d]  causal features               B  [B, d]  Bernoulli(p) noise of the counterfactual
    Znc  [B, d]  non-causal features

Every function is pure: noise is an argument, drawn by `gumbel_noise` and `drop_noise`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tune.causal.layers import chunks

__all__ = [
    "EVALUATION_MASKS",
    "NOISES",
    "Noise",
    "annealed_tau",
    "counterfactual",
    "drop_noise",
    "expected_mask",
    "gumbel_noise",
    "gumbel_quantiles",
    "gumbel_sigmoid",
    "hard_mask",
    "logistic_noise",
    "logistic_quantiles",
    "mask_statistics",
    "mean_noise_mask",
    "noiseless_mask",
    "sampled_mask",
    "split",
    "training_gradient",
    "training_parts",
]

_ROWS_IN_CACHE = 64
_SMALLEST_UNIFORM = 2.0**-25
"""Half the step of a float32 uniform draw: a draw of exactly 0 would make the noise infinite."""
_LARGEST_UNIFORM = 1 - 2.0**-24
"""The largest float32 below 1, for the same reason."""


def gumbel_noise(
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """Independent draws of Gumbel(0, 1), the g of Eq. (5), on the generator's device.

    g = -log(-log(u)) with u uniform on (0, 1); mean 0.5772 (Euler's constant), variance 1.645. Always finite.

    >>> noise = gumbel_noise((2, 3), torch.Generator().manual_seed(0))
    >>> tuple(noise.shape), bool(noise.isfinite().all())
    ((2, 3), True)
    """
    # in place, and not Tensor.exponential_: that draws six times slower than torch.rand on a CPU
    uniform = _uniform(shape, generator, dtype).clamp_(min=_SMALLEST_UNIFORM)
    return _log_(_log_(uniform).neg_()).neg_()


def _uniform(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """As `torch.rand`; on a CPU in float32 in half the time, and a multiple of 2^-24 in (0, 1)."""
    if generator.device.type != "cpu" or dtype != torch.float32:
        return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
    number = math.prod(shape)
    bits = _random_bits(32 * number, generator).numpy().view(np.uint32)[:number]
    # as the mantissa of a float in [1, 2), which is then moved to the middle between two multiples of 2^-23
    bits >>= np.uint32(9)
    bits |= np.float32(1).view(np.uint32)
    uniform = bits.view(np.float32)
    uniform -= np.float32(1 - 2**-24)
    return torch.from_numpy(uniform).view(shape)


def _random_bits(num_bits: int, generator: torch.Generator) -> Tensor:
    """At least so many independent bits, as int64 on the generator's device.

    On a CPU from NumPy's SFC64, which takes half the time of torch's own, with a seed from the generator.
    """
    num_words = -(-num_bits // 64)

    def draw(number: int) -> Tensor:
        words = torch.empty(number, dtype=torch.int64, device=generator.device)
        return words.random_(-(2**63), None, generator=generator)

    if generator.device.type != "cpu":
        return draw(num_words)
    seed = int(draw(1)) + 2**63
    return torch.from_numpy(np.random.SFC64(seed).random_raw(num_words).view(np.int64))


def _log_(x: Tensor) -> Tensor:
    """`Tensor.log_`; on a CPU by NumPy, in half the time."""
    if x.device.type != "cpu":
        return x.log_()
    np.log(x.numpy(), out=x.numpy())
    return x


def gumbel_sigmoid(
    logits: Float[Tensor, "B d"], tau: float, gumbel: Float[Tensor, "B d"]
) -> Float[Tensor, "B d"]:
    """The random mask of training, Eq. (5): M = sigmoid((l + g) / tau).

    One Gumbel draw per element, as printed, not the difference of two. So P(M > 1/2) is
    1 - exp(-exp(l)) at every temperature `tau` > 0, while the mean of M moves with it.

    >>> gumbel_sigmoid(torch.zeros(1, 2), 0.5, torch.tensor([[0.0, 1.0]]))
    tensor([[0.5000, 0.8808]])
    """
    return torch.sigmoid((logits + gumbel) / tau)


def logistic_noise(
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """Independent draws of Logistic(0, 1): the noise of the binary concrete distribution, not of the paper.

    The difference of two Gumbel draws, log(u / (1 - u)); mean 0, and P(M > 1/2) = sigmoid(l). Always finite.

    >>> tuple(logistic_noise((2, 3), torch.Generator().manual_seed(0)).shape)
    (2, 3)
    """
    return _uniform(shape, generator, dtype).clamp_(_SMALLEST_UNIFORM, _LARGEST_UNIFORM).logit_()


def gumbel_quantiles(num_quantiles: int) -> list[float]:
    """The mid-point quantiles of Gumbel(0, 1), in ascending order: -log(-log((i - 1/2) / n)), i = 1..n.

    >>> [round(quantile, 3) for quantile in gumbel_quantiles(2)]
    [-0.327, 1.246]
    """
    return [-math.log(-math.log((i - 0.5) / num_quantiles)) for i in range(1, num_quantiles + 1)]


def logistic_quantiles(num_quantiles: int) -> list[float]:
    """The mid-point quantiles of Logistic(0, 1), in ascending order.

    >>> [round(quantile, 3) for quantile in logistic_quantiles(2)]
    [-1.099, 1.099]
    """
    shares = [(i - 0.5) / num_quantiles for i in range(1, num_quantiles + 1)]
    return [math.log(share / (1 - share)) for share in shares]


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """The distribution of g in Eq. (5)."""

    draw: Callable[[tuple[int, ...], torch.Generator], Tensor]
    """Independent draws of a shape."""
    quantiles: Callable[[int], list[float]]
    """Its n mid-point quantiles."""
    mean: float
    median: float


NOISES: Mapping[str, Noise] = MappingProxyType(
    {
        # the mean is Euler's constant, the median -log(log 2)
        "gumbel": Noise(
            draw=gumbel_noise,
            quantiles=gumbel_quantiles,
            mean=0.5772156649015329,
            median=-math.log(math.log(2)),
        ),
        "logistic": Noise(draw=logistic_noise, quantiles=logistic_quantiles, mean=0.0, median=0.0),
    }
)
"""Noise of the mask: the paper's single Gumbel draw, or that of the binary concrete distribution."""


def annealed_tau(step: int, tau: float, tau_end: float, num_steps: int) -> float:
    """The temperature at `step` (from 0) when it falls geometrically from `tau` to `tau_end` in `num_steps`.

    It stays at `tau_end` afterwards. Not in the paper, whose temperature is fixed.

    >>> [annealed_tau(step, 2.0, 0.5, 2) for step in (0, 1, 2, 3)]
    [2.0, 1.0, 0.5, 0.5]
    """
    share: float = min(1.0, step / num_steps)
    return float(tau * (tau_end / tau) ** share)


def expected_mask(
    logits: Float[Tensor, "B d"], tau: float, quantiles: int = 32, noise: Noise = NOISES["gumbel"]
) -> Float[Tensor, "B d"]:
    """The mean of the mask of Eq. (5) over its noise: the mask of evaluation, the same every time.

    The paper does not say which noise is used when images are scored. Leaving it out (g = 0) would shrink
    the mask against training (at l = 0 from 0.60 to 0.50 for tau = 1), so the mean over `quantiles`
    mid-point quantiles of the noise is taken. Its error is below 1 / (2 * quantiles), and far below at
    tau >= 0.5. Memory is a few times that of `logits`, whatever the number of quantiles.

    >>> round(expected_mask(torch.zeros(1, 1), tau=1.0).item(), 4)  # 0.5963 by integration
    0.5966
    """
    shifts = [quantile / tau for quantile in noise.quantiles(quantiles)]
    # a few rows at a time stay in a processor's cache
    parts = chunks(logits, _ROWS_IN_CACHE) if logits.device.type == "cpu" else (logits,)
    means = []
    for part in parts:
        scaled = part / tau
        total = torch.zeros_like(scaled)
        for shift in shifts:
            total += (scaled + shift).sigmoid_()
        means.append(total / quantiles)
    return torch.cat(means)


def noiseless_mask(logits: Float[Tensor, "B d"], tau: float) -> Float[Tensor, "B d"]:
    """The mask of Eq. (5) with g = 0: common practice, but smaller than the mask of training.

    >>> noiseless_mask(torch.zeros(1, 1), tau=1.0).item()
    0.5
    """
    return torch.sigmoid(logits / tau)


def mean_noise_mask(
    logits: Float[Tensor, "B d"], tau: float, noise: Noise = NOISES["gumbel"]
) -> Float[Tensor, "B d"]:
    """The mask of Eq. (5) with g at its mean; larger than the mean of the mask for Gumbel noise.

    >>> round(mean_noise_mask(torch.zeros(1, 1), tau=1.0).item(), 2)
    0.64
    """
    return torch.sigmoid((logits + noise.mean) / tau)


def sampled_mask(
    logits: Float[Tensor, "B d"], tau: float, draws: Float[Tensor, "T d"]
) -> Float[Tensor, "B d"]:
    """The mean of the mask of Eq. (5) over T given draws of its noise, the same draws for every image.

    So an image's mask does not depend on the batch that it comes in.

    >>> sampled_mask(torch.zeros(1, 2), 1.0, torch.tensor([[0.0, 100.0], [0.0, 0.0]]))
    tensor([[0.5000, 0.7500]])
    """
    total = torch.zeros_like(logits)
    for draw in draws:
        total += gumbel_sigmoid(logits, tau, draw.expand_as(logits))
    return total / len(draws)


def hard_mask(logits: Float[Tensor, "B d"], noise: Noise = NOISES["gumbel"]) -> Float[Tensor, "B d"]:
    """1 where the mask of Eq. (5) is above 1/2 more often than not, else 0; the temperature plays no part.

    For Gumbel noise from l = -0.3665, minus the median of the noise.

    >>> hard_mask(torch.tensor([[-0.37, -0.36]]))
    tensor([[0., 1.]])
    """
    return (logits > -noise.median).to(logits.dtype)


@functools.cache
def _draws(draw: Callable[[tuple[int, ...], torch.Generator], Tensor], points: int, width: int) -> Tensor:
    return draw((points, width), torch.Generator().manual_seed(0))


def _sampled(logits: Tensor, tau: float, noise: Noise, points: int) -> Tensor:
    return sampled_mask(logits, tau, _draws(noise.draw, points, int(logits.shape[1])).to(logits))


EVALUATION_MASKS: Mapping[str, Callable[[Tensor, float, Noise, int], Tensor]] = MappingProxyType(
    {
        "expected": lambda logits, tau, noise, points: expected_mask(logits, tau, points, noise),
        "none": lambda logits, tau, noise, points: noiseless_mask(logits, tau),
        "mean": lambda logits, tau, noise, points: mean_noise_mask(logits, tau, noise),
        "sample": _sampled,
        "hard": lambda logits, tau, noise, points: hard_mask(logits, noise),
    }
)
"""Mask that images are scored with, from logits, temperature, noise and a number of quantiles or draws."""


def mask_statistics(mask: Float[Tensor, "N d"]) -> dict[str, float]:
    """How open a mask is, and what it depends on; all in [0, 1], entropy in nats.

    - `mean`: near 1 or 0 the mask has collapsed and selects nothing.
    - `std_images`: spread over the images, averaged over dimensions; 0 when every image has the same mask.
    - `std_dimensions`: spread over the dimensions of the mask's mean; 0 when no dimension is preferred.
    - `entropy`: of a mask read as probabilities; 0.693 = log 2 when undecided, 0 when 0 or 1 everywhere.

    >>> mask_statistics(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    {'mean': 0.5, 'std_images': 0.0, 'std_dimensions': 0.5, 'entropy': 0.0}
    """
    entropy = torch.special.entr(mask) + torch.special.entr(1 - mask)
    return {
        "mean": mask.mean().item(),
        "std_images": mask.std(dim=0, correction=0).mean().item(),
        "std_dimensions": mask.mean(dim=0).std(correction=0).item(),
        "entropy": entropy.mean().item(),
    }


def split(
    features: Float[Tensor, "B d"], mask: Float[Tensor, "B d"]
) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B d"]]:
    """The causal and the non-causal part of the features, Eq. (4): Zc = M * E and Znc = (1 - M) * E.

    >>> split(torch.tensor([[2.0, 4.0]]), torch.tensor([[0.25, 1.0]]))
    (tensor([[0.5000, 4.0000]]), tensor([[1.5000, 0.0000]]))
    """
    zc = mask * features
    return zc, features - zc  # (1 - M) * E, with one pass over memory less in each direction


def drop_noise(
    shape: tuple[int, ...],
    p: float,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """Independent draws of Bernoulli(p), the B of Eq. (11): 1 where a dimension is dropped, else 0.

    `p` in [0, 1] is the probability of a drop, not of being kept; it is rounded to a multiple of 2^-16.

    >>> drop_noise((1, 3), 1.0, torch.Generator().manual_seed(0))
    tensor([[1., 1., 1.]])
    """
    num_below = round(p * 2**16)
    drop = torch.empty(shape, dtype=dtype, device=generator.device)
    if num_below == 0:
        return drop.zero_()
    # 16 bits an element are enough for a coin
    drawn = _random_bits(16 * drop.numel(), generator).view(torch.int16)[: drop.numel()]
    return torch.le(drawn.view(shape), num_below - 1 - 2**15, out=drop)


def counterfactual(z: Float[Tensor, "B d"], drop: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
    """The causal features with some dimensions dropped, Eq. (11): Zcf = Zc * (1 - B).

    As printed there is no rescaling by 1 / (1 - p).

    >>> counterfactual(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([[0., 4.]])
    """
    return z * (1 - drop)


def training_parts(
    logits: Float[Tensor, "B d"],
    tau: float,
    gumbel: Float[Tensor, "B d"],
    features: Float[Tensor, "B d"],
    drop: Float[Tensor, "B d"],
) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B d"], Float[Tensor, "B d"], Float[Tensor, "B d"]]:
    """M, Zc, Znc and Zcf of a batch: Eqs. (5), (4) and (11) at once, for training.

    What `gumbel_sigmoid`, `split` and `counterfactual` give, with fewer passes over memory. The gradient is
    `training_gradient`.

    >>> one = torch.ones(1, 2)
    >>> M, zc, znc, zcf = training_parts(0 * one, 1.0, 0 * one, 4 * one, torch.tensor([[0.0, 1.0]]))
    >>> M.tolist(), zc.tolist(), znc.tolist(), zcf.tolist()
    ([[0.5, 0.5]], [[2.0, 2.0]], [[2.0, 2.0]], [[2.0, 0.0]])
    """
    mask = torch.add(logits, gumbel).div_(tau).sigmoid_()
    zc, znc = split(features, mask)
    return mask, zc, znc, torch.addcmul(zc, zc, drop, value=-1)


def training_gradient(
    of_mask: Float[Tensor, "#B #d"],
    of_parts: Float[Tensor, "B d"],
    mask: Float[Tensor, "B d"],
    tau: float,
    features: Float[Tensor, "B d"],
) -> Float[Tensor, "B d"]:
    """The gradient by the logits l, from those by what `training_parts` made of them.

        dl = M (1 - M) (dM + E (dZc - dZnc + (1 - B) dZcf)) / tau

    `of_parts` is the bracket behind E; `of_mask` may be one number for all elements.

    >>> half = torch.full((1, 1), 0.5)
    >>> training_gradient(half, 2 * half, half, 0.5, 3 * half).item()
    1.0
    """
    of_mask = torch.addcmul(of_mask / tau, of_parts, features, value=1 / tau)
    of_logits: Tensor = torch.ops.aten.sigmoid_backward(of_mask, mask)
    return of_logits
