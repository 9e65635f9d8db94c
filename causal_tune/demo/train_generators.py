"""Train the generators of the demo on its train photographs and write their weights.

    python -m causal_tune.demo.train_generators -o DIR [--generator NAME ...] [--steps N] [--threads N]

writes `DIR/<name>.safetensors` (float16) and brings `DIR/training.json` up to date: how each was
trained and how faithful it is, as PSNR against the original crops. The shipped weights lie in
`causal_tune/demo/weights`; four minutes or less a generator on one core.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save
from torch import Tensor

from causal_tune import __version__
from causal_tune.atomic import atomic_path, write_json
from causal_tune.demo.generators import GENERATORS
from causal_tune.demo.networks import Regenerator
from causal_tune.demo.photographs import PHOTOGRAPHS, cut, draw_crops, photographs_of, read_photograph
from causal_tune.errors import CausalTuneError, InvalidConfig, TrialFailed
from causal_tune.registry import look_up

__all__ = ["main", "measure_psnr", "psnr", "train_generator"]

_BATCH_SIZE = 8
_PATCH_SIZE = 64
_LEARNING_RATE = 2e-3
_NUM_STEPS = 1200
_CROPS_PER_SPLIT = 12


def psnr(images: Float[Tensor, "n 3 h w"], originals: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each image in decibels, both sides rounded to 8 bits.

        PSNR = 10 log10(255^2 / mean squared difference)

    Infinite for equal images.

    >>> black = torch.zeros(1, 3, 8, 8)
    >>> f"{psnr(black + 0.1, black).item():.1f}"  # 0.1 is 26 of 255 levels
    '19.8'
    """
    difference = (images * 255).round() - (originals * 255).round()
    return 10 * torch.log10(255**2 / difference.square().mean(dim=(1, 2, 3)))


def measure_psnr(
    network: Regenerator, splits: Sequence[str], *, crops_per_split: int = _CROPS_PER_SPLIT, seed: int = 1
) -> Float[Tensor, " n"]:
    """PSNR of every regenerated crop of these splits; the crops are those of `seed`."""
    rng = torch.Generator().manual_seed(seed)
    values = []
    for split in splits:
        crops = draw_crops(split, crops_per_split, np.random.default_rng(seed))
        originals = _to_images(np.stack([cut(crop) for crop in crops]))
        with torch.inference_mode():
            values.append(psnr(network.regenerate(originals, rng=rng), originals))
    return torch.cat(values)


def train_generator(name: str, *, num_steps: int = _NUM_STEPS, seed: int = 0) -> Regenerator:
    """Train one generator on patches of the train photographs; the weights come rounded to float16.

    Adam, cosine schedule, batches of 8 patches of 64 x 64 at random places, flipped, turned and
    with their colours exchanged at random (five scenes have few colours).

    Raises:
        TrialFailed: the loss became non-finite.
    """
    family = look_up("demo generator", GENERATORS, name)
    if num_steps < 1:
        raise InvalidConfig(f"The number of training steps is {num_steps}; give 1 or more.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family.build()
    # channels last: a third to a half faster than the default for so few channels on a CPU
    network = network.to(memory_format=torch.channels_last).train()
    photographs = [
        read_photograph(photograph, reduction)
        for photograph in photographs_of("train")
        for reduction in PHOTOGRAPHS[photograph].reductions
    ]
    patch_rng = np.random.default_rng(seed)
    noise_rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in range(num_steps):
        patches = np.stack([_draw_patch(photographs, patch_rng) for _ in range(_BATCH_SIZE)])
        loss = network.loss(_to_images(patches), progress=step / num_steps, rng=noise_rng)
        if not loss.isfinite():
            raise TrialFailed(f"The loss of {name} became {loss.item()} in step {step}.")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"{name}: step {step + 1} of {num_steps}, loss {loss.item():.4f}", file=sys.stderr)
    # measured as it is shipped
    return network.half().float().eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m causal_tune.demo.train_generators",
        description="Train the generators of the demo and write their weights.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the weights"
    )
    parser.add_argument(
        "--generator", action="append", choices=list(GENERATORS), help="only this one (may be repeated)"
    )
    parser.add_argument("--steps", type=int, default=_NUM_STEPS, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        for name in options.generator or list(GENERATORS):
            start_s = time.perf_counter()
            network = train_generator(name, num_steps=options.steps, seed=options.seed)
            elapsed_s = time.perf_counter() - start_s
            _write(options.output, name, network, options, elapsed_s)
    except CausalTuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _write(
    folder: Path, name: str, network: Regenerator, options: argparse.Namespace, elapsed_s: float
) -> None:
    weights_path = folder / f"{name}.safetensors"
    tensors = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    with atomic_path(weights_path) as temporary:
        temporary.write_bytes(save(tensors))
    held_out = measure_psnr(network, ("val", "selection", "test"))
    record: dict[str, Any] = {
        "psnr_train_db": round(measure_psnr(network, ("train",)).mean().item(), 2),
        "psnr_held_out_db": round(held_out.mean().item(), 2),
        "psnr_held_out_worst_db": round(held_out.min().item(), 2),
        "compression": GENERATORS[name].compression,
        "bottleneck": GENERATORS[name].bottleneck,
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "bytes": weights_path.stat().st_size,
        "seed": options.seed,
        "num_steps": options.steps,
        "batch_size": _BATCH_SIZE,
        "patch_size": _PATCH_SIZE,
        "learning_rate": _LEARNING_RATE,
        "num_threads": options.threads,
        "time_s": round(elapsed_s, 1),
        "photographs": photographs_of("train"),
        "command": (
            f"python -m causal_tune.demo.train_generators -o DIR --generator {name} "
            f"--steps {options.steps} --threads {options.threads} --seed {options.seed}"
        ),
        "versions": {
            "causal_tune": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    print(json.dumps({name: record["psnr_held_out_db"]}))
    training_path = folder / "training.json"
    training = json.loads(training_path.read_text(encoding="utf-8")) if training_path.exists() else {}
    write_json(training_path, {**training, name: record})


def _draw_patch(
    photographs: Sequence[UInt8[np.ndarray, "height width 3"]], rng: np.random.Generator
) -> UInt8[np.ndarray, "64 64 3"]:
    pixels = photographs[int(rng.integers(len(photographs)))]
    top = int(rng.integers(pixels.shape[0] - _PATCH_SIZE + 1))
    left = int(rng.integers(pixels.shape[1] - _PATCH_SIZE + 1))
    patch = pixels[top : top + _PATCH_SIZE, left : left + _PATCH_SIZE]
    patch = np.rot90(patch, int(rng.integers(4)))
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    return patch[:, :, rng.permutation(3)]


def _to_images(pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    sys.exit(main())
