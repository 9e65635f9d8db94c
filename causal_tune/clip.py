"""CLIP image encoders: 224 x 224 crops in, features of any layers out, in one forward pass.

Which bytes they are, in which dtype, and by which runtime (`runtimes`) they are computed is an
`EncoderDescription`, and its hash goes into everything that is made of features.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from causal_tune.encoders import Encoder, resolve
from causal_tune.errors import InferredArchitecture, InvalidConfig
from causal_tune.processor import has_bfloat16
from causal_tune.runtimes import RUNTIMES, check_dtype, choose_runtime
from causal_tune.runtimes.protocol import EncoderDescription, layer_widths
from causal_tune.towers import Tower, tower_of
from causal_tune.weights import LoadedTower, default_cache_dir, load_tower, weights_sha256

__all__ = [
    "DTYPES",
    "ClipEncoder",
    "EncoderDescription",
    "default_device",
    "describe_encoder",
    "layer_widths",
    "load_encoder",
]

DTYPES = ("float32", "bfloat16", "float16", "int8")
"""Number formats that an encoder can compute in; its features are float32 always."""


def describe_encoder(
    name: str,
    *,
    layers: Sequence[str] = ("proj",),
    dtype: str = "auto",
    runtime: str = "auto",
    device: str = "auto",
    cache_dir: Path | None = None,
) -> EncoderDescription:
    """What `load_encoder` with the same arguments will compute, without building the model.

    Raises what `load_encoder` raises.

    >>> describe_encoder("tiny-random", layers=("cls@2", "proj"), dtype="float32").layers
    ('proj', 'cls@2')
    """
    encoder = resolve(name)
    if encoder.source == "file":  # read for its hash in any case: so what is wrong with it is told here
        loaded = _load(encoder, cache_dir)
        return _describe(encoder, loaded.tower, loaded.sha256, layers, dtype, runtime, device)
    tower = tower_of(str(encoder.architecture))
    sha256 = weights_sha256(name, cache_dir=cache_dir)
    return _describe(encoder, tower, sha256, layers, dtype, runtime, device)


def load_encoder(
    name: str,
    *,
    layers: Sequence[str] = ("proj",),
    dtype: str = "auto",
    runtime: str = "auto",
    device: str = "auto",
    num_threads: int | None = None,
    cache_dir: Path | None = None,
) -> "ClipEncoder":
    """The encoder `name` (see `encoders.resolve`), ready to encode.

    layers: any of `proj` (projected, not normalised), `pre` (normalised by the last layer norm, before the
    projection), `cls@k` and `mean@k` (class token, and mean of the patch tokens, after block k = 1, 2, ...).
    dtype: one of `DTYPES`, or `auto`: bfloat16 where the processor multiplies it natively, else float32.
    runtime: a key of `runtimes.RUNTIMES`, or `auto`: see `runtimes.choose_runtime`.
    device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: a CUDA device where there is one.
    num_threads: that encode on a CPU, whole images each; None for as many as torch has. The features do
    not depend on it.

    Raises `UnknownName`, `InvalidConfig` (a layer or dtype that there is not) and `WeightsError` (not
    fetched yet, damaged, or of another architecture).
    """
    if num_threads is not None and num_threads < 1:
        raise InvalidConfig(f"num_threads is {num_threads}; an encoder needs at least 1.")
    encoder = resolve(name)
    loaded = _load(encoder, cache_dir)
    description = _describe(encoder, loaded.tower, loaded.sha256, layers, dtype, runtime, device)
    return ClipEncoder(
        loaded.tower,
        loaded.state,
        description,
        device=_device(device),
        num_threads=num_threads,
        cache_dir=cache_dir,
    )


def _load(encoder: Encoder, cache_dir: Path | None) -> LoadedTower:
    loaded = load_tower(encoder, cache_dir=cache_dir)
    if loaded.note:
        warnings.warn(loaded.note, InferredArchitecture, stacklevel=3)
    return loaded


def _describe(
    encoder: Encoder,
    tower: Tower,
    sha256: str,
    layers: Sequence[str],
    dtype: str,
    runtime: str,
    device: str,
) -> EncoderDescription:
    where = _device(device)
    chosen_dtype = _dtype(dtype, where)
    chosen_runtime = choose_runtime(runtime, chosen_dtype, where)
    check_dtype(chosen_runtime, chosen_dtype, where)
    return EncoderDescription(
        name=encoder.name,
        architecture=tower.architecture,
        weights_sha256=sha256,
        mean=encoder.mean,
        std=encoder.std,
        dtype=chosen_dtype,
        layers=tuple(layer_widths(tower, layers)),
        image_size=tower.image_size,
        runtime=chosen_runtime,
        pixels="normalised" if chosen_dtype == "float32" else "whole",
    )


def default_device() -> torch.device:
    """What `auto` stands for: a CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device(device: str) -> torch.device:
    if device == "auto":
        return default_device()
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InvalidConfig(f"There is no device {device!r}; use auto, cpu, cuda or cuda:N.") from error
    if found.type not in ("cpu", "cuda"):
        raise InvalidConfig(f"Encoders run on cpu and cuda, not on {device!r}.")
    return found


def _dtype(dtype: str, device: torch.device) -> str:
    if dtype == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if dtype not in DTYPES:
        raise InvalidConfig(f"dtype is {dtype!r}; use auto, {', '.join(DTYPES)}.")
    return dtype


class ClipEncoder:
    """A loaded encoder; `load_encoder` makes it. Holds no state but its weights."""

    def __init__(
        self,
        tower: Tower,
        state: dict[str, Tensor],
        description: EncoderDescription,
        *,
        device: torch.device,
        num_threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self.description = description
        self.widths = layer_widths(tower, description.layers)
        """Width of each layer's features."""
        self._runtime = RUNTIMES[description.runtime].load(
            tower,
            state,
            description,
            device=device,
            num_threads=num_threads or torch.get_num_threads(),
            cache_dir=cache_dir or default_cache_dir(),
        )

    def encode(self, crops: UInt8[np.ndarray, "B 224 224 3"]) -> dict[str, Float[np.ndarray, "B d"]]:
        """The features of each layer, float32, one row a crop.

        On a CPU a crop's features are the same bits in every batch; on a GPU they depend on the other crops
        by rounding. Raises `InvalidConfig` for an array of another shape or type.

        >>> encoder = load_encoder("tiny-random", layers=("proj", "mean@1"), dtype="float32")
        >>> features = encoder.encode(np.zeros((2, 224, 224, 3), dtype=np.uint8))
        >>> {layer: values.shape for layer, values in features.items()}
        {'proj': (2, 32), 'mean@1': (2, 64)}
        """
        size = self.description.image_size
        if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
            raise InvalidConfig(
                f"The encoder got {crops.dtype} of shape {crops.shape}; it takes uint8 of shape "
                f"(B, {size}, {size}, 3): use images.decode.read_crop and np.stack."
            )
        if len(crops) == 0:
            return {layer: np.empty((0, width), np.float32) for layer, width in self.widths.items()}
        return dict(self._runtime.encode(crops))
