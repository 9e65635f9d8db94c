"""How near an encoder's features come to those of torch in float32, measured on photographs.

Other runtimes and dtypes round, and int8 more than that. The cosine between an image's features by both is
measured at the first use of an encoder, on crops of the demo's photographs that no quantisation was
calibrated on, and kept beside the weights:

    <cache>/runtimes/fidelity-<key>.json

It is no part of any fingerprint: another processor may round in another way.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from causal_tune.atomic import write_json
from causal_tune.clip import EncoderDescription, load_encoder
from causal_tune.demo.photographs import cut, draw_crops
from causal_tune.runtimes import RUNTIMES
from causal_tune.weights import default_cache_dir

__all__ = ["Cosines", "Fidelity", "cosines", "fidelity_of"]

NUM_IMAGES = 16
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosines:
    """Of pairs of feature vectors."""

    mean: float
    worst: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """The cosines to torch in float32, layer by layer."""

    num_images: int
    layers: Mapping[str, Cosines]

    def __str__(self) -> str:
        """One sentence for people, about the layer that suffers most."""
        layer, least = min(self.layers.items(), key=lambda item: item[1].mean)
        return (
            f"cosine to torch in float32 {least.mean:.5f} in the mean and {least.worst:.5f} at worst "
            f"(layer {layer}, {self.num_images} crops of photographs)"
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Fidelity":
        """The inverse of `dataclasses.asdict`; KeyError or TypeError for anything else."""
        layers = value["layers"]
        if not isinstance(layers, dict) or not isinstance(value["num_images"], int):
            raise TypeError("its fields are of another kind")
        return cls(
            num_images=value["num_images"],
            layers={layer: Cosines(**cosine) for layer, cosine in layers.items()},
        )


def cosines(features: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "n d"]) -> Cosines:
    """Mean and worst cosine of each row of `features` with the same row of `reference`.

    >>> cosines(np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [0.0, 1.0]]))
    Cosines(mean=0.9, worst=0.8)
    """
    one, other = features.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    values = np.clip((one * other).sum(axis=1) / norms, -1.0, 1.0)  # rounding can take it out of its range
    return Cosines(mean=float(values.mean()), worst=float(values.min()))


def fidelity_of(
    description: EncoderDescription, *, device: str = "auto", cache_dir: Path | None = None
) -> Fidelity | None:
    """The fidelity of the described encoder, from the cache or measured now (two model loads, 16 images).

    None for torch in float32 itself, and where this machine lacks the device.

    >>> from causal_tune.clip import describe_encoder
    >>> fidelity_of(describe_encoder("tiny-random", dtype="float32", runtime="torch"))
    """
    is_reference = (description.runtime, description.dtype) == ("torch", "float32")
    if is_reference or (device.startswith("cuda") and not torch.cuda.is_available()):
        return None
    path = (cache_dir or default_cache_dir()) / "runtimes" / f"fidelity-{_key(description, device)}.json"
    try:
        return Fidelity.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} cannot be read ({error}); measuring again.", stacklevel=2)
    measured = _measure(description, device, cache_dir)
    try:
        write_json(path, asdict(measured))
    except OSError as error:
        warnings.warn(f"The fidelity cannot be kept ({error}); the next run measures it again.", stacklevel=2)
    return measured


def _key(description: EncoderDescription, device: str) -> str:
    """All that the measured figures depend on."""
    parts = [
        description.fingerprint,
        device,
        torch.backends.cpu.get_cpu_capability(),
        *(version(package) for package in ("torch", RUNTIMES[description.runtime].package)),
    ]
    return hashlib.sha256(json.dumps([*parts, NUM_IMAGES, _SEED]).encode()).hexdigest()[:16]


def _measure(description: EncoderDescription, device: str, cache_dir: Path | None) -> Fidelity:
    crops = np.stack([cut(crop) for crop in draw_crops("test", NUM_IMAGES, np.random.default_rng(_SEED))])
    found, reference = (
        load_encoder(
            description.name,
            layers=description.layers,
            dtype=dtype,
            runtime=runtime,
            device=where,
            cache_dir=cache_dir,
        ).encode(crops)
        for dtype, runtime, where in (
            (description.dtype, description.runtime, device),
            ("float32", "torch", "cpu"),
        )
    )
    return Fidelity(
        num_images=len(crops),
        layers={layer: cosines(found[layer], reference[layer]) for layer in description.layers},
    )
