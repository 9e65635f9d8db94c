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

from causal_tune.detector import Score, load_detector, model_id
from causal_tune.errors import DetectorError, StudyError, UnreadableImage
from causal_tune.export import export_detector
from causal_tune.images.decode import read_crop
from causal_tune.ledger import Ledger
from causal_tune.model_card import calibration_findings, model_card
from causal_tune.trial import TrialConfig
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


def test_the_id_covers_all_that_verdicts_depend_on() -> None:
    description = load_detector(STORED).description
    same = json.loads(json.dumps(description))
    same["name"] = "renamed"
    same["metrics"], same["provenance"]["exported"] = {}, "2030-01-01T00:00:00Z"
    name, digest = model_id(description).split("@")
    assert (name, len(digest)) == ("small", 12)
    assert model_id(same) == f"renamed@{digest}"
    changes: list[tuple[tuple[str, ...], object]] = [
        (("model_sha256",), "0" * 64),
        (("head", "evaluation_mask"), "mean"),
        (("layer",), "pre"),
        (("encoder", "weights_sha256"), "0" * 64),
        (("encoder", "dtype"), "bfloat16"),
        (("preprocessing",), "center-crop-224/v1+recompress=90"),
        (("labels", "1"), "synthetic"),
        (("calibration",), {"slope": 2.0, "offset": 0.0}),
        (("unsure", "low", "logit"), -0.5),
        (("unsure", "high", "logit"), 0.5),
    ]
    found = {digest}
    for path, value in changes:
        changed = json.loads(json.dumps(description))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        found.add(model_id(changed).split("@")[1])
    assert len(found) == 1 + len(changes)
    assert model_id(description) in repr(load_detector(STORED))


def test_a_wished_rate_moves_the_cuts(finished: Finished, tmp_path: Path) -> None:
    found, ids = {}, set()
    for rate in (0.05, 0.4):
        words = ("export", "small", "-o", tmp_path / str(rate), "--workspace", finished.workspace)
        result = run_cli(*words, "--fpr", rate, "--json")
        assert result.exit_code == 0, result.output
        found[rate] = json.loads(result.stdout)
        detector = load_detector(tmp_path / str(rate))
        ids.add(detector.id.split("@")[1])
        assert f"`{detector.id}`" in (tmp_path / str(rate) / "README.md").read_text()
    assert len(ids) == 2
    assert ids & {load_detector(finished.detector).id.split("@")[1]}  # the same export again
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


def test_a_rate_that_the_images_cannot_promise_is_said(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    result = run_cli("export", "small", "-o", folder, "--workspace", finished.workspace, "--fpr", 0.01)
    assert result.exit_code == 0, result.output
    description = load_detector(folder).description
    num_real = description["calibration"]["num_real"]
    assert 19 < num_real < 99
    least = f"{100 / (num_real + 1):.3g} %"
    said = f"{num_real} real images can promise no less than {least}. 99 are needed."
    card = (folder / "README.md").read_text()
    assert said in " ".join(result.output.split())
    assert said in card.split("## Where it fails")[1].split("## ")[0]
    assert f"at most {least} of real images (1 % were asked for)" in card
    assert "at most 1 %" not in card
    usual = load_detector(finished.detector).description
    assert not [what for _, what in calibration_findings(usual) if "can promise no less" in what]


def test_a_threshold_that_hardly_any_generated_image_reaches_is_said() -> None:
    def findings(tpr: float) -> list[tuple[str, str]]:
        return calibration_findings(
            {
                "calibration": {"num_real": 99, "num_generated": 40, "ece_before": 0.1, "ece_after": 0.1},
                "threshold": {"wished_fpr": 0.05, "promised_fpr": 0.05, "tpr": tpr},
                "unsure": {"promised_miss_rate": 0.05},
            }
        )

    ((subject, said),) = findings(0.025)
    assert subject == "threshold"
    assert said.startswith("2.5 % of the 40 generated images that set it reach it")
    assert findings(0.5) == []


def test_a_calibration_that_does_not_help_is_said(finished: Finished) -> None:
    description = load_detector(finished.detector).description
    for after, number in ((0.09, 1), (0.08, 0), (0.07, 0)):
        changed = {**description["calibration"], "ece_before": 0.08, "ece_after": after}
        found = calibration_findings({**description, "calibration": changed})
        assert [one[0] for one in found].count("calibration") == number
        card = model_card({**description, "calibration": changed})
        assert ("8.0 points before and 9.0 after" in card) == bool(number)


def test_the_card_has_the_settings_of_its_head_alone(finished: Finished) -> None:
    description = load_detector(finished.detector).description
    for head, has, has_not in (("linear", "learning_rate", "lambda1"), ("causal", "lambda1", "mlp_width")):
        config = {**TrialConfig().to_dict(), "head": head}
        card = model_card({**description, "provenance": {**description["provenance"], "config": config}})
        assert f"- `{has}`: " in card
        assert f"- `{has_not}`: " not in card


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
