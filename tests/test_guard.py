"""Pictures that cannot be judged, and photographs, which have to pass."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from causal_tune.demo.photographs import cut, draw_crops
from causal_tune.detector import load_detector
from causal_tune.guard import Guard
from causal_tune.images.decode import crop_image
from tests.conftest import Finished, draw
from tests.test_detector import STORED

SIDE = 224
RNG = np.random.default_rng(0)


def text(size: int = 14) -> Image.Image:
    page = Image.new("RGB", (1280, 800), "white")
    for line in range(40):
        ImageDraw.Draw(page).text(
            (10, 20 * line), "The quick brown fox jumps over the lazy dog. " * 4, "black"
        )
    return page


def gradient(begin: int, end: int) -> Image.Image:
    values = np.linspace(begin, end, 400)[:, None, None] * np.ones((1, 400, 3))
    return Image.fromarray(values.astype(np.uint8))


def noise(shape: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.broadcast_to(RNG.integers(0, 256, shape, dtype=np.uint8), (*shape[:2], 3)))


FOREIGN = {
    "black": (Image.new("RGB", (300, 300)), "one colour"),
    "white": (Image.new("RGB", (300, 300), "white"), "one colour"),
    "nearly one colour": (
        Image.fromarray(RNG.integers(100, 104, (300, 300, 3), dtype=np.uint8)),
        "one colour",
    ),
    "noise": (noise((300, 300, 3)), "noise"),
    "grey noise": (noise((300, 300, 1)), "noise"),
    "text": (text(), "a drawing"),
    "a gradient": (gradient(20, 200), "a drawing"),
    "stripes": (Image.fromarray(np.indices((300, 300, 3))[1].astype(np.uint8) // 30 % 2 * 255), "a drawing"),
}
"""Picture -> how its note begins."""


@pytest.mark.parametrize("name", FOREIGN)
def test_pictures_of_other_kinds_are_noted(name: str) -> None:
    image, words = FOREIGN[name]
    (note,) = Guard().notes(crop_image(image)[None])
    assert note is not None
    assert note.startswith(words)


def test_photographs_pass_sharp_blurred_grey_and_recompressed() -> None:
    crops = [cut(crop) for split in ("train", "val", "test") for crop in draw_crops(split, 24, RNG)]
    pictures = [Image.fromarray(crop) for crop in crops]
    for picture in list(pictures):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=30)
        pictures.append(Image.open(buffer).convert("RGB"))
    pictures += [picture.filter(ImageFilter.GaussianBlur(3)) for picture in pictures[: len(crops)]]
    pictures += [picture.convert("L").convert("RGB") for picture in pictures[: len(crops)]]
    notes = Guard().notes(np.stack([np.asarray(picture) for picture in pictures]))
    dark = sum(note is not None and note.startswith("one colour") for note in notes)
    assert sum(note is not None for note in notes) - dark <= 0.01 * len(notes)
    assert dark <= 0.05 * len(notes)  # the night sky around the rocket


def test_an_image_is_too_small_beyond_the_limit_of_enlargement() -> None:
    crops = np.asarray(draw(0, generated=False, size=SIDE))[None]
    for limit, size, noted in ((2.0, (112, 300), False), (2.0, (300, 111), True), (14.0, (15, 16), True)):
        (note,) = Guard(max_enlargement=limit).notes(crops, [size])
        assert (note is not None) == noted
    assert note == "too small: 15 x 16 pixels, enlarged 14.9 times to be judged"
    assert Guard().notes(crops, [(8, 8)]) == [None]
    assert Guard(max_enlargement=2.0).notes(crops) == [None]  # of what size the image was is not known
    assert Guard(max_enlargement=2.0).smallest_side(SIDE) == 112
    assert Guard(**Guard(max_enlargement=2.0).to_dict()) == Guard(max_enlargement=2.0)


def test_an_exported_detector_is_unsure_of_them_and_an_old_one_says_nothing(finished: Finished) -> None:
    detector = load_detector(finished.detector)
    assert detector.description["guard"]["max_enlargement"] == pytest.approx(2 * SIDE / 48)
    foreign = [image for image, _ in FOREIGN.values()] + [draw(1, generated=True, size=20)]
    scores = detector.score_batch(foreign)
    assert {one.verdict for one in scores} == {"unsure"}
    words = [words for _, words in FOREIGN.values()] + ["too small: 20 x 20"]
    assert [
        one.note is not None and one.note.startswith(word) for one, word in zip(scores, words, strict=True)
    ]
    old = load_detector(STORED).score_batch(foreign)
    assert all(one.note is None for one in old)
    assert "one colour, noise, text and drawings, and a shorter side of fewer than 24 pixels" in " ".join(
        (finished.detector / "README.md").read_text().split()
    )
