# SPDX-License-Identifier: Apache-2.0
"""Read and write the chunks of a PNG file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from nightlab_core.data.image_header import PNG, ImageError

_CRITICAL = (b"IHDR", b"PLTE", b"IDAT")
_ONE_IMAGE = (1).to_bytes(4, "big")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and body of each chunk of a PNG up to its end.

    Raises ImageError if it is cut short or corrupt, and for an animation: OpenCV gives its first image, or black.
    """
    at = len(PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body, check = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(check) < 4:
            break
        if kind in _CRITICAL and zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(check, "big"):
            raise ImageError(f"received {len(data)} bytes of PNG that are corrupt")
        if kind == b"fdAT" or (kind == b"acTL" and body[:4] != _ONE_IMAGE):
            raise ImageError("received a PNG of several images, an animation; expected a file of one image")
        yield kind, body
        if kind == b"IEND":
            return
        at += 12 + length
    raise ImageError(f"received {len(data)} bytes of PNG without its end: it is cut short")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return the bytes of a chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
