# SPDX-License-Identifier: Apache-2.0
"""Read bags that rosbag2 compressed with zstd, by the file or by the message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nightlab_core.data.bags.protocol import BagError, StorageFile, one_line

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_BLOCK_BYTES = 1 << 20


class _Wrapper:
    """A file in one of rosbag2's formats behind a compression; see `protocol.StorageFile`."""

    kind = "compressed"

    def __init__(self, file: StorageFile) -> None:
        self._file = file
        self.topics, self.problems = file.topics, file.problems

    def index(self, topic: str) -> np.ndarray:
        """Return the index of the file."""
        return self._file.index(topic)

    def read(self, first: int, second: int) -> bytes:
        """Return a message. Raises BagError."""
        return self._file.read(first, second)

    def head(self, first: int, second: int, size: int) -> bytes:
        """Return the first bytes of a message. Raises BagError."""
        return self._file.head(first, second, size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CompressedMessages(_Wrapper):
    """A file whose messages are compressed one by one."""

    def read(self, first: int, second: int) -> bytes:
        """Return a decompressed message. Raises BagError."""
        packed = self._file.read(first, second)
        try:
            return zstd.decompress(packed)
        except zstd.ZstdError as error:
            raise BagError(f"the message cannot be decompressed: {one_line(error)}") from error

    def head(self, first: int, second: int, size: int) -> bytes:
        """Return the first bytes of a message, which is decompressed completely. Raises BagError."""
        return self.read(first, second)[:size]


class CompressedFile(_Wrapper):
    """A file that is compressed as a whole. It is decompressed into a temporary folder until it is closed."""

    def __init__(self, path: Path, open_file: Callable[[Path], StorageFile]) -> None:
        """`open_file` opens the decompressed file. Raises BagError, also if the temporary folder is full."""
        self._folder = TemporaryDirectory(prefix="nightlab_bag_")
        plain = Path(self._folder.name) / path.stem
        try:
            problem = _decompress(path, plain)
            super().__init__(open_file(plain))
        except BagError as error:
            self._folder.cleanup()
            raise BagError(str(error).replace(str(plain), str(path))) from error
        except OSError as error:
            self._folder.cleanup()
            raise BagError(
                f"{path} cannot be decompressed into {self._folder.name}: {error}; set TMPDIR to a folder with space"
            ) from error
        except BaseException:
            self._folder.cleanup()
            raise
        if problem:
            self.problems.insert(0, problem)

    def close(self) -> None:
        """Close the file and delete its decompressed copy."""
        super().close()
        self._folder.cleanup()


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
