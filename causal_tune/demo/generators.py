"""Six tiny neural generators of different families that regenerate a real photograph.

Each takes a crop through a bottleneck that loses something and makes it anew with its own kind of
decoder, which leaves the traces of its family. All are convolutional throughout: trained on
patches, run on whole crops. Images are float32 in [0, 1], [B, 3, H, W] with H and W multiples of 8.

`compression` in the table is the number of input values over the number of latent values; for `vq`
it is bits over bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from causal_tune.errors import WeightsError
from causal_tune.registry import look_up

__all__ = [
    "GENERATORS",
    "ConvolutionalAutoencoder",
    "Diffusion",
    "GeneratorFamily",
    "LatentAutoencoder",
    "Regenerator",
    "SuperResolution",
    "VectorQuantisedAutoencoder",
    "load_generator",
]

Images = Float[Tensor, "batch 3 height width"]


class Regenerator(nn.Module, ABC):
    """What every generator can do: say how wrong it is on images, and make images anew."""

    @abstractmethod
    def loss(self, images: Images, *, progress: float, rng: torch.Generator) -> Float[Tensor, ""]:
        """The training loss; `progress` in [0, 1] is the share of the training that is done."""

    @abstractmethod
    def regenerate(self, images: Images, *, rng: torch.Generator) -> Images:
        """The images made anew, in [0, 1]; all randomness comes from `rng`."""


class LatentAutoencoder(Regenerator):
    """Variational autoencoder, the family of Stable Diffusion's decoder (Rombach et al., 2022).

        loss = |x - decode(z)|_1 + kl_weight * KL(N(mean, std^2) || N(0, 1)),   z = mean + std * noise

    A weak KL term, a decoder of residual blocks with nearest upsampling before each convolution.
    The latent has a quarter of the image's side.
    """

    kl_weight = 1e-5

    def __init__(self, latent_channels: int = 8) -> None:
        super().__init__()
        self.encoder = _encoder(2 * latent_channels)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, 48, 3, padding=1),
            _ResidualBlock(48),
            _ResidualBlock(48),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(48, 32, 3, padding=1),
            _ResidualBlock(32),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def loss(self, images: Images, *, progress: float, rng: torch.Generator) -> Float[Tensor, ""]:
        """L1 distance plus the weighted KL term, per latent value."""
        mean, log_variance = self._posterior(images)
        latents = mean + (0.5 * log_variance).exp() * _noise_like(mean, rng)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return F.l1_loss(self._decode(latents), images) + self.kl_weight * divergence

    def regenerate(self, images: Images, *, rng: torch.Generator) -> Images:
        """Decode one sample of the posterior."""
        mean, log_variance = self._posterior(images)
        latents = mean + (0.5 * log_variance).exp() * _noise_like(mean, rng)
        return self._decode(latents).clamp(0, 1)

    def _posterior(self, images: Images) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(images - 0.5).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)

    def _decode(self, latents: Tensor) -> Images:
        images: Tensor = self.decoder(latents) + 0.5
        return images


class ConvolutionalAutoencoder(Regenerator):
    """Plain autoencoder; `upsampling` builds one layer that doubles the side.

    With transposed convolutions whose kernel is no multiple of the stride it leaves the
    checkerboard of early GANs; with nearest upsampling, their successors' blocks.
    """

    def __init__(self, upsampling: Callable[[int, int], nn.Module], latent_channels: int) -> None:
        super().__init__()
        self.encoder = _encoder(latent_channels)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, 48, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, padding=1),
            nn.ReLU(),
            upsampling(48, 32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            upsampling(32, 16),
            nn.ReLU(),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def loss(self, images: Images, *, progress: float, rng: torch.Generator) -> Float[Tensor, ""]:
        """L1 distance."""
        return F.l1_loss(self._decode(self.encoder(images - 0.5)), images)

    def regenerate(self, images: Images, *, rng: torch.Generator) -> Images:
        """Encode and decode; `rng` is not used."""
        return self._decode(self.encoder(images - 0.5)).clamp(0, 1)

    def _decode(self, latents: Tensor) -> Images:
        images: Tensor = self.decoder(latents) + 0.5
        return images


class SuperResolution(Regenerator):
    """Sub-pixel super-resolution (Shi et al., 2016) of the image averaged down to half its side.

    Convolutions at low resolution only, then one pixel shuffle. What is learnt is the difference to
    repeating each pixel.
    """

    def __init__(self, channels: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 5, padding=2),
            nn.SiLU(),
            _ResidualBlock(channels),
            _ResidualBlock(channels),
            nn.Conv2d(channels, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def loss(self, images: Images, *, progress: float, rng: torch.Generator) -> Float[Tensor, ""]:
        """L1 distance to the image before it was averaged down."""
        return F.l1_loss(self._enlarge(F.avg_pool2d(images, 2)), images)

    def regenerate(self, images: Images, *, rng: torch.Generator) -> Images:
        """Average down to half the side and enlarge again; `rng` is not used."""
        return self._enlarge(F.avg_pool2d(images, 2)).clamp(0, 1)

    def _enlarge(self, small: Tensor) -> Images:
        repeated = F.interpolate(small, scale_factor=2.0, mode="nearest")
        images: Tensor = repeated + self.body(small - 0.5)
        return images


class VectorQuantisedAutoencoder(Regenerator):
    """Vector-quantised autoencoder (van den Oord et al., 2017) with one codebook per group of channels.

        loss = |x - decode(q)|_1 + |stop(z) - q|^2 + 0.25 |z - stop(q)|^2,   q = nearest code to z

    Gradients pass the quantisation straight through. For the first fifth of the training nothing is
    quantised; the codebooks then begin as latents of the batch at hand, which leaves no code unused.
    """

    warm_up = 0.2

    def __init__(self, num_groups: int = 4, num_codes: int = 256, code_size: int = 4) -> None:
        super().__init__()
        self.encoder = _encoder(num_groups * code_size)
        self.codebooks = nn.Parameter(torch.zeros(num_groups, num_codes, code_size))
        self.decoder = nn.Sequential(
            nn.Conv2d(num_groups * code_size, 48, 3, padding=1),
            _ResidualBlock(48),
            _ResidualBlock(48),
            nn.ConvTranspose2d(48, 32, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def loss(self, images: Images, *, progress: float, rng: torch.Generator) -> Float[Tensor, ""]:
        """L1 distance plus codebook and commitment terms once the warm-up is over."""
        latents = self.encoder(images - 0.5)
        if progress < self.warm_up:
            return F.l1_loss(self._decode(latents), images)
        if not self.codebooks.any():
            self._begin_codebooks(latents, rng)
        quantised = self._look_up(self._nearest_codes(latents), latents)
        straight_through = latents + (quantised - latents).detach()
        codebook = F.mse_loss(quantised, latents.detach())
        commitment = F.mse_loss(latents, quantised.detach())
        return F.l1_loss(self._decode(straight_through), images) + codebook + 0.25 * commitment

    def regenerate(self, images: Images, *, rng: torch.Generator) -> Images:
        """Encode, take the nearest codes, decode; `rng` is not used."""
        latents = self.encoder(images - 0.5)
        return self._decode(self._look_up(self._nearest_codes(latents), latents)).clamp(0, 1)

    def _grouped(self, latents: Tensor) -> Float[Tensor, "groups positions code_size"]:
        batch, _, height, width = latents.shape
        num_groups, _, code_size = self.codebooks.shape
        split = latents.reshape(batch, num_groups, code_size, height * width)
        return split.permute(1, 0, 3, 2).reshape(num_groups, batch * height * width, code_size)

    def _nearest_codes(self, latents: Tensor) -> Int[Tensor, "groups positions"]:
        with torch.no_grad():
            return torch.cdist(self._grouped(latents), self.codebooks).argmin(dim=2)

    def _look_up(self, codes: Int[Tensor, "groups positions"], like: Tensor) -> Tensor:
        batch, channels, height, width = like.shape
        num_groups, _, code_size = self.codebooks.shape
        found = torch.stack([book[code] for book, code in zip(self.codebooks, codes, strict=True)])
        split = found.reshape(num_groups, batch, height * width, code_size)
        return split.permute(1, 0, 3, 2).reshape(batch, channels, height, width)

    @torch.no_grad()
    def _begin_codebooks(self, latents: Tensor, rng: torch.Generator) -> None:
        grouped = self._grouped(latents)
        chosen = torch.randperm(grouped.shape[1], generator=rng)[: self.codebooks.shape[1]]
        self.codebooks.copy_(grouped[:, chosen])

    def _decode(self, latents: Tensor) -> Images:
        images: Tensor = self.decoder(latents) + 0.5
        return images


class Diffusion(Regenerator):
    """Short diffusion: noise is added to the image and taken away again in a few steps.

        x_s = x + s * noise,   x_t = D(x_s) + (t / s) * (x_s - D(x_s)),   start = s_0 > ... > s_n = 0

    The probability-flow steps of Karras et al. (2022), begun part of the way as in SDEdit
    (Meng et al., 2022). The denoiser D(x; s) is a small U-Net that predicts the noise.
    """

    start = 0.1
    """Standard deviation of the added noise, images being in [0, 1]."""
    num_steps = 4

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(4, 16, 3, padding=1)
        self.down1 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.middle1 = _ResidualBlock(32)
        self.down2 = nn.Conv2d(32, 48, 3, stride=2, padding=1)
        self.middle2 = nn.Sequential(_ResidualBlock(48), _ResidualBlock(48))
        self.up2 = nn.Conv2d(48, 32, 3, padding=1)
        self.middle3 = _ResidualBlock(32)
        self.up1 = nn.Conv2d(32, 16, 3, padding=1)
        self.outlet = nn.Sequential(nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def loss(self, images: Images, *, progress: float, rng: torch.Generator) -> Float[Tensor, ""]:
        """Squared error of the predicted noise, at noise levels uniform in (0, start]."""
        levels = self.start * (1 - torch.rand(images.shape[0], 1, 1, 1, generator=rng))
        noise = _noise_like(images, rng)
        return F.mse_loss(self._predict_noise(images + levels * noise, levels), noise)

    def regenerate(self, images: Images, *, rng: torch.Generator) -> Images:
        """Add noise of the level `start` and denoise in `num_steps` equal steps."""
        levels = torch.linspace(self.start, 0, self.num_steps + 1)
        noisy = images + self.start * _noise_like(images, rng)
        for level, next_level in zip(levels[:-1], levels[1:], strict=True):
            noise = self._predict_noise(noisy, level.expand(images.shape[0], 1, 1, 1))
            noisy = noisy - (level - next_level) * noise
        return noisy.clamp(0, 1)

    def _predict_noise(self, noisy: Tensor, levels: Float[Tensor, "batch 1 1 1"]) -> Tensor:
        batch, _, height, width = noisy.shape
        level_map = (levels / self.start).expand(batch, 1, height, width)
        full = self.inlet(torch.cat([noisy - 0.5, level_map], dim=1))
        half = self.middle1(self.down1(F.silu(full)))
        quarter = self.middle2(self.down2(F.silu(half)))
        half = self.middle3(half + F.interpolate(self.up2(quarter), scale_factor=2.0, mode="bilinear"))
        full = full + F.interpolate(self.up1(half), scale_factor=2.0, mode="bilinear")
        noise: Tensor = self.last(self.outlet(full))
        return noise


class _ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))). No normalisation: the statistics of a patch are not a crop's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        _initialise(self.layers)
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, features: Tensor) -> Tensor:
        summed: Tensor = features + self.layers(features)
        return summed


def _initialise(network: nn.Module) -> None:
    """He initialisation: torch's own shrinks the signal threefold in variance with every layer."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def _encoder(channels: int) -> nn.Sequential:
    """Two strided convolutions: a quarter of the side, `channels` channels."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(24, 48, 4, stride=2, padding=1),
        _ResidualBlock(48),
        nn.SiLU(),
        nn.Conv2d(48, channels, 3, padding=1),
    )


def _transposed(channels_in: int, channels_out: int) -> nn.Module:
    # 3 is no multiple of 2: neighbouring outputs get 1, 2 or 4 terms, hence the checkerboard
    return nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1)


def _nearest(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels_in, channels_out, 3, padding=1))


def _noise_like(images: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=rng)


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
            bottleneck="a quarter of the side, 8 channels, sampled",
            compression=6.0,
        ),
        "deconv": GeneratorFamily(
            build=lambda: ConvolutionalAutoencoder(_transposed, latent_channels=12),
            description="autoencoder with a transposed-convolution decoder",
            bottleneck="a quarter of the side, 12 channels",
            compression=4.0,
        ),
        "nearest": GeneratorFamily(
            build=lambda: ConvolutionalAutoencoder(_nearest, latent_channels=12),
            description="autoencoder with a nearest-upsampling decoder",
            bottleneck="a quarter of the side, 12 channels",
            compression=4.0,
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
            bottleneck="a quarter of the side, 4 codes of 8 bits",
            compression=12.0,
        ),
        "diffusion": GeneratorFamily(
            build=Diffusion,
            description="short diffusion from a partially noised image",
            bottleneck="noise of standard deviation 0.1, 4 denoising steps",
            compression=1.0,
        ),
    }
)
"""The generators of the demo by name."""


def load_generator(name: str) -> Regenerator:
    """A generator with the weights that are shipped (float16 on disk), float32, in evaluation mode."""
    network = look_up("demo generator", GENERATORS, name).build()
    weights = files("causal_tune.demo").joinpath("weights", f"{name}.safetensors")
    if not weights.is_file():
        raise WeightsError(
            f"The weights of the demo generator {name} are missing (expected {name}.safetensors in "
            "causal_tune/demo/weights). Install the package again, or make them with "
            "`python -m causal_tune.demo.train_generators -o causal_tune/demo/weights`."
        )
    tensors = load(weights.read_bytes())
    network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, strict=True)
    return network.eval()
