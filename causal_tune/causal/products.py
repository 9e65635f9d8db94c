"""Networks forward and backward without autograd, whose bookkeeping takes a step longer than most of its layers.

Products can be in bfloat16 over float32 parameters. That is what autocast computes, but every weight and every
gradient is rounded once, in the order in which it lies in memory: on a CPU autocast's transposed copies take as
long as the products that they are for.
"""

from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Pass"]


@final
class Pass:
    """A batch's way through a network, and the gradients on the way back.

    network: one layer, or several in a row. products: number format of the matrix products; None for that of `x`.
    A layer of one unit keeps the format of its parameters: to round its input takes longer than its product.

    >>> found = Pass(nn.Linear(2, 3), torch.ones(4, 2))
    >>> found.output.shape, [one.shape for one in found.gradients(torch.ones(4, 3))]
    (torch.Size([4, 3]), [torch.Size([3, 2]), torch.Size([3])])
    """

    def __init__(
        self, network: nn.Module, x: Float[Tensor, "B i"], products: torch.dtype | None = None
    ) -> None:
        self._steps: list[_Step] = []
        for layer in network if isinstance(network, nn.Sequential) else [network]:
            step = _step(layer, x, products)
            self._steps.append(step)
            x = step.output
        self.output: Float[Tensor, "B o"] = x

    def gradients(self, of_output: Float[Tensor, "B o"]) -> list[Tensor]:
        """By the parameters, in the order of `network.parameters()`, in their format."""
        first, *others = self._steps
        found: list[Tensor] = []
        for step in reversed(others):
            found = step.of_parameters(of_output) + found
            of_output = step.of_input(of_output)
        return first.of_parameters(of_output) + found

    def add_of_input(self, of_output: Float[Tensor, "B o"], total: Float[Tensor, "B i"]) -> None:
        """Add the gradient by the input to `total`."""
        first, *others = self._steps
        for step in reversed(others):
            of_output = step.of_input(of_output)
        if isinstance(first, _Unit):
            total.addr_(of_output[:, 0], first.weight)
        else:
            total.add_(first.of_input(of_output))


@runtime_checkable
class _Step(Protocol):
    output: Tensor

    def of_parameters(self, of_output: Tensor) -> list[Tensor]: ...
    def of_input(self, of_output: Tensor) -> Tensor: ...


def _step(layer: nn.Module, x: Tensor, products: torch.dtype | None) -> _Step:
    if isinstance(layer, nn.ReLU):
        return _ReLU(x)
    if isinstance(layer, nn.Linear):
        return _Unit(layer, x) if layer.out_features == 1 else _Linear(layer, x, products or x.dtype)
    return _Layer(layer, x)


class _Linear:
    """x W' + b."""

    def __init__(self, layer: nn.Linear, x: Tensor, products: torch.dtype) -> None:
        self._format = layer.weight.dtype
        self._x, self._weight = x.to(products), layer.weight.to(products)
        self.output = torch.addmm(layer.bias.to(products), self._x, self._weight.T)

    def of_parameters(self, of_output: Tensor) -> list[Tensor]:
        g = of_output.to(self._x.dtype)
        return [(g.T @ self._x).to(self._format), g.sum(dim=0, dtype=self._format)]

    def of_input(self, of_output: Tensor) -> Tensor:
        return of_output.to(self._x.dtype) @ self._weight


class _Unit:
    """x w + b, one number a row."""

    def __init__(self, layer: nn.Linear, x: Tensor) -> None:
        self.weight = layer.weight[0]
        self._x = x.to(self.weight.dtype)
        self.output = torch.addmv(layer.bias, self._x, self.weight)[:, None]

    def of_parameters(self, of_output: Tensor) -> list[Tensor]:
        return [of_output.T @ self._x, of_output.sum(dim=0)]

    def of_input(self, of_output: Tensor) -> Tensor:
        return torch.outer(of_output[:, 0], self.weight)


class _ReLU:
    def __init__(self, x: Tensor) -> None:
        self.output = x.relu_()  # what a linear layer made, which needs it no more

    def of_parameters(self, of_output: Tensor) -> list[Tensor]:
        return []

    def of_input(self, of_output: Tensor) -> Tensor:
        of_input: Tensor = torch.ops.aten.threshold_backward(of_output.to(self.output.dtype), self.output, 0)
        return of_input


class _Layer:
    """Any other, by autograd, in the format of its parameters."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        self._parameters = list(layer.parameters())
        with torch.enable_grad():
            self._x = x.detach().to(self._parameters[0].dtype).requires_grad_()
            self._graph: Tensor = layer(self._x)
        self.output = self._graph.detach()

    def of_parameters(self, of_output: Tensor) -> list[Tensor]:
        of_output = of_output.to(self._graph.dtype)
        return list(torch.autograd.grad(self._graph, self._parameters, of_output, retain_graph=True))

    def of_input(self, of_output: Tensor) -> Tensor:
        of_output = of_output.to(self._graph.dtype)
        # one mask for all images does not depend on them
        (found,) = torch.autograd.grad(
            self._graph, self._x, of_output, retain_graph=True, materialize_grads=True
        )
        return found
