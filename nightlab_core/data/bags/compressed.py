# SPDX-License-Identifier: Apache-2.0
"""Read bags that rosbag2 compressed with zstd, by the file or by the message."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir, mkdtemp

import numpy as np

from nightlab_core.data.bags.protocol import BagError, StorageFile
from nightlab_core.data.bags.unpacking import unpack, unpack_file

_Key = tuple[str, int, int]  # path, size and time of change of a compressed file


@dataclass
class _Copy:
    """A decompressed copy, what is wrong with it, whether this process deletes it, and the number of its users."""

    plain: Path
    problem: str
    is_own: bool = True
    users: int = 0


_LOCK = threading.Lock()
_COPIES: dict[_Key, _Copy] = {}
#: Environment variable in which a process tells its child processes of its copies: JSON, key and copy in one list each.
_VARIABLE = "NIGHTLAB_DECOMPRESSED"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class CompressedFile:
    """A file that is compressed as a whole; see `protocol.StorageFile`. Its content is read from a copy: `_copy_of`."""

    kind = "compressed"

    def __init__(self, path: Path, open_file: Callable[[Path], StorageFile]) -> None:
        """`open_file` opens the decompressed file. Raises BagError, also if the temporary folder is full."""
        self._copy = _copy_of(path)
        try:
            self._file = open_file(self._copy.plain)
        except BagError as error:
            self._copy.users -= 1
            raise BagError(str(error).replace(str(self._copy.plain), str(path))) from error
        self.topics, self.problems = self._file.topics, self._file.problems
        if self._copy.problem:
            self.problems.insert(0, self._copy.problem)

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
        """Close the file."""
        self._file.close()
        with _LOCK:
            self._copy.users -= 1


def is_compressed(message: bytes) -> bool:
    """Return whether a message is compressed: a serialised one (CDR) begins with a zero byte."""
    return message.startswith(_ZSTD_MAGIC)


def decompress_message(message: bytes) -> bytes:
    """Return a message without its compression. Raises BagError."""
    try:
        unpacked, complete = unpack(message, "zstd")
    except BagError as error:
        raise BagError(f"the message cannot be decompressed: {error}") from error
    if not complete:
        raise BagError("the message cannot be decompressed: it is cut short")
    return unpacked


def _copy_of(path: Path) -> _Copy:
    """Return the decompressed copy of a file, with one user more. Raises BagError.

    A process decompresses a file once, unless its parent has. Copies are deleted when the process ends, or, if the
    temporary folder is full, when nobody uses them.
    """
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    with _LOCK:
        if key not in _COPIES and (inherited := _inherited(key)):
            _COPIES[key] = inherited
        if key not in _COPIES:
            try:
                _COPIES[key] = _decompressed(path)
            except PermissionError as error:
                raise BagError(f"{path} cannot be decompressed: {error}") from error
            except OSError:
                _delete([k for k, copy in _COPIES.items() if not copy.users])
                try:
                    _COPIES[key] = _decompressed(path)
                except OSError as error:
                    raise BagError(
                        f"{path} cannot be decompressed into {gettempdir()}: {error}; set TMPDIR to a folder with space"
                    ) from error
        _COPIES[key].users += 1
        _tell_children()
        return _COPIES[key]


def _inherited(key: _Key) -> _Copy | None:
    """Return the copy of a parent process, if there is one and it still exists."""
    for *known, plain, problem in json.loads(os.environ.get(_VARIABLE, "[]")):
        if tuple(known) == key and Path(plain).is_file():
            return _Copy(Path(plain), problem, is_own=False)
    return None


def _tell_children() -> None:
    """Set the variable for child processes that start from now on."""
    os.environ[_VARIABLE] = json.dumps([[*key, str(copy.plain), copy.problem] for key, copy in _COPIES.items()])


def _delete(keys: Iterable[_Key]) -> None:
    for key in list(keys):
        copy = _COPIES.pop(key)
        if copy.is_own:
            shutil.rmtree(copy.plain.parent, ignore_errors=True)


def _delete_own(process: int = os.getpid()) -> None:
    if os.getpid() == process:  # a forked process has its parent's copies in its list
        _delete(_COPIES)


atexit.register(_delete_own)


def _decompressed(path: Path) -> _Copy:
    folder = Path(mkdtemp(prefix="nightlab_bag_"))
    try:
        return _Copy(folder / path.stem, unpack_file(path, folder / path.stem))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
