"""detector.json with any field missing or wrong: it loads and scores, or `DetectorError` names the field."""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from causal_tune.detector import _upgraded, load_detector
from causal_tune.errors import CausalTuneError, DetectorError
from causal_tune.guard import Guard
from causal_tune.heads import build_head
from tests.conftest import run_cli

STORED = Path(__file__).parent / "stored" / "detector-format-1"

WRONG = [None, "", "x", -1, 0.5, 10**6, float("nan"), [], {"a": 1}]


def format_1() -> tuple[dict[str, Any], bytes]:
    return json.loads((STORED / "detector.json").read_text()), (STORED / "model.safetensors").read_bytes()


def format_2() -> tuple[dict[str, Any], bytes]:
    description, data = format_1()
    description = json.loads(json.dumps(_upgraded(description)))
    description["calibration"] = {"method": "platt", "slope": 1.5, "offset": -0.25, "provenance": "some"}
    description["guard"] = Guard(max_enlargement=4.0).to_dict()
    description["encoder"] |= {"layers": ["proj", "pre"], "runtime": "torch"}
    return description, data


def mlp() -> tuple[dict[str, Any], bytes]:
    """Another head, with a normaliser."""
    description, _ = format_2()
    config = {"mlp_width": 8, "mlp_depth": 2, "dropout": 0.1, "weight_decay": 0.0, "learning_rate": 1e-3}
    head = build_head("mlp", 32, config)
    state = {**head.state_dict(), "normaliser.mean": torch.zeros(32), "normaliser.std": torch.ones(32)}
    data = save(state)
    description["head"] = {"head": "mlp", "width": 32, "normalisation": "standardised", **config}
    description["model_sha256"] = hashlib.sha256(data).hexdigest()
    return description, data


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every field at any depth; measured figures and the trial's configuration are only read by people."""
    if path[:2] in (("provenance", "config"), ("metrics", "generators"), ("metrics", "validation")):
        return
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


def use(folder: Path) -> None:
    """All that a detector is asked for; features are those of two images."""
    detector = load_detector(folder)
    features = np.random.default_rng(0).standard_normal((2, 32), dtype=np.float32)
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    notes = detector.guard.notes(noise, [(64, 64), (640, 480)]) if detector.guard else None
    scores = detector.scores(detector.logits(features), notes)
    assert detector.id
    assert all(np.isfinite([one.score, one.probability]).all() for one in scores)
    assert {one.verdict for one in scores} <= {*detector.description["labels"].values(), "unsure"}
    assert 0 <= detector.threshold <= 1
    assert detector.unsure[0] <= detector.unsure[1]
    assert detector.preprocessing.crop_size
    assert detector.name
    if detector.description["encoder"] != format_1()[0]["encoder"]:
        with suppress(CausalTuneError):  # a name that there may be, whose weights are not here
            detector.encoder_description()


@pytest.mark.parametrize("make", [format_1, mlp])
def test_every_field_that_is_missing_or_wrong_is_named(tmp_path: Path, make: Any) -> None:
    whole, data = make()
    (tmp_path / "model.safetensors").write_bytes(data)

    refused: dict[tuple[Any, ...], list[str]] = {}

    def attempt(changed: dict[str, Any], path: tuple[Any, ...]) -> None:
        (tmp_path / "detector.json").write_text(json.dumps(changed))
        try:
            use(tmp_path)
        except DetectorError as error:
            refused.setdefault(path, []).append(str(error))

    attempt(whole, ())
    assert not refused
    for path in paths(whole):
        if make is mlp and path[0] not in ("head", "calibration", "threshold", "unsure", "guard"):
            continue
        *above, key = path
        for value in WRONG:
            changed = copy.deepcopy(whole)
            parent = changed
            for step in above:
                parent = parent[step]
            parent[key] = value
            attempt(changed, path)
        changed = copy.deepcopy(whole)
        parent = changed
        for step in above:
            parent = parent[step]
        del parent[key]
        attempt(changed, path)
    for path, messages in refused.items():
        for message in messages:
            assert str(path[0]) in message or "has sha256" in message, path
            assert len(message) < 1200
    for path in (("head", "head"), ("head", "width"), ("threshold", "provenance")):
        assert len(refused[path]) > 5, path


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            ("unsure", "low", "logit"),
            "x",
            "its field `unsure.low.logit` is 'x'; input should be a valid number",
        ),
        (("unsure", "low", "logit"), 99.0, "`unsure` cannot be used: low.logit is above high.logit"),
        (("layer",), "pre", "`layer` cannot be used: 'pre' has 64 dimensions, and the head is for 32"),
        (("layer",), "cls@1", "'cls@1' is none of the encoder's layers proj, pre"),
        (("head", "head"), "tree", "`head` cannot be used: No head is called 'tree'"),
        (("head", "tau"), 0, "`head` cannot be used: tau is 0; it must be above 0"),
        (("encoder", "layers"), ["proj", "cls@9"], "`encoder` cannot be used: tiny has no layer 'cls@9'"),
        (("encoder", "name"), "tiny", "no encoder is called 'tiny'"),
        (
            ("calibration", "slope"),
            float("nan"),
            "`calibration.slope` is nan; input should be a finite number",
        ),
    ],
)
def test_a_sentence_says_what_is_wrong(
    tmp_path: Path, path: tuple[str, ...], value: object, words: str
) -> None:
    description, data = format_2()
    (tmp_path / "model.safetensors").write_bytes(data)
    *above, key = path
    parent = description
    for step in above:
        parent = parent[step]
    parent[key] = value
    (tmp_path / "detector.json").write_text(json.dumps(description))
    with pytest.raises(DetectorError) as caught:
        load_detector(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path / "detector.json") in str(caught.value)
    result = run_cli("predict", tmp_path, "nothing.png")
    assert result.exit_code == 2
    assert "is damaged or was edited" in " ".join(result.output.split())


def test_files_that_are_cut_or_lost_are_told(tmp_path: Path) -> None:
    description, data = format_1()
    content = json.dumps(description).encode()
    cases = [
        (content[:200], data),
        (b"", data),
        (bytes(500), data),
        (b"\xff" + content, data),
        (b"[" * 10**5, data),
    ]
    cases += [(content, data[:100]), (content, b""), (content, bytes(len(data)))]
    for described, model in cases:
        (tmp_path / "detector.json").write_bytes(described)
        (tmp_path / "model.safetensors").write_bytes(model)
        with pytest.raises(DetectorError, match=r"detector.json|sha256"):
            load_detector(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DetectorError, match=r"model\.safetensors cannot be read"):
        load_detector(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "detector.json").touch()
    with pytest.raises(DetectorError, match=r"no detector 'mine' in .*There are: other\."):
        load_detector(tmp_path / "mine")
    # a file of other tensors, with its hash brought up to date
    other = save({"a": torch.ones(2)})
    description["model_sha256"] = hashlib.sha256(other).hexdigest()
    (tmp_path / "detector.json").write_text(json.dumps(description))
    (tmp_path / "model.safetensors").write_bytes(other)
    with pytest.raises(DetectorError, match=r"head of the detector .* cannot be loaded"):
        load_detector(tmp_path)
