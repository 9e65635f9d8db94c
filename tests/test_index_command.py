"""`causal-tune index` on small trees of every shape: counts, what it says, what it refuses."""

import json
import runpy
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from causal_tune.cli.index import choice_options
from causal_tune.images.choice import Choice
from causal_tune.images.index import origin, read_index, skipped_files
from tests.conftest import run_cli
from tests.images.trees import (
    GENIMAGE,
    LSUN,
    image_bytes,
    make,
    make_forensynths_test,
    make_genimage,
    make_univfd,
)

ROOT = Path(__file__).parents[1]


def make_progan_training(root: Path) -> dict[tuple[str, str, int], int]:
    for category in LSUN:
        make(root, f"train/progan/{category}/0_real/a.png", f"train/progan/{category}/1_fake/a.png")
    return {("progan", "train", label): 20 for label in (0, 1)}


def make_genimage_tree(root: Path) -> dict[tuple[str, str, int], int]:
    make_genimage(root, True)
    numbers = {("train", 1): 3, ("train", 0): 1, ("val", 1): 1, ("val", 0): 1}
    return {(name, *key): number for name in GENIMAGE for key, number in numbers.items()}


def make_list(root: Path) -> dict[tuple[str, str, int], int]:
    make(root, "r.png", "f.png")
    (root / "list.csv").write_text("filename,typ\nr.png,real\nf.png,dalle3\n")
    return {("dalle3", "", 0): 1, ("dalle3", "", 1): 1}


def make_folders(root: Path) -> dict[tuple[str, str, int], int]:
    make(root, "sdxl/real/a.png", "sdxl/fake/a.png", "sdxl/fake/b.avif", "sdxl/fake/c.HEIC", "notes.txt")
    return {("sdxl", "", 0): 1, ("sdxl", "", 1): 3}


TREES = {
    "genimage": (make_genimage_tree, ""),
    "forensynths": (make_forensynths_test, ""),
    "univfd": (make_univfd, ""),
    "folders": (make_folders, ""),
    "csv": (make_list, "list.csv"),
    "forensynths training": (make_progan_training, ""),
}


@pytest.mark.parametrize("tree", TREES)
def test_counts_of_every_layout(tmp_path, tree):
    make_tree, name = TREES[tree]
    expected = make_tree(tmp_path)
    layout = tree.split()[0]
    for words in ([], ["--layout", layout]):
        output = tmp_path / f"i{len(words)}.parquet"
        result = run_cli("index", tmp_path / name, "-o", output, "--json", *words)
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        found = {
            (row["generator"], row["split"], label): row[name]
            for row in document["counts"]
            for label, name in enumerate(("num_real", "num_generated"))
        }
        assert found == expected
        assert document["num_images"] == sum(expected.values())
        assert document["layout"] == (layout if words else "auto")
        assert origin(read_index(output)) == {
            key: document[key] for key in ("roots", "layout", "notes", "choice")
        }
        if not words:
            assert document["notes"][0].startswith(f"{layout}: ")
            assert document["notes"][0] in result.stderr


def test_what_was_chosen_is_told_and_kept(tmp_path):
    make(tmp_path, *(f"g/{name}/{i}.png" for name in ("real", "fake") for i in range(9)))
    make(tmp_path, "g/real/large.jpg", data=image_bytes("JPEG", quality=50))
    output = tmp_path / "i.parquet"
    words = ["--limit", 4, "--seed", 3, "--min-side", 5, "--exclude", "*/0.png", "--exclude", "*/1.png"]
    words += ["--format", "png,jpeg", "--jpeg-quality", "90-100"]
    result = run_cli("index", tmp_path, "-o", output, *words)
    assert result.exit_code == 0, result.output
    choice = origin(read_index(output))["choice"]
    assert choice == {
        "limit": 4, "seed": 3, "min_side": 5, "exclude": ["*/0.png", "*/1.png"], "formats": ["PNG", "JPEG"],
        "jpeg_quality": [90, 100],
    }  # fmt: skip
    text = " ".join(result.output.split())
    assert "limit 4, min_side 5, formats PNG JPEG, jpeg_quality 90 100, seed 3" in text
    assert "Left out: 4 files (excluded)." in text
    table = read_index(output)
    assert table.num_rows == 8
    assert not any(path.endswith("large.jpg") for path in table["path"].to_pylist())
    assert table.num_rows + sum(skipped_files(table).values()) == 19


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--min-side", "300", "--max-side", "200"], "no image fits"),
        (["--jpeg-quality", "high"], "expected one quality"),
        (["--jpeg-quality", "99-90"], "expected two of 1 to 100"),
        (["--limit", "0"], "limit"),
        (["--include", "nothing/*"], "2 not included"),
        (["--min-side", "4000"], "No image is left"),
        (["--layout", "imagefolder"], "imagefolder"),
    ],
)
def test_mistakes_are_one_paragraph_and_write_nothing(tmp_path, words, part):
    make(tmp_path, "g/real/a.png", "g/fake/a.png")
    result = run_cli("index", tmp_path, "-o", tmp_path / "i.parquet", *words)
    assert result.exit_code == 2
    assert part in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "i.parquet").exists()


@pytest.mark.parametrize("job", ["tune_sd14", "heads_sd14", "ablation_sd14", "robustness_sd14"])
def test_jobs_take_the_same_options(job, tmp_path):
    command = runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))["main"]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {"--include", "--exclude", "--limit", "--sample-seed", "--min-side", "--format", "--seed"} <= known
    make(tmp_path, "cats/a.png")
    words = [
        "--images",
        str(tmp_path),
        "--study",
        "s",
        "--workspace",
        str(tmp_path / "w"),
        "--train-generator",
        "a",
    ]
    for more, part in (
        (["--min-side", "300", "--max-side", "200"], "no image fits"),
        ([], "No layout fits"),  # recognised by default, and refused before anything starts
    ):
        trials = ["--trials", "1"] if "--trials" in known else []
        result = CliRunner().invoke(command, [*words, *trials, *more])
        assert result.exit_code == 2, result.output
        assert part in " ".join(result.output.split())


def test_options_reach_the_command_as_one_choice():
    seen: list[Choice] = []

    @click.command()
    @choice_options("--seed")
    def command(choice: Choice) -> None:
        seen.append(choice)

    words = "--include a --include b --limit 2 --seed 7 --format png --jpeg-quality 96 --max-side 9"
    for line in ("", words):
        assert CliRunner().invoke(command, line.split(), catch_exceptions=False).exit_code == 0
    assert seen[0] == Choice()
    assert seen[1] == Choice(
        include=("a", "b"), limit=2, seed=7, formats=("PNG",), jpeg_quality=(96, 96), max_side=9
    )
