# SPDX-License-Identifier: Apache-2.0
"""Read ROS 1's .bag files through rosbags."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from rosbags.rosbag1 import Reader
from rosbags.rosbag1.reader import IndexData

from nightlab_core.data.bags.messages import STAMP_BYTES, ros1_head, ros1_to_cdr
from nightlab_core.data.bags.protocol import BagError, Topic, check_num_messages, one_line
from nightlab_core.data.bags.unpacking import check_unpacked, unpack

#: First bytes of a compressed chunk. One without compression begins with the length of a header.
_MAGICS = {"bz2": b"BZh", "lz4": b"\x04\x22\x4d\x18"}
_INDEX_HEAD_BYTES, _INDEX_ENTRY_BYTES = 55, 12


class _LimitedReader(Reader):
    """Reader that refuses an index in which many chunks name the same messages."""

    _num_messages = 0

    def read_index_data(self, pos: int, indexes: dict[int, list[IndexData]]) -> None:
        assert self.bio
        start = self.bio.tell()
        super().read_index_data(pos, indexes)
        self._num_messages += (self.bio.tell() - start - _INDEX_HEAD_BYTES) // _INDEX_ENTRY_BYTES
        path = Path(str(self.path))
        check_num_messages(self._num_messages, path, path.stat().st_size)


class Rosbag1File:
    """One indexed .bag file; see `protocol.StorageFile`. Image messages are converted to ROS 2's serialisation."""

    kind = "rosbag1"

    def __init__(self, path: Path) -> None:
        """Raises BagError if the file is damaged, or names more messages than it can hold."""
        self.problems: list[str] = []
        self._reader = _LimitedReader(path)
        try:
            self._reader.open()
        except BagError:
            raise
        except Exception as error:  # rosbags raises errors of many types for damaged files
            raise BagError(f"{path} cannot be opened: {one_line(error)}; try `rosbag reindex`") from error
        self._refused: dict[int, str] = {}  # why, by offset of the chunk: to unpack it up to the limit takes seconds
        self._reader.chunks = {at: chunk._replace(decompressor=_unpacked) for at, chunk in self._reader.chunks.items()}
        self._indexes = self._reader.indexes
        self.topics = {name: Topic(topic.msgtype or "", topic.msgcount) for name, topic in self._reader.topics.items()}

    def index(self, topic: str) -> np.ndarray:
        """Return int64 (N, 3): time in ns, number of the connection, number of its message."""
        rows = [
            (entry.time, number, place)
            for number, connection in enumerate(self._reader.connections)
            if connection.topic == topic
            for place, entry in enumerate(self._indexes[connection.id])
        ]
        return np.asarray(rows, np.int64).reshape(-1, 3)

    def read(self, first: int, second: int) -> bytes:
        """Return the message of a connection. Raises BagError."""
        return ros1_to_cdr(*self._raw(first, second))

    def head(self, first: int, second: int, size: int) -> bytes:
        """Return the first bytes of a message, which is read completely. Raises BagError."""
        raw, message_type = self._raw(first, second)
        return ros1_head(raw) if size <= STAMP_BYTES else ros1_to_cdr(raw, message_type)[:size]

    def _raw(self, first: int, second: int) -> tuple[bytes, str]:
        """Return the message of a connection as ROS 1 serialises it, and its type. Raises BagError."""
        connection = self._reader.connections[first]
        entry = self._indexes[connection.id][second]
        if entry.chunk_pos in self._refused:
            raise BagError(self._refused[entry.chunk_pos])
        check_unpacked(self._reader.chunks[entry.chunk_pos].datasize)
        # rosbags walks through the index for every call: show it the one entry
        self._reader.indexes = {connection.id: [entry]}
        try:
            ((_, _, raw),) = self._reader.messages([connection])
        except Exception as error:  # the bytes may be anything
            self._reader.current_chunk = (-1, BytesIO())  # rosbags has closed the chunk before
            if isinstance(error, BagError):
                self._refused[entry.chunk_pos] = f"the chunk cannot be unpacked: {error}"
                raise BagError(self._refused[entry.chunk_pos]) from error
            raise BagError(f"the message cannot be read: {one_line(error)}") from error
        return bytes(raw), connection.msgtype

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


def _unpacked(chunk: bytes) -> bytes:
    """Return the records of a chunk. Raises BagError. rosbags would unpack any number of bytes."""
    compression = next((name for name, magic in _MAGICS.items() if chunk.startswith(magic)), None)
    return unpack(chunk, compression)[0] if compression else chunk
