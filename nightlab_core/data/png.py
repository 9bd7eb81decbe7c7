# SPDX-License-Identifier: Apache-2.0
"""Read and write the chunks of a PNG file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from nightlab_core.data.image_header import PNG, ImageError

_CRITICAL = (b"IHDR", b"PLTE", b"IDAT")
_ONE_IMAGE = (1).to_bytes(4, "big")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  #: by colour type: grey, colour, palette, each with transparency


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and body of each chunk of a PNG up to its end.

    Raises ImageError if it is cut short or corrupt, if it has more data than its pixels can take, which a decoder
    would unpack for nothing, and for an animation: OpenCV gives its first image, or black.
    """
    at, data_left = len(PNG), 0
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(check) < 4:
            break
        if kind in _CRITICAL and zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(check, "big"):
            raise ImageError(f"received {len(data)} bytes of PNG that are corrupt")
        if kind == b"fdAT" or (kind == b"acTL" and body[:4] != _ONE_IMAGE):
            raise ImageError("received a PNG of several images, an animation; expected a file of one image")
        if kind == b"IHDR":
            data_left = _most_data(body)
        if kind == b"IDAT" and (data_left := data_left - length) < 0:
            raise ImageError(f"received {len(data)} bytes of PNG with more data than its pixels take: it is corrupt")
        yield kind, body
        if kind == b"IEND":
            return
        at += 12 + length
    raise ImageError(f"received {len(data)} bytes of PNG without its end: it is cut short")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return the bytes of a chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _most_data(header: bytes) -> int:
    """Return the most bytes of compressed data that the pixels of a header can need, with room for any encoder."""
    if len(header) != 13:
        return 0
    width, height, bits, colour_type = struct.unpack_from(">IIBB", header)
    row = 1 + (width * bits * _CHANNELS.get(colour_type, 4) + 7) // 8
    return 2 * height * row + 1024
