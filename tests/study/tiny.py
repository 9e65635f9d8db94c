"""A small feature store of synthetic features, written with the store's own functions."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from causal_tune.features import FeatureStore, StoreSpec, finish_store, shard_ranges, write_shard

WIDTH = 6
GENERATORS = ("latent", "cyclegan", "progan", "glide")


def make_store(path: Path, *, per_class: int = 24, seed: int = 0, index_sha256: str = "00") -> FeatureStore:
    """Real and generated images differ in one dimension that all generators share and one of their own."""
    rng = np.random.default_rng(seed)
    rows, features = [], []
    for place, generator in enumerate(GENERATORS):
        for label in (0, 1):
            for image in range(per_class):
                value = rng.normal(size=WIDTH)
                value[0] += 0.8 * label
                value[1 + place] += 2.0 * label
                features.append(value)
                digest = f"{rng.integers(2**32):08x}{len(rows):056x}"
                rows.append((f"/{generator}/{label}/{image}.png", label, generator, digest))
    spec = StoreSpec(
        encoder={"name": "synthetic", "layers": ["proj"]},
        preprocessing="none",
        index_sha256=index_sha256,
        num_indexed=len(rows),
    )
    for shard, span in enumerate(shard_ranges(len(rows))):
        mine = [rows[row] for row in span]
        table = pa.table(
            {
                "row": pa.array(list(span), pa.int64()),
                "path": [row[0] for row in mine],
                "label": pa.array([row[1] for row in mine], pa.int8()),
                "generator": [row[2] for row in mine],
                "split": ["" for _ in mine],
                "sha256": [row[3] for row in mine],
            }
        )
        write_shard(path, shard, table, {"proj": np.asarray([features[row] for row in span], np.float32)}, [])
    return finish_store(path, spec)
