"""What does a large feature store cost to open, to divide, to train on, and to find finished?

    python benchmarks/store.py [--num-images 1000000] [--width 768] [--rounds 3]

A store of random features is written once. Then, each in a process of its own, median of the rounds:

- `open_s`: `FeatureStore(path).rows`, the memory map of all shards;
- `first_batch_s`: 256 random images out of the open store;
- `divide_s`: `partition`, which image trains, validates, judges;
- `gather_s`, `gather_again_s`: `load_study_data`, first and second time (large sets are mapped files);
- `again_s`: `causal-tune extract` over an index of `--num-again` images that are all stored, the whole command.

`bytes_read_per_s` of copying the store's shards is the physical limit beside them.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from causal_tune.clip import describe_encoder
from causal_tune.features import StoreSpec, finish_store, shard_path, shard_ranges, write_shard
from causal_tune.images.index import INDEX_SCHEMA, index_sha256, write_index
from causal_tune.images.preprocessing import Preprocessing

GENERATORS = ("alpha", "beta", "gamma", "delta")

PROBE = """
import json, resource, sys, time
import numpy as np
from causal_tune.features import FeatureStore, load_study_data, partition
path, names = sys.argv[1], {"train_generators": ["alpha"], "val_generators": ["beta"], "test_generators": ["gamma"]}
clock, found = time.perf_counter(), {}
def lap(name):
    global clock
    found[name] = time.perf_counter() - clock
    clock = time.perf_counter()
store = FeatureStore(path)
rows = store.rows
lap("open_s")
store.features("proj", np.random.default_rng(0).integers(0, len(rows), 256))
lap("first_batch_s")
partition(rows, **names)
lap("divide_s")
found["peak_mib_before_gathering"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
clock = time.perf_counter()
data = load_study_data(path, **names)
lap("gather_s")
data.train.features[:256].sum()
print(json.dumps(found))
"""


def make_index(num_images: int) -> pa.Table:
    """Rows as of an index, in its order: by generator, label and path."""
    rows = np.arange(num_images)
    place = rows * len(GENERATORS) // num_images
    columns = {
        "path": [f"/data/set/{row:09d}.jpg" for row in rows],
        "label": pa.array(rows * 2 * len(GENERATORS) // num_images % 2, pa.int8()),
        "generator": pa.array(np.array(GENERATORS)[place]),
        "split": pa.array(np.full(num_images, "")),
        "width": pa.nulls(num_images, pa.int32()),
        "height": pa.nulls(num_images, pa.int32()),
        "format": pa.nulls(num_images, pa.string()),
        "jpeg_quality": pa.nulls(num_images, pa.int32()),
        "mode": pa.nulls(num_images, pa.string()),
        "bytes": pa.nulls(num_images, pa.int64()),
        "sha256": [hashlib.sha256(b"%d" % row).hexdigest() for row in rows],
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def make_store(index: pa.Table, workspace: Path, width: int) -> Path:
    """A finished store whose fingerprint is that of an extraction with `tiny-random`."""
    spec = StoreSpec(
        encoder=describe_encoder("tiny-random", layers=("proj",)).values,
        preprocessing=Preprocessing().name,
        index_sha256=index_sha256(index),
        num_indexed=index.num_rows,
    )
    path = workspace / "stores" / spec.fingerprint
    numbered = index.append_column("row", pa.array(range(index.num_rows), pa.int64()))
    block = np.random.default_rng(0).standard_normal((4_096, width), dtype=np.float32)
    for shard, rows in enumerate(shard_ranges(index.num_rows)):
        part = numbered.slice(rows.start, len(rows)).replace_schema_metadata()
        write_shard(shard_path(path, shard), part, {"proj": block[: len(rows)]}, [])
    return finish_store(path, spec).path


def again_s(num_images: int, workspace: Path) -> float:
    index = make_index(num_images)
    make_store(index, workspace, 32)
    write_index(index, workspace / "index.parquet")
    command = [sys.executable, "-m", "causal_tune", "extract", str(workspace / "index.parquet")]
    command += ["--encoder", "tiny-random", "--workspace", str(workspace)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    elapsed = time.perf_counter() - begin
    assert "nothing was encoded" in done.stdout, done.stdout
    return elapsed


def copy_rate(path: Path) -> float:
    """Bytes per second of reading the shards once."""
    begin, total = time.perf_counter(), 0
    for file in sorted(path.glob("shards/*.arrow")):
        total += len(file.read_bytes())
    return total / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-images", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--num-again", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        begin = time.perf_counter()
        index = make_index(options.num_images)
        path = make_store(index, workspace / "large", options.width)
        written_s = time.perf_counter() - begin
        num_bytes = sum(file.stat().st_size for file in path.rglob("*.arrow"))
        laps: dict[str, list[float]] = {}
        for round_number in range(options.rounds):
            print(f"round {round_number + 1} of {options.rounds}", file=sys.stderr)
            done = subprocess.run(
                [sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout)
            if round_number and "gather_s" in found:  # the first round made the mapped files
                found["gather_again_s"] = found.pop("gather_s")
            for name, value in found.items():
                laps.setdefault(name, []).append(value)
            laps.setdefault("bytes_read_per_s", []).append(copy_rate(path))
            with tempfile.TemporaryDirectory() as other:
                laps.setdefault("again_s", []).append(again_s(options.num_again, Path(other)))
    print(
        json.dumps(
            {
                "question": "what a large feature store costs to open, divide, gather and find finished",
                "num_images": options.num_images,
                "width": options.width,
                "num_again": options.num_again,
                "store_bytes": num_bytes,
                "written_s": round(written_s, 1),
                **{
                    name: {
                        "median": round(statistics.median(values), 4),
                        "min": round(min(values), 4),
                        "max": round(max(values), 4),
                    }
                    for name, values in laps.items()
                },
                "processor": platform.processor() or platform.machine(),
                "num_cpus": os.cpu_count(),
                "versions": {name: version(name) for name in ("numpy", "pyarrow", "torch", "ray")},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
