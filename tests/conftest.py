import csv
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def draw(seed: int, generated: bool, size: int = 48) -> Image.Image:
    """A smooth random picture; a generated one carries a faint checkerboard, as upsampling leaves it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
    if generated:
        rows, columns = np.indices((size, size))
        pixels = pixels + 24 * (((rows + columns) % 2) * 2 - 1)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_images(folder: Path, generators: dict[str, int], *, split: str = "") -> Path:
    """Folders of real and generated PNGs, n a class and generator, and the CSV that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for place, (generator, count) in enumerate(generators.items()):
        for label in ("real", "fake"):
            (folder / generator / label).mkdir(parents=True)
            for number in range(count):
                path = folder / generator / label / f"{number:03d}.png"
                draw(10_000 * place + 2 * number + (label == "fake"), label == "fake").save(path)
                rows.append((str(path.relative_to(folder)), label, generator, split))
    path = folder / "images.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "generator", "split"))
        writer.writerows(rows)
    return path


def run_cli(*words: object) -> Result:
    """The real command line, in this process."""
    from causal_tune.cli import main

    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def encode(images: Path, workspace: Path) -> tuple[Path, Path]:
    """The index of a list of images, and the store of their features, by the command line."""
    index = workspace / "index" / "small.parquet"
    for words in (
        ("index", images, "--layout", "csv", "-o", index),
        ("extract", index, "--encoder", "tiny-random", "--workspace", workspace),
    ):
        result = run_cli(*words)
        assert result.exit_code == 0, result.output
    (store,) = (path for path in (workspace / "stores").iterdir() if (path / "store.json").exists())
    return index, store


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 1 MB, or of the size that is the fixture's parameter."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', '1m')}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs more rights")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass(frozen=True)
class Finished:
    """A small study, from images to detector, made by the command line."""

    workspace: Path
    images: Path
    index: Path
    store: Path
    study: Path
    detector: Path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; the test is left out where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as playwright:
        # its sandbox does not start for root
        options = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        launched = playwright.chromium.launch(executable_path=program, args=options)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    from causal_tune.cluster import connected

    with connected():
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    images = write_images(folder / "images", {"alpha": 60, "beta": 12, "gamma": 12})
    workspace = folder / "runs"
    index, store = encode(images, workspace)
    tune = ["tune", "--store", store, "--space", "demo", "--study", "small", "--trials", 3]
    tune += ["--train-generator", "alpha", "--val-generators", "beta", "--workspace", workspace]
    tune += ["--max-concurrent", 1]  # a second worker takes longer to start than three trials
    for words in (tune, ["export", "small", "--workspace", workspace]):
        result = run_cli(*words)
        assert result.exit_code == 0, result.output
    return Finished(
        workspace=workspace,
        images=images,
        index=index,
        store=store,
        study=workspace / "studies" / "small",
        detector=workspace / "detectors" / "small",
    )
