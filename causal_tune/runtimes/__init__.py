"""The runtimes that compute an encoder's forward pass, by name, and which one a machine takes.

A further runtime is a module with `dtypes_on` and `load`, and a line in `RUNTIMES`;
tests/test_runtimes.py holds it to the contract of `protocol.Runtime`.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from causal_tune.errors import InvalidConfig
from causal_tune.processor import has_avx512, has_bfloat16
from causal_tune.registry import look_up
from causal_tune.runtimes.protocol import EncoderDescription, Runtime
from causal_tune.towers import Tower

__all__ = ["RUNTIMES", "RuntimeKind", "check_dtype", "choose_runtime"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeKind:
    """One way to compute the forward pass; its module is imported when something is loaded."""

    module: str
    package: str
    """What it needs, by the name that is imported."""
    dtypes_on: Callable[[torch.device], tuple[str, ...]]
    """The number formats that it computes in on such a device of this machine; empty: not at all."""
    is_preferred_on: Callable[[torch.device], bool]
    """Whether it was measured to be faster there than those behind it in the table."""

    @property
    def is_installed(self) -> bool:
        """Whether its package is there; looks for it, does not import it."""
        return importlib.util.find_spec(self.package) is not None

    def load(
        self,
        tower: Tower,
        state: dict[str, Tensor],
        description: EncoderDescription,
        *,
        device: torch.device,
        num_threads: int,
        cache_dir: Path,
    ) -> Runtime:
        """The runtime over the tensors of `state`; what it makes once for all it keeps in `cache_dir`."""
        loaded: Runtime = importlib.import_module(self.module).load(
            tower, state, description, device=device, num_threads=num_threads, cache_dir=cache_dir
        )
        return loaded


def _openvino_dtypes(device: torch.device) -> tuple[str, ...]:
    if device.type != "cpu":
        return ()
    # where a processor has no bfloat16, OpenVINO would compute in float32 and not say so
    return ("float32", "bfloat16", "int8") if has_bfloat16(device) else ("float32", "int8")


def _torch_dtypes(device: torch.device) -> tuple[str, ...]:
    # float16 products are slow on CPUs
    return ("float32", "bfloat16", "float16") if device.type == "cuda" else ("float32", "bfloat16")


RUNTIMES: Mapping[str, RuntimeKind] = MappingProxyType(
    {
        "openvino": RuntimeKind(
            module="causal_tune.runtimes.openvino_runtime",
            package="openvino",
            dtypes_on=_openvino_dtypes,
            # With AVX-512 and AMX it encoded 2.7 times as fast as torch in float32 and 1.7 times in bfloat16;
            # with AVX2 alone both are equally fast (benchmarks/extraction.py measures both).
            is_preferred_on=lambda device: device.type == "cpu" and has_avx512(),
        ),
        "torch": RuntimeKind(
            module="causal_tune.runtimes.torch_runtime",
            package="torch",
            dtypes_on=_torch_dtypes,
            is_preferred_on=lambda device: True,
        ),
    }
)
"""`auto` takes the first that is preferred on the device: OpenVINO on CPUs with AVX-512, torch elsewhere.

The choice reads facts of the machine, never a clock: the runtime is part of the features' fingerprint."""


def choose_runtime(runtime: str, dtype: str, device: torch.device) -> str:
    """A name of `RUNTIMES`, or the one that `auto` takes for this dtype on this device.

    `UnknownName` for any other name, `InvalidConfig` for one whose package is missing.

    >>> choose_runtime("auto", "float32", torch.device("cuda"))
    'torch'
    """
    if runtime == "auto":
        able = [n for n, kind in RUNTIMES.items() if kind.is_installed and dtype in kind.dtypes_on(device)]
        preferred = [name for name in able if RUNTIMES[name].is_preferred_on(device)]
        return [*preferred, *able, "torch"][0]
    kind = look_up("runtime", RUNTIMES, runtime)
    if not kind.is_installed:
        raise InvalidConfig(
            f"The runtime {runtime} needs the package {kind.package}, which is not installed. Install it with "
            f"`pip install {kind.package}`, or take --runtime auto."
        )
    return runtime


def check_dtype(runtime: str, dtype: str, device: torch.device) -> None:
    """Raise `InvalidConfig` where `runtime` cannot compute in `dtype` on this device, and say what can."""
    possible = {name: kind.dtypes_on(device) for name, kind in RUNTIMES.items() if kind.is_installed}
    if dtype in possible[runtime]:
        return
    if dtype == "float16" and device.type == "cpu":
        raise InvalidConfig("float16 is slow on CPUs: use auto, bfloat16 or float32, or a CUDA device.")
    if not possible[runtime]:
        raise InvalidConfig(f"The runtime {runtime} does not run on {device.type}: take --runtime auto.")
    others = [name for name, dtypes in possible.items() if dtype in dtypes]
    step = f", or --runtime {others[0]}" if others else ""
    raise InvalidConfig(
        f"The runtime {runtime} does not compute in {dtype} on this {device.type}; it does in "
        f"{', '.join(possible[runtime])}. Take one of those{step}."
    )
