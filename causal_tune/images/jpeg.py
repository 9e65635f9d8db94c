"""Decoding a JPEG only where its data hold all of its pixels.

libjpeg fills in what the data lack, with grey or with coarser pixels, and Pillow passes on none of its warnings. So
the data are decoded in a form that shows whether they suffice:

- **One scan** (nearly all photographs): the decoder is given the bytes up to the end of the scan, no end marker, and
  as many spare bytes as it reads ahead. A complete scan yields all pixels; a short one makes the decoder ask for more,
  which Pillow reports. Bytes left over behind the last pixel show a scan that was damaged inside.
- **Several scans** (progressive): the image is decoded once more with spare bytes behind each scan. The decoder skips
  them where the scan is complete and makes other pixels of them where it is short.

A scan ends at the first marker in it, whatever lies behind: thumbnails, further pictures, padding. Arithmetic coding
and lossless JPEG are decoded without these checks.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from causal_tune.errors import UnreadableImage
from causal_tune.images.headers import truncated

__all__ = ["load_jpeg"]

_MARKER = re.compile(rb"\xff+([\x01-\xfe])")
_SCAN_END = re.compile(rb"\xff[\x01-\xfe]")
_SCAN_END_WITH_RESTARTS = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")

_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_EOI, _SOS, _DHT, _DRI = 0xD9, 0xDA, 0xC4, 0xDD
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # SOF markers of Huffman coding
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, 0xCC}

_SPARE = b"\xff\0" * 8
"""64 one bits: the decoder's buffer. No code consists of ones alone, so a missing block wastes the most of them."""

_OTHER = b"\x5a\x31\x0f" * 64
"""Bytes of which a decoder makes pixels of some contrast."""

_TOLERATED = 64
"""Bytes that may be left over behind the last pixel, padding apart: some cameras write a few. So many zero bytes of
padding are decoded."""

_ZEROS = bytes(512)
"""A lost sector of a disk, where zero bits do not stand for flat blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scan:
    begin: int
    """Where its coded data begin."""
    end: int
    """Where the marker that ends it stands, or the data end."""
    header: bytes
    interval: int
    """Units between two restart markers; 0: there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Structure:
    frame: int
    """Its SOF marker; 0 where there is none."""
    frame_header: bytes
    scans: list[_Scan]
    first_codes: Mapping[int, int]
    """Huffman table (class and number, as DHT has them) -> the symbol whose code is all zeros."""


def load_jpeg(data: bytes) -> JpegImageFile:
    """The image with all its pixels decoded, as stored.

    Raises `UnreadableImage` where the data do not hold all pixels, and what Pillow raises on other damage.
    """
    found = _structure(data)
    if found.scans and found.frame in (*_SEQUENTIAL, _PROGRESSIVE):
        num_components, interleaved = found.frame_header[5:6], found.scans[0].header[:1]
        if found.frame in _SEQUENTIAL and num_components == interleaved:
            return _load_scan(data, found, found.scans[0])
        return _load_scans(data, found.scans, found.frame_header)
    return _load(data)


def _load(data: bytes) -> JpegImageFile:
    image = JpegImageFile(io.BytesIO(data), "")
    image.decodermaxblock = len(data)  # arithmetic coding is decoded only from data that are all there
    image.load()
    return image


def _load_scan(data: bytes, found: _Structure, scan: _Scan) -> JpegImageFile:
    body = data[: scan.end].rstrip(b"\xff")  # fill bytes belong to the marker behind
    num_unpadded = len(body.rstrip(b"\0"))
    if not _zeros_are_flat(found, scan):
        if (at := body.find(_ZEROS, scan.begin, num_unpadded)) >= 0:
            raise UnreadableImage(
                f"damaged JPEG: from byte {at:,} on, {len(_ZEROS)} bytes of image data are zero"
            )
        body = body[: num_unpadded + _TOLERATED]  # so that no pixels are made of what pads a cut file
    file = io.BytesIO(body + _SPARE)
    image = JpegImageFile(file, "")
    image.decodermaxblock = max(num_unpadded - _TOLERATED, scan.begin)  # all but these are read at once
    image.load()
    if file.tell() <= image.decodermaxblock:
        raise UnreadableImage("damaged JPEG: image data are left over behind the last pixel")
    _check_restarts(data, scan, found.frame_header)
    return image


def _load_scans(data: bytes, scans: list[_Scan], frame_header: bytes) -> JpegImageFile:
    image = _load(data)
    starts = [0, *(scan.end for scan in scans)]
    parts = [data[start : scan.end].rstrip(b"\xff") for start, scan in zip(starts, scans, strict=False)]
    for scan in scans:
        _check_restarts(data, scan, frame_header)
    longer = _load(_OTHER.join([*parts, data[starts[-1] :]]))
    if ImageChops.difference(longer, image).getbbox():
        raise truncated("JPEG", len(data))
    return image


def _structure(data: bytes) -> _Structure:
    """The markers of a file up to its end marker; what lies behind is no part of the picture."""
    frame, frame_header, interval = 0, b"", 0
    scans: list[_Scan] = []
    first_codes: dict[int, int] = {}
    marker = _MARKER.search(data)
    while marker and marker[1][0] != _EOI:
        kind, at = marker[1][0], marker.end()
        if kind not in _WITHOUT_LENGTH:
            length = int.from_bytes(data[at : at + 2], "big")
            body, at = data[at + 2 : at + length], at + length
            if kind in _FRAMES:
                frame, frame_header = kind, body
            elif kind == _DRI:
                interval = int.from_bytes(body[:2], "big")
            elif kind == _DHT:
                first_codes |= _first_codes(body)
            elif kind == _SOS:
                pattern = _SCAN_END_WITH_RESTARTS if interval else _SCAN_END
                end = pattern.search(data, at)
                begin, at = at, end.start() if end else len(data)
                scans.append(_Scan(begin=begin, end=at, header=body, interval=interval))
        marker = _MARKER.search(data, at)
    return _Structure(frame=frame, frame_header=frame_header, scans=scans, first_codes=first_codes)


def _first_codes(body: bytes) -> dict[int, int]:
    """The first symbol of each table of a DHT segment."""
    found: dict[int, int] = {}
    at = 0
    while at + 17 < len(body):
        found[body[at]] = body[at + 17]
        at += 17 + sum(body[at + 1 : at + 17])
    return found


def _zeros_are_flat(found: _Structure, scan: _Scan) -> bool:
    """Whether zero bits stand for blocks without detail in every component, or it is not known what for."""
    tables = scan.header[2 : 1 + 2 * scan.header[0] : 2]
    return all(found.first_codes.get(0x10 | table & 0x0F, 0) in (0x00, 0xF0) for table in tables)


def _check_restarts(data: bytes, scan: _Scan, frame_header: bytes) -> None:
    """Refuse a scan whose restart markers are not all there and in order; libjpeg goes on with the next one."""
    if not scan.interval:
        return
    expected = -(-_num_units(scan, frame_header) // scan.interval) - 1
    markers = [marker[0] & 7 for marker in _RESTART.findall(data, scan.begin, scan.end)]
    # one more may stand behind the last unit
    if markers != [number % 8 for number in range(len(markers))] or len(markers) - expected not in (0, 1):
        raise UnreadableImage(
            f"damaged JPEG: expected {expected:,} restart markers in order, found {len(markers):,}"
        )


def _num_units(scan: _Scan, frame_header: bytes) -> int:
    """Blocks of a scan of one component, else groups of blocks (MCUs)."""
    height, width = (int.from_bytes(frame_header[at : at + 2], "big") for at in (1, 3))
    factors = {
        frame_header[at]: divmod(frame_header[at + 1], 16) for at in range(6, len(frame_header) - 2, 3)
    }
    across, down = (max(both[axis] for both in factors.values()) for axis in (0, 1))
    if scan.header[0] == 1:
        its_across, its_down = factors[scan.header[1]]
        width, height = -(-width * its_across // across), -(-height * its_down // down)
        across = down = 1
    return -(-width // (8 * across)) * -(-height // (8 * down))
