"""Tensors of a visual tower: read from a file, brought to one naming and dtype, and hashed.

The one form everywhere else is open_clip's: the names of `visual.state_dict()` without a prefix, float32.
"""

import hashlib
import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from causal_tune.errors import WeightsError

__all__ = ["canonical_state", "dequantised_onnx", "read_state", "state_sha256", "transformers_to_open_clip"]


_WRAPPERS = ("state_dict", "model_state_dict", "model", "clip_model")
"""What checkpoints put before the names of a model that is stored once."""

_TRANSPARENT = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that DataParallel, torch.compile and FSDP insert anywhere."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The visual tower in a `.safetensors`, or in a `.pt`, `.pth` or `.bin` that holds only tensors.

    Understands the names of open_clip and OpenAI, with or without `visual.`, and those of Hugging Face
    transformers, behind any prefix (`module.`, `_orig_mod.`, `model.`, ...) and in nested dicts. Raises
    `WeightsError` where the file is damaged, holds no such tower, or is a pickle that would run code.
    """
    if path.suffix.lower() == ".safetensors":
        try:
            loaded: Any = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is no readable safetensors file: {error}. Copy it again.") from error
    else:
        loaded = _load_tensors_only(path)
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"{path} holds a {type(loaded).__name__}; expected a state dict, that is names and tensors."
        )
    return canonical_state(_flat(loaded), source=str(path))


def _flat(loaded: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dicts, the keys joined by dots."""
    found: dict[str, Tensor] = {}
    for key, value in loaded.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
    return found


def _load_tensors_only(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path} is a TorchScript archive, which holds code beside its tensors. If you trust it, "
                "write its tensors alone: `import torch; from safetensors.torch import save_file; "
                f"save_file(torch.jit.load({str(path)!r}, 'cpu').visual.state_dict(), 'visual.safetensors')`."
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors, and reading it could run code"
        else:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(
            f"{path} was not loaded: {reason}. Expected a state dict of tensors; if you trust the file, "
            "convert it to .safetensors with the program that made it."
        ) from error


def canonical_state(state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The visual tower of `state` in open_clip's names without a prefix, contiguous float32."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = ".".join(part for part in name.split(".") if part not in _TRANSPARENT)
        if short in named:
            raise WeightsError(
                f"{source} holds {short} twice, the second time as {name}. Save one of them alone."
            )
        named[short] = tensor
    prefix = _tower_prefix(named, source)
    named = {name[len(prefix) :]: tensor for name, tensor in named.items() if name.startswith(prefix)}
    if any(name.startswith("vision_model.") for name in named):
        named = transformers_to_open_clip(named)
    return {name: _float32(name, tensor, source) for name, tensor in named.items()}


def _tower_prefix(names: Collection[str], source: str) -> str:
    """What stands before the names of the one visual tower that there is."""
    begins = {
        match[1]
        for name in names
        if (match := re.fullmatch(r"((?:.+\.)?)(?:conv1\.weight|class_embedding)", name))
    }
    found = [
        begin for begin in begins if any(name.startswith(f"{begin}transformer.resblocks.") for name in names)
    ]
    found += {
        match[1]
        for name in names
        if (match := re.fullmatch(r"((?:.+\.)?)vision_model\.embeddings\..+", name))
    }
    if len(found) > 1:  # a copy beside the model, such as the averaged weights of a training
        plain = [begin for begin in found if set(begin.split(".")) <= {*_WRAPPERS, "visual", ""}]
        found = plain if len(plain) == 1 else sorted(found)
    if len(found) == 1:
        return found[0]
    if found:
        raise WeightsError(
            f"{source} holds {len(found)} visual towers, whose names begin with {', '.join(map(repr, found))}. "
            "Save the tensors of the one that you mean alone."
        )
    if any(f"{begin}layer1.0.conv1.weight" in names for begin in begins):
        raise WeightsError(
            f"{source} holds a ResNet; only plain vision transformers can be used, such as ViT-B-16 or ViT-L-14. "
            "Give the weights of one."
        )
    raise WeightsError(
        f"{source} holds no CLIP visual tower: none of its {len(names)} tensors is called visual.conv1.weight; "
        f"the first ones are {', '.join(sorted(names)[:4]) or 'none'}. Give weights in the names of open_clip, "
        "OpenAI or Hugging Face transformers."
    )


def _float32(name: str, tensor: Tensor, source: str) -> Tensor:
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        kind = (
            "has no values" if tensor.is_meta else f"is {tensor.dtype}, {tensor.layout}".replace("torch.", "")
        )
        raise WeightsError(
            f"{source} cannot be used: its tensor {name} {kind}; dense floating-point numbers were expected. "
            "Save the weights unquantised, as float32, float16 or bfloat16."
        )
    return tensor.detach().to(torch.float32).contiguous()


_RENAMED = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.pre_layrnorm.weight": "ln_pre.weight",  # spelt so in transformers
    "vision_model.pre_layrnorm.bias": "ln_pre.bias",
    "vision_model.post_layernorm.weight": "ln_post.weight",
    "vision_model.post_layernorm.bias": "ln_post.bias",
}
_RENAMED_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def transformers_to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vision tower in the names of Hugging Face transformers, in those of open_clip.

    Query, key and value become one matrix; the projection is stored transposed. Names of a text tower
    are left out; what the vision tower has beside these (an adapter, say) keeps its name.
    """
    found = {new: state[old] for old, new in _RENAMED.items() if old in state}
    if "visual_projection.weight" in state:
        found["proj"] = state["visual_projection.weight"].t()
    pattern = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
    for name, tensor in state.items():
        match = pattern.fullmatch(name)
        block, part, kind = match.groups() if match else ("", "", "")
        prefix = f"transformer.resblocks.{block}."
        if part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            pieces = [
                state[piece]
                for letter in "qkv"
                if (piece := f"vision_model.encoder.layers.{block}.self_attn.{letter}_proj.{kind}") in state
            ]
            # where one is missing or of another width, the shape of the whole says so
            if len({piece.shape[1:] for piece in pieces}) == 1:
                found[f"{prefix}attn.in_proj_{kind}"] = torch.cat(pieces)
        elif part in _RENAMED_IN_BLOCK:
            found[f"{prefix}{_RENAMED_IN_BLOCK[part]}.{kind}"] = tensor
        elif name.startswith("vision_model.") and name not in _RENAMED and not name.endswith(".position_ids"):
            found[name] = tensor
    return found


def dequantised_onnx(content: bytes) -> dict[str, Tensor]:
    """Float32 weights of a dynamically quantised ONNX export, in the names of its linear layers.

    Each `MatMulInteger` node `/a/b/MatMul_quant` has a weight W [in, out] of 8-bit integers, and beside it
    `..._scale` and `..._zero_point`, [out] or one number. The result has `a.b.weight` [out, in]:

        weight = ((W - zero_point) * scale) transposed

    The other float tensors keep their names. Only tensors are read; nothing of the graph is run.
    """
    graph = onnx.load_model_from_string(content).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> np.ndarray[Any, Any]:
        return np.asarray(onnx.numpy_helper.to_array(arrays[name]))

    state: dict[str, Tensor] = {}
    quantised: set[str] = set()
    for node in graph.node:
        if node.op_type != "MatMulInteger" or node.input[1] not in arrays:
            continue
        base = node.input[1].removesuffix("_quantized")
        integers, scale, zero_point = (base + end for end in ("_quantized", "_scale", "_zero_point"))
        quantised |= {integers, scale, zero_point}
        offset = array(integers).astype(np.int16) - array(zero_point).astype(np.int16)
        weight = offset.astype(np.float32) * array(scale).astype(np.float32)
        layer = re.sub(r"/MatMul(_\d+)?_quant$", "", node.name).strip("/").replace("/", ".")
        state[f"{layer}.weight"] = torch.from_numpy(np.ascontiguousarray(weight.T))
    for name, tensor in arrays.items():
        if tensor.data_type == onnx.TensorProto.FLOAT and name not in quantised:
            state[name] = torch.from_numpy(array(name).copy())
    return state


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 values, so the same for any file that holds them.

    >>> state_sha256({"a": torch.zeros(2)}) == state_sha256({"a": torch.zeros(2, dtype=torch.float16)})
    True
    >>> state_sha256({"a": torch.zeros(2)}) == state_sha256({"a": torch.zeros(1, 2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}:{list(tensor.shape)}:".encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
