"""A forward pass on a CUDA device as one launch: recorded once for a batch size, then replayed.

A ViT-B/16 launches some 200 kernels a pass, many of them shorter than their launch where batches are small.
"""

from collections.abc import Callable
from typing import Generic, TypeVar, final

import torch
from torch import Tensor

__all__ = ["Recorded", "Repeated"]

Result = TypeVar("Result")

_MOST_SIZES = 4
"""Batch sizes that are recorded: each holds the memory of its pass."""


@final
class Repeated(Generic[Result]):
    """`forward`, and from the second batch of a size on what `record` makes of it for that size.

    A size that comes once, as that of the last batch, is not worth its recording, which takes a few passes. Four
    sizes are recorded at most.

    >>> calls = Repeated(lambda batch: "as it is", record=lambda batch: lambda batch: "recorded")
    >>> [calls(torch.zeros(size)) for size in (8, 8, 8, 3)]
    ['as it is', 'recorded', 'recorded', 'as it is']
    """

    def __init__(
        self, forward: Callable[[Tensor], Result], record: Callable[[Tensor], Callable[[Tensor], Result]]
    ) -> None:
        self._forward, self._record = forward, record
        self._seen: set[int] = set()
        self._recorded: dict[int, Callable[[Tensor], Result]] = {}

    def __call__(self, batch: Tensor) -> Result:
        """What `forward` returns for `batch`."""
        size = len(batch)
        if size in self._seen and size not in self._recorded and len(self._recorded) < _MOST_SIZES:
            self._recorded[size] = self._record(batch)
        self._seen.add(size)
        return self._recorded.get(size, self._forward)(batch)


@final
class Recorded(Generic[Result]):
    """The CUDA graph of `forward` on a batch of this shape; what it returns is overwritten by its next call.

    batch: on the host, pinned or not. `forward` must not wait for the device.
    """

    def __init__(self, forward: Callable[[Tensor], Result], batch: Tensor, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._batch = batch.to(device)
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(2):  # libraries choose their kernels and take their workspace before
                    forward(self._batch)
            torch.cuda.current_stream().wait_stream(beside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._found = forward(self._batch)

    def __call__(self, batch: Tensor) -> Result:
        """What `forward` returns for `batch`, by the graph."""
        with torch.cuda.device(self._device):
            self._batch.copy_(batch, non_blocking=True)
            self._graph.replay()
        return self._found
