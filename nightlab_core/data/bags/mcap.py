# SPDX-License-Identifier: Apache-2.0
"""Read rosbag2's MCAP files, including files that were cut off before their index was written.

The few records that this needs are parsed here, as no library reads a damaged file. Format: https://mcap.dev/spec
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightlab_core.data.bags.messages import ros1_to_cdr
from nightlab_core.data.bags.protocol import BagError, TooManyMessagesError, Topic, check_num_messages
from nightlab_core.data.bags.unpacking import check_unpacked, unpack

_MAGIC = b"\x89MCAP0\r\n"
_FOOTER_CODE, _SCHEMA_CODE, _CHANNEL_CODE, _MESSAGE_CODE, _CHUNK_CODE, _CHUNK_INDEX_CODE = 2, 3, 4, 5, 6, 8
_STATISTICS_CODE, _DATA_END_CODE = 11, 15
_RECORD = struct.Struct("<BQ")  # opcode, length
_CHUNK = struct.Struct("<QQQII")  # start and end time, size and CRC when unpacked, length of the compression's name
_CHUNK_INDEX = struct.Struct("<QQQQ")  # start and end time, offset and length of the chunk
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence number, time of recording, time of publishing
_FOOTER = struct.Struct("<QQI")  # start of the summary, start of its index, CRC
_STATISTICS = struct.Struct("<QHIIIIQQ")  # messages, schemas, channels, attachments, metadata, chunks, first, last time
_PER_CHANNEL = np.dtype([("channel", "<u2"), ("value", "<u8")])
_INDEX_ENTRY = np.dtype([("time_ns", "<u8"), ("offset", "<u8")])
#: Second number of the index entry of a message outside any chunk.
_NO_CHUNK = -1
_DAMAGED = (BagError, struct.error, ValueError, KeyError, IndexError, EOFError, OSError)


class MissingIndexError(Exception):
    """The file has no usable index; the text says why."""


@dataclass(frozen=True)
class _Chunk:
    """Offset of a chunk, and the offsets of its message indexes by channel."""

    offset: int
    index_offsets: dict[int, int]


class McapFile:
    """One MCAP file; see `protocol.StorageFile`."""

    kind = "mcap"

    def __init__(self, path: Path) -> None:
        """Raises BagError if it is no MCAP file, or names more messages than it can hold."""
        self.problems: list[str] = []
        self._channels: dict[int, tuple[str, int, bool]] = {}  # topic, schema, and whether ROS 1 serialised it
        self._schemas: dict[int, str] = {}
        self._chunks: list[_Chunk] = []
        #: by channel, time, offset in the chunk, and chunk of one message after another: 24 bytes each
        self._entries: dict[int, array[int]] = defaultdict(lambda: array("q"))
        self._num_entries = 0
        self._chunk = (_NO_CHUNK, b"")  # offset and content of the chunk that was read last
        self._path, self._size = path, path.stat().st_size
        self._file = path.open("rb")
        if self._file.read(len(_MAGIC)) != _MAGIC:
            self._file.close()
            raise BagError(f"{path}: nothing can be read: its {self._size} bytes do not begin as an MCAP file does")
        try:
            counts = self._read_summary()
        except MissingIndexError as error:
            counts = self._scan()
            self.problems.append(f"{error}: {sum(counts.values())} messages were found by reading the whole file")
        except _DAMAGED as error:
            counts = self._scan()
            self.problems.append(f"its index is damaged ({error}): {sum(counts.values())} messages were found without")
        self.topics: dict[str, Topic] = {}
        for number, (topic, _, _) in self._channels.items():
            known = self.topics.get(topic, Topic(self._type(number), 0))
            self.topics[topic] = Topic(known.type, known.count + counts.get(number, 0))

    def index(self, topic: str) -> np.ndarray:
        """Return int64 (N, 3): time in ns, offset in the unpacked chunk, offset of the chunk. Raises BagError."""
        parts = [np.zeros((0, 3), np.int64)]
        num_entries = 0
        for number in (number for number, (name, _, _) in self._channels.items() if name == topic):
            parts.append(np.array(self._entries[number], np.int64).reshape(-1, 3))
            for chunk in self._chunks:
                parts.append(self._message_index(chunk, number))
                num_entries += len(parts[-1])
                check_num_messages(num_entries, self._path, self._size)  # many chunks may name one message index
        entries = np.concatenate(parts)
        return entries[np.lexsort((entries[:, 1], entries[:, 2]))]  # in file order

    def read(self, first: int, second: int) -> bytes:
        """Return a message by offset in its chunk and offset of the chunk. Raises BagError."""
        record = self._record(first, second)
        (number,) = struct.unpack_from("<H", record)
        message = record[_MESSAGE.size :]
        return ros1_to_cdr(message, self._type(number)) if self._is_ros1(number) else message

    def _is_ros1(self, channel: int) -> bool:
        return self._channels.get(channel, ("", 0, False))[2]

    def _type(self, channel: int) -> str:
        """Return the type of a channel's messages as ROS 2 writes it."""
        _, schema, is_ros1 = self._channels[channel]
        name = self._schemas.get(schema, "")
        return name.replace("/", "/msg/", 1) if is_ros1 and "/msg/" not in name else name

    def _record(self, first: int, second: int) -> bytes:
        """Return the record of a message: `_MESSAGE`, and the message as it was serialised. Raises BagError."""
        if second == _NO_CHUNK:
            return self._read_at(first + _RECORD.size, self._length_at(first))
        chunk = self._unpacked(second)
        try:
            opcode, length = _RECORD.unpack_from(chunk, first)
        except struct.error as error:
            raise BagError("the chunk ends before the message") from error
        record = chunk[first + _RECORD.size : first + _RECORD.size + length]
        if opcode != _MESSAGE_CODE or len(record) != length or length < _MESSAGE.size:
            raise BagError("the message is cut off, or the index points elsewhere")
        return record

    def head(self, first: int, second: int, size: int) -> bytes:
        """Return the first bytes of a message, without the rest if the chunk is not compressed. Raises BagError."""
        if second == _NO_CHUNK or self._chunk[0] == second:
            return self.read(first, second)[:size]
        try:
            _, _, compression, data_at, _ = self._chunk_header(second)
        except _DAMAGED as error:
            raise BagError(f"the chunk cannot be read: {error}") from error
        if compression:
            return self.read(first, second)[:size]
        record = self._read_at(data_at + first + _RECORD.size, _MESSAGE.size + size)
        (number,) = struct.unpack_from("<H", record)
        return self.read(first, second)[:size] if self._is_ros1(number) else record[_MESSAGE.size :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_summary(self) -> dict[int, int]:
        """Read channels and the index of chunks at the end of the file; return the number of messages by channel."""
        footer_bytes = _RECORD.size + _FOOTER.size
        self._file.seek(max(len(_MAGIC), self._size - footer_bytes - len(_MAGIC)))
        end = self._file.read()
        if len(end) != footer_bytes + len(_MAGIC) or not end.endswith(_MAGIC) or end[0] != _FOOTER_CODE:
            raise MissingIndexError("the file is cut off")
        summary_start, _, _ = _FOOTER.unpack_from(end, _RECORD.size)
        if not summary_start:
            raise MissingIndexError("the file was written without an index")
        summary = self._read_at(summary_start, self._size - footer_bytes - len(_MAGIC) - summary_start)
        counts: dict[int, int] | None = None
        num_messages = 0
        for _, opcode, body in _records(summary):
            if opcode in (_SCHEMA_CODE, _CHANNEL_CODE):
                self._note(opcode, body, 0, _NO_CHUNK)
            elif opcode == _CHUNK_INDEX_CODE:
                _, _, offset, _ = _CHUNK_INDEX.unpack_from(body)
                self._chunks.append(_Chunk(offset, _per_channel(body, _CHUNK_INDEX.size)))
            elif opcode == _STATISTICS_CODE:
                num_messages = _STATISTICS.unpack_from(body)[0]
                counts = _per_channel(body, _STATISTICS.size)
        if counts is not None and num_messages == 0:
            return {}
        if counts is None or not self._chunks or not all(chunk.index_offsets for chunk in self._chunks):
            raise MissingIndexError("the file was written without an index")
        return counts

    def _message_index(self, chunk: _Chunk, channel: int) -> np.ndarray:
        """Return int64 (N, 3) as `index`, for the messages of one channel in one chunk."""
        if (offset := chunk.index_offsets.get(channel)) is None:
            return np.zeros((0, 3), np.int64)
        try:
            body = self._read_at(offset + _RECORD.size, self._length_at(offset))
            (num_bytes,) = struct.unpack_from("<I", body, 2)
            entries = np.frombuffer(body, _INDEX_ENTRY, num_bytes // _INDEX_ENTRY.itemsize, 6)
        except _DAMAGED as error:
            self.problems.append(f"the index of one chunk is damaged: {error}")
            return np.zeros((0, 3), np.int64)
        columns = [entries["time_ns"], entries["offset"], np.full(len(entries), chunk.offset)]
        return np.stack([column.astype(np.int64) for column in columns], axis=1)

    def _scan(self) -> dict[int, int]:
        """Find every complete message by reading the file from the start; return the number of messages by channel."""
        self._channels.clear()
        self._schemas.clear()
        self._chunks.clear()
        at = len(_MAGIC)
        while at + _RECORD.size <= self._size:
            self._file.seek(at)
            opcode, length = _RECORD.unpack(self._file.read(_RECORD.size))
            if opcode == _CHUNK_CODE:
                try:
                    for inside, code, body in _records(self._unpacked(at)):
                        self._note(code, body, inside, at)
                except TooManyMessagesError:
                    raise
                except _DAMAGED as error:
                    self.problems.append(f"the chunk at byte {at} cannot be read: {error}")
            elif at + _RECORD.size + length <= self._size:
                if opcode in (_SCHEMA_CODE, _CHANNEL_CODE, _MESSAGE_CODE):
                    try:
                        self._note(opcode, self._file.read(length), at, _NO_CHUNK)
                    except _DAMAGED as error:
                        self.problems.append(f"the record at byte {at} cannot be read: {error}")
                elif opcode in (_DATA_END_CODE, _FOOTER_CODE):
                    break
            at += _RECORD.size + length
        return {number: len(entries) // 3 for number, entries in self._entries.items()}

    def _note(self, opcode: int, body: bytes, at: int, chunk: int) -> None:
        """Keep a schema, a channel, or the place of a message."""
        if opcode == _SCHEMA_CODE:
            (number,) = struct.unpack_from("<H", body)
            self._schemas[number] = _text(body, 2)
        elif opcode == _CHANNEL_CODE:
            number, schema = struct.unpack_from("<HH", body)
            encoding = _text(body, 8 + struct.unpack_from("<I", body, 4)[0])  # behind the topic
            self._channels[number] = (_text(body, 4), schema, encoding == "ros1")
        elif opcode == _MESSAGE_CODE:
            number, _, time_ns, _ = _MESSAGE.unpack_from(body)
            self._num_entries += 1
            check_num_messages(self._num_entries, self._path, self._size)
            self._entries[number].extend((min(time_ns, 2**63 - 1), at, chunk))  # a damaged time may be later

    def _chunk_header(self, at: int) -> tuple[int, int, str, int, int]:
        """Return a chunk's unpacked size and CRC, its compression, and offset and number of its packed bytes."""
        head = at + _RECORD.size
        _, _, size, crc, name_bytes = _CHUNK.unpack(self._read_at(head, _CHUNK.size))
        rest = self._read_at(head + _CHUNK.size, min(name_bytes, 64) + 8)
        compression, (packed_bytes,) = rest[:-8].decode(), struct.unpack("<Q", rest[-8:])
        return size, crc, compression, head + _CHUNK.size + name_bytes + 8, packed_bytes

    def _unpacked(self, at: int) -> bytes:
        """Return the records of a chunk, or the first part of them if the chunk is cut off."""
        if self._chunk[0] != at:
            try:
                size, crc, compression, data_at, packed_bytes = self._chunk_header(at)
                complete = data_at + packed_bytes <= self._size
                packed = self._read_at(data_at, min(packed_bytes, self._size - data_at))
                check_unpacked(size)
                data = unpack(packed, compression, size)[0] if compression else packed
            except _DAMAGED as error:
                raise BagError(f"the chunk cannot be unpacked: {error}") from error
            if complete and (len(data) != size or (crc and zlib.crc32(data) != crc)):
                raise BagError("the chunk's checksum is wrong: bytes of it have changed")
            self._chunk = (at, data)
        return self._chunk[1]

    def _length_at(self, at: int) -> int:
        return int(_RECORD.unpack(self._read_at(at, _RECORD.size))[1])

    def _read_at(self, at: int, size: int) -> bytes:
        if not 0 <= at <= self._size or size < 0:
            raise BagError(f"the index points to byte {at} of {self._size}")
        self._file.seek(at)
        data = self._file.read(min(size, self._size))
        if len(data) != size:
            raise BagError(f"the file ends at byte {self._size}, within a record")
        return data


def _records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, opcode and body of every complete record; of a message its head alone."""
    at = 0
    while at + _RECORD.size <= len(data):
        opcode, length = _RECORD.unpack_from(data, at)
        end = at + _RECORD.size + length
        if end > len(data):
            return
        # the head of a message is enough here: the image is read when it is needed
        stop = at + _RECORD.size + _MESSAGE.size if opcode == _MESSAGE_CODE else end
        yield at, opcode, data[at + _RECORD.size : stop]
        at = end


def _text(body: bytes, at: int) -> str:
    """Return the text whose length, 4 bytes, stands at an offset."""
    (num_bytes,) = struct.unpack_from("<I", body, at)
    if at + 4 + num_bytes > len(body):
        raise BagError("a record ends within a text")
    return body[at + 4 : at + 4 + num_bytes].decode()


def _per_channel(body: bytes, at: int) -> dict[int, int]:
    """Return the map from channel to number whose size in bytes, 4 bytes, stands at an offset."""
    (num_bytes,) = struct.unpack_from("<I", body, at)
    entries = np.frombuffer(body, _PER_CHANNEL, num_bytes // _PER_CHANNEL.itemsize, at + 4)
    return dict(zip(entries["channel"].tolist(), entries["value"].tolist(), strict=True))
