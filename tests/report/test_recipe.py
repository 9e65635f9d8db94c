"""The commands that a report prints make the same index and the same store again."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from causal_tune.features import FeatureStore
from causal_tune.images.index import index_sha256, origin, read_index
from causal_tune.report.recipe import extract_command, index_command
from tests.conftest import run_cli, write_images


def run(line: str, *more: object) -> None:
    words = shlex.split(line)
    assert words[0] == "causal-tune"
    result = run_cli(*words[1:], *more)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--layout", "csv", "--limit", 3, "--seed", 7),
        ("--include", "*1*", "--include", "*2*", "--exclude", "*gamma*", "--format", "PNG,JPEG"),
        ("--min-side", 20, "--max-side", 100, "--jpeg-quality", "80-95"),
    ],
)
def test_the_command_makes_the_same_index(options: tuple[Any, ...], tmp_path: Path) -> None:
    images = write_images(tmp_path / "two words", {"alpha": 14, "gamma": 14})
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    assert run_cli("index", images, *options, "-o", first).exit_code == 0
    run(index_command(origin(read_index(first)), str(second)))
    assert index_sha256(read_index(second)) == index_sha256(read_index(first))
    assert origin(read_index(second)) == origin(read_index(first))


def test_an_index_that_does_not_say_how_it_was_made_has_no_command() -> None:
    assert index_command({}, "i.parquet") == ""


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_makes_the_same_store(tmp_path: Path, ray_local: None) -> None:
    index = tmp_path / "i.parquet"
    run_cli("index", write_images(tmp_path / "images", {"alpha": 4}), "-o", index)
    words = ["extract", index, "--encoder", "tiny-random", "--dtype", "float32", "--small", "pad"]
    words += ["--recompress", 90, "--views", 2, "--degrade", "jpeg-50,blur-1"]
    assert run_cli(*words, "--workspace", tmp_path / "one").exit_code == 0
    (path,) = (tmp_path / "one" / "stores").iterdir()
    store = FeatureStore(path)
    run(extract_command(store, str(index)), "--workspace", tmp_path / "two")
    (again,) = (tmp_path / "two" / "stores").iterdir()
    assert again.name == path.name
    assert FeatureStore(again).views == store.views
