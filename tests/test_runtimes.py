"""Every runtime computes what torch computes in float32, and an image's features from that image alone."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from causal_tune import processor
from causal_tune.clip import EncoderDescription, describe_encoder, load_encoder
from causal_tune.detector import Detector
from causal_tune.errors import InvalidConfig, UnknownName
from causal_tune.fidelity import Cosines, cosines, fidelity_of
from causal_tune.heads import build_head
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.runtimes import RUNTIMES, choose_runtime, openvino_runtime, torch_runtime
from causal_tune.weights import fetch
from tests.conftest import draw

ALL_LAYERS = ("proj", "pre", "cls@1", "cls@2", "cls@3", "mean@1", "mean@2", "mean@3")
CPU = torch.device("cpu")

COMBINATIONS = [
    (runtime, dtype)
    for runtime, kind in RUNTIMES.items()
    for dtype in kind.dtypes_on(CPU)
    if kind.is_installed and dtype != "int8"
]
"""What this machine's processor can compute in, and by what."""

BOUNDS = {"float32": 1e-5, "bfloat16": 0.03}
"""Largest difference from torch in float32, as a share of a layer's largest value."""

each = pytest.mark.parametrize(("runtime", "dtype"), COMBINATIONS)


def random_crops(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    encoder = load_encoder("tiny-random", layers=ALL_LAYERS, dtype="float32", runtime="torch", device="cpu")
    return encoder.encode(random_crops(5))


@each
def test_every_layer_equals_torch_in_float32(
    runtime: str, dtype: str, reference: dict[str, np.ndarray]
) -> None:
    encoder = load_encoder("tiny-random", layers=ALL_LAYERS, dtype=dtype, runtime=runtime, device="cpu")
    found = encoder.encode(random_crops(5))
    assert set(found) == set(ALL_LAYERS)
    for layer, expected in reference.items():
        assert (found[layer].shape, found[layer].dtype) == ((5, encoder.widths[layer]), np.float32)
        assert np.abs(found[layer] - expected).max() <= BOUNDS[dtype] * np.abs(expected).max(), layer


@each
def test_layers_of_one_pass_equal_those_of_separate_passes(runtime: str, dtype: str) -> None:
    crops = random_crops(3)
    options = {"dtype": dtype, "runtime": runtime, "device": "cpu"}
    together = load_encoder("tiny-random", layers=ALL_LAYERS, **options).encode(crops)
    for layer in ALL_LAYERS:
        alone = load_encoder("tiny-random", layers=[layer], **options).encode(crops)
        assert list(alone) == [layer]
        bound = BOUNDS[dtype] * np.abs(together[layer]).max()
        assert np.abs(alone[layer] - together[layer]).max() <= bound, layer


@each
@pytest.mark.parametrize("layers", [ALL_LAYERS, ("proj",), ("cls@2",), ("pre", "mean@3")])
def test_features_are_a_function_of_the_image_alone(
    runtime: str, dtype: str, layers: tuple[str, ...]
) -> None:
    encoder = load_encoder("tiny-random", layers=layers, dtype=dtype, runtime=runtime, device="cpu")
    crops = random_crops(11)
    whole = encoder.encode(crops)
    for size in (1, 3, 8):
        parts = [encoder.encode(crops[start : start + size]) for start in range(0, 11, size)]
        for layer in layers:
            joined = np.concatenate([part[layer] for part in parts])
            assert np.array_equal(joined, whole[layer]), (layer, size)
    permuted = encoder.encode(crops[::-1].copy())
    for layer in layers:
        assert np.array_equal(permuted[layer][::-1], whole[layer]), layer


def test_where_rounding_goes_by_the_rows_a_pass_is_always_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors that multiply bfloat16 by tiles; most machines that run this are none."""
    crops = random_crops(11)
    expected = load_encoder("tiny-random", layers=ALL_LAYERS, dtype="bfloat16", runtime="torch", device="cpu")
    monkeypatch.setattr(torch_runtime, "has_amx", lambda: True)
    encoder = load_encoder("tiny-random", layers=ALL_LAYERS, dtype="bfloat16", runtime="torch", device="cpu")
    sizes = []
    forward = torch_runtime.TorchRuntime._forward
    monkeypatch.setattr(
        torch_runtime.TorchRuntime,
        "_forward",
        lambda self, pixels: sizes.append(len(pixels)) or forward(self, pixels),
    )
    found = encoder.encode(crops)
    assert sizes == [8, 8]
    for layer, values in expected.encode(crops).items():
        assert found[layer].shape == values.shape
        assert np.abs(found[layer] - values).max() <= BOUNDS["bfloat16"] * np.abs(values).max()


@each
def test_the_number_of_threads_changes_neither_the_bytes_nor_torch(runtime: str, dtype: str) -> None:
    crops, before = random_crops(37), torch.get_num_threads()
    features = [
        load_encoder(
            "tiny-random",
            layers=ALL_LAYERS,
            dtype=dtype,
            runtime=runtime,
            device="cpu",
            num_threads=threads,
        ).encode(crops)
        for threads in (1, 2, 5)
    ]
    assert torch.get_num_threads() == before
    for layer in ALL_LAYERS:
        assert len({values[layer].tobytes() for values in features}) == 1, layer


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_crops_that_must_not_be_written_to_are_taken(runtime: str) -> None:
    crops = random_crops(2)
    encoder = load_encoder("tiny-random", dtype="float32", runtime=runtime, device="cpu")
    expected = encoder.encode(crops)["proj"]
    crops.flags.writeable = False
    np.testing.assert_array_equal(encoder.encode(crops)["proj"], expected)


def test_the_fingerprint_changes_with_the_runtime() -> None:
    described = {
        runtime: describe_encoder("tiny-random", dtype="float32", runtime=runtime, device="cpu")
        for runtime in RUNTIMES
    }
    assert {description.runtime for description in described.values()} == set(RUNTIMES)
    assert len({description.fingerprint for description in described.values()}) == len(RUNTIMES)


def test_a_description_from_before_there_was_a_choice_means_what_there_was() -> None:
    described = describe_encoder("tiny-random", dtype="float32", runtime="torch", device="cpu")
    stored = json.loads(json.dumps(described.values))
    assert not {"runtime", "pixels"} & stored.keys()
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    assert EncoderDescription(**tuples) == described
    other = dataclasses.replace(described, runtime="openvino")
    assert other.values["runtime"] == "openvino"


@pytest.mark.parametrize(
    ("features", "dtype", "expected"),
    [
        ({"avx2": True}, "float32", "torch"),
        ({"avx2": True}, "bfloat16", "torch"),
        ({"avx2": True}, "int8", "openvino"),
        ({"avx512_f": True}, "float32", "openvino"),
        ({"avx512_f": True}, "bfloat16", "torch"),
        ({"avx512_f": True, "avx512_bf16": True}, "bfloat16", "openvino"),
        ({"bf16": True}, "bfloat16", "torch"),
    ],
)
def test_auto_reads_the_processor(
    features: dict[str, bool], dtype: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert choose_runtime("auto", dtype, CPU) == expected
    assert describe_encoder("tiny-random", dtype=dtype, device="cpu").runtime == expected


def test_auto_is_torch_where_openvino_is_missing_or_the_device_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert choose_runtime("auto", "float32", torch.device("cuda")) == "torch"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else name)
    assert choose_runtime("auto", "float32", CPU) == "torch"
    with pytest.raises(InvalidConfig, match="pip install openvino"):
        choose_runtime("openvino", "float32", CPU)


def test_what_a_runtime_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    with pytest.raises(UnknownName, match=r"No runtime is called 'onnx'\. There are: openvino, torch"):
        describe_encoder("tiny-random", runtime="onnx")
    with pytest.raises(InvalidConfig, match=r"torch does not compute in int8 .* or --runtime openvino"):
        describe_encoder("tiny-random", runtime="torch", dtype="int8", device="cpu")
    with pytest.raises(InvalidConfig, match="openvino does not compute in bfloat16"):
        describe_encoder("tiny-random", runtime="openvino", dtype="bfloat16", device="cpu")
    with pytest.raises(InvalidConfig, match="openvino does not run on cuda"):
        describe_encoder("tiny-random", runtime="openvino", dtype="float32", device="cuda")


def test_what_openvino_compiled_wrongly_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream of the first has other weights: planted, since it happens to few processes."""
    encode, planted = openvino_runtime.OpenVinoRuntime.encode, []

    def with_a_wrong_stream(self: object, crops: np.ndarray) -> dict[str, np.ndarray]:
        found = encode(self, crops)
        planted.append(self)
        if self is planted[0]:
            for values in found.values():
                values[1::2] *= -1
        return found

    monkeypatch.setattr(openvino_runtime.OpenVinoRuntime, "encode", with_a_wrong_stream)
    options = {"dtype": "float32", "device": "cpu", "num_threads": 2}
    with pytest.warns(UserWarning, match=r"wrongly \(proj is off by 2 of its length from torch\)"):
        encoder = load_encoder("tiny-random", runtime="openvino", **options)
    crops = random_crops(3)
    expected = load_encoder("tiny-random", runtime="torch", **options).encode(crops)["proj"]
    assert np.abs(encoder.encode(crops)["proj"] - expected).max() < 1e-4


def test_openvino_that_stays_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that differ by rounding are not one function of the image."""
    encode = openvino_runtime.OpenVinoRuntime.encode

    def with_a_rounded_stream(self: object, crops: np.ndarray) -> dict[str, np.ndarray]:
        found = encode(self, crops)
        found["proj"][-1] *= 1 + 1e-6
        return found

    monkeypatch.setattr(openvino_runtime.OpenVinoRuntime, "encode", with_a_rounded_stream)
    with (
        pytest.warns(UserWarning, match="proj of one image differs among 3 streams"),
        pytest.raises(InvalidConfig, match=r"wrongly 3 times .* --runtime torch"),
    ):
        load_encoder("tiny-random", dtype="float32", runtime="openvino", device="cpu", num_threads=3)


@pytest.mark.parametrize("differ", [False, True])
def test_openvino_computes_two_images_at_once_only_where_each_keeps_its_bits(
    monkeypatch: pytest.MonkeyPatch, differ: bool
) -> None:
    encode = openvino_runtime.OpenVinoRuntime.encode

    def rounding_together(self: openvino_runtime.OpenVinoRuntime, crops: np.ndarray) -> dict[str, np.ndarray]:
        found = encode(self, crops)
        if differ and self.images_at_once > 1 and len(crops) > 1:
            found["proj"][1] *= 1 + 1e-6
        return found

    monkeypatch.setattr(openvino_runtime.OpenVinoRuntime, "encode", rounding_together)
    encoder = load_encoder("tiny-random", dtype="float32", runtime="openvino", device="cpu", num_threads=2)
    assert encoder._runtime.images_at_once == (1 if differ else 2)
    crops = random_crops(7)
    alone = np.concatenate([encoder.encode(crops[row : row + 1])["proj"] for row in range(7)])
    assert np.array_equal(encoder.encode(crops)["proj"], alone)


@pytest.mark.skipif(processor.has_bfloat16(CPU), reason="this processor has bfloat16")
def test_openvino_that_computes_in_another_precision_is_refused() -> None:
    from causal_tune.runtimes import openvino_runtime
    from causal_tune.towers import TINY, tiny_state

    described = describe_encoder("tiny-random", dtype="float32", runtime="openvino", device="cpu")
    with pytest.raises(InvalidConfig, match="computes in f32 on this processor where bfloat16"):
        openvino_runtime.load(
            TINY,
            tiny_state(),
            dataclasses.replace(described, dtype="bfloat16"),
            device=CPU,
            num_threads=1,
            cache_dir=Path(),
        )


def test_cosines_by_hand() -> None:
    found = cosines(np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 5.0]]))
    assert found.worst == pytest.approx(0.5**0.5)
    assert found.mean == pytest.approx((1 + 0.5**0.5) / 2)


def test_fidelity_is_measured_once_and_kept(tmp_path: Path) -> None:
    described = describe_encoder(
        "tiny-random", layers=("proj", "cls@2"), dtype="float32", runtime="openvino", device="cpu"
    )
    measured = fidelity_of(described, device="cpu", cache_dir=tmp_path)
    assert measured is not None
    assert set(measured.layers) == {"proj", "cls@2"}
    for layer in measured.layers.values():
        assert 0.99999 < layer.worst <= layer.mean <= 1.00001
    (path,) = (tmp_path / "runtimes").glob("fidelity-*.json")
    told = json.loads(path.read_text())
    told["layers"]["proj"] = {"mean": 0.5, "worst": 0.25}
    path.write_text(json.dumps(told))
    again = fidelity_of(described, device="cpu", cache_dir=tmp_path)
    assert again is not None
    assert again.layers["proj"] == Cosines(mean=0.5, worst=0.25)
    assert "0.50000 in the mean and 0.25000 at worst (layer proj" in str(again)
    path.write_text("{")
    with pytest.warns(UserWarning, match="measuring again"):
        assert fidelity_of(described, device="cpu", cache_dir=tmp_path) == measured


def test_the_reference_has_no_fidelity_and_leaves_nothing(tmp_path: Path) -> None:
    described = describe_encoder("tiny-random", dtype="float32", runtime="torch", device="cpu")
    assert fidelity_of(described, device="cpu", cache_dir=tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def int8_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the int8 encoder of `tiny-random`."""
    pytest.importorskip("nncf")
    folder = tmp_path_factory.mktemp("cache")
    load_encoder("tiny-random", dtype="int8", device="cpu", cache_dir=folder)
    return folder


def test_int8_is_made_once_and_near_float32(
    int8_cache: Path, reference: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = (path for path in (int8_cache / "runtimes").glob("int8-*") if path.is_dir())
    before = (folder / "model.bin").stat().st_mtime_ns
    monkeypatch.setattr("causal_tune.runtimes.int8.find_spec", lambda name: None)  # nothing to make it with
    encoder = load_encoder("tiny-random", dtype="int8", device="cpu", num_threads=2, cache_dir=int8_cache)
    assert (encoder.description.runtime, encoder.description.dtype) == ("openvino", "int8")
    crops = random_crops(5)
    found = encoder.encode(crops)["proj"]
    assert 0.99 < cosines(found, reference["proj"]).mean < 1 - 1e-7  # near, and not float32 itself
    np.testing.assert_array_equal(encoder.encode(crops[3:])["proj"], found[3:])
    assert (folder / "model.bin").stat().st_mtime_ns == before


def test_a_damaged_int8_encoder_is_made_anew(int8_cache: Path) -> None:
    (folder,) = (path for path in (int8_cache / "runtimes").glob("int8-*") if path.is_dir())
    crops = random_crops(2)
    options = {"dtype": "int8", "device": "cpu", "cache_dir": int8_cache}
    expected = load_encoder("tiny-random", **options).encode(crops)["proj"]
    whole = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.warns(UserWarning, match="is damaged .* making it anew"):
        made = load_encoder("tiny-random", **options)
    np.testing.assert_array_equal(made.encode(crops)["proj"], expected)


def test_int8_without_nncf_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causal_tune.runtimes.int8.find_spec", lambda name: None)
    with pytest.raises(InvalidConfig, match=r"pip install 'causal-tune\[int8\]'"):
        load_encoder("tiny-random", dtype="int8", device="cpu", cache_dir=tmp_path)


def detector_of(encoder: dict[str, object]) -> Detector:
    head = build_head("linear", 32, {"learning_rate": 1e-3})
    description = {
        "name": "small",
        "layer": "proj",
        "calibration": None,
        "unsure": {"low": {"logit": 0.0}, "high": {"logit": 0.0}},
        "labels": {"0": "real", "1": "generated"},
        "head": {"head": "linear", "width": 32, **head.config},
        "encoder": encoder,
        "preprocessing": Preprocessing().name,
    }
    return Detector(description, head.state_dict())


def test_a_detector_encodes_in_the_dtype_of_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    described = describe_encoder("tiny-random", dtype="float32", device="cpu").values
    for trained, native, used in (
        ("float32", True, "float32"),
        ("float32", False, "float32"),
        ("bfloat16", True, "bfloat16"),
        ("bfloat16", False, "float32"),
    ):
        features = {"avx512_bf16": native, "avx512_f": True}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        pixels = {"pixels": "whole"} if trained == "bfloat16" else {}
        detector = detector_of({**described, "dtype": trained, **pixels})
        assert detector.encoder_description().dtype == used
        assert len(detector.notes) == (used != trained)


def test_a_detector_of_rounded_pixels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """From before bfloat16 features took whole ones."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "avx512_f": True})
    described = describe_encoder("tiny-random", dtype="float32", device="cpu").values
    detector = detector_of({**described, "dtype": "bfloat16"})
    detector.encoder_description()
    (note,) = detector.notes
    assert "of pixels rounded to it" in note


@each
def test_a_detector_encodes_by_the_pass_of_its_training(runtime: str, dtype: str) -> None:
    """Bit by bit: in bfloat16 what else is handed out moves the last digits of a layer."""
    if not processor.multiplies(dtype, CPU):
        pytest.skip(f"this processor does not multiply {dtype}: a detector takes another")
    training = load_encoder("tiny-random", layers=ALL_LAYERS, dtype=dtype, runtime=runtime, device="cpu")
    detector = detector_of(json.loads(json.dumps(training.description.values)))
    crops = random_crops(3)
    np.testing.assert_array_equal(detector.encoder().encode(crops)["proj"], training.encode(crops)["proj"])
    detector.layer = "cls@2"
    assert detector.encoder_description().layers == ("cls@1", "cls@2", "mean@1", "mean@2")


def test_a_detector_of_one_runtime_scores_with_the_other_and_says_so(tmp_path: Path) -> None:
    draw(1, generated=False, size=300).save(tmp_path / "image.png")
    described = {
        runtime: json.loads(json.dumps(describe_encoder("tiny-random", runtime=runtime, device="cpu").values))
        for runtime in RUNTIMES
    }
    scores = []
    for trained, runtime in (
        ("torch", "auto"),
        ("openvino", "auto"),
        ("torch", "openvino"),
        ("openvino", "torch"),
    ):
        detector = detector_of(described[trained])
        used = detector.encoder(runtime).description.runtime
        assert used == (trained if runtime == "auto" else runtime)
        assert len(detector.notes) == (used != trained)
        scores.append(detector.score_image(tmp_path / "image.png").score)
    assert "by torch here" in detector.notes[0]
    assert "by openvino for the training" in detector.notes[0]
    # bfloat16 keeps eight bits, and the two runtimes round at other places
    bound = 2e-3 if described["torch"]["dtype"] == "bfloat16" else 1e-4
    assert scores == pytest.approx([scores[0]] * 4, abs=bound)
    assert scores[0] == scores[3]


def test_a_detector_whose_runtime_is_missing_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = describe_encoder("tiny-random", dtype="float32", runtime="openvino", device="cpu").values
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else name)
    for encoder in (trained, {**trained, "runtime": "of a later release"}):
        detector = detector_of(encoder)
        assert detector.encoder().description.runtime == "torch"
        assert "by torch here" in detector.notes[0]


@pytest.mark.weights
@pytest.mark.slow
def test_real_weights_give_the_features_of_torch_by_openvino() -> None:
    fetch("vit-b-16-int8")
    layers = ("proj", "cls@7", "mean@12")
    crops = random_crops(3)
    found, expected = (
        load_encoder("vit-b-16-int8", layers=layers, dtype="float32", runtime=runtime, device="cpu")
        for runtime in ("openvino", "torch")
    )
    features, reference = found.encode(crops), expected.encode(crops)
    for layer in layers:
        np.testing.assert_allclose(features[layer], reference[layer], rtol=1e-3, atol=1e-4, err_msg=layer)
    np.testing.assert_array_equal(found.encode(crops[2:])["mean@12"], features["mean@12"][2:])
