# SPDX-License-Identifier: Apache-2.0
"""Unpack messages, chunks and files of bags in pieces, up to a stated size: a few kB may unpack to any size."""

from __future__ import annotations

import os
import sys
from bz2 import BZ2Decompressor
from collections.abc import Callable, Iterator
from errno import ENOSPC
from pathlib import Path
from typing import BinaryIO, Protocol

from lz4.frame import LZ4FrameDecompressor

from nightlab_core.data.bags.protocol import BagError, one_line
from nightlab_core.data.image_header import MAX_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Most bytes of an unpacked message or chunk.
MAX_UNPACKED_BYTES = MAX_BYTES
#: A compressed file unpacks to at most this multiple of its size, or to SMALL_FILE_BYTES if that is more.
MAX_RATIO = 100
SMALL_FILE_BYTES = 256 << 20
_READ_BYTES, _PIECE_BYTES = 1 << 20, 16 << 20
#: Space that is left free on the disk: this part of it, or this number of bytes if that is less.
_FREE_PART, _FREE_BYTES = 0.05, 1 << 30
_ERRORS = (zstd.ZstdError, RuntimeError, OSError, EOFError, ValueError)


class Unpacker(Protocol):
    """Decompressor of one stream, as the libraries define it."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def unused_data(self) -> bytes:
        """Bytes behind the end of the stream."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return at most `max_length` bytes; the rest is returned by calls with b""."""


#: Decompressors by the name that bags use.
UNPACKERS: dict[str, Callable[[], Unpacker]] = {
    "zstd": zstd.ZstdDecompressor,
    "lz4": LZ4FrameDecompressor,
    "bz2": BZ2Decompressor,
}


class DamagedStreamError(BagError):
    """Compressed data that are cut off or that a decompressor refuses."""


def unpack(packed: bytes, compression: str, size: int | None = None) -> tuple[bytes, bool]:
    """Return what a message or chunk unpacks to, and whether it is complete: of one that is cut off, the first part.

    `size` is the number of bytes that it should have, if known. Raises BagError for damaged data, and for more than
    `size` or MAX_UNPACKED_BYTES.
    """
    if compression not in UNPACKERS:
        raise BagError(f"compression {compression!r} is not known; expected one of {', '.join(UNPACKERS)}")
    check_unpacked(size or 0)
    unpacker, pieces, unpacked = UNPACKERS[compression](), [], 0
    try:
        for piece in _pieces(unpacker, packed):
            pieces.append(piece)
            unpacked += len(piece)
            if size is not None and unpacked > size:
                raise DamagedStreamError(f"received {len(packed)} bytes that unpack to more than the stated {size}")
            check_unpacked(unpacked)
    except BagError:
        pieces.clear()  # the error's traceback would keep them
        raise
    return b"".join(pieces), unpacker.eof


def check_unpacked(size: int) -> None:
    """Raise BagError if a message or chunk has more than MAX_UNPACKED_BYTES."""
    if size > MAX_UNPACKED_BYTES:
        raise BagError(
            f"received a message or chunk of {size} bytes or more when unpacked; expected at most "
            f"{MAX_UNPACKED_BYTES}: record the bag in smaller chunks"
        )


def unpack_file(path: Path, plain: Path) -> str:
    """Unpack as much as possible of a zstd file into `plain`; return what is wrong with it, or "".

    Raises OSError if the disk is nearly full, and BagError for a file that unpacks to too many bytes.
    """
    packed_bytes = path.stat().st_size
    limit = max(SMALL_FILE_BYTES, MAX_RATIO * packed_bytes)
    with path.open("rb") as packed, plain.open("wb") as file:
        try:
            for piece in _pieces_of_file(packed):
                _check_space(plain.parent)
                file.write(piece)
                if file.tell() > limit:
                    raise BagError(
                        f"{path} has {packed_bytes} bytes and unpacks to more than {limit}; expected at most "
                        f"{MAX_RATIO} times its size or {SMALL_FILE_BYTES}: if you trust it, run `zstd -d` on it"
                    )
        except DamagedStreamError as error:
            return f"decompressing ends after {file.tell()} bytes: {error}"
    return ""


def _pieces(unpacker: Unpacker, packed: bytes) -> Iterator[bytes]:
    """Yield what data unpack to until their end or the end of the stream. Raises DamagedStreamError."""
    while not unpacker.eof:
        try:
            piece = unpacker.decompress(packed, _PIECE_BYTES)
        except _ERRORS as error:
            raise DamagedStreamError(one_line(error)) from error
        if not piece:
            return
        yield piece
        packed = b""


def _pieces_of_file(file: BinaryIO) -> Iterator[bytes]:
    """Yield what all streams of a zstd file unpack to. Raises DamagedStreamError."""
    unpacker = UNPACKERS["zstd"]()
    while block := file.read(_READ_BYTES):
        while block:
            if unpacker.eof:  # another stream follows
                unpacker = UNPACKERS["zstd"]()
            yield from _pieces(unpacker, block)
            block = unpacker.unused_data
    if not unpacker.eof:
        raise DamagedStreamError("the file is cut off")


def _check_space(folder: Path) -> None:
    """Raise OSError if a disk is so full that other programs would suffer."""
    disk = os.statvfs(folder)
    kept = int(min(_FREE_PART * disk.f_blocks * disk.f_frsize, _FREE_BYTES))
    if disk.f_bavail * disk.f_frsize < kept + _PIECE_BYTES:
        raise OSError(ENOSPC, f"less than {kept} bytes would be left free")
