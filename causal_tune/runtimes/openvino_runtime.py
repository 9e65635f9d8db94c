"""The encoder's forward pass in OpenVINO, for CPUs.

Every thread is a stream of its own that computes one whole image at a time. A request always has one
image, so an image's features are the same bits whatever the batch, the threads and the images beside it,
by construction: the same instructions run on the same shapes. One image is 200 rows of every product, as
many as keep the processor busy (measured with AVX2: 5 % less than four images a request).
"""

import threading
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from causal_tune.errors import InvalidConfig
from causal_tune.runtimes.openvino_graph import build_graph
from causal_tune.runtimes.protocol import EncoderDescription, last_block, layer_widths
from causal_tune.towers import Tower

__all__ = ["OpenVinoRuntime", "load"]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""OpenVINO's name of the format of everything that is not quantised."""


def load(
    tower: Tower,
    state: dict[str, Tensor],
    description: EncoderDescription,
    *,
    device: torch.device,
    num_threads: int,
    cache_dir: Path,
) -> "OpenVinoRuntime":
    """The compiled forward pass; a quantised graph is made once and kept in `cache_dir`."""
    graph = build_graph(tower, state, description)
    if description.dtype == "int8":
        from causal_tune.runtimes.int8 import quantised

        graph = quantised(
            graph, description, num_blocks=last_block(tower, description.layers), cache_dir=cache_dir
        )
    return OpenVinoRuntime(
        graph, layer_widths(tower, description.layers), description.dtype, num_threads=num_threads
    )


class OpenVinoRuntime:
    """A compiled graph with one request a thread."""

    def __init__(self, graph: ov.Model, widths: dict[str, int], dtype: str, *, num_threads: int) -> None:
        compiled = ov.Core().compile_model(
            graph,
            "CPU",
            {
                "NUM_STREAMS": num_threads,
                "INFERENCE_NUM_THREADS": num_threads,
                "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
                # pinned threads of two processes would share the first cores and leave the others idle
                "ENABLE_CPU_PINNING": False,
            },
        )
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision != _PRECISIONS[dtype]:
            raise InvalidConfig(
                f"OpenVINO computes in {precision} on this processor where {dtype} was asked for. "
                "Take --dtype float32, or --runtime torch."
            )
        self._widths = widths
        self._requests = ov.AsyncInferQueue(compiled, num_threads)
        self._requests.set_callback(self._keep)
        self._features: dict[str, Float[np.ndarray, "B d"]] = {}
        self._one_call = threading.Lock()

    def encode(self, crops: UInt8[np.ndarray, "B s s 3"]) -> dict[str, Float[np.ndarray, "B d"]]:
        """The float32 features of every layer."""
        with self._one_call:  # the requests are shared
            features = {
                layer: np.empty((len(crops), width), np.float32) for layer, width in self._widths.items()
            }
            self._features = features
            for row in range(len(crops)):
                self._requests.start_async({0: crops[row : row + 1]}, userdata=row)
            self._requests.wait_all()
        return features

    def _keep(self, request: ov.InferRequest, row: int) -> None:
        for number, layer in enumerate(self._widths):
            self._features[layer][row] = request.get_output_tensor(number).data[0]
