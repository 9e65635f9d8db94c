"""The documentation agrees with the code: commands, options, names, links, examples."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from ray._private.runtime_env.packaging import create_package

from causal_tune.cli import COMMANDS, main
from causal_tune.encoders import ENCODERS
from causal_tune.heads import HEADS
from causal_tune.images.layouts import LAYOUTS
from causal_tune.images.walk import IMAGE_SUFFIXES
from causal_tune.selection import CRITERIA
from causal_tune.study.pruning import PRUNERS
from causal_tune.study.space import space_paths
from causal_tune.study.suggestion import SAMPLERS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
TEXT = "\n".join(page.read_text() for page in PAGES)


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_architecture_names_every_room() -> None:
    table = "\n".join(
        line for line in (ROOT / "docs/architecture.md").read_text().splitlines() if line.startswith("| `")
    )
    named = {name.rstrip("/") for name in re.findall(r"`([\w/]+)`", table)}
    rooms = {path.stem for path in (ROOT / "causal_tune").glob("*.py") if not path.stem.startswith("__")}
    rooms |= {path.parent.name for path in (ROOT / "causal_tune").glob("*/__init__.py")}
    assert not rooms - named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_are_shown_exist(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ").replace("\\|", "|")
    for line in re.findall(r"causal-tune ([a-z]+[^`\n]*)", text):
        name, *words = line.split()
        if name not in COMMANDS:
            continue  # prose: "causal-tune has to be importable"
        known = options_of(main.get_command(None, name)) | {"--help"}
        for word in words:
            option = word.strip("[].,;").split("=")[0]
            if option.startswith("--"):
                assert option in known, f"{name} {option}"


def test_job_options_that_are_shown_exist() -> None:
    import runpy

    command = runpy.run_path(str(ROOT / "jobs" / "tune_sd14.py"))["main"]
    shown = re.findall(r"python jobs/tune_sd14\.py((?:[^`\n]|\\\n)*)", TEXT)
    options = {word for line in shown for word in line.split() if word.startswith("--")}
    assert options
    assert options <= options_of(command) | {"--help"}


def test_every_command_layout_and_target_is_documented() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"causal-tune {name}" in readme for name in COMMANDS)
    assert all(f"`{name}`" in TEXT for name in LAYOUTS)
    assert all(f"make {target}" in readme for target in ("demo", "test", "lint", "bench"))
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert all(f"`{name}`" in changelog for name in (*CRITERIA, *HEADS))
    study = (ROOT / "docs" / "study.md").read_text()
    plain_criteria = [name for name in CRITERIA if not name.endswith("_uncollapsed")]
    assert all(f"`{name}`" in study for name in (*SAMPLERS, *PRUNERS, *plain_criteria, *space_paths()))
    assert all(name in TEXT for name in ENCODERS if name == "vit-b-16-int8")


def test_python_blocks_run() -> None:
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S):
            exec(compile(block, str(page), "exec"), {})


def test_manifests_parse_and_their_commands_have_options_that_exist() -> None:
    import runpy

    blocks = [
        block for page in PAGES for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.S)
    ]
    assert blocks
    for block in blocks:
        manifest = yaml.safe_load(block)
        program, script, *words = manifest["spec"]["entrypoint"].split()
        assert program == "python"
        command = runpy.run_path(str(ROOT / script))["main"]
        assert {word for word in words if word.startswith("--")} <= options_of(command)


def test_the_example_of_every_help_page_parses() -> None:
    for name in COMMANDS:
        command = main.get_command(None, name)
        words = command.epilog.removeprefix(f"Example: causal-tune {name}").split()
        command.make_context(name, list(words), resilient_parsing=True)
        known = options_of(command)
        assert {word for word in words if word.startswith("-") and not word[1:].isdigit()} <= known


def test_make_help_lists_the_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    for target in ("setup", "demo", "test", "lint", "bench", "docs"):
        assert re.search(rf"^{target} ", done.stdout, flags=re.M)


def test_wrong_usage_exits_with_2() -> None:
    result = CliRunner().invoke(main, ["nothing"])
    assert result.exit_code == 2


def test_a_submission_uploads_the_code_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    kept = [
        "jobs/tune_sd14.py",
        "search_spaces/sd14.py",
        "causal_tune/demo/weights/vae.safetensors",
        "causal_tune/serving/page.html",
        "causal_tune/report/paper.csv",
    ]
    left = [
        ".venv/bin/python",
        ".git/HEAD",
        "causal_tune_runs/mlflow.db",
        "elsewhere/stores/a/shard.arrow",
        "elsewhere/studies/a/trials/00000-1.json",
        "elsewhere/studies/a/checkpoints/1.safetensors",
        "detectors/mine/detector.json",
        "mlartifacts/1/artifacts/MLmodel",
        "mlruns.db",
        "mlruns.db-wal",
        *(f"images/1{suffix}" for suffix in IMAGE_SUFFIXES),
        *(f"images/2{suffix.upper()}" for suffix in IMAGE_SUFFIXES),
        "images/3.Jpeg",
        *(
            f"images.{suffix}"
            for suffix in ("csv", "parquet", "tar", "tar.gz", "tgz", "zip", "z01", "npy", "npz")
        ),
        *(f"weights/ViT-L-14.{suffix}" for suffix in ("pt", "pth", "bin")),
        "model.onnx",
        "jobs/__pycache__/tune_sd14.pyc",
        ".mypy_cache/x.json",
    ]
    for name in kept + left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    shutil.copy(ROOT / ".rayignore", folder)
    # what `ray job submit --working-dir` packs with
    create_package(str(folder), tmp_path / "package.zip", include_gitignore=True)
    assert sorted(zipfile.ZipFile(tmp_path / "package.zip").namelist()) == sorted([".rayignore", *kept])
