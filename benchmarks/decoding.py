"""What does it cost to decode in a child process, so that a file that ends its decoder costs one image?

    python benchmarks/decoding.py [--images CSV] [--rounds 9]

In one run, interleaved so that a noisy machine disturbs all alike, from files to one array of crops:

- `here`: `read_views` of the clean view for each image, and `np.stack`.
- `isolated`: the same through `causal_tune.images.isolated`, as a decoding task of an extraction does it.
- `jpeg`: to see that a JPEG holds all of its pixels, `load_jpeg` over Pillow's own `load`, in processor time: of the
  JPEGs among the images, and of the same pictures made progressive.

`of_here` is isolated over here in processor time of both processes together, which a busy machine changes
less than the clock; `of_here_wall` is the same by the clock.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from causal_tune.demo.images import make_images
from causal_tune.images.isolated import isolated
from causal_tune.images.jpeg import load_jpeg
from causal_tune.images.layouts import build_index
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.images.views import read_views

CALLS = 64
"""Images of a shard of a small index."""


def here(calls: list[tuple]) -> np.ndarray:
    return np.stack([read_views(*call)[0].crop for call in calls])


def in_child(calls: list[tuple]) -> np.ndarray:
    crops = np.empty((len(calls), 224, 224, 3), np.uint8)
    for position, views in enumerate(isolated(read_views, calls)):
        crops[position] = views[0].crop
    return crops


def measure(decode: object, calls: list[tuple], child: int) -> tuple[float, float]:
    """Seconds by the clock and of processor time, of this process and the child."""

    def processor_s() -> float:
        # the scheduler's own count, in ns: /proc/<pid>/stat counts in hundredths of a second
        of_child = int(Path(f"/proc/{child}/schedstat").read_text().split()[0])
        return time.process_time() + of_child / 1e9

    begin, begin_processor = time.perf_counter(), processor_s()
    for start in range(0, len(calls), CALLS):
        decode(calls[start : start + CALLS])
    return time.perf_counter() - begin, processor_s() - begin_processor


def of_pillow(files: list[bytes], rounds: int) -> dict[str, float]:
    """Milliseconds of processor time a JPEG by Pillow alone, and `load_jpeg` over that; medians."""

    def per_file(load: object) -> float:
        begin = time.process_time()
        for data in files:
            load(data)
        return 1e3 * (time.process_time() - begin) / len(files)

    both = [
        (per_file(lambda data: Image.open(io.BytesIO(data)).load()), per_file(load_jpeg))
        for _ in range(rounds)
    ]
    return {
        "pillow_ms": round(statistics.median(plain for plain, _ in both), 3),
        "of_pillow": round(statistics.median(checked / plain for plain, checked in both), 3),
        "num_files": len(files),
    }


def progressive(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "JPEG", quality=90, progressive=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a CSV as for --layout csv; default: the demo's images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--num-images", type=int, default=512)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        csv = options.images or make_images(Path(folder) / "images")
        index = build_index([csv], "csv")
        rows = np.linspace(0, index.num_rows - 1, min(options.num_images, index.num_rows)).astype(int)
        chosen = index.take(rows)
        sha256 = chosen["sha256"].to_pylist()
        calls = [
            (path, found, Preprocessing(), ["clean"])
            for path, found in zip(chosen["path"].to_pylist(), sha256, strict=True)
        ]
        contents = (Path(path).read_bytes() for path, *_ in calls)
        jpegs = [data for data in contents if data.startswith(b"\xff\xd8\xff")][:100]
        begin = time.perf_counter()
        child = next(isolated(os.getpid, [()]))
        start_s = time.perf_counter() - begin
        assert np.array_equal(here(calls[:CALLS]), in_child(calls[:CALLS]))
        ratios: dict[str, list[float]] = {"wall": [], "processor": []}
        per_image: dict[str, list[float]] = {"here": [], "isolated": []}
        for round_number in range(options.rounds):
            print(f"round {round_number + 1} of {options.rounds}", file=sys.stderr)
            one, other = measure(here, calls, child), measure(in_child, calls, child)
            ratios["wall"].append(other[0] / one[0])
            ratios["processor"].append(other[1] / one[1])
            per_image["here"].append(1e3 * one[1] / len(calls))
            per_image["isolated"].append(1e3 * other[1] / len(calls))

    result = {
        "question": "cost of decoding in a child process over decoding here",
        "of_here": round(statistics.median(ratios["processor"]), 3),
        "of_here_wall": round(statistics.median(ratios["wall"]), 3),
        "processor_ms_per_image": {
            name: {"median": round(statistics.median(values), 3), "min": round(min(values), 3)}
            for name, values in per_image.items()
        },
        "jpeg": {
            "as_they_are": of_pillow(jpegs, options.rounds),
            "progressive": of_pillow([progressive(data) for data in jpegs], options.rounds),
        }
        if jpegs
        else None,
        "start_s": round(start_s, 3),
        "num_images": len(calls),
        "rounds": options.rounds,
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("pillow", "numpy")},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
