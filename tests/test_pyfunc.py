"""A detector as an MLflow model, loaded where this package's folder is not on the path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from mlflow import MlflowClient

from causal_tune.detector import load_detector
from causal_tune.errors import TrackingError
from causal_tune.pyfunc import save_mlflow_model
from causal_tune.tracking import default_uri
from tests.conftest import Finished, draw, run_cli

pytestmark = pytest.mark.slow

DETECTOR = Path(__file__).parent / "stored" / "detector-format-1"

SCRIPT = """
import json, sys
import numpy as np, pandas as pd, mlflow.pyfunc
target, image, features = sys.argv[1:]
model = mlflow.pyfunc.load_model(target)
import causal_tune
found = {"from": causal_tune.__file__}
for name, frame in {
    "path": pd.DataFrame({"path": [image, "missing.png"]}),
    "image": pd.DataFrame({"image": [open(image, "rb").read(), b"no image"]}),
    "features": pd.DataFrame({"features": np.load(features).astype(float).tolist()}),
}.items():
    found[name] = json.loads(model.predict(frame).to_json(orient="records"))
try:
    model.predict(pd.DataFrame({"path": [image], "image": [b""]}))
except Exception as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mlflow_model(DETECTOR, tmp_path_factory.mktemp("mlflow") / "model")


def test_it_scores_in_another_process_without_this_folder(saved: Path, tmp_path: Path) -> None:
    draw(1, generated=True, size=300).save(tmp_path / "image.png")
    features = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [
        sys.executable,
        "-c",
        SCRIPT,
        str(saved),
        str(tmp_path / "image.png"),
        str(tmp_path / "features.npy"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["from"].startswith(str(saved))
    detector = load_detector(DETECTOR)
    expected = detector.score_image(tmp_path / "image.png")
    for name, reason in (("path", "no such file"), ("image", "not a JPEG")):
        good, bad = found[name]
        assert good["score"] == pytest.approx(expected.score, abs=1e-4)
        assert good["probability"] == pytest.approx(expected.probability, abs=1e-4)
        assert (good["verdict"], good["reason"]) == (expected.verdict, None)
        assert bad["score"] is None
        assert reason in bad["reason"]
    scores = [one.score for one in detector.scores(detector.logits(features))]
    assert [one["score"] for one in found["features"]] == pytest.approx(scores, abs=1e-4)
    assert "exactly one of" in found["error"]


def test_it_is_code_with_signature_example_and_requirements(saved: Path) -> None:
    names = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))]
    text = (saved / "MLmodel").read_text()
    assert all(f'"name": "{column}"' in text for column in ("image", "path", "features", "verdict", "note"))
    required = (saved / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in required)
    assert any(line.startswith("torch==") for line in required)
    example = json.loads((saved / "input_example.json").read_text())
    assert pd.DataFrame(**example).columns.tolist() == ["features"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TrackingError, match="exists already"):
        save_mlflow_model(DETECTOR, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


LOAD = """
import json, sys
import numpy as np, pandas as pd, mlflow
uri, name, features = sys.argv[1:]
mlflow.set_registry_uri(uri)
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
frame = pd.DataFrame({"features": np.load(features).astype(float).tolist()})
print(model.predict(frame)["score"].to_json(orient="values"))
"""


@pytest.mark.journey
def test_the_winner_is_registered_as_champion_and_loads_by_that_name(
    finished: Finished, tmp_path: Path
) -> None:
    def export(folder: str, *words: object) -> Result:
        place = ("-o", tmp_path / folder, "--workspace", workspace)
        return run_cli("export", "small", *place, "--register", "my detector", *words)

    workspace = finished.workspace
    uri = default_uri(workspace)
    first = export("first")
    assert first.exit_code == 0, first.output
    assert "models:/my detector@champion is version 1" in first.output
    assert "artifacts:" not in first.output.lower()  # MLflow's progress bars
    second = export("second", "--fpr", "0.2", "--json")
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout)["registered_version"] == "2"

    client = MlflowClient(tracking_uri=uri)
    champion = client.get_model_version_by_alias("my detector", "champion")
    assert str(champion.version) == "2"
    assert champion.tags["causal_tune.command"].endswith("--fpr 0.2")
    assert champion.description == (tmp_path / "second" / "README.md").read_text()
    assert client.get_model_version("my detector", "1").run_id == champion.run_id
    assert client.get_run(champion.run_id).data.tags["causal_tune.study"] == "small"
    assert client.get_run(champion.run_id).info.status == "FINISHED"

    detector = load_detector(tmp_path / "second")
    features = np.random.default_rng(1).normal(size=(4, int(detector.description["head"]["width"])))
    np.save(tmp_path / "features.npy", features.astype(np.float32))
    words = [sys.executable, "-c", LOAD, uri, "my detector", str(tmp_path / "features.npy")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = [one.score for one in detector.scores(detector.logits(features.astype(np.float32)))]
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-4)


def test_a_registered_model_of_other_people_is_left_alone(finished: Finished, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=default_uri(finished.workspace))
    client.create_registered_model("theirs")
    words = ("export", "small", "-o", tmp_path / "d", "--workspace", finished.workspace)
    refused = run_cli(*words, "--register", "theirs")
    assert refused.exit_code != 0
    assert "not a detector of causal-tune" in refused.output
    away = run_cli(*words, "--register", "ours", "--tracking-uri", "http://127.0.0.1:9")
    assert away.exit_code == 2
    assert "http://127.0.0.1:9" in away.output
    assert not (tmp_path / "d").exists()  # refused before anything is written
    assert not client.search_model_versions("name = 'theirs'")
    assert "must not contain" in " ".join(run_cli(*words, "--register", "a/b").output.split())
    assert "give both" in run_cli(*words, "--tracking-uri", "http://127.0.0.1:1").output


def test_a_registration_that_fails_leaves_the_detector(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> str:
        raise TrackingError("No room is left at MLflow.")

    monkeypatch.setattr("causal_tune.tracking.tracker.Tracker.register", refuse)
    words = ("-o", tmp_path / "d", "--workspace", finished.workspace, "--register", "ours")
    result = run_cli("export", "small", *words)
    text = " ".join(result.output.split())
    assert result.exit_code == 1, text
    assert "The detector was exported, and MLflow did not get it: No room is left at MLflow." in text
    again = (
        f"causal-tune export small --output {tmp_path / 'd'} --register ours --workspace {finished.workspace}"
    )
    assert f"`{again}`" in text
    assert load_detector(tmp_path / "d").description["provenance"]["study"] == "small"
    monkeypatch.undo()
    assert run_cli(*again.split()[1:]).exit_code == 0
