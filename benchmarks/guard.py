"""How many photographs and generated images does a detector refuse to judge, and how many pictures of other kinds?

    python benchmarks/guard.py --images CSV [--changed 40]

JSON: the number of crops that `causal_tune.guard` notes, of a list's images by class, each different image once; of
pictures that no detector can judge; and of photographs of the list that were changed. The limits were chosen by these.
"""

import argparse
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from causal_tune.guard import Guard
from causal_tune.images.decode import SizedCrop, crop_image, read_sized
from causal_tune.images.layouts import build_index

GUARD = Guard(max_enlargement=2.0)  # of a detector of images of 224 pixels and more


def foreign(rng: np.random.Generator) -> dict[str, list[Image.Image]]:
    """Pictures that are neither photographs nor made to look like them."""
    colours = ["black", "white", "gray", "red", "navy", "#123456", "#ffe0c0", "green"]
    ramp = np.linspace(0, 1, 400)[:, None, None]
    ends = [rng.integers(0, 256, (2, 3)) for _ in range(8)]
    pages = []
    for size in range(12, 36, 2):
        page = Image.new("RGB", (1280, 800), "white")
        for top in range(0, 800, size + 4):
            text = "The quick brown fox jumps over the lazy dog. " * 4
            ImageDraw.Draw(page).text((10, top), text, "black", font_size=size)
        pages.append(page)
    checked = [np.indices((300, 300)).sum(axis=0) // 2**k % 2 for k in range(1, 7)]
    codes = [np.kron(rng.integers(0, 2, (29, 29)), np.ones((10, 10), int)) for _ in range(6)]
    drawn = [np.repeat(255 * one[..., None], 3, axis=2) for one in (*checked, *codes)]
    sides = [side for side in (224, 256, 512, 1000) for _ in range(3)]
    noises: list[np.ndarray] = [rng.integers(0, 256, (side, side, 3)) for side in sides]
    noises += [np.repeat(rng.integers(0, 256, (side, side, 1)), 3, axis=2) for side in sides]
    noises += [np.clip(rng.normal(128, 40, (side, side, 3)), 0, 255) for side in sides]
    pictures = {
        "noise": noises,
        "gradients": [low + (high - low) * ramp * np.ones((1, 400, 1)) for low, high in ends],
        "checkerboards and codes": drawn,
    }
    return {
        "one colour": [Image.new("RGB", (300, 300), colour) for colour in colours],
        "pages of text": pages,
        **{name: [Image.fromarray(one.astype(np.uint8)) for one in made] for name, made in pictures.items()},
    }


def compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 50": lambda image: compressed(image, 50),
    "JPEG quality 10": lambda image: compressed(image, 10),
    "grey": lambda image: image.convert("L"),
    "blurred by 20 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(20)),
    "turned": lambda image: image.rotate(90, expand=True),
    **{
        f"reduced to {side} pixels": lambda image, side=side: image.resize((side, side), Image.Resampling.BOX)
        for side in (8, 16, 32, 64, 128)
    },
}


def noted(crop: SizedCrop) -> bool:
    return GUARD.notes(crop.pixels[None], [crop.size]) != [None]


def judged(image: Image.Image) -> bool:
    return noted(SizedCrop(crop_image(image), image.size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a CSV of images")
    parser.add_argument(
        "--changed", type=int, default=40, help="photographs of 224 pixels and more that are changed"
    )
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = {row["sha256"]: row for row in build_index([str(options.images)], "csv").to_pylist()}
    found: dict[str, Counter[bool]] = {}
    photographs = []
    unlimited = Guard()  # small images of the list are not refused for their size
    for row in rows.values():
        crop = read_sized(row["path"])
        name = "generated" if row["label"] else "real"
        found.setdefault(name, Counter())[unlimited.notes(crop.pixels[None]) != [None]] += 1
        if not row["label"] and min(crop.size) >= 224:
            photographs.append(row["path"])
    for name, pictures in foreign(rng).items():
        found[name] = Counter(map(judged, pictures))
    for path in rng.permutation(photographs)[: options.changed]:
        photograph = Image.open(path).convert("RGB")
        for name, change in CHANGES.items():
            found.setdefault(name, Counter())[judged(change(photograph))] += 1
    print(json.dumps({name: f"{one[True]} of {one.total()}" for name, one in found.items()}, indent=1))


if __name__ == "__main__":
    main()
