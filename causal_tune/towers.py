"""The only door to open_clip: its names, its downloads, and its visual towers.

A tower is open_clip's plain `VisionTransformer`: class token, learned positions, layer norm before the
blocks, class token pooled, one projection. OpenAI's, LAION's, DataComp's and MetaCLIP's ViT models are
such towers. Others (ResNets, timm models, SigLIP) are refused with a reason.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causal_tune.errors import InvalidConfig, UnknownName, WeightsError

__all__ = [
    "TINY",
    "Tower",
    "check_state",
    "download",
    "infer_architecture",
    "normalisation",
    "pretrained_names",
    "tiny_state",
    "tower_of",
    "tower_shapes",
]

_PLAIN_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
"""What open_clip's configuration of a plain tower says; any other key changes the computation."""

_OPENAI_SHAPES = {(768, 12, 32), (768, 12, 16), (1024, 24, 14)}
"""Width, blocks and patch size of the vision transformers that OpenAI released, all with QuickGELU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    """The sizes of one visual tower."""

    architecture: str
    image_size: int
    patch_size: int
    width: int
    num_blocks: int
    num_heads: int
    mlp_width: int
    output_width: int
    """Width of the projected features."""
    quick_gelu: bool
    """x * sigmoid(1.702 x) in place of GELU."""


TINY = Tower(
    architecture="tiny",
    image_size=224,
    patch_size=32,
    width=64,
    num_blocks=3,
    num_heads=4,
    mlp_width=256,
    output_width=32,
    quick_gelu=True,
)
"""The tower of `tiny-random`."""

_TOWERS = {
    TINY.architecture: TINY,
    **{
        architecture: Tower(
            architecture=architecture,
            image_size=224,
            patch_size=patch_size,
            width=width,
            num_blocks=num_blocks,
            num_heads=width // 64,
            mlp_width=4 * width,
            output_width=output_width,
            quick_gelu=True,
        )
        for architecture, patch_size, width, num_blocks, output_width in (
            ("ViT-B-16-quickgelu", 16, 768, 12, 512),
            ("ViT-L-14-quickgelu", 14, 1024, 24, 768),
        )
    },
}
"""Towers of the encoders with short names: asking open_clip costs every process its import, 6 s of a core."""


def pretrained_names() -> list[tuple[str, str]]:
    """Model and tag of every pretrained model that open_clip knows."""
    import open_clip  # here, for it takes seconds that most commands need not wait

    return [(str(model), str(tag)) for model, tag in open_clip.list_pretrained()]


def normalisation(
    architecture: str, tag: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation that open_clip's weights `tag` were trained with."""
    import open_clip

    config = open_clip.get_pretrained_cfg(architecture, tag)
    mean, std = config["mean"], config["std"]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def download(architecture: str, tag: str) -> Path:
    """Bring open_clip's file of these weights, into the cache that open_clip itself uses.

    Raises what open_clip's download raises; `weights.fetch` turns it into a `WeightsError`.
    """
    import open_clip

    return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(architecture, tag)))


def tower_of(architecture: str) -> Tower:
    """The sizes that open_clip's configuration gives for a model name.

    Raises `UnknownName` for a name that it does not have and `InvalidConfig` for a model that is no
    plain vision transformer on 224 x 224 pixels.
    """
    if architecture in _TOWERS:
        return _TOWERS[architecture]
    return _open_clips_tower(architecture)


def _open_clips_tower(architecture: str) -> Tower:
    import open_clip

    config = open_clip.get_model_config(architecture)
    if config is None:
        raise UnknownName(
            f"open_clip has no architecture called {architecture!r}. "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists those it has."
        )
    vision: dict[str, Any] = config["vision_cfg"]
    extra = sorted(key for key, value in vision.items() if key not in _PLAIN_KEYS and value)
    # CoCa, SigLIP and their like are named by their own sections of the configuration.
    extra += sorted(key for key in ("multimodal_cfg", "custom_text") if config.get(key))
    if extra or not isinstance(vision.get("layers"), int):
        what = f"its configuration has {', '.join(extra)}" if extra else "it is a ResNet"
        raise InvalidConfig(
            f"{architecture} is no plain vision transformer ({what}), and only those are run here. "
            "Use one such as ViT-B-32-quickgelu, ViT-B-16-quickgelu, ViT-L-14-quickgelu or ViT-H-14."
        )
    image_size = vision["image_size"]
    if image_size != 224:
        raise InvalidConfig(
            f"{architecture} takes {image_size} x {image_size} pixels; images are cropped to 224 x 224 "
            "here. Use its 224-pixel relative."
        )
    return Tower(
        architecture=architecture,
        image_size=image_size,
        patch_size=vision["patch_size"],
        width=vision["width"],
        num_blocks=vision["layers"],
        num_heads=vision["width"] // vision.get("head_width", 64),
        mlp_width=int(vision["width"] * vision.get("mlp_ratio", 4.0)),
        output_width=config["embed_dim"],
        quick_gelu=bool(config.get("quick_gelu", False)),
    )


def tower_shapes(tower: Tower) -> dict[str, tuple[int, ...]]:
    """The tensors of a visual tower: shapes by open_clip's names.

    >>> tower_shapes(TINY)["transformer.resblocks.2.mlp.c_fc.weight"]
    (256, 64)
    """
    width = tower.width

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}weight": (outputs, inputs), f"{name}bias": (outputs,)}

    num_positions = 1 + (tower.image_size // tower.patch_size) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (num_positions, width),
        "conv1.weight": (width, 3, tower.patch_size, tower.patch_size),
        "proj": (width, tower.output_width),
        **norm("ln_pre"),
        **norm("ln_post"),
    }
    for block in range(tower.num_blocks):
        part = f"transformer.resblocks.{block}"
        shapes |= norm(f"{part}.ln_1") | norm(f"{part}.ln_2")
        shapes |= linear(f"{part}.attn.in_proj_", 3 * width, width)
        shapes |= linear(f"{part}.attn.out_proj.", width, width)
        shapes |= linear(f"{part}.mlp.c_fc.", tower.mlp_width, width)
        shapes |= linear(f"{part}.mlp.c_proj.", width, tower.mlp_width)
    return shapes


def check_state(tower: Tower, state: Mapping[str, Tensor], *, source: str) -> None:
    """`WeightsError` unless `state` holds the tower's tensors, all and no others, in their shapes, and finite.

    `source` names the weights in the error.
    """
    wanted = tower_shapes(tower)
    wrong = [f"it lacks {name}" for name in sorted(wanted.keys() - state.keys())]
    wrong += [f"it has {name}" for name in sorted(state.keys() - wanted.keys())]
    wrong += [
        f"{name} has the shape {tuple(state[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"The weights in {source} are not those of {tower.architecture}: {'; '.join(wrong[:3])}{more}. If they "
            "are of another architecture, name it: weights.safetensors@ViT-L-14-quickgelu."
        )
    for name in wanted:
        finite = torch.isfinite(state[name])
        if not finite.all():
            raise WeightsError(
                f"The weights in {source} are damaged: {int((~finite).sum()):,} of the {finite.numel():,} values of "
                f"{name} are NaN or infinite, and so would be the features of every image. Copy the file again, or "
                "take an earlier checkpoint of the training that wrote it."
            )


def tiny_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of the tower `TINY`: the same in every process, the global generator untouched.

    >>> tiny_state()["proj"].shape
    torch.Size([64, 32])
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in sorted(tower_shapes(TINY).items()):
        values = torch.randn(shape, generator=generator)
        if "ln_" in name:  # layer norms near the identity, as in a trained tower
            state[name] = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            state[name] = values / TINY.width**0.5
    return state


def infer_architecture(state: dict[str, Tensor], *, source: str) -> tuple[str, str]:
    """The architecture that a tower's tensors have, and a sentence on what was chosen and why.

    Shapes do not tell QuickGELU from GELU. Weights of the sizes that OpenAI released are taken for
    QuickGELU, as OpenAI's are; others for open_clip's model of the plain name. Raises `WeightsError`
    where no model of open_clip has these shapes.
    """
    import open_clip

    read_from = {
        "conv1.weight": 4,
        "positional_embedding": 2,
        "transformer.resblocks.0.mlp.c_fc.weight": 2,
        "proj": 2,
    }
    for name, ndim in read_from.items():
        if name not in state or state[name].ndim != ndim:
            found_shape = (
                f"the shape of {name} is {tuple(state[name].shape)}" if name in state else f"it lacks {name}"
            )
            raise WeightsError(
                f"{source} holds no CLIP visual tower that can be used: {found_shape}. Give the weights of a vision "
                "transformer with its projection, in the names of open_clip, OpenAI or Hugging Face transformers."
            )
    width, _, patch_size, _ = state["conv1.weight"].shape
    num_positions = state["positional_embedding"].shape[0]
    mlp_width = state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    output_width = state["proj"].shape[1]
    blocks = [re.match(r"transformer\.resblocks\.(\d+)\.", name) for name in state]
    num_blocks = 1 + max(int(match[1]) for match in blocks if match)
    image_size = round((num_positions - 1) ** 0.5) * patch_size
    sizes = (image_size, patch_size, width, num_blocks, mlp_width, output_width)
    found: list[Tower] = []
    for architecture in open_clip.list_models():
        if not architecture.startswith("ViT-"):  # the same towers beside other text encoders
            continue
        try:
            tower = tower_of(architecture)
        except InvalidConfig:
            continue
        if sizes == (
            tower.image_size,
            tower.patch_size,
            tower.width,
            tower.num_blocks,
            tower.mlp_width,
            tower.output_width,
        ):
            found.append(tower)
    if not found:
        raise WeightsError(
            f"No 224-pixel vision transformer of open_clip has the shapes in {source}: {num_blocks} blocks "
            f"of width {width}, patches of {patch_size}, input of {image_size} pixels, features of width "
            f"{output_width}."
        )
    quick_gelu = (width, num_blocks, patch_size) in _OPENAI_SHAPES
    preferred = [tower for tower in found if tower.quick_gelu == quick_gelu] or found
    chosen = min(preferred, key=lambda tower: len(tower.architecture))
    activation, other = ("QuickGELU", "GELU") if chosen.quick_gelu else ("GELU", "QuickGELU")
    others = [tower.architecture for tower in found if tower.quick_gelu != chosen.quick_gelu]
    note = f"{source} is taken for {chosen.architecture}, that is with {activation}"
    if others:
        override = min(others, key=len)
        note += f"; if it was trained with {other}, write {source}@{override}"
    return chosen.architecture, note + "."
