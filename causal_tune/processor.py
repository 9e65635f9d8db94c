"""What the device that computes can do."""

import torch

__all__ = ["has_avx512", "has_bfloat16"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are instructions of the device, not emulated and then slow."""
    if device.type == "cuda":
        # A driver without a GPU describes what its workers will do: all GPUs since 2020 have bfloat16.
        return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
    features = torch.cpu.get_capabilities()
    return any(bool(features.get(feature)) for feature in ("avx512_bf16", "amx_bf16", "bf16"))


def has_avx512() -> bool:
    """Whether this machine's processor computes on 512 bits at once."""
    return bool(torch.cpu.get_capabilities().get("avx512_f"))
