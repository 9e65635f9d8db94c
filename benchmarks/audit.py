"""What does an audit cost, by the number of images?

    python benchmarks/audit.py [--rows 100000 1000000]

JSON: wall and processor seconds of the audit of an index alone (eight generators, 2% copies), of linking as many
perceptual hashes, and of comparing 20,000 features of width 512.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import pyarrow as pa

from causal_tune.audit.matches import near_features, near_hashes
from causal_tune.audit.run import MAX_COMPARED, MAX_DISTANCE, MIN_COSINE, audit_index
from causal_tune.images.index import INDEX_SCHEMA


def made_up_index(num_rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    content = np.arange(num_rows)
    copies = rng.choice(num_rows, num_rows // 50)
    content[copies] = rng.choice(num_rows, len(copies))
    generator = np.sort(rng.integers(0, 8, num_rows))
    columns = {
        "path": [f"/data/g{name}/train/images/image_{row:08d}.png" for row, name in enumerate(generator)],
        "label": rng.integers(0, 2, num_rows),
        "generator": [f"g{name}" for name in generator],
        "split": np.where(rng.random(num_rows) < 0.1, "val", "train"),
        "width": rng.integers(224, 2000, num_rows),
        "height": rng.integers(224, 2000, num_rows),
        "format": np.where(rng.random(num_rows) < 0.5, "JPEG", "PNG"),
        "jpeg_quality": rng.integers(60, 97, num_rows),
        "mode": ["RGB"] * num_rows,
        "bytes": rng.integers(1_000, 1_000_000, num_rows),
        "sha256": [f"{number:064x}" for number in content],
    }
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(INDEX_SCHEMA)


def seconds(work: Callable[[], object]) -> dict[str, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return {
        "wall_s": round(time.perf_counter() - wall, 2),
        "processor_s": round(time.process_time() - processor, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    result: dict[str, object] = {}
    for number in options.rows:
        index = made_up_index(number)
        hashes = rng.integers(0, 2**64, number, dtype=np.uint64)
        result[f"index of {number:,}"] = seconds(lambda index=index: audit_index(index))
        result[f"hashes of {number:,}"] = seconds(lambda hashes=hashes: near_hashes(hashes, MAX_DISTANCE))
    features = rng.normal(size=(MAX_COMPARED, 512)).astype(np.float32)
    result[f"features of {MAX_COMPARED:,}"] = seconds(lambda: near_features(features, MIN_COSINE))
    result |= {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "numpy": version("numpy"),
        "scikit-learn": version("scikit-learn"),
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
