"""Tensors of a visual tower: read from a file, brought to one naming and dtype, and hashed.

The one form everywhere else is open_clip's: the names of `visual.state_dict()` without a prefix, float32.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping
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


def read_state(path: Path) -> dict[str, Tensor]:
    """The visual tower in a `.safetensors`, or in a `.pt`, `.pth` or `.bin` that holds only tensors.

    Understands the names of open_clip and OpenAI, with or without `visual.`, and those of Hugging Face
    transformers. Raises `WeightsError` where the file is damaged, holds no such tower, or is a pickle
    that would run code.
    """
    if path.suffix.lower() == ".safetensors":
        try:
            loaded: Any = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is no readable safetensors file: {error}. Copy it again.") from error
    else:
        loaded = _load_tensors_only(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise WeightsError(
            f"{path} holds a {type(loaded).__name__}; expected a state dict, that is names and tensors."
        )
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    return canonical_state(tensors, source=str(path))


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
    names = {re.sub(r"^module\.", "", name): tensor for name, tensor in state.items()}
    if any(name.startswith("vision_model.") for name in names):
        names = transformers_to_open_clip(names)
    elif any(name.startswith("visual.") for name in names):
        names = {
            name.removeprefix("visual."): tensor
            for name, tensor in names.items()
            if name.startswith("visual.")
        }
    if "conv1.weight" not in names:
        raise WeightsError(
            f"{source} holds no CLIP visual tower: none of its {len(names)} tensors is called "
            f"visual.conv1.weight; the first ones are {', '.join(sorted(names)[:4]) or 'none'}. Give weights "
            "in the names of open_clip, OpenAI or Hugging Face transformers."
        )
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in names.items()}


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
    are left out.
    """
    found = {new: state[old] for old, new in _RENAMED.items() if old in state}
    if "visual_projection.weight" in state:
        found["proj"] = state["visual_projection.weight"].T
    pattern = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
    for name, tensor in state.items():
        match = pattern.fullmatch(name)
        if not match:
            continue
        block, part, kind = match.groups()
        prefix = f"transformer.resblocks.{block}."
        if part == "self_attn.q_proj":
            parts = [state.get(name.replace("q_proj", letter)) for letter in ("q_proj", "k_proj", "v_proj")]
            if all(piece is not None for piece in parts):
                pieces = [piece for piece in parts if piece is not None]
                found[f"{prefix}attn.in_proj_{kind}"] = torch.cat(pieces)
        elif part in _RENAMED_IN_BLOCK:
            found[f"{prefix}{_RENAMED_IN_BLOCK[part]}.{kind}"] = tensor
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
