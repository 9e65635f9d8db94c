"""The ONNX graphs say what torch says, for every head, any batch, and any layer."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from causal_tune.clip import describe_encoder
from causal_tune.detector import Detector, load_detector
from causal_tune.errors import DetectorError
from causal_tune.features import FeatureStore
from causal_tune.heads import HEADS, FittedHead, build_head
from causal_tune.heads.normaliser import Normaliser
from causal_tune.images.decode import read_crop
from causal_tune.ledger import Ledger
from causal_tune.onnx_graphs import write_head, write_images
from causal_tune.trial import TrialConfig
from tests.conftest import Finished, run_cli


def detector_of(head: str, layer: str = "proj", width: int = 32, **settings: object) -> Detector:
    """A detector with a head that a few steps have moved from its start."""
    config = TrialConfig(head=head, seed=0, **settings).to_dict()
    known = {name: config[name] for name in HEADS[head].Settings.__dataclass_fields__ if name in config}
    if "precision" in known:
        known["precision"] = "float32"
    generator = torch.Generator().manual_seed(0)
    model = build_head(head, width, known, generator)
    features = torch.randn(64, width, generator=generator)
    labels = (torch.arange(64) % 2).float()
    features[:, 0] += labels
    normaliser = Normaliser(config["normalisation"], width).fit(features)
    if isinstance(model, FittedHead):
        model.fit(normaliser(features), labels, generator)
    else:
        trainer = model.trainer(generator)
        for _ in range(5):
            trainer.step(normaliser(features), labels)
    state = dict(model.state_dict())
    state |= {f"normaliser.{name}": value for name, value in normaliser.state_dict().items()}
    cut = {"logit": 0.25, "score": 0.5, "probability": 0.5}
    encoder = describe_encoder("tiny-random", layers=(layer,), dtype="float32", runtime="torch", device="cpu")
    description = {
        "name": f"of-{head}",
        "head": {"head": head, "width": width, "normalisation": config["normalisation"], **model.config},
        "layer": layer,
        "encoder": json.loads(json.dumps(encoder.values)),
        "preprocessing": "center-crop-224/v1",
        "labels": {"0": "real", "1": "generated"},
        "calibration": {"slope": 1.7, "offset": -0.3},
        "threshold": cut,
        "unsure": {"low": {**cut, "logit": -0.25}, "high": cut},
        "model_sha256": "00",
    }
    return Detector(description, state)


def run(path: Path, values: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {given.name: values}), strict=True))


CASES = [
    *((head, {}) for head in HEADS),
    ("nearest", {"neighbours": 3, "normalisation": "l2"}),
    ("mlp", {"normalisation": "standardised", "mlp_depth": 2}),
    *(("causal", {"evaluation_mask": mask}) for mask in ("none", "mean", "sample", "hard")),
    ("causal", {"mask_scope": "global", "tau_end": 0.2}),
    ("causal", {"mask_scope": "none"}),
    ("causal", {"mask_norm": True, "noise": "logistic", "mask_depth": 2}),
]


@pytest.mark.parametrize(("head", "settings"), CASES)
def test_the_head_says_what_torch_says(tmp_path: Path, head: str, settings: dict[str, object]) -> None:
    detector = detector_of(head, **settings)
    path = write_head(detector, tmp_path)
    rng = np.random.default_rng(1)
    for num in (1, 3, 300):
        features = rng.normal(size=(num, 32)).astype(np.float32)
        found = run(path, features)
        logits = detector.logits(features)
        scores = detector.scores(logits)
        np.testing.assert_allclose(found["logit"], logits, atol=1e-4)
        np.testing.assert_allclose(found["score"], [one.score for one in scores], atol=1e-5)
        np.testing.assert_allclose(found["probability"], [one.probability for one in scores], atol=1e-5)
    props = {one.key: one.value for one in onnx.load(path).metadata_props}
    assert (props["layer"], float(props["generated_from_logit"])) == ("proj", 0.25)


@pytest.mark.parametrize(("layer", "width"), [("proj", 32), ("pre", 64), ("cls@2", 64), ("mean@3", 64)])
def test_images_to_scores(tmp_path: Path, layer: str, width: int) -> None:
    detector = detector_of("linear", layer, width)
    path = write_images(detector, tmp_path)
    for num in (1, 5):
        crops = np.random.default_rng(num).integers(0, 256, (num, 224, 224, 3), dtype=np.uint8)
        scores = detector.score_crops(crops)
        found = run(path, crops)
        np.testing.assert_allclose(found["score"], [one.score for one in scores], atol=1e-4)
        np.testing.assert_allclose(found["probability"], [one.probability for one in scores], atol=1e-4)


def test_the_graph_of_images_tells_its_number_format_and_is_not_made_of_int8(tmp_path: Path) -> None:
    detector = detector_of("linear")
    for dtype in ("float32", "bfloat16"):
        detector.description["encoder"]["dtype"] = dtype
        model = onnx.load(write_images(detector, tmp_path))
        props = {one.key: one.value for one in model.metadata_props}
        assert (props["computes_in"], props["trained_in"]) == ("float32", dtype)
    detector.description["encoder"]["dtype"] = "int8"
    with pytest.raises(DetectorError, match="int8"):
        write_images(detector, tmp_path)


def test_the_same_head_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_head(detector_of("causal"), tmp_path / name)
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


def test_torch_onnx_and_the_training_agree(finished: Finished, tmp_path: Path) -> None:
    """Of an exported detector: the features of the store, the images themselves, both graphs."""
    result = run_cli(
        "export", "small", "-o", tmp_path / "d", "--workspace", finished.workspace, "--onnx-images"
    )
    assert result.exit_code == 0, result.output
    detector = load_detector(tmp_path / "d")
    store = FeatureStore(finished.store)
    rows = np.flatnonzero(np.asarray(store.rows["generator"].to_pylist()) == "gamma")
    features = store.features(detector.layer, rows)
    scores = np.array([one.score for one in detector.scores(detector.logits(features))])
    paths = store.rows["path"].take(rows).to_pylist()
    crops = np.stack([read_crop(path, detector.preprocessing) for path in paths])
    # the graph of the images computes in float32; the store may hold features of bfloat16, 8 bits
    rounding = 2e-3 if detector.description["encoder"]["dtype"] == "bfloat16" else 1e-4
    for found, bound in (
        ([one.score for one in detector.score_batch(paths)], 1e-4),
        (run(tmp_path / "d" / "model.onnx", features)["score"], 1e-4),
        (run(tmp_path / "d" / "images.onnx", crops)["score"], rounding),
    ):
        np.testing.assert_allclose(found, scores, atol=bound)
    trained = Ledger(finished.study / "trials").records()
    (record,) = [one for one in trained if one.id == detector.description["provenance"]["trial"]]
    labels = store.rows["label"].to_numpy()[rows]
    loss = -np.log(np.where(labels == 1, scores, 1 - scores)).mean()
    assert loss == pytest.approx(record.generators["gamma"]["loss"], abs=1e-4)
