"""The encoder's forward pass in torch: the reference of every other runtime, and the one for GPUs.

It is written out here over the weights of open_clip's tower, for speed on CPUs: weights packed once for
oneDNN, activation and residual sums fused into the matrix products, few images at a time so that
activations stay in the cache, and in the last block only the class token where nothing else is asked for.
In float32 it equals open_clip's own to 1e-5 (tests/test_clip.py).

On a CPU every thread computes whole images. A matrix product that is shared among threads rounds by their
number on some processors (measured: float32 with AVX2, not with AVX-512), and one of few rows by how many
they are. So products of one row an image always have as many rows as a full pass, and where bfloat16 is
multiplied by tiles (AMX), which rounds by the number of rows in every product, the last pass is filled with
zeros: an image's features are a function of that image, whatever the batch, the threads and the images
beside it.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from jaxtyping import Float, UInt8
from torch import Tensor

from causal_tune.processor import has_amx, has_bfloat16
from causal_tune.runtimes.cuda_graphs import Recorded, Repeated
from causal_tune.runtimes.protocol import (
    WHOLE_PIXELS_FROM,
    EncoderDescription,
    last_block,
    layer_widths,
    whole_pixel_patches,
)
from causal_tune.towers import Tower

__all__ = ["DTYPES", "TorchRuntime", "load"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Number formats that torch can compute in, by name."""

_CPU_CHUNK = 8
"""Images in one forward pass of a CPU's thread: their widest activation, 10 MB in bfloat16, stays in the cache."""

_QUICK_GELU = 1.702


def load(
    tower: Tower,
    state: dict[str, Tensor],
    description: EncoderDescription,
    *,
    device: torch.device,
    num_threads: int,
    cache_dir: Path,
) -> "TorchRuntime":
    """The forward pass over `state`, ready; it keeps nothing in `cache_dir`."""
    return TorchRuntime(tower, state, description, device=device, num_threads=num_threads)


class _Linear:
    """x -> x W' + b, with what follows it fused in where oneDNN can: an activation, or a sum."""

    def __init__(self, weight: Tensor, bias: Tensor, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = weight.to(device, dtype).contiguous()
        self.bias = bias.to(device, dtype).contiguous()
        # 10-15 % over F.linear, which packs the weights again at every call. These operators are those that
        # torch.compile emits; where a release of torch lacks them, F.linear does the same.
        self.packed: Tensor | None = None
        if dtype == torch.bfloat16 and device.type == "cpu" and _has_onednn_linear():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return self._fused(x, "none", "")

    def silu(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.silu(F.linear(x, self.weight, self.bias), inplace=True)
        return self._fused(x, "swish", "")

    def gelu(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.gelu(F.linear(x, self.weight, self.bias))
        return self._fused(x, "gelu", "none")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias).add_(residual)
        added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.packed, self.bias, "add")
        return added

    def _fused(self, x: Tensor, activation: str, algorithm: str) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, activation, [], algorithm)
        return y


def _has_onednn_linear() -> bool:
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and has_bfloat16(torch.device("cpu"))
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


class _Norm:
    def __init__(self, state: dict[str, Tensor], name: str, **to: Any) -> None:
        self.weight, self.bias = state[f"{name}.weight"].to(**to), state[f"{name}.bias"].to(**to)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


def _scaled_queries(values: Tensor, tower: Tower) -> Tensor:
    """The rows of queries, keys and values, those of the queries divided by sqrt(width of a head)."""
    queries, others = values[: tower.width], values[tower.width :]
    return torch.cat([queries / (tower.width / tower.num_heads) ** 0.5, others])


def _attend(
    q: Float[Tensor, "B h n c"], k: Float[Tensor, "B h N c"], v: Float[Tensor, "B h N c"]
) -> Float[Tensor, "B h n c"]:
    """softmax(q k') v, for queries that are scaled already."""
    if q.device.type == "cuda" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)
    # 1.3 times as fast as torch's fused kernel for 200 tokens, 8 % of a ViT-B/16, and no less exact
    scores = torch.matmul(q, k.transpose(2, 3))
    return torch.matmul(scores.softmax(dim=-1), v)


class _Block:
    """One residual attention block of the tower."""

    def __init__(self, tower: Tower, state: dict[str, Tensor], index: int, **to: Any) -> None:
        part = f"transformer.resblocks.{index}"
        self.num_heads, self.quick_gelu = tower.num_heads, tower.quick_gelu
        # x sigmoid(1.702 x) = silu(1.702 x) / 1.702: the factors go into the weights on both sides (in
        # float32, so nothing is rounded twice), and the fused silu does the rest.
        scale = _QUICK_GELU if tower.quick_gelu else 1.0

        def tensors(name: str) -> tuple[Tensor, Tensor]:
            return state[f"{part}.{name}weight"], state[f"{part}.{name}bias"]

        self.norm_1, self.norm_2 = (_Norm(state, f"{part}.ln_{number}", **to) for number in (1, 2))
        weight, bias = tensors("attn.in_proj_")
        # attention divides its scores by sqrt(width of a head): here the queries already are
        self.qkv = _Linear(_scaled_queries(weight, tower), _scaled_queries(bias, tower), **to)
        self.out = _Linear(*tensors("attn.out_proj."), **to)
        weight, bias = tensors("mlp.c_fc.")
        self.expand = _Linear(weight * scale, bias * scale, **to)
        weight, bias = tensors("mlp.c_proj.")
        self.contract = _Linear(weight / scale, bias, **to)

    def __call__(self, x: Float[Tensor, "B N d"], *, class_only: bool = False) -> Float[Tensor, "B n d"]:
        """The tokens after the block; with `class_only` the class token alone, n = 1."""
        num_images, num_tokens, width = x.shape
        heads = (num_images, num_tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = self.qkv(self.norm_1(x)).reshape(heads).permute(2, 0, 3, 1, 4)
        if class_only:
            q, x = q[:, :, :1], x[:, :1].contiguous()
        attended = _attend(q, k, v).transpose(1, 2).reshape(x.shape)
        if class_only:
            attended, x = _as_full_pass(attended), _as_full_pass(x)
        x = self.out.plus(attended, x)
        hidden = self.norm_2(x)
        hidden = self.expand.silu(hidden) if self.quick_gelu else self.expand.gelu(hidden)
        return self.contract.plus(hidden, x)[:num_images]


def _as_full_pass(x: Float[Tensor, "B ..."]) -> Float[Tensor, "n ..."]:
    """With zeros up to the images of a full pass on a CPU: rounding then does not depend on how many there are.

    >>> _as_full_pass(torch.ones(3, 1, 4)).shape
    torch.Size([8, 1, 4])
    """
    missing = _CPU_CHUNK - len(x)
    return x if missing <= 0 else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])


class TorchRuntime:
    """The tower's forward pass; holds no state but its weights."""

    def __init__(
        self,
        tower: Tower,
        state: dict[str, Tensor],
        description: EncoderDescription,
        *,
        device: torch.device,
        num_threads: int,
    ) -> None:
        self._widths = layer_widths(tower, description.layers)
        self._device = device
        self._dtype = DTYPES[description.dtype]
        self._patch_size = tower.patch_size
        self._whole_passes = device.type == "cpu" and self._dtype == torch.bfloat16 and has_amx()
        to: dict[str, Any] = {"device": device, "dtype": self._dtype}
        self._whole_pixels = description.pixels == "whole"
        self._mean = 255 * torch.tensor(description.mean, device=device)
        self._std = 255 * torch.tensor(description.std, device=device)
        kernel = state["conv1.weight"].permute(0, 2, 3, 1)  # to the crops' order: row, column, channel
        positions = state["positional_embedding"]
        if self._whole_pixels:
            kernel, bias = whole_pixel_patches(kernel, description)
            positions = torch.cat([positions[:1], positions[1:] + bias])
        self._patches = kernel.reshape(tower.width, -1).to(**to).contiguous()
        self._class_token = state["class_embedding"].to(**to)
        self._positions = positions.to(**to)
        self._norm_pre, self._norm_post = (_Norm(state, name, **to) for name in ("ln_pre", "ln_post"))
        self._projection = state["proj"].to(**to).T.contiguous()
        num_blocks = last_block(tower, description.layers)
        self._blocks = [_Block(tower, state, index, **to) for index in range(num_blocks)]
        self._one_at_a_time = Lock()
        self._on_cuda = Repeated(
            lambda pixels: self._forward(pixels.to(device, non_blocking=True)),
            record=lambda pixels: Recorded(self._forward, pixels, device),
        )
        self._threads = ThreadPoolExecutor(
            num_threads, "encoder", initializer=torch.set_num_threads, initargs=(1,)
        )

    def encode(self, crops: UInt8[np.ndarray, "B s s 3"]) -> dict[str, Float[np.ndarray, "B d"]]:
        """The float32 features of every layer; on a GPU they depend on the other crops by rounding."""
        # torch warns of arrays that must not be written to, such as those out of Ray's object store
        pixels = torch.from_numpy(crops if crops.flags.writeable else crops.copy())
        if self._device.type == "cuda":
            with self._one_at_a_time:  # a replayed pass overwrites what it returned before
                return self._to_numpy([self._on_cuda(pixels.pin_memory())], len(pixels))
        passes = list(torch.split(pixels, _CPU_CHUNK))
        if self._whole_passes:
            passes[-1] = _as_full_pass(passes[-1])
        return self._to_numpy(list(self._threads.map(self._forward, passes)), len(pixels))

    def _to_numpy(self, passes: list[dict[str, Tensor]], number: int) -> dict[str, Float[np.ndarray, "B d"]]:
        return {
            layer: torch.cat([one[layer] for one in passes])[:number].float().cpu().numpy()
            for layer in self._widths
        }

    @torch.inference_mode()
    def _forward(self, pixels: UInt8[Tensor, "B s s 3"]) -> dict[str, Float[Tensor, "B d"]]:
        x = self._tokens(pixels)
        found: dict[str, Tensor] = {}
        for number, block in enumerate(self._blocks, start=1):
            is_last = number == len(self._blocks)
            x = block(x, class_only=is_last and f"mean@{number}" not in self._widths)
            if f"cls@{number}" in self._widths:
                found[f"cls@{number}"] = x[:, 0].clone()  # a view would keep all tokens in memory
            if f"mean@{number}" in self._widths:
                found[f"mean@{number}"] = x[:, 1:].mean(dim=1, dtype=torch.float32)
        if "pre" in self._widths or "proj" in self._widths:
            found["pre"] = self._norm_post(x[:, 0])
            found["proj"] = F.linear(_as_full_pass(found["pre"]), self._projection)[: len(pixels)]
        return found

    def _tokens(self, pixels: UInt8[Tensor, "B s s 3"]) -> Float[Tensor, "B N d"]:
        """Class token and patches, with their positions, as they enter the first block."""
        num_images, size, patch = len(pixels), pixels.shape[1], self._patch_size
        grid = size // patch
        if self._whole_pixels:
            x = pixels.to(self._dtype).sub_(WHOLE_PIXELS_FROM)
        else:
            x = pixels.float().sub_(self._mean).div_(self._std)
        x = x.reshape(num_images, grid, patch, grid, patch, 3).permute(0, 1, 3, 2, 4, 5)
        x = F.linear(x.reshape(num_images, grid * grid, -1).to(self._dtype), self._patches)
        class_token = self._class_token.expand(num_images, 1, -1)
        return self._norm_pre(torch.cat([class_token, x], dim=1) + self._positions)
