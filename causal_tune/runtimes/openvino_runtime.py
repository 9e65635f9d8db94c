"""The encoder's forward pass in OpenVINO, for CPUs.

Every thread is a stream of its own that computes two whole images at a time: 400 rows of every product keep a
processor busy (measured with AVX-512 and bfloat16: 2 % more images than one at a time). An image's features are the
same bits whatever the batch, the threads and the images beside it: when an encoder is loaded two images are computed
alone and together, and where their bits differ on this processor, it computes one at a time.

A stream can come out wrong: in three of twenty processes that had computed much else, one of the two streams
of OpenVINO 2026.4 gave other features than torch from its first image on, the same wrong ones each time. OpenVINO
shares packed weights among streams by the addresses of their originals. So what was compiled is asked for an image
before it is used, every stream of it, and compiled again where it does not say what torch says.
"""

import dataclasses
import threading
import warnings
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from causal_tune.errors import InvalidConfig
from causal_tune.runtimes.openvino_graph import MOST_IMAGES, build_graph
from causal_tune.runtimes.protocol import EncoderDescription, last_block, layer_widths
from causal_tune.runtimes.torch_runtime import TorchRuntime
from causal_tune.towers import Tower

__all__ = ["OpenVinoRuntime", "load"]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""OpenVINO's name of the format of everything that is not quantised."""

_ATTEMPTS = 3
_BOUNDS = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}
"""Largest distance from torch in float32, as a share of the features' length; measured 1e-5 and 0.03 for the first
two. Wrong ones were off by more than their length."""


def load(
    tower: Tower,
    state: dict[str, Tensor],
    description: EncoderDescription,
    *,
    device: torch.device,
    num_threads: int,
    cache_dir: Path,
) -> "OpenVinoRuntime":
    """The compiled forward pass; a quantised graph is made once and kept in `cache_dir`.

    `InvalidConfig` where it computes something else than torch, however often it is compiled.
    """
    graph = build_graph(tower, state, description)
    if description.dtype == "int8":
        from causal_tune.runtimes.int8 import quantised

        graph = quantised(
            graph, description, num_blocks=last_block(tower, description.layers), cache_dir=cache_dir
        )
    widths = layer_widths(tower, description.layers)
    expected = _torch_features(tower, state, description)
    for _ in range(_ATTEMPTS):
        runtime = OpenVinoRuntime(graph, widths, description.dtype, num_threads=num_threads)
        problem = _difference(runtime, expected, description, num_threads)
        if problem is None:
            runtime.images_at_once = MOST_IMAGES
            if not _same_alone(runtime, description.image_size):
                runtime.images_at_once = 1
            return runtime
        warnings.warn(f"OpenVINO compiled the encoder wrongly ({problem}); compiling it again.", stacklevel=2)
    raise InvalidConfig(
        f"OpenVINO compiled the encoder wrongly {_ATTEMPTS} times ({problem}). Take --runtime torch, and please "
        "report the processor."
    )


def _probe(size: int) -> UInt8[np.ndarray, "1 s s 3"]:
    """A crop that every stream is asked for: a ramp in each channel."""
    down, right = np.mgrid[0:size, 0:size] * 255 // size
    return np.stack([right, down, (right + down) // 2], axis=-1).astype(np.uint8)[None]


def _torch_features(
    tower: Tower, state: dict[str, Tensor], description: EncoderDescription
) -> dict[str, Float[np.ndarray, "1 d"]]:
    in_float32 = dataclasses.replace(description, dtype="float32", runtime="torch")
    reference = TorchRuntime(tower, state, in_float32, device=torch.device("cpu"), num_threads=1)
    return reference.encode(_probe(tower.image_size))


def _difference(
    runtime: "OpenVinoRuntime",
    expected: dict[str, Float[np.ndarray, "1 d"]],
    description: EncoderDescription,
    num_threads: int,
) -> str | None:
    """What is wrong with the features of the probe, if anything is."""
    times = 2 * num_threads  # as many as give every stream one
    found = runtime.encode(np.repeat(_probe(description.image_size), times, axis=0))
    for layer, reference in expected.items():
        error = np.linalg.norm(found[layer] - reference, axis=1) / np.linalg.norm(reference)
        if not error.max() <= _BOUNDS[description.dtype]:  # not a number is wrong, too
            return f"{layer} is off by {error.max():.2g} of its length from torch"
        if (found[layer] != found[layer][0]).any():
            return f"{layer} of one image differs among {num_threads} streams"
    return None


def _same_alone(runtime: "OpenVinoRuntime", size: int) -> bool:
    """Whether images computed together have the bits that each has alone."""
    probe = _probe(size)
    crops = np.concatenate([probe, probe[:, ::-1]] * runtime.num_threads)
    together = runtime.encode(crops)
    alone = [runtime.encode(crops[row : row + 1]) for row in range(2)]
    return all(
        (values[row::2] == alone[row][layer]).all() for layer, values in together.items() for row in range(2)
    )


class OpenVinoRuntime:
    """A compiled graph with one request a thread."""

    images_at_once = 1
    """Of a request; 1 to `MOST_IMAGES`."""

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
        self.num_threads = num_threads
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
            begin = 0
            while (left := len(crops) - begin) > 0:
                # the last ones alone, so that no thread waits for another's second image
                num_images = self.images_at_once if left >= self.images_at_once * self.num_threads else 1
                self._requests.start_async({0: crops[begin : begin + num_images]}, userdata=begin)
                begin += num_images
            self._requests.wait_all()
        return features

    def _keep(self, request: ov.InferRequest, begin: int) -> None:
        for number, layer in enumerate(self._widths):
            values = request.get_output_tensor(number).data
            self._features[layer][begin : begin + len(values)] = values
