"""The table of the demo's generators, and the one way to load them.

Each takes a crop of a real photograph through a bottleneck that loses something, and makes it anew
with the decoder of its family (`networks.py`), which leaves that family's traces.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

import torch
from safetensors.torch import load

from causal_tune.demo.networks import (
    ConvolutionalAutoencoder,
    Diffusion,
    LatentAutoencoder,
    Regenerator,
    SuperResolution,
    VectorQuantisedAutoencoder,
    nearest_upsampling,
    transposed_upsampling,
)
from causal_tune.errors import WeightsError
from causal_tune.registry import look_up

__all__ = ["GENERATORS", "GeneratorFamily", "load_generator"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorFamily:
    """One line of the table of generators."""

    build: Callable[[], Regenerator]
    """Makes the network with random weights (torch's global seed)."""
    description: str
    bottleneck: str
    """What of the image passes through."""
    compression: float
    """Input values over latent values (bits over bits for `vq`); 1 where nothing is compressed."""


GENERATORS: Mapping[str, GeneratorFamily] = MappingProxyType(
    {
        "vae": GeneratorFamily(
            build=LatentAutoencoder,
            description="latent autoencoder with a KL term",
            bottleneck="a quarter of the side, 12 channels",
            compression=4.0,
        ),
        "deconv": GeneratorFamily(
            build=lambda: ConvolutionalAutoencoder(
                transposed_upsampling, latent_channels=12, num_doublings=2
            ),
            description="autoencoder with a transposed-convolution decoder",
            bottleneck="a quarter of the side, 12 channels",
            compression=4.0,
        ),
        "nearest": GeneratorFamily(
            build=lambda: ConvolutionalAutoencoder(nearest_upsampling, latent_channels=4, num_doublings=1),
            description="autoencoder with a nearest-upsampling decoder",
            bottleneck="half of the side, 4 channels",
            compression=3.0,
        ),
        "subpixel": GeneratorFamily(
            build=SuperResolution,
            description="super-resolution by pixel shuffle",
            bottleneck="half of the side, 3 channels",
            compression=4.0,
        ),
        "vq": GeneratorFamily(
            build=VectorQuantisedAutoencoder,
            description="vector-quantised autoencoder",
            bottleneck="a quarter of the side, 8 codes of 8 bits",
            compression=6.0,
        ),
        "diffusion": GeneratorFamily(
            build=Diffusion,
            description="short diffusion from a partially noised image",
            bottleneck="noise of standard deviation 0.08, 4 denoising steps",
            compression=1.0,
        ),
    }
)
"""The generators of the demo by name."""


def load_generator(name: str) -> Regenerator:
    """A generator with the weights that are shipped (float16 on disk), float32, in evaluation mode."""
    network = look_up("demo generator", GENERATORS, name).build()
    weights = files("causal_tune.demo") / "weights" / f"{name}.safetensors"
    if not weights.is_file():
        raise WeightsError(
            f"The weights of the demo generator {name} are missing (expected {name}.safetensors in "
            "causal_tune/demo/weights). Install the package again, or make them with "
            "`python -m causal_tune.demo.train_generators -o causal_tune/demo/weights`."
        )
    tensors = load(weights.read_bytes())
    network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, strict=True)
    # channels last: a fifth faster on a CPU for so few channels
    return network.to(memory_format=torch.channels_last).eval()
