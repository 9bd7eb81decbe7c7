# SPDX-License-Identifier: Apache-2.0
"""Read bags that rosbag2 compressed with zstd, by the file or by the message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nightlab_core.data.bags.protocol import BagError, StorageFile, one_line
from nightlab_core.data.image_header import MAX_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_BLOCK_BYTES = 1 << 20
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class CompressedFile:
    """A file that is compressed as a whole; see `protocol.StorageFile`.

    It is decompressed into a temporary folder, which exists until the file is closed.
    """

    kind = "compressed"

    def __init__(self, path: Path, open_file: Callable[[Path], StorageFile]) -> None:
        """`open_file` opens the decompressed file. Raises BagError, also if the temporary folder is full."""
        self._folder = TemporaryDirectory(prefix="nightlab_bag_")
        plain = Path(self._folder.name) / path.stem
        try:
            problem = _decompress(path, plain)
            self._file = open_file(plain)
        except BagError as error:
            self._folder.cleanup()
            raise BagError(str(error).replace(str(plain), str(path))) from error
        except OSError as error:
            self._folder.cleanup()
            raise BagError(
                f"{path} cannot be decompressed into {self._folder.name}: {error}; set TMPDIR to a folder with space"
            ) from error
        self.topics, self.problems = self._file.topics, self._file.problems
        if problem:
            self.problems.insert(0, problem)

    def index(self, topic: str) -> np.ndarray:
        """Return the index of the decompressed file."""
        return self._file.index(topic)

    def read(self, first: int, second: int) -> bytes:
        """Return a message. Raises BagError."""
        return self._file.read(first, second)

    def head(self, first: int, second: int, size: int) -> bytes:
        """Return the first bytes of a message. Raises BagError."""
        return self._file.head(first, second, size)

    def close(self) -> None:
        """Close the file and delete its decompressed copy."""
        self._file.close()
        self._folder.cleanup()


def is_compressed(message: bytes) -> bool:
    """Return whether a message is compressed: a serialised one (CDR) begins with a zero byte."""
    return message.startswith(_ZSTD_MAGIC)


def decompress_message(message: bytes) -> bytes:
    """Return a message without its compression. Raises BagError."""
    try:
        unpacker = zstd.ZstdDecompressor()
        unpacked = unpacker.decompress(message, MAX_BYTES + 1)
    except zstd.ZstdError as error:
        raise BagError(f"the message cannot be decompressed: {one_line(error)}") from error
    if not unpacker.eof:
        fault = f"has more than {MAX_BYTES} bytes" if len(unpacked) > MAX_BYTES else "is cut short"
        raise BagError(f"the message cannot be decompressed: it {fault}")
    return unpacked


def _decompress(path: Path, plain: Path) -> str:
    """Decompress as much of a file as possible; return what is wrong with it, or ""."""
    unpacker = zstd.ZstdDecompressor()
    with path.open("rb") as packed, plain.open("wb") as file:
        try:
            while block := packed.read(_BLOCK_BYTES):
                while block:
                    if unpacker.eof:  # another frame follows
                        unpacker = zstd.ZstdDecompressor()
                    file.write(unpacker.decompress(block))
                    block = unpacker.unused_data
        except zstd.ZstdError as error:
            return f"decompressing ends after {file.tell()} bytes: {one_line(error)}"
        return "" if unpacker.eof else f"decompressing ends after {file.tell()} bytes: the file is cut off"
