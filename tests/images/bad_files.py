"""A folder of image files as they come: good ones, damaged ones, and things that are no image at all."""

import gzip
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.images.pictures import encode, png_16, png_chunk, png_header, png_of_zeros, smooth

READ = ""
"""What is expected of a file that can be decoded; every other expectation is a pattern of its reason."""

EITHER = None
"""Cut behind its last pixel or before it: whole or refused, but never other pixels."""

FORMATS: dict[str, dict[str, object]] = {
    "jpeg": {},
    "png": {},
    "webp": {},
    "bmp": {},
    "tiff": {"compression": "tiff_lzw"},
    "gif": {},
    "avif": {},
}


def _whole(name: str) -> bytes:
    return encode(smooth(240, 230), name.upper(), **FORMATS[name])


def _zip(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, data)
    return buffer.getvalue()


def _png_with(*chunks: bytes, behind: bool = False) -> bytes:
    """A sound PNG with chunks before or behind its pixels."""
    data = encode(smooth(240, 230), "PNG")
    at = len(data) - 12 if behind else 33
    return data[:at] + b"".join(chunks) + data[at:]


def _tiff(*tags: tuple[int, int, int, int], next_directory: int = 0) -> bytes:
    """A TIFF of one directory; a tag is (number, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return (
        b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", next_directory) + bytes(4096)
    )


def _two_scans_of_a_progressive_jpeg() -> bytes:
    data = encode(smooth(240, 230), "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    return data[: starts[2]]


_BOMB = zlib.compress(bytes(20 * 2**20), 1)
"""20 MB of zeros in 90 kB."""

_SIZE_TAGS = ((256, 4, 1, 240), (257, 4, 1, 230), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1))


def contents() -> Iterator[tuple[str, bytes, str | None]]:
    """(name, bytes, expectation) of every regular file."""
    wholes = {name: _whole(name) for name in FORMATS}
    for name, data in wholes.items():
        yield f"whole.{name}", data, READ
        yield f"{name}-head.{name}", data[:10], rf"{name}|begins"
        for share in (10, 50, 90):
            yield f"{name}-{share}%.{name}", data[: len(data) * share // 100], rf"(truncated|damaged) {name}"
        yield f"{name}-99%.{name}", data[: len(data) * 99 // 100], EITHER
        yield f"{name}-last byte.{name}", data[:-1], EITHER
    jpeg, png = wholes["jpeg"], wholes["png"]

    # --- sound, in odd forms
    yield "png inside.jpg", png, READ
    yield "jpeg inside.png", jpeg, READ
    yield "webp inside.gif", wholes["webp"], READ
    yield "garbage behind.jpg", jpeg + bytes(range(256)) * 9, READ
    yield "two in one.jpg", jpeg + encode(smooth(100, 90, 1), "JPEG"), READ
    yield "progressive.jpg", encode(smooth(240, 230), "JPEG", progressive=True), READ
    for name in ("MPO", "GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        first, second = smooth(240, 230, 1), smooth(240, 230, 2)
        yield f"frames {name}.png", encode(first, name, save_all=True, append_images=[second]), READ
    for mode in ("1", "L", "LA", "P", "RGBA"):
        yield f"mode {mode}.png", encode(smooth(240, 230).convert(mode), "PNG"), READ
    yield "mode CMYK.jpg", encode(smooth(240, 230).convert("CMYK"), "JPEG"), READ
    yield "mode YCbCr.tif", encode(smooth(240, 230).convert("YCbCr"), "TIFF"), READ
    yield "mode Lab.tif", encode(Image.new("LAB", (240, 230)), "TIFF"), READ
    yield "16 bit.png", png_16(np.full((230, 240, 3), 300)), READ
    yield "float.tif", encode(Image.fromarray(np.full((230, 240), 0.5, np.float32)), "TIFF"), READ
    yield "1x1.png", encode(Image.new("RGB", (1, 1)), "PNG"), READ
    yield "1x5000.png", encode(Image.new("RGB", (1, 5000)), "PNG"), READ
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    yield "long text.png", encode(smooth(240, 230), "PNG", pnginfo=text), READ
    yield "bomb zTXt.png", _png_with(png_chunk(b"zTXt", b"a\0\0" + _BOMB)), READ
    yield "bomb iTXt.png", _png_with(png_chunk(b"iTXt", b"a\0\1\0\0\0" + _BOMB), behind=True), READ
    yield "bomb iCCP.png", _png_with(png_chunk(b"iCCP", b"a\0\0" + _BOMB)), READ
    yield "many texts.png", _png_with(png_chunk(b"tEXt", b"a\0" + b"b" * 2**20) * 65), READ
    pages = (*_SIZE_TAGS, (273, 4, 1, 512), (278, 4, 1, 10), (279, 4, 1, 2400))
    loop = _tiff(*_SIZE_TAGS[:1], (257, 4, 1, 10), *_SIZE_TAGS[2:], *pages[5:], next_directory=8)
    yield "pages in a circle.tif", loop, READ

    # --- sound, in odd names
    for name in (
        "a b.png",
        "quo'te\".png",
        "new\nline.png",
        "-dash.png",
        "--help.png",
        "50%20.png",
        "back\\slash.png",
        "[bold]b.png",
        "<b>&amp;.png",
        "猫 é 😀.png",
        "UPPER.PNG",
        "a.v2.Png",
        " .png",
        "x" * 251 + ".png",
    ):
        yield name, png, READ

    # --- damaged
    yield "empty.png", b"", r"empty file \(0 bytes\)"
    yield "one byte.jpg", b"\xff", "begins with the bytes ff"
    yield "cut at a scan.jpg", _two_scans_of_a_progressive_jpeg(), "truncated JPEG"
    yield "cut and closed.jpg", jpeg[: len(jpeg) * 2 // 3] + b"\xff\xd9", "truncated JPEG"
    yield "wrong checksum.png", png[:40] + bytes([png[40] ^ 1]) + png[41:], "damaged PNG"
    yield "no pixels.png", png_header(240, 230) + png_chunk(b"IEND", b""), "PNG"
    yield "zero width.png", png_header(0, 230) + png_chunk(b"IDAT", b""), "names no pixels"
    yield "unknown range.tif", encode(Image.fromarray(np.full((9, 9), -1.0, np.float32)), "TIFF"), "range"
    yield "hole.jpg", jpeg[:200] + bytes(len(jpeg) - 200), "JPEG"

    # --- too large
    yield "bomb.png", png_of_zeros(20_000), "400,000,000 pixels .* exceed"
    yield "bomb.gif", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + wholes["gif"][10:], "pixels .* exceed"
    huge = struct.pack("<ii", 50_000, 50_000)
    yield "bomb.bmp", wholes["bmp"][:18] + huge + wholes["bmp"][26:], "2,500,000,000 pixels"
    yield (
        "bomb.tif",
        _tiff((256, 4, 1, 2**31), (257, 4, 1, 2**31), *pages[2:]),
        "pixels .* exceed|damaged TIFF",
    )
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + b"VP8L" + struct.pack("<I", 8) + b"\x2f" + bytes(7)
    yield "bomb.webp", b"RIFF" + struct.pack("<I", len(body)) + body, "268,402,689 pixels exceed"
    tiles = ((322, 4, 1, 16), (323, 4, 1, 16), (324, 4, 2**31, 512), (325, 4, 2**31, 512))
    yield "billions of tiles.tif", _tiff(*_SIZE_TAGS, *tiles), "TIFF"
    lzw = ((259, 3, 1, 5), *tiles)
    yield "billions of packed tiles.tif", _tiff(*_SIZE_TAGS[:3], _SIZE_TAGS[4], *lzw), "TIFF"

    # --- no image
    yield "text.jpg", b"hello, I am text\n", "begins with 'hello, I am '"
    yield "page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "begins with '<!DOCTYPE ht'"
    yield "vector.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "begins with '<svg xmlns="
    yield "paper.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "begins with the bytes 25 50 44 46"
    yield "archive.jpg", _zip("bomb.png", png_of_zeros(20_000)), "begins with the bytes 50 4b 03 04"
    yield "packed.png", gzip.compress(png, mtime=0), "begins with the bytes 1f 8b"
    yield "pickle.png", b"\x80\x04\x95cos\nsystem\n.", "begins with the bytes 80 04"
    yield (
        "pointer.png",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "begins with 'version http'",
    )
    yield "photograph.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIF"
    yield "mif1.heif", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "HEIF"


def write_bad_files(root: Path) -> tuple[dict[str, str | None], dict[str, int]]:
    """Fill ROOT/odd/{real,fake}; gives name -> expectation of the images, and what indexing leaves out."""
    real, fake = root / "odd" / "real", root / "odd" / "fake"
    real.mkdir(parents=True)
    fake.mkdir()
    expected: dict[str, str | None] = {}
    for name, data, expectation in contents():
        (real / name).write_bytes(data)
        expected[name] = expectation
    png = encode(smooth(240, 230), "PNG")
    (fake / "sound.png").write_bytes(png)
    (real / "link.png").symlink_to(fake / "sound.png")
    (real / "broken link.png").symlink_to(real / "nowhere")
    (real / "circle.png").symlink_to(real / "circle.png")
    os.mkfifo(real / "pipe.png")
    expected |= {
        "sound.png": READ,
        "link.png": READ,
        "broken link.png": "broken symbolic link",
        "circle.png": "Too many levels of symbolic links",
        "pipe.png": "not a regular file",
    }
    if os.geteuid() != 0:  # nothing is denied to root
        (real / "secret.png").write_bytes(png)
        (real / "secret.png").chmod(0)
        expected["secret.png"] = "permission denied"
    (real / "folder.png").mkdir()
    (real / "folder[").mkdir()  # a path that holds `[/b]`, which rich takes for markup
    (real / "folder[" / "b].png").write_bytes(png)
    expected["b].png"] = READ
    (real / "up").symlink_to(root)
    (real / "notes.txt").write_text("no image")
    (real / ".hidden.png").write_bytes(png)
    (real / os.fsdecode(b"latin-\xe9.png")).write_bytes(png)
    (real / os.fsdecode(b"folder-\xe9")).mkdir()
    for name in ("a.png", "b.png"):
        (real / os.fsdecode(b"folder-\xe9") / name).write_bytes(png)
    return expected, {".txt": 1, "hidden": 1, "name is not UTF-8": 3, "link back to a folder above": 1}
