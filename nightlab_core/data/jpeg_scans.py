# SPDX-License-Identifier: Apache-2.0
"""Find damage of a JPEG that libjpeg does not warn of: missing scans, and zeros within the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nightlab_core.data.image_header import JPEG_FRAMES, ImageError

#: In most Huffman tables so many zero bytes are two blocks or more of equal coefficients, which no picture has.
_ZEROS = bytes(64)
_MAX_SCANS = 128  #: each takes about as long as a whole JPEG of one scan
_COEFFICIENTS = 64
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_TABLES, _SCAN, _END = 0xC4, 0xDA, 0xD9
#: By number of a table for AC coefficients, the symbol that zero bits mean: in a JPEG without tables, the standard's.
_STANDARD_SYMBOLS = {0: 0x01, 1: 0x00}


@dataclass(frozen=True)
class _Segment:
    """A marker and the bytes of its parameters; a scan's pixels end at `stop`."""

    marker: int
    body: bytes
    end: int
    stop: int


def check_scans(data: bytes) -> None:
    """Raise ImageError for a progressive JPEG that lacks scans, for too many scans, and for zeros within the pixels.

    Zeros are found if they mean a coefficient, as in nearly all cameras' Huffman tables. In tables made for one picture
    they may mean a plain area.
    """
    frame = next((segment for segment in _segments(data) if segment.marker in JPEG_FRAMES), None)
    if frame is None or not (frame.marker in _PROGRESSIVE or _ZEROS in data):
        return
    symbols, missing_bits, num_scans = dict(_STANDARD_SYMBOLS), dict[tuple[int, int], int](), 0
    for segment in _segments(data):
        if segment.marker == _TABLES:
            symbols |= _first_ac_symbols(segment.body)
        elif segment.marker == _SCAN and len(segment.body) == 4 + 2 * segment.body[0]:
            num_scans += 1
            components, tables = segment.body[1:-3:2], segment.body[2:-3:2]
            first, last, bits = segment.body[-3:]
            means_pixels = last > 0 and bits >> 4 == 0 and any(symbols.get(table & 15, 0) & 15 for table in tables)
            if means_pixels and data.find(_ZEROS, segment.end, segment.stop) >= 0:
                raise ImageError(f"received {len(data)} bytes of JPEG with zeros within the pixels: it is damaged")
            missing_bits |= {(c, place): bits & 15 for c in components for place in range(first, last + 1)}
        if num_scans > _MAX_SCANS:
            raise ImageError(f"received a JPEG of more than {_MAX_SCANS} scans; expected at most {_MAX_SCANS}")
    complete = frame.body[5] * _COEFFICIENTS
    if frame.marker in _PROGRESSIVE and sum(bits == 0 for bits in missing_bits.values()) < complete:
        raise ImageError(f"received {len(data)} bytes of progressive JPEG without all scans: it is cut short")


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield the segments up to the end marker, or to where the data make no sense: libjpeg says why."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _END or end > len(data):
            return
        stop = _end_of_pixels(data, end) if marker == _SCAN else end
        yield _Segment(marker, data[at + 4 : end], end, stop)
        at = stop


def _end_of_pixels(data: bytes, at: int) -> int:
    """Return where the next marker is that is no restart within the pixels."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        following = data[at + 1]
        if following == 0xFF:
            at += 1
        elif following == 0 or 0xD0 <= following <= 0xD7:
            at += 2
        else:
            return at
    return len(data)


def _first_ac_symbols(body: bytes) -> dict[int, int]:
    """Return the first symbol of each table for AC coefficients, by number: the one whose code is zeros."""
    found, at = {}, 0
    while at + 17 < len(body):
        if body[at] >> 4:
            found[body[at] & 15] = body[at + 17]
        at += 17 + sum(body[at + 1 : at + 17])
    return found
