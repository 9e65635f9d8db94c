"""Small pictures, encoded."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image that a lossy codec can keep: no two rows alike, no sharp edges."""
    return Image.fromarray(noise(8, 8, seed)).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_16(values: np.ndarray) -> bytes:
    """A 16-bit PNG of [h, w, channels] values: Pillow cannot write 16-bit colour."""
    return png(values, depth=16, colour_type={1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]])


def png(values: np.ndarray, depth: int, colour_type: int, before: bytes = b"") -> bytes:
    """A PNG of [h, w, channels] values of `depth` bits, with chunks before its pixels; owes nothing to Pillow."""
    height, width, _ = values.shape
    bits = np.unpackbits(np.ascontiguousarray(values, ">u2").view(np.uint8).reshape(-1, 2), axis=1)
    rows = np.packbits(bits[:, 16 - depth :].reshape(height, -1), axis=1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = png_header(width, height, depth=depth, colour_type=colour_type)
    return header + before + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int, depth: int = 8, colour_type: int = 2) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", body)


@functools.cache
def png_of_zeros(side: int) -> bytes:
    """A sound PNG of side x side black pixels, one bit each."""
    rows = zlib.compress(bytes((1 + -(-side // 8)) * side), 1)
    return png_header(side, side, 1, 0) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
