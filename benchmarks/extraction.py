"""How fast are images turned into features, against the bare model and against the loop a user would write?

    python benchmarks/extraction.py [--images CSV] [--encoder vit-b-16-int8] [--rounds 3]

In one run, interleaved so that a noisy machine disturbs all alike:

- `plain`: open_clip's model in float32, its own transforms behind a torch DataLoader, as its README shows.
- `bare`: the encoder of this package on ready uint8 crops, in the dtype of the pipeline; no files, no Ray.
- `pipeline`: `causal_tune.extraction.extract` from files to a finished store.

`of_bare_model` is pipeline over bare, both between their first and last batch (model loading and the
start of Ray left out); `of_bare_model_with_startup` counts the whole `extract` call.
"""

import argparse
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
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from causal_tune import cluster
from causal_tune.clip import describe_encoder, load_encoder
from causal_tune.demo.images import make_images
from causal_tune.encoders import resolve
from causal_tune.extraction import extract
from causal_tune.features import shard_ranges
from causal_tune.images.decode import read_crop
from causal_tune.images.layouts import build_index
from causal_tune.weights import load_state


class PlainDataset(Dataset):
    def __init__(self, paths: list[Path], transform: object) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB"))


def plain_model(encoder: str) -> tuple[torch.nn.Module, object]:
    model, _, transform = open_clip.create_model_and_transforms(
        resolve(encoder).architecture, pretrained=None
    )
    model.visual.load_state_dict(load_state(encoder), strict=True)
    return model.eval(), transform


def plain_rate(model: torch.nn.Module, transform: object, paths: list[Path]) -> float:
    loader = DataLoader(PlainDataset(paths, transform), batch_size=32, num_workers=1)
    begin = time.perf_counter()
    features = []
    with torch.no_grad():
        for batch in loader:
            features.append(model.encode_image(batch))
    torch.cat(features)
    return len(paths) / (time.perf_counter() - begin)


def bare_rate(encoder: object, crops: np.ndarray, batch_size: int) -> float:
    begin = time.perf_counter()
    for start in range(0, len(crops), batch_size):
        encoder.encode(crops[start : start + batch_size])
    return len(crops) / (time.perf_counter() - begin)


def pipeline_rates(index: object, encoder: str, batch_size: int) -> tuple[float, float]:
    """Images/s between the first and the last shard, and of the whole call."""
    with tempfile.TemporaryDirectory() as workspace:
        begin = time.perf_counter()
        done = extract(index, encoder=encoder, workspace=Path(workspace), batch_size=batch_size)
        whole = time.perf_counter() - begin
        # by the files: results reach the driver in bunches, a shard is renamed when it is done
        ended = sorted(path.stat().st_mtime for path in (done.store.path / "shards").glob("*.arrow"))
        steady = (index.num_rows - len(shard_ranges(index.num_rows)[0])) / (ended[-1] - ended[0])
    return steady, done.num_stored / whole


def summary(rates: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(rates), 3),
        "min": round(min(rates), 3),
        "max": round(max(rates), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a CSV as for --layout csv; default: the demo's images")
    parser.add_argument("--encoder", default="vit-b-16-int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=512, help="images of a pipeline round")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        csv = options.images or make_images(Path(folder) / "images")
        index = build_index([csv], "csv")
        # every kind of image in its share: rows are sorted by generator
        rows = np.linspace(0, index.num_rows - 1, min(options.num_images, index.num_rows)).astype(int)
        index = index.take(rows)
        paths = [Path(path) for path in index["path"].to_pylist()]
        crops = np.stack([read_crop(path) for path in paths[:: max(1, len(paths) // 256)]])

        torch.set_num_threads(os.cpu_count() or 1)
        description = describe_encoder(options.encoder, layers=("proj",))
        plain, transform = plain_model(options.encoder)
        encoder = load_encoder(options.encoder, layers=("proj",), num_threads=os.cpu_count() or 1)
        encoder.encode(crops[: options.batch_size])
        rates: dict[str, list[float]] = {"plain": [], "bare": [], "pipeline": [], "pipeline_with_startup": []}
        for round_number in range(options.rounds):
            print(f"round {round_number + 1} of {options.rounds}", file=sys.stderr)
            rates["plain"].append(plain_rate(plain, transform, paths[:: max(1, len(paths) // 96)]))
            rates["bare"].append(bare_rate(encoder, crops, options.batch_size))
            with cluster.connected():
                steady, whole = pipeline_rates(index, options.encoder, options.batch_size)
            rates["pipeline"].append(steady)
            rates["pipeline_with_startup"].append(whole)

    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "question": "images/s of extraction, against the bare model and a plain float32 loop",
        "of_bare_model": round(medians["pipeline"] / medians["bare"], 3),
        "of_bare_model_with_startup": round(medians["pipeline_with_startup"] / medians["bare"], 3),
        "speedup_over_plain": round(medians["pipeline"] / medians["plain"], 3),
        "images_per_s": {name: summary(values) for name, values in rates.items()},
        "num_images": {"pipeline": len(paths), "bare": len(crops)},
        "encoder": options.encoder,
        "dtype": description.dtype,
        "batch_size": options.batch_size,
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "open_clip_torch", "ray", "pillow")},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
