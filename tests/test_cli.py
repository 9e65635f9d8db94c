"""What people type, mistakes included: one paragraph, the next step, an exit code, nothing half-written."""

import csv
import json
import runpy
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from causal_tune.cli import COMMANDS, main
from causal_tune.cli.output import under_workspace
from causal_tune.clip import load_encoder
from causal_tune.detector import load_detector
from causal_tune.errors import DetectorError
from causal_tune.features import FeatureStore
from causal_tune.images.decode import read_crop
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.ledger import Ledger
from tests.conftest import Finished, draw, run_cli, write_images
from tests.test_features import make_store

pytestmark = pytest.mark.slow

JOB = Path(__file__).parents[1] / "jobs" / "tune_sd14.py"


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = run_cli(name, "--help")
    assert result.exit_code == 0
    assert f"Example: causal-tune {name}" in " ".join(result.output.split())


def test_help_lists_every_command_without_importing_torch() -> None:
    script = (
        "import sys; from causal_tune.cli import main; assert 'torch' not in sys.modules; main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in main.list_commands(None))


# --- from images to detector ---------------------------------------------------------------------------


def test_leaderboard_lists_the_trials(finished: Finished) -> None:
    result = run_cli("leaderboard", "small", "--workspace", finished.workspace, "--json")
    document = json.loads(result.output)
    assert document["num_trials"] == 3
    assert [row["rank"] for row in document["leaderboard"]] == [1, 2, 3]
    values = [row["val_generators"] for row in document["leaderboard"]]
    assert values == sorted(values, reverse=True)
    shown = run_cli("leaderboard", "small", "--workspace", finished.workspace).output
    assert "Leaderboard by val_generators" in shown


def test_the_detector_scores_what_the_trial_scored(finished: Finished) -> None:
    detector = load_detector(finished.detector)
    store = FeatureStore(finished.store)
    provenance = detector.description["provenance"]
    (record,) = [
        item for item in Ledger(finished.study / "trials").records() if item.id == provenance["trial"]
    ]
    generator = np.asarray(store.rows["generator"].to_pylist())
    labels = store.rows["label"].to_numpy()
    for name in ("beta", "gamma"):
        members = np.flatnonzero(generator == name)
        logits = detector.logits(store.features("proj", members)).astype(np.float64)
        losses = np.logaddexp(0, np.where(labels[members] == 1, -logits, logits))
        assert losses.mean() == pytest.approx(record.generators[name]["loss"], abs=1e-5)


def test_predict_gives_every_image_a_score_or_a_reason(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    draw(1, generated=False, size=300).save(folder / "good.png")
    draw(2, generated=True, size=300).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("these are words")
    (folder / "notes.txt").write_text("left out")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    output = tmp_path / "scores.csv"
    result = run_cli("predict", finished.detector, folder, "-o", output)
    assert result.exit_code == 1
    with output.open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert list(rows) == ["empty.png", "good.png", "huge.png", "text.jpg", "truncated.jpg", "whole.jpg"]
    for name in ("good.png", "whole.jpg"):
        assert 0 <= float(rows[name]["score"]) <= 1
        assert rows[name]["verdict"] in ("real", "generated", "unsure")
        assert rows[name]["reason"] == ""
    for name, words in {
        "empty.png": "empty",
        "huge.png": "400,000,000",
        "truncated.jpg": "truncated",
    }.items():
        assert words in rows[name]["reason"]
        assert rows[name]["score"] == ""
    assert rows["text.jpg"]["reason"]
    assert "4 of 6 images could not be scored" in " ".join(result.output.split())
    assert "1 other file in the folders left out: 1 .txt." in result.output


def test_a_detector_decodes_as_it_was_trained(finished: Finished, tmp_path: Path) -> None:
    image = finished.images.parent / "alpha" / "real" / "000.png"
    copy = tmp_path / "copy"
    shutil.copytree(finished.detector, copy)
    description = json.loads((copy / "detector.json").read_text())
    assert description["preprocessing"] == "center-crop-224/v1"

    def score(preprocessing: str) -> float:
        (copy / "detector.json").write_text(json.dumps({**description, "preprocessing": preprocessing}))
        (row,) = json.loads(run_cli("predict", copy, image, "--json").stdout)["scores"]
        return row["score"]

    detector = load_detector(finished.detector)
    for chosen in (Preprocessing(), Preprocessing(small="pad"), Preprocessing(recompress=30)):
        features = detector.encoder().encode(read_crop(image, chosen)[None])[detector.layer]
        assert score(chosen.name) == pytest.approx(float(detector.score_features(features)[0]), abs=1e-6)
    assert score("center-crop-224/v1") != score("center-crop-224/v1+small=pad")

    unknown = {**description, "preprocessing": "center-crop-224/v9"}
    (copy / "detector.json").write_text(json.dumps(unknown))
    result = run_cli("predict", copy, image)
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert "was exported by causal-tune" in message
    assert "'center-crop-224/v9' is not known to this release" in message


def test_preprocessing_is_chosen_on_the_command_line(finished: Finished, tmp_path: Path) -> None:
    options = ("--encoder", "tiny-random", "--workspace", tmp_path, "--json")
    images = write_images(tmp_path / "images", {"alpha": 2})
    index = tmp_path / "index.parquet"
    run_cli("index", images, "--layout", "csv", "-o", index)
    result = run_cli("extract", index, *options, "--small", "reflect", "--recompress", 90)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["preprocessing"] == "center-crop-224/v1+small=reflect+recompress=90"
    store = FeatureStore(document["store"])
    assert store.description["preprocessing"] == document["preprocessing"]
    assert FeatureStore(finished.store).description["preprocessing"] == "center-crop-224/v1"
    chosen = Preprocessing(small="reflect", recompress=90)
    crops = [read_crop(path, chosen) for path in store.rows["path"].to_pylist()]
    expected = load_encoder("tiny-random", layers=("proj",)).encode(np.stack(crops))["proj"]
    np.testing.assert_array_equal(store.features("proj", np.arange(len(crops))), expected)
    for words in (("--small", "stretch"), ("--recompress", 101), ("--recompress", 0)):
        result = run_cli("extract", index, *options, *words)
        assert result.exit_code == 2
        assert str(words[1]) in result.output


@pytest.mark.parametrize("job", ["tune_sd14.py", "heads_sd14.py", "ablation_sd14.py", "robustness_sd14.py"])
def test_jobs_choose_preprocessing_too(job: str) -> None:
    command = runpy.run_path(str(JOB.with_name(job)))["main"]
    assert {"--small", "--recompress"} <= {option for param in command.params for option in param.opts}
    assert {"small", "recompress"} <= {param.name for param in command.params}


def test_predict_writes_parquet_and_json_alike(finished: Finished, tmp_path: Path) -> None:
    image = finished.images.parent / "alpha" / "real" / "000.png"
    output = tmp_path / "scores.parquet"
    result = run_cli("predict", finished.detector, image, "-o", output, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["num_scored"] == 1
    assert document["scores"] is None  # they are in the file
    shown = json.loads(run_cli("predict", finished.detector, image, "--json").stdout)
    assert pq.read_table(output).to_pylist() == shown["scores"]


def test_evaluate_agrees_with_the_trial_and_encodes_nothing_again(finished: Finished) -> None:
    words = ("evaluate", finished.detector, finished.index, "--workspace", finished.workspace)
    document = json.loads(run_cli(*words, "--json").stdout)
    trial = load_detector(finished.detector).description["metrics"]["generators"]
    for name in ("beta", "gamma"):
        assert document["generators"][name]["ap"] == pytest.approx(trial[name]["ap"], abs=1e-9)
        assert document["generators"][name]["intervals"]["auc"] == trial[name]["intervals"]["auc"]
    shown = run_cli(*words).output
    assert "all were stored before" in shown
    auc = document["generators"]["gamma"]["auc"]
    assert f"{100 * auc:.1f} [" in shown
    assert "false alarms" in shown
    assert "trained on" in next(line for line in shown.splitlines() if line.strip().startswith("alpha"))
    assert "chosen by" in next(line for line in shown.splitlines() if line.strip().startswith("beta"))


@pytest.mark.journey
def test_the_job_ends_with_a_table_and_a_detector(tmp_path: Path, ray_local: None) -> None:
    images = write_images(tmp_path / "images", {"alpha": 30, "beta": 6, "gamma": 6})
    command = [sys.executable, str(JOB), "--images", str(images), "--layout", "csv"]
    command += ["--encoder", "tiny-random", "--train-generator", "alpha", "--val-generators", "beta"]
    command += ["--trials", "2", "--study", "job", "--workspace", str(tmp_path / "runs")]
    command += ["--max-concurrent", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Winner: trial" in done.stdout
    assert "gamma" in done.stdout
    assert load_detector(tmp_path / "runs" / "detectors" / "job").name == "job"
    assert "gamma" in (tmp_path / "runs" / "studies" / "job" / "report" / "report.html").read_text()
    job = runpy.run_path(str(JOB))["main"]  # again: nothing is left to do
    again = CliRunner().invoke(job, [*command[2:], "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["num_trials"] == 2


# --- mistakes ------------------------------------------------------------------------------------------


def test_mistakes_in_making_an_index(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    empty = tmp_path / "empty"
    empty.mkdir()
    no_column = tmp_path / "no_column.csv"
    no_column.write_text("path,label\nx.png,real\n")
    for root, layout, words in (
        (tmp_path / "missing", "folders", "missing"),
        (empty, "folders", "no image"),
        (tmp_path / "missing.csv", "csv", "missing.csv"),
        (no_column, "csv", "generator"),
    ):
        result = run_cli("index", root, "--layout", layout, "-o", output)
        assert result.exit_code == 2, result.output
        assert words in " ".join(result.output.split())
        assert "Traceback" not in result.output
        assert not output.exists()


def tune(finished: Finished, *words: object) -> object:
    return run_cli(
        "tune", "--store", finished.store, "--trials", 3, "--workspace", finished.workspace, *words
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--space demo --study a --train-generator nothing", "alpha, beta, gamma"),
        (
            "--space demo --study a --train-generator alpha --val-generators beta --test-generators beta",
            "beta",
        ),
        ("--space demo --study a --train-generator alpha --val-generators alpha", "alpha"),
        ("--space demo --study a --train-generator alpha --criterion oracle", "oracle"),
        ("--space demo --study a --train-generator alpha --criterion val_generators", "--val-generators"),
        ("--space nothing --study a --train-generator alpha", "sd14"),
        ("--space demo --study ../a --train-generator alpha", "name of a study"),
        ("--space demo --study a", "--train-generator"),
        ("--space demo --study small --train-generator alpha --val-generators gamma", "another --study name"),
        ("--space demo --study small --train-generator alpha --val-generators beta --seed 5", "seed"),
        (
            "--space demo --study a --train-generator alpha --tracking-uri http://127.0.0.1:9",
            "127.0.0.1:9",
        ),
    ],
)
def test_mistakes_in_a_study(finished: Finished, options: str, expected: str) -> None:
    before = files_below(finished.workspace / "studies")
    result = tune(finished, *options.split())
    assert result.exit_code == 2, result.output
    message = " ".join(result.output.split())
    assert expected in message
    assert "Traceback" not in message
    after = [name for name in files_below(finished.workspace / "studies") if not name.endswith(".lock")]
    assert after == [name for name in before if not name.endswith(".lock")]


def test_a_training_generator_of_one_class(tmp_path: Path, ray_local: None) -> None:
    images = write_images(tmp_path / "images", {"alpha": 8, "beta": 8})
    lines = [line for line in images.read_text().splitlines() if not line.endswith("fake,alpha,")]
    images.write_text("\n".join(lines) + "\n")
    index = tmp_path / "index.parquet"
    assert run_cli("index", images, "--layout", "csv", "-o", index).exit_code == 0
    store = json.loads(
        run_cli("extract", index, "--encoder", "tiny-random", "--workspace", tmp_path, "--json").stdout
    )["store"]
    words = ("--space", "demo", "--study", "a", "--trials", 2, "--train-generator", "alpha")
    result = run_cli("tune", "--store", store, "--workspace", tmp_path, *words)
    assert result.exit_code == 2
    assert "no generated image" in " ".join(result.output.split())


def test_a_store_of_another_encoder_is_refused(finished: Finished, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"alpha": 8, "beta": 8})
    index = tmp_path / "index.parquet"
    run_cli("index", images, "--layout", "csv", "-o", index)
    other = json.loads(
        run_cli("extract", index, "--encoder", "tiny-random", "--workspace", tmp_path, "--json").stdout
    )["store"]
    words = ("--space", "demo", "--study", "small", "--trials", 3, "--train-generator", "alpha")
    result = run_cli(
        *("tune", "--store", other, *words, "--val-generators", "beta", "--test-generators", "gamma"),
        *("--workspace", finished.workspace),
    )
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert "gamma" in message or "fingerprint" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("leaderboard nothing", "There is no study"),
        ("export nothing", "There is no study"),
        ("predict nothing image.png", "There is no detector 'nothing'"),
        ("extract nothing.parquet --encoder tiny-random", "nothing.parquet"),
        ("extract {index} --encoder vit-b-17", "There are"),
        ("extract {index} --encoder tiny-random --layers proj,cls@99", "cls@99"),
        ("tune --store nothing --study a --trials 1 --train-generator alpha", "There is no feature store"),
        ("predict {detector} {workspace}/studies", "no image"),
        ("predict {detector} x.png -o scores.txt", ".csv, .jsonl or .parquet"),
    ],
)
def test_other_mistakes(finished: Finished, tmp_path: Path, words: str, expected: str) -> None:
    filled = words.format(index=finished.index, detector=finished.detector, workspace=finished.workspace)
    options = [] if filled.startswith("predict") else ["--workspace", tmp_path]
    result = run_cli(*filled.split(), *options)
    assert result.exit_code == 2, result.output
    assert expected in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_damaged_detector_is_refused(finished: Finished, tmp_path: Path) -> None:
    run_cli("export", "small", "-o", tmp_path / "copy", "--workspace", finished.workspace)
    path = tmp_path / "copy" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DetectorError, match="changed or damaged"):
        load_detector(tmp_path / "copy")
    (tmp_path / "copy" / "detector.json").write_text('{"format": 99}')
    with pytest.raises(DetectorError, match="format 99"):
        load_detector(tmp_path / "copy")


def test_export_does_not_overwrite_a_folder_of_other_things(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = run_cli("export", "small", "-o", tmp_path, "--workspace", finished.workspace)
    assert result.exit_code == 2
    assert files_below(tmp_path) == ["thesis.tex"]


def test_a_submitted_job_needs_an_absolute_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    result = run_cli("leaderboard", "x", "--workspace", "relative")
    assert result.exit_code == 2
    assert "absolute path" in " ".join(result.output.split())


def test_fewer_trials_than_there_are_is_a_study_that_is_done(finished: Finished) -> None:
    words = ["tune", "--store", finished.store, "--space", "demo", "--study", "small", "--trials", 2]
    words += ["--train-generator", "alpha", "--val-generators", "beta", "--workspace", finished.workspace]
    result = run_cli(*words, "--max-concurrent", 1)
    assert result.exit_code == 0, result.output
    assert "Study small: nothing to run, it has 3 trials." in result.output


def test_sync_delivers_what_is_missing_once(finished: Finished, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    words = ("sync", "small", "--tracking-uri", uri, "--workspace", finished.workspace)
    first, second = run_cli(*words), run_cli(*words)
    assert first.exit_code == second.exit_code == 0, first.output
    assert "3 of 3 trials delivered" in first.output
    assert "0 of 3 trials delivered; 3 were there already" in second.output
    assert run_cli("sync", "nothing", "--workspace", finished.workspace).exit_code == 2


def test_the_environment_names_the_tracking_server_unless_an_option_does(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, other = (f"sqlite:///{tmp_path / name}" for name in ("named.db", "other.db"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    words = ("sync", "small", "--workspace", finished.workspace)
    by_environment = run_cli(*words)
    assert f"Runs are kept at {named}, as $MLFLOW_TRACKING_URI says." in by_environment.stderr
    assert f"--backend-store-uri {named}" in by_environment.stdout
    assert "3 of 3 trials delivered" in by_environment.stdout
    by_option = run_cli(*words, "--tracking-uri", other)
    assert "MLFLOW_TRACKING_URI" not in by_option.stderr
    assert "3 of 3 trials delivered" in by_option.stdout
    exported = run_cli("export", "small", "-o", tmp_path / "detector", "--workspace", finished.workspace)
    assert exported.exit_code == 0, exported.output


def test_what_sync_cannot_deliver_is_told_after_what_it_did(finished: Finished, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'other.db'}"
    MlflowClient(uri).create_experiment("causal-tune", artifact_location="gs://nowhere/x")
    result = run_cli("sync", "small", "--tracking-uri", uri, "--workspace", finished.workspace)
    assert result.exit_code == 1, result.output
    assert "3 of 3 trials delivered" in result.stdout
    assert "MLflow did not get everything: " in result.stderr
    told = result.stderr[result.stderr.index("`causal-tune sync") :].split("`")[1]
    assert shlex.split(told)[:5] == ["causal-tune", "sync", "small", "--tracking-uri", uri]


def test_a_database_that_is_damaged_costs_no_study_and_is_filled_later(
    finished: Finished, tmp_path: Path
) -> None:
    workspace = tmp_path / "runs %20?"  # every path of a command has to be quoted, and of a URI escaped
    shutil.copytree(finished.study, workspace / "studies" / "small")
    (workspace / "mlflow.db").write_text("no database " * 400)
    words = ["tune", "--store", finished.store, "--space", "demo", "--study", "small", "--trials", 4]
    words += ["--train-generator", "alpha", "--val-generators", "beta", "--workspace", workspace]
    result = run_cli(*words, "--max-concurrent", 1)
    text = " ".join(result.output.split())
    assert result.exit_code == 1, text
    assert f"{workspace / 'mlflow.db'} is not a database" in text
    assert text.count("The study goes on without it.") == 1
    assert "4 finished" in text
    told = result.output[result.output.index("`causal-tune sync") :].split("`")[1]
    (workspace / "mlflow.db").unlink()
    again = run_cli(*shlex.split(told)[1:])
    assert again.exit_code == 0, again.output
    assert "4 of 4 trials delivered" in again.output
    (num_runs,) = sqlite3.connect(workspace / "mlflow.db").execute("select count(*) from runs").fetchone()
    assert num_runs == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [workspace.name]


def test_sync_delivers_the_figures_of_the_report_once(finished: Finished, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'figures.db'}"
    words = ("sync", "small", "--tracking-uri", uri, "--workspace", finished.workspace)
    assert run_cli(*words).exit_code == 0
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'causal-tune'")
    (run,) = client.search_runs([experiment.experiment_id], "tags.causal_tune.best_trial != ''")
    folder = Path(client.download_artifacts(run.info.run_id, "figures", str(tmp_path)))
    report = run_cli("report", "small", "-o", tmp_path / "report", "--workspace", finished.workspace)
    assert report.exit_code == 0, report.output
    expected = {path.name: path.read_bytes() for path in (tmp_path / "report" / "figures").glob("*.svg")}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    shutil.rmtree(folder)
    (tmp_path / "mlartifacts" / run.info.run_id / "artifacts" / "figures" / "roc.svg").unlink()
    assert run_cli(*words).exit_code == 0
    assert "figures/roc.svg" not in {one.path for one in client.list_artifacts(run.info.run_id, "figures")}


def test_a_study_whose_figures_cannot_be_drawn_is_delivered_all_the_same(
    finished: Finished, tmp_path: Path
) -> None:
    shutil.copytree(finished.study, tmp_path / "studies" / "small")
    shutil.rmtree(tmp_path / "studies" / "small" / "checkpoints")
    result = run_cli("sync", "small", "--workspace", tmp_path)
    assert result.exit_code == 0, result.output
    assert "Warning: MLflow gets no figures of small: The checkpoint of trial" in " ".join(
        result.output.split()
    )
    assert "3 of 3 trials delivered" in result.output


def test_the_job_that_evaluates_says_what_the_command_says(finished: Finished, tmp_path: Path) -> None:
    command = runpy.run_path(str(JOB.with_name("evaluate.py")))["main"]
    words = ["--detector", finished.detector, "--images", finished.images, "--layout", "csv", "--json"]
    job = CliRunner().invoke(command, [*map(str, words), "--workspace", str(finished.workspace)])
    assert job.exit_code == 0, job.output
    typed = run_cli(
        "evaluate", finished.detector, finished.index, "--json", "--workspace", finished.workspace
    )
    assert json.loads(job.stdout)["generators"] == json.loads(typed.stdout)["generators"]
    listed = run_cli(
        "evaluate", finished.detector, finished.images, "--json", "--workspace", finished.workspace
    )
    assert json.loads(listed.stdout)["generators"] == json.loads(typed.stdout)["generators"]


def test_stores_and_detectors_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = tmp_path / "runs"
    detector = workspace / "detectors" / "mine"
    shutil.copytree(Path(__file__).parent / "stored" / "detector-format-1", detector)
    make_store(workspace / "stores" / "0123abcd", 10)
    folder = tmp_path / "here"
    (folder / "mine").mkdir(parents=True)  # images, say: of the same name, and no detector
    monkeypatch.chdir(folder)
    draw(1, generated=False, size=256).save(folder / "mine" / "a.png")

    def found(kind: str, name: str) -> Path:
        return under_workspace(workspace, kind, name)

    assert found("detectors", "mine") == detector
    assert found("stores", "0123abcd") == workspace / "stores" / "0123abcd"
    assert found("detectors", str(detector)) == detector
    assert found("detectors", "./mine") == folder / "mine"
    assert found("detectors", "elsewhere/mine") == folder / "elsewhere" / "mine"
    shutil.copy(detector / "detector.json", folder / "mine")
    assert found("detectors", "mine") == folder / "mine"
    (folder / "mine" / "detector.json").unlink()

    result = run_cli("predict", "mine", "mine", "--json", "--workspace", workspace)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["detector"], document["num_scored"]) == (str(detector), 1)
    words = ("--study", "a", "--trials", 1, "--train-generator", "nobody", "--workspace", workspace)
    result = run_cli("tune", "--store", "0123abcd", *words)
    assert "nobody" in result.output
    assert str(workspace / "stores" / "0123abcd") in "".join(result.output.split("\n"))
    result = run_cli("tune", "--store", "0123abce", *words)
    assert "There are: 0123abcd" in " ".join(result.output.split())
