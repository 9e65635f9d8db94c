"""What an encoder is told to compute, and what a runtime must do for it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from causal_tune.errors import InvalidConfig
from causal_tune.towers import Tower

__all__ = [
    "WHOLE_PIXELS_FROM",
    "EncoderDescription",
    "Runtime",
    "last_block",
    "layer_widths",
    "whole_pixel_patches",
]

WHOLE_PIXELS_FROM = 128
"""What is taken off a pixel so that 0 to 255 become -128 to 127."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderDescription:
    """All that decides an encoder's features, as plain values for JSON."""

    name: str
    """What `load_encoder` was, or can be, called with."""
    architecture: str
    weights_sha256: str
    """Hash of the tensors' names, shapes and values (`state_dicts.state_sha256`)."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: str
    """What it computes in: `float32`, `bfloat16`, `float16` or `int8`."""
    layers: tuple[str, ...]
    """Without repetition, in the order proj, pre, cls@1, ..., mean@1, ..."""
    image_size: int
    runtime: str = "torch"
    """A key of `runtimes.RUNTIMES`."""
    pixels: str = "normalised"
    """How they enter the first product: `normalised`, or as `whole` numbers from -128 to 127, which every number
    format holds exactly, with the normalisation in the weights."""

    @property
    def values(self) -> dict[str, Any]:
        """The fields as a dict; without `runtime` where it is `torch`, and `pixels` where they are `normalised`.

        So they were written before there was a choice: a store of that time has the same fingerprint today, and a
        description without the field means that.
        """
        fields = asdict(self)
        before = {"runtime": "torch", "pixels": "normalised"}
        return {key: value for key, value in fields.items() if key not in before or value != before[key]}

    @property
    def fingerprint(self) -> str:
        """sha256 over every field but the name, which only says where the weights were found."""
        fields = {key: value for key, value in self.values.items() if key != "name"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class Runtime(Protocol):
    """A forward pass over one tower's weights, for the layers, dtype and device that it was made for.

    On a CPU the features of a crop are the same bits whatever the batch, the threads and the crops beside it.
    """

    def encode(self, crops: UInt8[np.ndarray, "B s s 3"]) -> Mapping[str, Float[np.ndarray, "B d"]]:
        """The float32 features of every layer, for one crop or more."""


def whole_pixel_patches(
    kernel: Float[Tensor, "d p p 3"], description: EncoderDescription
) -> tuple[Float[Tensor, "d p p 3"], Float[Tensor, " d"]]:
    """The patch embedding of `whole` pixels, by its kernel for normalised ones: its kernel, and what is added.

        W (x / 255 - mean) / std = W' (x - 128) + b,    W' = W / (255 std),    b = W' (128 - 255 mean)

    Normalised pixels rounded to bfloat16 were most of what bfloat16 features lost (docs/log.md).
    """
    mean, std = (255 * torch.tensor(of, dtype=torch.float64) for of in (description.mean, description.std))
    scaled = kernel.double() / std
    return scaled.float(), (scaled * (WHOLE_PIXELS_FROM - mean)).sum(dim=(1, 2, 3)).float()


def layer_widths(tower: Tower, layers: Sequence[str]) -> dict[str, int]:
    """The width of each layer's features, in the order of descriptions, without repetition.

    >>> from causal_tune.towers import TINY
    >>> layer_widths(TINY, ["mean@2", "proj", "cls@3", "proj"])
    {'proj': 32, 'cls@3': 64, 'mean@2': 64}
    """
    if not layers or isinstance(layers, str):
        raise InvalidConfig(f"layers is {layers!r}; give a list of at least one, such as ['proj'].")
    ranked: dict[tuple[int, int], str] = {}
    for layer in layers:
        match = re.fullmatch(r"(cls|mean)@([1-9]\d*)", layer)
        if layer in ("proj", "pre"):
            ranked[(0 if layer == "proj" else 1, 0)] = layer
        elif match and int(match[2]) <= tower.num_blocks:
            ranked[(2 if match[1] == "cls" else 3, int(match[2]))] = layer
        else:
            raise InvalidConfig(
                f"{tower.architecture} has no layer {layer!r}. There are: proj, pre, cls@1 to "
                f"cls@{tower.num_blocks} and mean@1 to mean@{tower.num_blocks}."
            )
    return {
        ranked[key]: tower.output_width if ranked[key] == "proj" else tower.width for key in sorted(ranked)
    }


def last_block(tower: Tower, layers: Sequence[str]) -> int:
    """The last block that these layers need; what lies behind it is not computed.

    >>> from causal_tune.towers import TINY
    >>> last_block(TINY, ["cls@1", "mean@2"]), last_block(TINY, ["cls@1", "proj"])
    (2, 3)
    """
    blocks = [layer.partition("@")[2] for layer in layers]
    return max(int(block) if block else tower.num_blocks for block in blocks)
