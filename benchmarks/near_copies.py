"""At which Hamming distance do unrelated pictures begin to look alike, and which changes does the hash survive?

    python benchmarks/near_copies.py [--images CSV] [--changed 150]

JSON: for each distance of two perceptual hashes the number of pairs of images at it (without the pairs that
`--paired GENERATOR` made one from the other), and for each change of a picture the share of pictures whose hash
stays within each distance. `causal_tune.audit.run.MAX_DISTANCE` was chosen by these numbers.
"""

import argparse
import io
import json
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from causal_tune.audit.pixels import perceptual_hash, read_all_pixels
from causal_tune.demo.images import make_images
from causal_tune.images.decode import decode_thumbnail
from causal_tune.images.layouts import build_index

DISTANCES = range(0, 15, 2)  # half of the bits are set, so distances are even


def encoded(image: Image.Image, name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def part(image: Image.Image, share: float) -> Image.Image:
    x, y = (round(side * (1 - share) / 2) for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG quality 75": lambda image: encoded(image, "JPEG", quality=75),
    "JPEG quality 30": lambda image: encoded(image, "JPEG", quality=30),
    "WebP quality 60": lambda image: encoded(image, "WEBP", quality=60),
    "half size": lambda image: encoded(image.resize((image.width // 2, image.height // 2))),
    "grey": lambda image: encoded(image.convert("L")),
    "20% brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.2)),
    "95% crop": lambda image: encoded(part(image, 0.95)),
    "80% crop": lambda image: encoded(part(image, 0.8)),
    "mirrored": lambda image: encoded(ImageOps.mirror(image)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a CSV; without it the demo's images")
    parser.add_argument("--paired", help="a generator whose images were made from its real ones: left out")
    parser.add_argument("--changed", type=int, default=150, help="images that are changed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = build_index([options.images or make_images(Path(folder) / "demo")], "csv")
        paths = index["path"].unique().to_pylist()
        generator = dict(zip(index["path"].to_pylist(), index["generator"].to_pylist(), strict=True))
        found = read_all_pixels(paths)
        paths = [path for path in paths if found[path].hash is not None]
        hashes = np.array([found[path].hash for path in paths], dtype=np.uint64)
        distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
        paired = np.array([generator[path] == options.paired for path in paths])
        counted = np.triu(~(paired[:, None] & paired[None]), 1)
        changed = np.random.default_rng(0).permutation(len(paths))[: options.changed]
        survived = {}
        for name, change in CHANGES.items():
            far = []
            for place in changed:
                with Image.open(paths[place]) as image:
                    after = perceptual_hash(decode_thumbnail(change(image.convert("RGB")), 32))
                far.append(64 if after is None else (after ^ int(hashes[place])).bit_count())
            survived[name] = {most: round(float(np.mean(np.array(far) <= most)), 3) for most in DISTANCES}
    result = {
        "images": len(paths),
        "pairs": int(counted.sum()),
        "pairs_at_distance": {most: int((distance[counted] == most).sum()) for most in DISTANCES},
        "share_within_distance": survived,
        "pillow": version("pillow"),
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
