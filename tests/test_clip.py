"""The encoder's forward pass against open_clip's own, and what a description promises."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from safetensors.torch import save_file

from causal_tune.clip import (
    ClipEncoder,
    EncoderDescription,
    describe_encoder,
    layer_widths,
    load_encoder,
)
from causal_tune.encoders import CLIP_MEAN, CLIP_STD
from causal_tune.errors import InvalidConfig, WeightsError
from causal_tune.processor import has_bfloat16
from causal_tune.runtimes import torch_runtime
from causal_tune.runtimes.protocol import WHOLE_PIXELS_FROM, whole_pixel_patches
from causal_tune.towers import TINY, Tower, tiny_state, tower_of
from causal_tune.weights import fetch, load_state
from tests.open_clip_towers import build_tower, empty_tower

ALL_LAYERS = ("proj", "pre", "cls@1", "cls@2", "cls@3", "mean@1", "mean@2", "mean@3")


def random_crops(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 224, 224, 3), dtype=np.uint8)


def normalised(crops: np.ndarray) -> torch.Tensor:
    """The input of open_clip's own tower, by its own order of operations."""
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def of_open_clip(tower: Tower, state: dict[str, torch.Tensor], crops: np.ndarray) -> dict[str, np.ndarray]:
    """Every layer by open_clip's own modules, in float32, kept by hooks."""
    module = build_tower(tower, state)
    found: dict[str, torch.Tensor] = {}

    def keep(number: int) -> object:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
            found[f"cls@{number}"], found[f"mean@{number}"] = output[:, 0], output[:, 1:].mean(dim=1)

        return hook

    for number, block in enumerate(module.transformer.resblocks, start=1):
        block.register_forward_hook(keep(number))
    module.ln_post.register_forward_hook(lambda _m, _i, output: found.update(pre=output[:, 0]))
    with torch.inference_mode():
        found["proj"] = module(normalised(crops))
    return {layer: values.numpy() for layer, values in found.items()}


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.fixture(scope="module")
def tiny() -> ClipEncoder:
    return load_encoder("tiny-random", layers=ALL_LAYERS, dtype="float32", runtime="torch", device="cpu")


def test_every_layer_equals_open_clips_own_in_float32(tiny: ClipEncoder) -> None:
    crops = random_crops(5)
    expected = of_open_clip(TINY, tiny_state(), crops)
    found = tiny.encode(crops)
    assert set(found) == set(ALL_LAYERS)
    for layer in ALL_LAYERS:
        np.testing.assert_allclose(found[layer], expected[layer], rtol=1e-4, atol=1e-5, err_msg=layer)


def test_a_tower_with_plain_gelu_equals_open_clips_own() -> None:
    tower = dataclasses.replace(TINY, quick_gelu=False)
    crops, state = random_crops(3), tiny_state()
    for dtype, bound in (("float32", 1e-5), ("bfloat16", 0.03)):
        description = dataclasses.replace(describe_encoder("tiny-random", runtime="torch"), dtype=dtype)
        found = ClipEncoder(tower, state, description, device=torch.device("cpu")).encode(crops)
        expected = of_open_clip(tower, state, crops)
        assert np.abs(found["proj"] - expected["proj"]).max() < bound * np.abs(expected["proj"]).max()
    quick = of_open_clip(TINY, state, crops)
    assert np.abs(quick["proj"] - expected["proj"]).max() > 1e-3  # so the activation can be told apart


def test_features_are_float32_and_of_the_declared_widths(tiny: ClipEncoder) -> None:
    found = tiny.encode(random_crops(2))
    for layer, width in tiny.widths.items():
        assert (found[layer].shape, found[layer].dtype) == ((2, width), np.float32)
        assert np.isfinite(found[layer]).all()
    assert tiny.widths == {layer: 32 if layer == "proj" else 64 for layer in ALL_LAYERS}


def test_the_same_batch_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from causal_tune.clip import load_encoder\n"
        "crops = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)\n"
        "encoder = load_encoder('tiny-random', device='cpu', num_threads=1)\n"
        "print(hashlib.sha256(encoder.encode(crops)['proj'].tobytes()).hexdigest())\n"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    crops = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    mine = load_encoder("tiny-random", device="cpu", num_threads=2).encode(crops)["proj"]
    assert other.strip() == hashlib.sha256(mine.tobytes()).hexdigest()


def test_an_encoder_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    load_encoder("tiny-random")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bfloat16_stays_near_float32(tiny: ClipEncoder) -> None:
    crops = random_crops(8)
    found = load_encoder(
        "tiny-random", layers=ALL_LAYERS, dtype="bfloat16", runtime="torch", device="cpu"
    ).encode(crops)
    for layer, values in tiny.encode(crops).items():
        assert cosine(found[layer], values).min() > 0.995, layer


def test_patches_of_whole_pixels_are_those_of_normalised_ones() -> None:
    described = describe_encoder("tiny-random", dtype="bfloat16", runtime="torch", device="cpu")
    draw = np.random.default_rng(0)
    kernel = torch.from_numpy(draw.normal(size=(5, 4, 4, 3)))
    pixels = torch.from_numpy(draw.integers(0, 256, (4, 4, 3)).astype(np.float64))
    expected = kernel * ((pixels / 255 - torch.tensor(described.mean)) / torch.tensor(described.std))
    found, bias = whole_pixel_patches(kernel, described)
    whole = pixels - WHOLE_PIXELS_FROM
    torch.testing.assert_close(
        (found * whole).sum(dim=(1, 2, 3)) + bias, expected.sum(dim=(1, 2, 3)), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(whole.to(torch.bfloat16).double(), whole)


def test_low_precision_takes_whole_pixels_and_float32_normalised_ones() -> None:
    """So float32 features, and the fingerprints of their stores, are what they always were."""
    for dtype, expected in (("float32", "normalised"), ("bfloat16", "whole")):
        described = describe_encoder("tiny-random", dtype=dtype, runtime="torch", device="cpu")
        assert described.pixels == expected
        assert ("pixels" in described.values) == (expected == "whole")


def test_bfloat16_without_packed_weights_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = random_crops(3)
    packed = load_encoder("tiny-random", dtype="bfloat16", runtime="torch", device="cpu").encode(crops)[
        "proj"
    ]
    monkeypatch.setattr(torch_runtime, "_has_onednn_linear", lambda: False)
    plain = load_encoder("tiny-random", dtype="bfloat16", runtime="torch", device="cpu").encode(crops)["proj"]
    assert np.abs(packed - plain).max() < 0.02 * np.abs(plain).max()


def test_no_crops_give_no_features(tiny: ClipEncoder) -> None:
    assert {layer: values.shape for layer, values in tiny.encode(random_crops(0)).items()} == {
        layer: (0, width) for layer, width in tiny.widths.items()
    }


def test_crops_that_must_not_be_written_to_are_taken(
    tiny: ClipEncoder, recwarn: pytest.WarningsRecorder
) -> None:
    crops = random_crops(2)
    expected = tiny.encode(crops)["proj"]
    crops.flags.writeable = False
    np.testing.assert_array_equal(tiny.encode(crops)["proj"], expected)
    np.testing.assert_array_equal(crops, random_crops(2))
    assert not recwarn.list


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((1, 224, 224, 3), np.float32),
        np.zeros((224, 224, 3), np.uint8),
        np.zeros((1, 3, 224, 224), np.uint8),
    ],
)
def test_crops_of_another_shape_or_type_are_refused(tiny: ClipEncoder, crops: np.ndarray) -> None:
    with pytest.raises(InvalidConfig, match="takes uint8 of shape"):
        tiny.encode(crops)


@pytest.mark.parametrize("layer", ["cls@0", "cls@4", "mean@04", "cls", "Proj", "mean@-1", ""])
def test_a_layer_that_there_is_not_is_refused(layer: str) -> None:
    with pytest.raises(InvalidConfig, match="cls@1 to cls@3"):
        describe_encoder("tiny-random", layers=["proj", layer])


@pytest.mark.parametrize("layers", [[], "proj"])
def test_layers_must_be_a_list(layers: list[str] | str) -> None:
    with pytest.raises(InvalidConfig, match="give a list of at least one"):
        layer_widths(TINY, layers)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "bf16"}, "use auto, float32, bfloat16, float16"),
        ({"dtype": "float16", "device": "cpu"}, "slow on CPUs"),
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"device": "meta"}, "run on cpu and cuda"),
        ({"num_threads": 0}, "needs at least 1"),
    ],
)
def test_options_that_there_are_not_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        load_encoder("tiny-random", **options)  # type: ignore[arg-type]


def test_a_description_is_that_of_the_loaded_encoder_and_is_json() -> None:
    options = {"layers": ("mean@2", "proj"), "dtype": "float32"}
    described = describe_encoder("tiny-random", **options)  # type: ignore[arg-type]
    assert described == load_encoder("tiny-random", **options).description  # type: ignore[arg-type]
    assert json.loads(json.dumps(dataclasses.asdict(described)))["layers"] == ["proj", "mean@2"]


def test_the_order_and_repetition_of_layers_do_not_matter() -> None:
    one = describe_encoder("tiny-random", layers=["cls@2", "proj", "cls@1", "proj"])
    assert one == describe_encoder("tiny-random", layers=["proj", "cls@1", "cls@2"])


OTHER_VALUES = {
    "architecture": "other",
    "weights_sha256": "0" * 64,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "dtype": "float16",
    "layers": ("pre",),
    "image_size": 336,
    "runtime": "openvino",
    "pixels": "whole",
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EncoderDescription)])
def test_the_fingerprint_changes_with_every_field_but_the_name(field: str) -> None:
    described = describe_encoder("tiny-random", dtype="float32", runtime="torch")
    if field == "name":
        assert dataclasses.replace(described, name="other").fingerprint == described.fingerprint
    else:
        changed = dataclasses.replace(described, **{field: OTHER_VALUES[field]})
        assert changed.fingerprint != described.fingerprint


def test_the_fingerprint_is_the_one_it_always_was() -> None:
    described = describe_encoder("tiny-random", dtype="float32", runtime="torch")
    assert described.fingerprint == "09242c7e1650afe35d4d156a930d5c1b27cc22d4873ad6b7bb3afd6f37c3205e"


def test_auto_is_bfloat16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, expected in (
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert describe_encoder("tiny-random", device="cpu").dtype == expected


def test_a_local_file_gives_the_features_of_its_tensors(tmp_path: Path) -> None:
    state = {f"visual.{name}": tensor for name, tensor in tiny_state().items()}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    crops = random_crops(2)
    expected = load_encoder("tiny-random").encode(crops)["proj"]
    for file_name in ("w.safetensors", "w.pt"):
        encoder = load_encoder(f"{tmp_path / file_name}@tiny")
        np.testing.assert_array_equal(encoder.encode(crops)["proj"], expected)
        assert encoder.description.fingerprint == describe_encoder("tiny-random").fingerprint
        assert encoder.description == describe_encoder(encoder.description.name)


def test_a_local_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    save_file(tiny_state(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="are not those of ViT-B-32"):
        load_encoder(f"{tmp_path / 'w.safetensors'}@ViT-B-32")


@pytest.mark.slow
def test_the_activation_chosen_for_a_local_file_is_told_and_can_be_overridden(tmp_path: Path) -> None:
    tower = tower_of("ViT-B-32")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in empty_tower(tower).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    path = tmp_path / "clip.safetensors"
    save_file(state, path)
    crops = random_crops(1)
    with pytest.warns(UserWarning, match=r"with QuickGELU; if it was trained with GELU, write .*@ViT-B-32\."):
        chosen = load_encoder(str(path), dtype="float32")
    with pytest.warns(UserWarning, match="QuickGELU"):
        assert describe_encoder(str(path), dtype="float32") == chosen.description
    assert chosen.description.architecture == "ViT-B-32-quickgelu"
    overridden = load_encoder(f"{path}@ViT-B-32", dtype="float32")
    for encoder, architecture in ((chosen, "ViT-B-32-quickgelu"), (overridden, "ViT-B-32")):
        expected = of_open_clip(tower_of(architecture), state, crops)["proj"]
        np.testing.assert_allclose(encoder.encode(crops)["proj"], expected, rtol=1e-3, atol=1e-4)
    assert chosen.description.fingerprint != overridden.description.fingerprint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_cuda_device_gives_the_features_of_the_cpu(tiny: ClipEncoder, dtype: str) -> None:
    crops = random_crops(9)
    found = load_encoder("tiny-random", layers=ALL_LAYERS, dtype=dtype, device="cuda").encode(crops)
    for layer, values in tiny.encode(crops).items():
        assert cosine(found[layer], values).min() > (0.99999 if dtype == "float32" else 0.995), layer


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_size_that_comes_again_is_replayed_with_the_features_of_its_first_pass() -> None:
    encoder = load_encoder("tiny-random", layers=ALL_LAYERS, dtype="float32", device="cuda")
    one, other = random_crops(8), random_crops(8)[::-1].copy()
    first = encoder.encode(one)
    for crops, expected in ((one, first), (other, {name: rows[::-1] for name, rows in first.items()})) * 2:
        found = encoder.encode(crops)
        for layer, values in expected.items():
            np.testing.assert_allclose(found[layer], values, rtol=1e-5, atol=1e-6, err_msg=layer)
    assert encoder.encode(one[:3])["proj"].shape == first["proj"][:3].shape


REAL_LAYERS = ("proj", "pre", "cls@7", "mean@7", "cls@12")
NATURAL = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "motorcycle_left", "rocket")
"""Colour photographs that scikit-image's wheel carries."""


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """Three views of each photograph: the centre crop, one 8 pixels beside it, its mirror image."""
    views = []
    for name in NATURAL:
        (path,) = (Path(skimage.__file__).parent / "data").glob(f"{name}.*")
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        top, left = ((length - 224) // 2 for length in pixels.shape[:2])
        centre = pixels[top : top + 224, left : left + 224]
        views.append([centre, pixels[top + 8 : top + 232, left + 8 : left + 232], centre[:, ::-1]])
    return np.array(views)


@pytest.fixture(scope="module")
def real_features(photographs: np.ndarray) -> dict[str, np.ndarray]:
    """The layers of all views in float32, photograph after photograph."""
    fetch("vit-b-16-int8")
    encoder = load_encoder(
        "vit-b-16-int8", layers=REAL_LAYERS, dtype="float32", runtime="torch", device="cpu"
    )
    return encoder.encode(photographs.reshape(-1, 224, 224, 3))


@pytest.mark.weights
@pytest.mark.slow
def test_the_fetched_weights_see_what_clip_sees(real_features: dict[str, np.ndarray]) -> None:
    views = real_features["proj"].reshape(len(NATURAL), 3, -1)
    # measured: mirror images 0.973 to 0.998, shifted crops 0.971 to 0.995 and the astronaut's 0.939
    assert cosine(views[:, 0], views[:, 2]).min() > 0.97
    assert cosine(views[:, 0], views[:, 1]).min() > 0.93
    assert cosine(views[:, 0], views[:, 1]).mean() > 0.97
    centres = views[:, 0] / np.linalg.norm(views[:, 0], axis=1, keepdims=True)
    different = (centres @ centres.T)[np.triu_indices(len(NATURAL), k=1)]
    assert different.min() > 0.4
    assert different.max() < 0.7


@pytest.mark.weights
@pytest.mark.slow
def test_real_weights_equal_open_clips_own_in_float32(
    photographs: np.ndarray, real_features: dict[str, np.ndarray]
) -> None:
    expected = of_open_clip(tower_of("ViT-B-16-quickgelu"), load_state("vit-b-16-int8"), photographs[0])
    for layer in REAL_LAYERS:
        np.testing.assert_allclose(
            real_features[layer][:3], expected[layer], rtol=1e-3, atol=1e-4, err_msg=layer
        )


@pytest.mark.weights
@pytest.mark.slow
def test_bfloat16_features_of_photographs_are_those_of_float32(
    photographs: np.ndarray, real_features: dict[str, np.ndarray]
) -> None:
    encoder = load_encoder(
        "vit-b-16-int8", layers=REAL_LAYERS, dtype="bfloat16", runtime="torch", device="cpu"
    )
    crops = photographs.reshape(-1, 224, 224, 3)
    rows = slice(None, None, 1 if has_bfloat16(torch.device("cpu")) else 8)  # without it, it is emulated
    found = encoder.encode(crops[rows])
    for layer in REAL_LAYERS:
        similarity = cosine(found[layer], real_features[layer][rows])
        assert similarity.mean() >= 0.9998, layer
        assert similarity.min() >= 0.9995, layer


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_bfloat16_features_of_dark_photographs_are_those_of_float32(
    photographs: np.ndarray, runtime: str
) -> None:
    """Normalised pixels lose most here: near black they differ by less than bfloat16 holds. They are worse by far."""
    fetch("vit-b-16-int8")
    if not has_bfloat16(torch.device("cpu")):
        pytest.skip("bfloat16 is emulated here")
    crops = photographs[:, 0] // 16
    exact = load_encoder("vit-b-16-int8", dtype="float32", runtime="torch", device="cpu")
    expected = exact.encode(crops)["proj"]
    whole = load_encoder("vit-b-16-int8", dtype="bfloat16", runtime=runtime, device="cpu")
    assert whole.description.pixels == "whole"
    normalised_ = ClipEncoder(
        tower_of("ViT-B-16-quickgelu"),
        load_state("vit-b-16-int8"),
        dataclasses.replace(whole.description, pixels="normalised"),
        device=torch.device("cpu"),
    )
    assert cosine(whole.encode(crops)["proj"], expected).min() > 0.9993
    assert cosine(normalised_.encode(crops)["proj"], expected).min() < 0.9985
