"""Kill -9 at random moments, again and again: the store ends as the undisturbed one. Run by `make soak`."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from causal_tune.features import FeatureStore
from causal_tune.images.index import write_index
from causal_tune.images.layouts import build_index
from tests.conftest import write_images
from tests.test_extraction import contents

NUM_KILLS = 20
VICTIMS = ("driver", "raylet", "MapWorker")


def command(index: Path, workspace: Path) -> list[str]:
    words = [sys.executable, "-m", "causal_tune", "extract", str(index), "--encoder", "tiny-random"]
    return [*words, "--views", "1", "--workspace", str(workspace)]


def victim_of(driver: subprocess.Popen[bytes], kind: str) -> int | None:
    """A process of this kind among those that the driver has started."""
    if kind == "driver":
        return driver.pid
    try:
        children = psutil.Process(driver.pid).children(recursive=True)
        found = [child.pid for child in children if kind in "".join(child.cmdline()[:1])]
    except psutil.NoSuchProcess:
        return None
    return found[0] if found else None


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_random_kills_end_in_the_undisturbed_store(tmp_path: Path) -> None:
    rng = random.Random(0)
    csv = write_images(tmp_path / "images", {"alpha": 200, "beta": 120})
    (csv.parent / "alpha/real/000.png").write_bytes(b"")
    index = tmp_path / "index.parquet"
    write_index(build_index([csv], "csv"), index)
    subprocess.run(command(index, tmp_path / "undisturbed"), capture_output=True)
    (undisturbed,) = (tmp_path / "undisturbed").glob("stores/*")
    expected = {**contents(FeatureStore(undisturbed)), **views_of(undisturbed)}
    killed = []
    while len(killed) < NUM_KILLS:
        workspace = tmp_path / f"{len(killed):02d}"
        kind, after = VICTIMS[len(killed) % len(VICTIMS)], rng.randrange(10)
        driver = subprocess.Popen(
            command(index, workspace), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while driver.poll() is None:
            done = len(list(workspace.glob("stores/*/pieces/clean/*.arrow")))
            if done >= after and (victim := victim_of(driver, kind)) is not None:
                time.sleep(rng.random() * 0.2)
                os.kill(victim, signal.SIGKILL)
                break
            time.sleep(0.005)
        else:
            continue  # it was faster than the killer
        driver.wait(timeout=300)
        again = subprocess.run(command(index, workspace), capture_output=True, text=True, timeout=300)
        assert again.returncode == 1, again.stderr  # 1: one image is unreadable
        (path,) = workspace.glob("stores/*")
        assert {**contents(FeatureStore(path)), **views_of(path)} == expected, (kind, after)
        killed.append((kind, after))
    print(killed)


def views_of(store_path: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store_path)): path.read_bytes() for path in store_path.glob("views/*/*")}
