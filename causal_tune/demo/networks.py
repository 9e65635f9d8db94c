"""The networks of the demo's generators: tiny, of different families, each makes an image anew.

Each takes a crop through a bottleneck that loses something and makes it anew with its own kind of
decoder, which leaves the traces of its family. All are convolutional throughout: trained on
patches, run on whole crops. Images are float32 in [0, 1], [B, 3, H, W] with H and W multiples of 4.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = [
    "ConvolutionalAutoencoder",
    "Diffusion",
    "LatentAutoencoder",
    "Regenerator",
    "SuperResolution",
    "VectorQuantisedAutoencoder",
    "nearest_upsampling",
    "transposed_upsampling",
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

    kl_weight = 1e-6

    def __init__(self, latent_channels: int = 12) -> None:
        super().__init__()
        self.encoder = _Encoder(latent_channels)
        self.log_variance = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = _decoder(latent_channels, nearest_upsampling)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, -6.0)  # type: ignore[arg-type]

    def loss(self, images: Images, *, progress: float, rng: torch.Generator) -> Float[Tensor, ""]:
        """L1 distance plus the weighted KL term, per latent value."""
        mean, log_variance = self._posterior(images)
        latents = mean + (0.5 * log_variance).exp() * _noise_like(mean, rng)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return F.l1_loss(self._decode(latents), images) + self.kl_weight * divergence

    def regenerate(self, images: Images, *, rng: torch.Generator) -> Images:
        """Decode the mean of the posterior; `rng` is not used."""
        mean, _ = self._posterior(images)
        return self._decode(mean).clamp(0, 1)

    def _posterior(self, images: Images) -> tuple[Tensor, Tensor]:
        mean = self.encoder(images - 0.5)
        return mean, self.log_variance(mean).clamp(-12, 4)

    def _decode(self, latents: Tensor) -> Images:
        images: Tensor = self.decoder(latents) + 0.5
        return images


class ConvolutionalAutoencoder(Regenerator):
    """Plain autoencoder; `upsampling` builds one layer that doubles the side.

    With transposed convolutions whose kernel is no multiple of the stride it leaves the
    checkerboard of early GANs; with nearest upsampling, their successors' blocks.
    """

    def __init__(
        self, upsampling: Callable[[int, int], nn.Module], latent_channels: int, num_doublings: int
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(latent_channels, num_doublings)
        self.decoder = _decoder(latent_channels, upsampling, num_doublings)

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
        _initialise(self.body)

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

    def __init__(self, num_groups: int = 8, num_codes: int = 256, code_size: int = 2) -> None:
        super().__init__()
        self.encoder = _Encoder(num_groups * code_size)
        self.codebooks = nn.Parameter(torch.zeros(num_groups, num_codes, code_size))
        self.decoder = _decoder(num_groups * code_size, _transposed_by_twice_the_stride)

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

    start = 0.08
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
        _initialise(self)

    def loss(self, images: Images, *, progress: float, rng: torch.Generator) -> Float[Tensor, ""]:
        """Squared error of the predicted noise, at noise levels uniform in (0, start]."""
        levels = self.start * (1 - torch.rand(images.shape[0], 1, 1, 1, generator=rng))
        noise = _noise_like(images, rng)
        return F.mse_loss(self._predict_noise(images + levels * noise, levels), noise)

    def regenerate(self, images: Images, *, rng: torch.Generator) -> Images:
        """Add noise of the level `start` and denoise in `num_steps` equal steps."""
        levels = torch.linspace(self.start, 0, self.num_steps + 1)
        noisy = images + self.start * _noise_like(images, rng)
        for level, next_level in pairwise(levels):
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
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        summed: Tensor = features + self.second(F.silu(self.first(F.silu(features))))
        return summed


class _Encoder(nn.Module):
    """A linear map of each block of pixels plus a convolutional correction.

    One block of 2 or 4 pixels a side (`num_halvings` 1 or 2) becomes one position of the latent. The
    linear map begins orthogonal, the correction at zero: with so few training steps that is worth
    1 dB.
    """

    def __init__(self, channels: int, num_halvings: int = 2) -> None:
        super().__init__()
        block = 2**num_halvings
        self.linear = nn.Conv2d(3, channels, block, stride=block)
        self.correction = nn.Sequential(
            nn.Conv2d(3, 24, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 4, stride=2, padding=1) if num_halvings == 2 else nn.Conv2d(24, 48, 1),
            _ResidualBlock(48),
            nn.SiLU(),
            nn.Conv2d(48, channels, 3, padding=1),
        )
        _initialise(self)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.correction[-1].weight)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        latents: Tensor = self.linear(images) + self.correction(images)
        return latents


def _decoder(
    latent_channels: int, upsampling: Callable[[int, int], nn.Module], num_doublings: int = 2
) -> nn.Sequential:
    """Residual blocks, most of them at the latent's size, and `upsampling` (channels in, out)."""
    widths = {1: (32, 16), 2: (64, 32, 16)}[num_doublings]
    layers: list[nn.Module] = [
        nn.Conv2d(latent_channels, widths[0], 3, padding=1),
        _ResidualBlock(widths[0]),
    ]
    for channels_in, channels_out in pairwise(widths):
        layers += [_ResidualBlock(channels_in), upsampling(channels_in, channels_out)]
    decoder = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))
    _initialise(decoder)
    return decoder


def _initialise(network: nn.Module) -> None:
    """He initialisation; torch's own lets the signal fade with every layer (10 dB after 300 steps).

    Residual blocks begin as the identity.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # with transposed convolutions an output sums the kernel's inputs over the stride's area
            fan_in = module.weight.shape[1] * module.kernel_size[0] * module.kernel_size[1]
            if isinstance(module, nn.ConvTranspose2d):
                fan_in = module.weight.shape[0] * module.kernel_size[0] * module.kernel_size[1]
                fan_in //= module.stride[0] * module.stride[1]
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, _ResidualBlock):
            nn.init.zeros_(module.second.weight)


def transposed_upsampling(channels_in: int, channels_out: int) -> nn.Module:
    """Transposed convolution of size 3: no multiple of the stride, so it leaves a checkerboard.

    Neighbouring outputs are sums of 1, 2 or 4 products (Odena et al., 2016).
    """
    return nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1)


def nearest_upsampling(channels_in: int, channels_out: int) -> nn.Module:
    """Every position repeated 2 x 2, then a convolution."""
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels_in, channels_out, 3, padding=1))


def _transposed_by_twice_the_stride(channels_in: int, channels_out: int) -> nn.Module:
    return nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1)


def _noise_like(images: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=rng)
