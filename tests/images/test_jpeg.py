"""JPEGs whose data lack pixels are refused, whatever stands behind the cut; those that have all are read."""

import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from causal_tune.errors import UnreadableImage
from causal_tune.images.decode import decode_upright
from tests.images.pictures import encode, noise, smooth

END = b"\xff\xd9"
THUMBNAIL = encode(smooth(40, 30, 5), "JPEG")

KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "own tables": {"optimize": True},
    "restarts": {"restart_marker_blocks": 7},
    "progressive": {"progressive": True},
    "progressive, restarts": {"progressive": True, "restart_marker_rows": 2},
}
CODINGS = [(mode, kind) for mode in ("L", "RGB", "CMYK") for kind in KINDS if (mode, kind) != ("L", "4:4:4")]


def picture(mode: str = "RGB") -> Image.Image:
    """With structure and some noise, as photographs have."""
    mixed = 0.8 * np.asarray(smooth(200, 180)).astype(float) + 0.2 * noise(200, 180)
    return Image.fromarray(mixed.astype(np.uint8)).convert(mode)


def coded(mode: str, kind: str) -> bytes:
    options = {name: value for name, value in KINDS[kind].items() if mode == "RGB" or name != "subsampling"}
    return encode(picture(mode), "JPEG", **options)


def first_scan(data: bytes) -> int:
    """Where the coded data of the first scan begin."""
    at = data.index(b"\xff\xda") + 2
    return at + int.from_bytes(data[at : at + 2], "big")


def inside_a_scan(data: bytes, cut: int) -> bool:
    """Whether a cut loses some of the coded data of a scan, not only the scans behind it."""
    begin = data.rindex(b"\xff\xda", 0, cut) + 14
    end = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]").search(data, begin)
    return end is not None and begin < cut < end.start() - 3


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_upright(data))


def reason_of(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_upright(data)
    return str(caught.value)


@pytest.mark.parametrize(("mode", "kind"), CODINGS)
def test_cut_and_closed(mode, kind):
    whole = coded(mode, kind)
    begin, end = first_scan(whole), len(whole) - 2
    cuts = [begin + 9 + (end - begin) * part // 17 for part in range(17)]
    cuts = [cut for cut in (*cuts, end - 60, end - 30) if inside_a_scan(whole, cut)]
    assert len(cuts) >= 14
    for cut in cuts:
        for behind in (b"", END, END + b"\xff\xe1\x00\x08abcdef" + END, END + THUMBNAIL, END + bytes(5000)):
            assert re.match("truncated|damaged", reason_of(whole[:cut] + END + behind)), cut


@pytest.mark.parametrize(
    ("mode", "kind"), [(mode, kind) for mode, kind in CODINGS if kind in ("baseline", "4:4:4", "restarts")]
)
@pytest.mark.parametrize("behind", [b"", END])
def test_cut_and_filled_with_zeros(mode, kind, behind):
    """As a download that was given its space beforehand."""
    whole = coded(mode, kind)
    begin, end = first_scan(whole), len(whole) - 2
    for part in range(17):
        cut = begin + 9 + (end - begin) * part // 17
        if inside_a_scan(whole, cut):
            assert re.match("truncated|damaged", reason_of(whole[:cut] + bytes(end - cut + 4096) + behind))


def test_a_progressive_file_that_ends_between_two_scans_is_a_coarser_picture():
    """It cannot be told from one that was made so."""
    whole = coded("RGB", "progressive")
    last = [found.start() for found in re.finditer(b"\xff\xc4", whole)][-1]
    assert not np.array_equal(pixels(whole[:last] + END), pixels(whole))


@pytest.mark.parametrize(("mode", "kind"), CODINGS)
def test_whole_files_of_every_kind_are_read(mode, kind):
    whole = coded(mode, kind)
    expected = np.asarray(Image.open(io.BytesIO(whole)).convert("RGB"))
    body = whole[:-2]
    application = b"\xff\xe1" + (len(THUMBNAIL) + 2).to_bytes(2, "big") + THUMBNAIL
    variants = {
        "as it is": whole,
        "thumbnail in a segment": whole[:2] + application + whole[2:],
        "another picture behind": whole + THUMBNAIL,
        "zeros behind": whole + bytes(5000),
        "garbage behind": whole + bytes(range(256)) * 9,
        "segment before the end": body + b"\xff\xfe\x00\x05abc" + END,
        "fill bytes before the end": body + b"\xff\xff\xff" + END,
        "a few bytes more": body + b"\x12\x34" * 20 + END,
        "padding before the end": body + bytes(4096) + END,
    }
    if "progressive" not in kind:  # in which the end marker closes the last scan
        variants |= {"without its end": body, "cut in its end": whole[:-1]}
    for name, data in variants.items():
        assert np.array_equal(pixels(data), expected), name


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 9), (16, 1000), (1000, 16)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_small_and_long_files_are_read(mode, kind, size):
    options = {name: value for name, value in KINDS[kind].items() if mode == "RGB" or name != "subsampling"}
    flat, steep = Image.new(mode, size), Image.fromarray(noise(*size)).convert(mode)
    for image in (flat, steep):
        data = encode(image, "JPEG", **options)
        assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_several_pictures_in_one_file():
    frames = [picture(), picture().rotate(180)]
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(encode(frames[0], "JPEG")))))
    second = data.rindex(b"\xff\xd8\xff")
    cut = second * 2 // 3
    assert reason_of(data[:cut] + END + data[second:]).startswith("truncated MPO")


@pytest.mark.parametrize(("mode", "kind"), CODINGS)
@pytest.mark.parametrize("marker", [0xD9, 0xD0, 0xE1, 0x41])
def test_a_byte_that_became_a_marker(mode, kind, marker):
    whole = coded(mode, kind)
    stuffed = [found.start() for found in re.finditer(b"\xff\0", whole) if found.start() > first_scan(whole)]
    at = stuffed[len(stuffed) // 3] + 1
    assert "JPEG" in reason_of(whole[:at] + bytes([marker]) + whole[at + 1 :])


@pytest.mark.parametrize("kind", ["baseline", "4:4:4", "restarts"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_lost_sector(mode, kind):
    options = {} if mode != "RGB" else KINDS[kind]
    whole = encode(picture(mode).resize((400, 400)), "JPEG", quality=90, **options)
    for at in range(first_scan(whole), len(whole) - 1024, 2048):
        data = whole[:at] + bytes(512) + whole[at + 512 :]
        found = re.fullmatch(
            r"damaged JPEG: from byte ([\d,]+) on, 512 bytes of image data are zero", reason_of(data)
        )
        assert found
        assert at - 3 <= int(found[1].replace(",", "")) <= at  # zeros may stand before it


def test_zeros_that_code_flat_blocks_are_no_lost_sector():
    image = Image.new("L", (2000, 2000))
    image.paste(picture("L"), (1000, 1000))
    data = encode(image, "JPEG", optimize=True)
    assert bytes(512) in data
    assert np.array_equal(pixels(data)[..., 0], np.asarray(Image.open(io.BytesIO(data))))


def test_data_that_are_left_over():
    whole = encode(picture(), "JPEG")
    frame = whole.index(b"\xff\xc0")
    shorter = whole[: frame + 5] + (100).to_bytes(2, "big") + whole[frame + 7 :]
    assert reason_of(shorter) == "damaged JPEG: image data are left over behind the last pixel"


@pytest.mark.parametrize("kind", ["restarts", "progressive, restarts"])
def test_lost_and_exchanged_restart_markers(kind):
    whole = coded("RGB", kind)
    places = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", whole)]
    assert len(places) > 4
    lost = whole[: places[2]] + whole[places[2] + 2 :]
    assert re.search(r"expected \d+ restart markers in order, found \d+", reason_of(lost))
    first, second = places[1], places[2]
    exchanged = (
        whole[:first] + whole[second : second + 2] + whole[first + 2 : second] + whole[first : first + 2]
        + whole[second + 2 :]
    )  # fmt: skip
    assert "restart markers in order" in reason_of(exchanged)


def test_scans_of_one_component_each():
    """Sequential, not interleaved: the grey scan of one file, three times in a file of three components."""
    grey = encode(picture("L"), "JPEG")
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    header = grey[frame + 2 : frame + 10].replace(b"\x00\x0b", b"\x00\x11", 1)[:7]
    components = b"\x03" + b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    middle = grey[frame + 13 : scan]
    body = grey[first_scan(grey) : -2]
    scans = [b"\xff\xda\x00\x08\x01" + bytes([number, 0]) + b"\x00\x3f\x00" + body for number in (1, 2, 3)]
    start = grey[:frame] + b"\xff\xc0" + header + components + middle
    data = start + b"".join(scans) + END
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels(data), expected)
    assert len(np.unique(expected[..., 0])) > 50
    for number in range(3):
        shorter = [one[: len(one) // 2] if i == number else one for i, one in enumerate(scans)]
        assert reason_of(start + b"".join(shorter) + END).startswith("truncated JPEG")


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="Pillow writes no arithmetic coding")
@pytest.mark.parametrize("options", [[], ["-progressive"]])
def test_arithmetic_coding(options):
    huffman = encode(Image.fromarray(noise(400, 400)), "JPEG")
    command = ["jpegtran", "-arithmetic", *options]
    coded = subprocess.run(command, input=huffman, capture_output=True, check=True).stdout
    assert len(coded) > 2**16  # what Pillow reads at once
    assert np.array_equal(pixels(coded), pixels(huffman))
