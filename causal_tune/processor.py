"""What the device that computes can do."""

import torch

__all__ = ["has_amx", "has_avx512", "has_bfloat16", "multiplies"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are instructions of the device, not emulated and then slow."""
    if device.type == "cuda":
        # A driver without a GPU describes what its workers will do: all GPUs since 2020 have bfloat16.
        return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
    features = torch.cpu.get_capabilities()
    return any(bool(features.get(feature)) for feature in ("avx512_bf16", "amx_bf16", "bf16"))


def multiplies(dtype: str, device: torch.device) -> bool:
    """Whether products of this number format are instructions of the device.

    >>> multiplies("float32", torch.device("cpu")), multiplies("float16", torch.device("cpu"))
    (True, False)
    """
    if dtype == "bfloat16":
        return has_bfloat16(device)
    return device.type == "cuda" if dtype == "float16" else True


def has_amx() -> bool:
    """Whether this machine's processor multiplies tiles of bfloat16."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def has_avx512() -> bool:
    """Whether this machine's processor computes on 512 bits at once."""
    return bool(torch.cpu.get_capabilities().get("avx512_f"))
