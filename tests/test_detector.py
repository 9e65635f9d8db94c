"""A detector in use without Ray: images in any form, verdicts, what export writes and refuses, old formats."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from causal_tune.detector import Score, load_detector
from causal_tune.errors import DetectorError, StudyError, UnreadableImage
from causal_tune.export import export_detector
from causal_tune.images.decode import read_crop
from causal_tune.ledger import Ledger
from causal_tune.model_card import model_card
from tests.conftest import Finished, draw, run_cli

STORED = Path(__file__).parent / "stored" / "detector-format-1"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        draw(seed, generated=bool(seed % 2), size=300).save(path)
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(4, generated=True, size=310).resize((310, 260)).save(folder / "turned.jpg", exif=turned)
    draw(5, generated=True, size=260).convert("P").save(folder / "palette.png")
    draw(6, generated=True, size=90).save(folder / "small.webp")
    return [*paths, folder / "turned.jpg", folder / "palette.png", folder / "small.webp"]


def close(found: list[Score], expected: list[Score]) -> bool:
    """A head's products depend on the size of the batch by rounding."""
    return [one.verdict for one in found] == [one.verdict for one in expected] and all(
        getattr(one, name) == pytest.approx(getattr(two, name), abs=1e-6)
        for one, two in zip(found, expected, strict=True)
        for name in ("score", "probability")
    )


def test_an_old_format_scores_as_it_did(pictures: list[Path]) -> None:
    detector = load_detector(STORED)
    expected = json.loads((STORED / "scores.json").read_text())
    for path, one in zip(pictures, expected, strict=False):
        found = detector.score_image(path)
        assert found.score == pytest.approx(one["score"], abs=1e-6)
        assert found.probability == pytest.approx(one["score"], abs=1e-6)
        assert found.verdict == one["verdict"]
    assert detector.threshold == 0.5


def test_paths_bytes_pictures_and_crops_score_alike(pictures: list[Path]) -> None:
    detector = load_detector(STORED)
    by_path = detector.score_batch(pictures)
    assert detector.score_batch([path.read_bytes() for path in pictures]) == by_path
    opened = [Image.open(path) for path in pictures]
    assert detector.score_batch(opened) == by_path
    crops = np.stack([read_crop(path, detector.preprocessing) for path in pictures])
    assert detector.score_crops(crops) == by_path
    assert close([detector.score_image(str(path)) for path in pictures], by_path)
    assert detector.score_batch([]) == []


def test_an_image_that_cannot_be_read_is_named(pictures: list[Path]) -> None:
    detector = load_detector(STORED)
    with pytest.raises(UnreadableImage, match=r"^not a JPEG"):
        detector.score_image(b"no image")
    with pytest.raises(UnreadableImage, match=r"^image 1 of 2: no such file"):
        detector.score_batch([pictures[0], "missing.png"])
    cut = pictures[0].read_bytes()[:900]
    with pytest.raises(UnreadableImage):
        detector.score_image(Image.open(io.BytesIO(cut)))


def test_verdicts_follow_the_band(finished: Finished) -> None:
    detector = load_detector(finished.detector)
    low, high = (detector.description["unsure"][end]["logit"] for end in ("low", "high"))
    assert low < high
    below, above = (
        np.nextafter(np.float32(low), np.float32(-9)),
        np.nextafter(np.float32(high), np.float32(-9)),
    )
    scores = detector.scores([below, low, (low + high) / 2, above, high])
    assert [one.verdict for one in scores] == ["real", "unsure", "unsure", "unsure", "generated"]
    assert scores[0].score == pytest.approx(1 / (1 + np.exp(-low)))
    probabilities = [one.probability for one in scores]
    assert probabilities == sorted(probabilities)


def test_the_description_says_what_its_figures_rest_on(finished: Finished) -> None:
    description = json.loads((finished.detector / "detector.json").read_text())
    assert description["format"] == 2
    calibration, threshold = description["calibration"], description["threshold"]
    assert calibration["provenance"] == "the validation split of alpha and the validation generators beta"
    assert "gamma" not in json.dumps([calibration, threshold, description["unsure"]])
    validation, beta = description["metrics"]["validation"], description["metrics"]["generators"]["beta"]
    assert calibration["num_real"] == validation["num_real"] + beta["num_real"]
    assert threshold["fpr"] <= threshold["wished_fpr"] == 0.05
    assert {"study", "study_uid", "store_fingerprint", "index_sha256", "versions"} <= description[
        "provenance"
    ].keys()
    for one in (validation, beta, description["metrics"]["generators"]["gamma"]):
        assert one["intervals"]["ap"][0] <= one["ap"] <= one["intervals"]["ap"][1]
    assert isinstance(description["audit"], list)


def test_the_threshold_does_not_depend_on_the_test_generators(finished: Finished, tmp_path: Path) -> None:
    spec = json.loads((finished.study / "study.json").read_text())
    assert spec["test_generators"] == ["gamma"]
    copy = tmp_path / "studies" / "small"
    shutil.copytree(finished.study, copy)
    (copy / "study.json").write_text(json.dumps({**spec, "test_generators": []}))
    for path in (copy / "trials").glob("*.json"):
        record = json.loads(path.read_text())
        record["generators"].pop("gamma", None)
        path.write_text(json.dumps(record))
    without = export_detector(copy, tmp_path / "without").description
    whole = load_detector(finished.detector).description
    for name in ("calibration", "threshold", "unsure"):
        assert without[name] == whole[name]


def test_a_wished_rate_moves_the_cuts(finished: Finished, tmp_path: Path) -> None:
    found = {}
    for rate in (0.05, 0.4):
        words = ("export", "small", "-o", tmp_path / str(rate), "--workspace", finished.workspace)
        result = run_cli(*words, "--fpr", rate, "--json")
        assert result.exit_code == 0, result.output
        found[rate] = json.loads(result.stdout)
    assert found[0.4]["threshold"]["score"] < found[0.05]["threshold"]["score"]
    assert 0.05 < found[0.4]["threshold"]["fpr"] <= 0.4
    assert "--fpr 0.4" in found[0.4]["command"]
    assert run_cli("export", "small", "--workspace", finished.workspace, "--fpr", 0.7).exit_code == 2


def test_the_card_tells_what_there_is_to_fear(finished: Finished) -> None:
    card = (finished.detector / "README.md").read_text()
    for words in (
        "## Intended use",
        "## Where it fails",
        "## Limits",
        "| gamma | test |",
        "Platt's: probability",
    ):
        assert words in card
    assert "None" not in card.split("## Where it comes from")[0]
    description = load_detector(finished.detector).description
    for dtype in ("float32", "bfloat16"):
        other = {**description, "encoder": {**description["encoder"], "dtype": dtype}}
        assert ("`images.onnx`" in model_card(other)) == (dtype == "bfloat16")
    provenance = description["provenance"]
    for head, read, left in (("linear", "learning_rate", "lambda1"), ("svm", "svm_c", "learning_rate")):
        config = {**provenance["config"], "head": head}
        told = {**description, "provenance": {**provenance, "config": config, "train_generators": ["a|<b>"]}}
        card = model_card(told)
        assert f"`{read}`" in card
        assert f"`{left}`" not in card
        assert "Trained on a\\|\\<b> only" in card


def test_trials_without_a_sound_head_are_refused(finished: Finished, tmp_path: Path) -> None:
    copy = tmp_path / "studies" / "small"
    shutil.copytree(finished.study, copy)
    paths = sorted((copy / "trials").glob("*.json"))

    def change(number: int, **values: object) -> None:
        record = json.loads(paths[number].read_text())
        paths[number].write_text(json.dumps({**record, **values}))

    change(0, state="failed", reason="it diverged")
    change(1, state="pruned", reason="others were better")
    change(2, collapsed="ones")
    for number, words in ((0, "it diverged"), (1, "others were better"), (2, "--force"), (9, "no trial 9")):
        with pytest.raises(StudyError, match=words):
            export_detector(copy, tmp_path / "out", trial=number)
        assert not (tmp_path / "out").exists()
    forced = export_detector(copy, tmp_path / "out", trial=2, force=True)
    assert forced.description["provenance"]["collapsed"] == "ones"
    assert "Its mask has collapsed" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(StudyError, match="no causal head"):
        export_detector(copy, tmp_path / "other")


def test_a_head_that_scores_otherwise_than_in_its_training_is_refused(
    finished: Finished, tmp_path: Path
) -> None:
    copy = tmp_path / "studies" / "small"
    shutil.copytree(finished.study, copy)
    winner = load_detector(finished.detector).description["provenance"]["trial"]
    path = copy / "trials" / f"{winner}.json"
    record = json.loads(path.read_text())
    record["generators"]["gamma"]["loss"] += 0.01
    path.write_text(json.dumps(record))
    with pytest.raises(StudyError, match="computes something else"):
        export_detector(copy, tmp_path / "out")
    assert Ledger(finished.study / "trials").records()


def test_scores_need_neither_ray_nor_mlflow_nor_optuna(pictures: list[Path]) -> None:
    script = (
        "import sys; from causal_tune.detector import Score, load_detector\n"
        f"print(load_detector({str(STORED)!r}).score_image({str(pictures[0])!r}).verdict)\n"
        "assert not {'ray', 'mlflow', 'optuna'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "real"


@pytest.mark.parametrize("content", ["[]", '{"format": 3}', "{}", '{"format": 2}'])
def test_other_descriptions_are_refused(tmp_path: Path, content: str) -> None:
    shutil.copytree(STORED, tmp_path / "copy")
    (tmp_path / "copy" / "detector.json").write_text(content)
    with pytest.raises(DetectorError):
        load_detector(tmp_path / "copy")
