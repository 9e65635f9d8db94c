"""Data sets of the shapes that people have, with a handful of tiny images each."""

import io
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from causal_tune.errors import IndexingError
from causal_tune.images.layouts import build_index


def image_bytes(format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), "red").save(buffer, format, **options)
    return buffer.getvalue()


PNG = image_bytes()
JPEG = image_bytes("JPEG", quality=96)


def make(root: Path, *names: str, data: bytes = PNG) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def found(table: pa.Table) -> Counter[tuple[str, str, int]]:
    columns = (table[name].to_pylist() for name in ("generator", "split", "label"))
    return Counter(zip(*columns, strict=True))


def refused(roots: list[Path], layout: str) -> str:
    with pytest.raises(IndexingError) as caught:
        build_index(roots, layout)
    return str(caught.value)


GENIMAGE = {  # folder, extra level, readable name: GenImage as it is unpacked
    "sd14": "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4",
    "sd15": "stable_diffusion_v_1_5/imagenet_ai_0424_sdv5",
    "midjourney": "Midjourney/imagenet_midjourney",
    "adm": "ADM/imagenet_ai_0508_adm",
    "biggan": "BigGAN/imagenet_ai_0419_biggan",
    "glide": "glide/imagenet_glide",
    "vqdm": "VQDM/imagenet_ai_0419_vqdm",
    "wukong": "wukong/imagenet_ai_0424_wukong",
}


def make_genimage(root: Path, extra_level: bool) -> None:
    for folder in GENIMAGE.values():
        inner = folder if extra_level else folder.split("/")[0]
        make(root, f"{inner}/train/ai/0_adm_0.PNG", f"{inner}/train/ai/1.png", f"{inner}/train/ai/2.png")
        make(root, f"{inner}/val/ai/3.png")
        make(root, f"{inner}/train/nature/n01440764_1.JPEG", f"{inner}/val/nature/v.JPEG", data=JPEG)


# `train` is a category of LSUN, not a split
LSUN = [
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
FORENSYNTHS_PLAIN = "biggan stargan gaugan crn imle seeingdark san deepfake whichfaceisreal".split()  # noqa: SIM905
FORENSYNTHS_CATEGORIES = {
    "progan": LSUN,
    "stylegan": ["bedroom", "car", "cat"],
    "stylegan2": ["horse", "church", "car", "cat"],
    "cyclegan": ["apple", "horse", "orange", "summer", "winter", "zebra"],
}


def make_forensynths_test(root: Path) -> dict[tuple[str, str, int], int]:
    expected = {}
    for generator in FORENSYNTHS_PLAIN:
        make(root, f"{generator}/0_real/a.png", f"{generator}/0_real/b.png", f"{generator}/1_fake/a.png")
        expected |= {(generator, "test", 0): 2, (generator, "test", 1): 1}
    for generator, categories in FORENSYNTHS_CATEGORIES.items():
        for category in categories:
            make(root, f"{generator}/{category}/0_real/a.png", f"{generator}/{category}/1_fake/a.png")
        expected |= {(generator, "test", label): len(categories) for label in (0, 1)}
    return expected


UNIVFD = "ldm_100 ldm_200 ldm_200_cfg glide_100_27 glide_50_27 glide_100_10 dalle".split()  # noqa: SIM905


def make_univfd(root: Path) -> dict[tuple[str, str, int], int]:
    """Real images of ImageNet for `guided`, of LAION for all others; classes and sets of different sizes."""
    make(root, "imagenet/0_real/a.JPEG", "imagenet/0_real/b.JPEG", data=JPEG)
    make(root, *(f"laion/0_real/{i}.jpg" for i in range(3)), data=JPEG)
    make(root, *(f"{name}/1_fake/{i}.png" for name in ("guided", *UNIVFD) for i in range(4)))
    expected = {("guided", "", 0): 2, ("guided", "", 1): 4}
    return expected | {(name, "", label): 4 if label else 3 for name in UNIVFD for label in (0, 1)}
