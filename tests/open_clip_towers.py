"""open_clip's own visual towers: what the runtimes and the shapes are compared with."""

import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from causal_tune.towers import Tower


def build_tower(tower: Tower, state: dict[str, Tensor]) -> nn.Module:
    """open_clip's visual tower with the weights of `state`, every tensor of which must find its place."""
    with torch.device("meta"):  # no time for random weights that are replaced at once
        module = empty_tower(tower)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def empty_tower(tower: Tower) -> nn.Module:
    module: nn.Module = VisionTransformer(
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        width=tower.width,
        layers=tower.num_blocks,
        heads=tower.num_heads,
        mlp_ratio=tower.mlp_width / tower.width,
        output_dim=tower.output_width,
        act_layer=QuickGELU if tower.quick_gelu else nn.GELU,
    )
    return module
