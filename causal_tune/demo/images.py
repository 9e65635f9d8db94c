"""The images of the demo: crops of real photographs and what six tiny generators make of them.

    <folder>/<generator>/<split>/real/0000.png      <folder>/<generator>/<split>/fake/0000.png
    <folder>/images.csv                             path,label,generator,split

Every generator has reals of its own, the very crops that it made anew; no crop is used twice. Both
sides are 8-bit RGB PNGs of 224 x 224 pixels, uncompressed, so that all files are of one size.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from causal_tune.atomic import atomic_directory
from causal_tune.demo.generators import load_generator
from causal_tune.demo.photographs import CROP_SIZE, PHOTOGRAPHS, Crop, draw_crops, read_photograph
from causal_tune.errors import InvalidConfig

__all__ = [
    "DISCLAIMER",
    "NUM_PAIRS",
    "TEST_GENERATORS",
    "TRAIN_GENERATOR",
    "VAL_GENERATORS",
    "make_images",
]

TRAIN_GENERATOR = "vae"
"""Detectors are trained on this generator's train rows and stopped early on its val rows."""

VAL_GENERATORS = ("nearest",)
"""Trials are chosen on these; their images come from the selection photographs."""

TEST_GENERATORS = ("deconv", "subpixel", "vq", "diffusion")
"""Never seen in training or selection; their images come from the test photographs."""

NUM_PAIRS: Mapping[tuple[str, str, str], int] = MappingProxyType(
    {
        # generator, split in images.csv, split of the photographs
        ("vae", "train", "train"): 120,
        ("vae", "val", "val"): 30,
        ("vae", "test", "test"): 32,
        ("nearest", "test", "selection"): 32,
        ("deconv", "test", "test"): 32,
        ("subpixel", "test", "test"): 32,
        ("vq", "test", "test"): 32,
        ("diffusion", "test", "test"): 32,
    }
)
"""How many crops, each once real and once generated. The test rows of `vae` show what new
photographs alone change, without a new generator."""

DISCLAIMER = """\
This demo shows the machinery at work; its numbers say nothing about the field's. The real side is
crops of eleven photographs (ten scenes) that scikit-image, scikit-learn and matplotlib ship; crops
of one photograph overlap, so they are far from independent. The generated side is not
text-to-image: six tiny networks, trained for minutes on six of these photographs, make the same
crops anew, at 28 dB PSNR or better in the mean over held-out crops (richly detailed ones come out at
20 dB). Both sides show the same scenes, and only the traces of the generator differ. The crops that
train the detector come from the photographs that trained the generators; early stopping, selection
and test have photographs of their own, the first two a single one each. With 32 + 32 images a
generator, an accuracy is uncertain by up to 12 percentage points either way, and by more because
crops of one photograph are alike.
"""
"""What the demo is and is not, for whoever reads its table."""


def make_images(folder: Path, *, seed: int = 0) -> Path:
    """Make the images of the demo in `folder` and return the path of `images.csv` in it.

    `images.csv` has the columns path (relative to the file), label (real or fake), generator and
    split. The same seed gives the same bytes on one machine. The folder appears whole or not at all;
    where `images.csv` is there already, nothing is done, whatever its seed was.

    Raises:
        InvalidConfig: `folder` is there and is something else: it is left alone.
    """
    csv_path = folder / "images.csv"
    if csv_path.is_file():
        return csv_path
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidConfig(
            f"{folder} is there and is not a folder of demo images (it has no images.csv). "
            "Give a folder that is new or empty."
        )
    num_threads = torch.get_num_threads()
    # one thread: the order of a sum, and with it the last bit, depends on the number of threads
    torch.set_num_threads(1)
    try:
        with atomic_directory(folder) as temporary:
            _write_all(temporary, seed)
    finally:
        torch.set_num_threads(num_threads)
    return csv_path


def _write_all(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise_rng = torch.Generator().manual_seed(seed)
    pixels = {
        (name, reduction): read_photograph(name, reduction)
        for name, photograph in PHOTOGRAPHS.items()
        for reduction in photograph.reductions
    }
    taken: frozenset[Crop] = frozenset()
    rows: list[tuple[str, str, str, str]] = []
    for (generator, split, photograph_split), num_pairs in NUM_PAIRS.items():
        crops = draw_crops(photograph_split, num_pairs, rng, taken=taken)
        taken |= frozenset(crops)
        originals = np.stack([_slice(pixels[crop.photograph, crop.reduction], crop) for crop in crops])
        generated = _regenerate(generator, originals, noise_rng)
        for label, images in (("real", originals), ("fake", generated)):
            (folder / generator / split / label).mkdir(parents=True)
            for number, image in enumerate(images):
                path = f"{generator}/{split}/{label}/{number:04}.png"
                # uncompressed: a generated image is smoother, and the size of its file would tell
                Image.fromarray(image).save(folder / path, compress_level=0)
                rows.append((path, label, generator, split))
    with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "generator", "split"))
        writer.writerows(rows)


def _slice(photograph: UInt8[np.ndarray, "height width 3"], crop: Crop) -> UInt8[np.ndarray, "224 224 3"]:
    return photograph[crop.top : crop.top + CROP_SIZE, crop.left : crop.left + CROP_SIZE]


def _regenerate(
    generator: str, originals: UInt8[np.ndarray, "n 224 224 3"], rng: torch.Generator
) -> UInt8[np.ndarray, "n 224 224 3"]:
    network = load_generator(generator)
    regenerated = []
    with torch.inference_mode():
        # one by one: a batch is no faster on one thread
        for original in originals:
            image = torch.from_numpy(original).permute(2, 0, 1).unsqueeze(0).float() / 255
            new = network.regenerate(image, rng=rng).squeeze(0).permute(1, 2, 0)
            regenerated.append((new * 255).round().to(torch.uint8).numpy())
    return np.stack(regenerated)
