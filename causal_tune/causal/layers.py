"""Linear layers whose start depends on a given generator only, never on the global random state."""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["linear", "mlp", "probe"]


def chunks(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """`torch.split`, but in one piece while a graph is traced: it would keep the number of pieces of its example.

    >>> [len(piece) for piece in chunks(torch.zeros(5, 2), 2)]
    [2, 2, 1]
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return (rows,) if tracing else tuple(torch.split(rows, size))


def linear(num_inputs: int, num_outputs: int, generator: torch.Generator) -> nn.Linear:
    """A layer with weights uniform in +-1/sqrt(num_inputs), PyTorch's own start, and biases 0.

    >>> layer = linear(4, 2, torch.Generator().manual_seed(0))
    >>> bool((layer.weight.abs() <= 0.5).all()), layer.bias.tolist()
    (True, [0.0, 0.0])
    """
    layer = _uninitialised(num_inputs, num_outputs)
    bound = 1 / math.sqrt(num_inputs)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(widths: Sequence[int], generator: torch.Generator, *, last_bias: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between them, from `widths[0]` inputs to `widths[-1]` outputs.

    >>> mlp([8, 4, 1], torch.Generator().manual_seed(0))(torch.ones(3, 8)).shape
    torch.Size([3, 1])
    """
    layers: list[nn.Module] = []
    for num_inputs, num_outputs in itertools.pairwise(widths):
        layers += [linear(num_inputs, num_outputs, generator), nn.ReLU()]
    last = layers[-2]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, last_bias)
    return nn.Sequential(*layers[:-1])


def probe(num_inputs: int, generator: torch.Generator) -> nn.Linear:
    """The classifier of UnivFD (arXiv 2302.10174) and of CausalCLIP: one logit, weights N(0, 0.02), bias 0.

    >>> probe(512, torch.Generator().manual_seed(0)).weight.shape
    torch.Size([1, 512])
    """
    layer = _uninitialised(num_inputs, 1)
    nn.init.normal_(layer.weight, 0.0, 0.02, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _uninitialised(num_inputs: int, num_outputs: int) -> nn.Linear:
    # nn.Linear alone would draw its start from the global random state
    return cast(nn.Linear, nn.utils.skip_init(nn.Linear, num_inputs, num_outputs))  # type: ignore[no-untyped-call]
