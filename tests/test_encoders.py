import subprocess
import sys
from pathlib import Path

import pytest

from causal_tune.encoders import ENCODERS, is_weights_path, resolve
from causal_tune.errors import InvalidConfig, UnknownName, WeightsError
from causal_tune.towers import (
    _TOWERS,
    TINY,
    _open_clips_tower,
    infer_architecture,
    tiny_state,
    tower_of,
    tower_shapes,
)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_the_table_resolves_to_a_tower_on_224_pixels(name: str) -> None:
    encoder = resolve(name)
    assert encoder.name == name
    assert encoder.summary
    tower = tower_of(str(encoder.architecture))
    assert tower.image_size == 224
    assert tower.image_size % tower.patch_size == 0
    assert tower.width % tower.num_heads == 0


@pytest.mark.parametrize("name", ["vit-b-16", "vit-b-16-int8", "vit-l-14"])
def test_openai_weights_are_run_with_quick_gelu(name: str) -> None:
    assert tower_of(str(resolve(name).architecture)).quick_gelu


def test_the_sizes_of_the_papers_encoder() -> None:
    tower = tower_of("ViT-L-14-quickgelu")  # CLIP, Radford et al. 2021, table 20
    assert (tower.width, tower.num_blocks, tower.num_heads, tower.output_width) == (1024, 24, 16, 768)


def test_a_model_and_tag_of_open_clip_resolve() -> None:
    encoder = resolve("ViT-B-32-quickgelu:openai")
    assert (encoder.architecture, encoder.pretrained) == ("ViT-B-32-quickgelu", "openai")
    assert encoder.needs_fetch


def test_the_normalisation_is_that_of_the_weights() -> None:
    # laion2b_s32b_b82k was trained on inputs in [-1, 1], unlike its neighbours
    assert resolve("ViT-L-14:laion2b_s32b_b82k").mean == (0.5, 0.5, 0.5)
    assert resolve("ViT-L-14:laion400m_e32").mean == ENCODERS["vit-l-14"].mean


def test_openai_weights_with_the_wrong_activation_are_refused() -> None:
    with pytest.raises(UnknownName, match="use ViT-L-14-quickgelu:openai"):
        resolve("ViT-L-14:openai")


def test_an_unknown_name_lists_the_table_and_close_names() -> None:
    with pytest.raises(UnknownName, match=r"close to it: tiny-random.*vit-b-16-int8"):
        resolve("tiny-randon")


def test_an_unknown_model_of_open_clip_lists_close_names() -> None:
    with pytest.raises(UnknownName, match="ViT-B-32-quickgelu:openai"):
        resolve("ViT-B32-quickgelu:openai")


def test_an_unknown_tag_of_open_clip_lists_the_tags_of_the_model() -> None:
    with pytest.raises(UnknownName, match="openai, laion400m_e31"):
        resolve("ViT-B-32-quickgelu:laion5b")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WeightsError, match=r"no weights file /no/such\.safetensors"):
        resolve("/no/such.safetensors")


def test_a_path_may_name_its_architecture_and_hold_an_at_sign(tmp_path: Path) -> None:
    path = tmp_path / "me@home" / "clip.pt"
    path.parent.mkdir()
    path.touch()
    assert resolve(str(path)).architecture is None
    encoder = resolve(f"{path}@ViT-B-32")
    assert (encoder.path, encoder.architecture) == (path, "ViT-B-32")
    assert resolve(encoder.name) == encoder


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve("clip.safetensors").name == str(tmp_path / "clip.safetensors")
    assert is_weights_path("CLIP.SafeTensors")


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("RN50", "it is a ResNet"),
        ("ViT-B-16-SigLIP", "timm_model_name"),
        ("coca_ViT-B-32", "attentional_pool"),
        ("ViT-L-14-336", "336 x 336"),
    ],
)
def test_a_tower_that_would_be_computed_wrongly_is_refused(architecture: str, reason: str) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        tower_of(architecture)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UnknownName, match="ViT-B-17"):
        tower_of("ViT-B-17")


def shapes_of(architecture: str) -> dict[str, object]:
    import torch

    from tests.open_clip_towers import empty_tower

    with torch.device("meta"):
        return dict(empty_tower(tower_of(architecture)).state_dict())


@pytest.mark.parametrize("architecture", sorted(_TOWERS))
def test_the_towers_with_short_names_are_open_clips(architecture: str) -> None:
    if architecture != TINY.architecture:
        assert tower_of(architecture) == _open_clips_tower(architecture)
    theirs = {name: tuple(tensor.shape) for name, tensor in shapes_of(architecture).items()}  # type: ignore[attr-defined]
    assert tower_shapes(tower_of(architecture)) == theirs


def test_encoders_with_short_names_load_without_open_clip() -> None:
    code = "import sys; from causal_tune.clip import load_encoder; load_encoder('tiny-random')"
    code += "; from causal_tune.towers import tower_of; tower_of('ViT-L-14-quickgelu')"
    code += "; sys.exit('open_clip' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("architecture", "inferred"),
    [
        ("ViT-B-16", "ViT-B-16-quickgelu"),
        ("ViT-B-32-quickgelu", "ViT-B-32-quickgelu"),
        ("ViT-L-14", "ViT-L-14-quickgelu"),
        ("ViT-H-14-quickgelu", "ViT-H-14"),
        ("ViT-M-16", "ViT-M-16"),
    ],
)
def test_an_architecture_is_inferred_from_shapes_and_the_choice_of_activation_told(
    architecture: str, inferred: str
) -> None:
    found, note = infer_architecture(shapes_of(architecture), source="w.pt")  # type: ignore[arg-type]
    assert found == inferred
    assert f"taken for {inferred}, that is with" in note
    if inferred != "ViT-M-16":
        assert "write w.pt@ViT-" in note


def test_shapes_that_no_model_has_are_told() -> None:
    with pytest.raises(WeightsError, match=f"{TINY.num_blocks} blocks of width {TINY.width}"):
        infer_architecture(tiny_state(), source="w.pt")
