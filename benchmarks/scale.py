"""What do an index and an extraction cost in time, memory and bytes as the images grow more?

    python benchmarks/scale.py [--sizes 1000,10000,100000] [--encoder tiny-random]

For each size that many distinct PNGs of 40 x 40 pixels are written, and the commands that users type are run
on them in processes of their own: `causal-tune index`, `causal-tune extract`, and `extract` again, which finds
all of it done. Memory is the largest sum over the process tree, Ray's included, of what each process has for
itself and its share of what it shares (PSS), sampled every half second. `growth` is the slope of log(value)
over log(images) between the two largest sizes: 1 is proportional, 0 is constant.
"""

import argparse
import io
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from PIL import Image


def write_images(root: Path, number: int) -> None:
    """`folders` layout: two generators, half real and half generated, every file another picture."""
    rng = np.random.default_rng(number)
    for row in range(number):
        label = "real" if row % 2 else "fake"
        folder = root / f"generator_{row * 2 // number}" / label
        if row < 4 or not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            buffer, "PNG", compress_level=0
        )
        (folder / f"{row:07d}.png").write_bytes(buffer.getvalue())


def pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has ended between being listed and being read
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def run(*words: object) -> dict[str, float]:
    """Wall seconds and peak memory of a command of the package."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "causal_tune", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    peak, ended = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.5):
            try:
                tree = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(True))]
            except psutil.NoSuchProcess:
                return
            peak = max(peak, sum(map(pss_bytes, tree)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    _, errors = process.communicate()
    ended.set()
    sampler.join()
    if process.returncode:
        raise SystemExit(errors.decode())
    return {"s": round(time.perf_counter() - begin, 2), "peak_mib": round(peak / 2**20)}


def measure(number: int, encoder: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        root, workspace = Path(folder) / "images", Path(folder) / "runs"
        write_images(root, number)
        index = workspace / "index.parquet"
        found: dict[str, object] = {"num_images": number}
        found["index"] = run("index", root, "--layout", "folders", "-o", index)
        extract = ("extract", index, "--encoder", encoder, "--workspace", workspace)
        found["extract"] = run(*extract)
        found["again"] = run(*extract)
        found["index_bytes"] = index.stat().st_size
        found["store_bytes"] = sum(file.stat().st_size for file in workspace.glob("stores/**/*.arrow"))
        found["images_per_s"] = round(number / found["extract"]["s"], 1)
        return found


def growth(one: dict, two: dict, *names: str) -> float:
    def value(of: dict) -> float:
        for name in names:
            of = of[name]
        return float(of)

    steps = math.log(two["num_images"] / one["num_images"])
    return round(math.log(value(two) / value(one)) / steps, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--encoder", default="tiny-random")
    options = parser.parse_args()
    sizes = sorted(int(size) for size in options.sizes.split(","))
    results = []
    for size in sizes:
        results.append(measure(size, options.encoder))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    result: dict[str, object] = {
        "question": "time, memory and bytes of index and extraction, by the number of images",
        "sizes": results,
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("ray", "torch", "pyarrow", "pillow")},
    }
    if len(results) > 1:
        result["growth"] = {
            ".".join(names): growth(results[-2], results[-1], *names)
            for names in (
                ("index", "s"),
                ("index", "peak_mib"),
                ("extract", "s"),
                ("extract", "peak_mib"),
                ("again", "s"),
                ("again", "peak_mib"),
                ("index_bytes",),
                ("store_bytes",),
            )
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
