"""Matrix products in bfloat16 over float32 parameters, with their gradients.

As autocast computes them, but every weight and every gradient is rounded once, in the order in which it lies
in memory: on a CPU autocast's transposed copies take as long as the products that they are for.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["in_bfloat16"]


def in_bfloat16(network: nn.Module, x: Float[Tensor, "B i"]) -> Float[Tensor, "B o"]:
    """What `network` computes of `x`, in float32, the products of its linear layers in bfloat16.

    A layer of one unit is computed in float32: to round its input takes longer than its product.

    >>> layer = nn.Linear(2, 3)
    >>> in_bfloat16(layer, torch.ones(1, 2)).dtype
    torch.float32
    """
    layers = network if isinstance(network, nn.Sequential) else [network]
    for layer in layers:
        if isinstance(layer, nn.Linear) and layer.out_features > 1:
            x = _Linear.apply(x, layer.weight, layer.bias)
        else:
            x = layer(x if isinstance(layer, nn.ReLU) else x.float())
    return x.float()


class _Linear(torch.autograd.Function):
    """x W' + b in bfloat16; gradients of W and b in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, rounded = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, rounded)
        return torch.addmm(bias.bfloat16(), x, rounded.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, rounded = ctx.saved_tensors
        g = gradients[0].bfloat16()
        of_x = g @ rounded if ctx.needs_input_grad[0] else None
        return of_x, (g.T @ x).float(), g.sum(dim=0, dtype=torch.float32)
