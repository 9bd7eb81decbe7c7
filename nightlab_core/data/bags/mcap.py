# SPDX-License-Identifier: Apache-2.0
"""Read rosbag2's MCAP files, including files that were cut off before their index was written.

Needs mcap, lz4 and zstandard (requirements/replay.txt). Format: https://mcap.dev/spec
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import lz4.frame
import numpy as np
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, ChunkIndex, Footer, MessageIndex, Schema, Statistics
from mcap.stream_reader import MAGIC_SIZE, StreamReader

from nightlab_core.data.bags.protocol import BagError, Topic

_MAGIC = b"\x89MCAP0\r\n"
_RECORD = struct.Struct("<BQ")  # opcode, length
_CHUNK = struct.Struct("<QQQII")  # start and end time, size and CRC when unpacked, length of the compression's name
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence number, time of recording, time of publishing
_FOOTER_BYTES = _RECORD.size + 20
#: Second number of the index entry of a message outside any chunk.
_NO_CHUNK = -1
_DAMAGED = (McapError, BagError, struct.error, ValueError, KeyError, EOFError, OSError)


class MissingIndexError(Exception):
    """The file has no usable index; the text says why."""


class McapFile:
    """One MCAP file; see `protocol.StorageFile`."""

    kind = "mcap"

    def __init__(self, path: Path) -> None:
        """Raises BagError if it is no MCAP file."""
        self.problems: list[str] = []
        self._channels: dict[int, Channel] = {}
        self._schemas: dict[int, str] = {}
        self._chunk_indexes: list[ChunkIndex] | None = None
        self._entries: dict[int, list[tuple[int, int, int]]] = defaultdict(list)  # time, offset in chunk, chunk
        self._chunk = (_NO_CHUNK, b"")  # offset and content of the chunk that was read last
        self._size = path.stat().st_size
        self._file = path.open("rb")
        if self._file.read(MAGIC_SIZE) != _MAGIC:
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
        for number, channel in self._channels.items():
            known = self.topics.get(channel.topic, Topic(self._schemas.get(channel.schema_id, ""), 0))
            self.topics[channel.topic] = Topic(known.type, known.count + counts.get(number, 0))

    def index(self, topic: str) -> np.ndarray:
        """Return int64 (N, 3): time in ns, offset in the unpacked chunk, offset of the chunk."""
        wanted = [number for number, channel in self._channels.items() if channel.topic == topic]
        entries = [entry for number in wanted for entry in self._entries[number]]
        for chunk in self._chunk_indexes or []:
            for number in wanted:
                if offset := chunk.message_index_offsets.get(number):
                    entries += [(time_ns, at, chunk.chunk_start_offset) for time_ns, at in self._message_index(offset)]
        entries.sort(key=lambda entry: (entry[2], entry[1]))  # in file order
        return np.asarray(entries, np.int64).reshape(-1, 3)

    def read(self, first: int, second: int) -> bytes:
        """Return a message by offset in its chunk and offset of the chunk. Raises BagError."""
        if second == _NO_CHUNK:
            return self._read_at(first + _RECORD.size, self._length_at(first))[_MESSAGE.size :]
        chunk = self._unpacked(second)
        opcode, length = _RECORD.unpack_from(chunk, first)
        body = chunk[first + _RECORD.size + _MESSAGE.size : first + _RECORD.size + length]
        if opcode != Opcode.MESSAGE or len(body) != length - _MESSAGE.size:
            raise BagError("the message is cut off, or the index points elsewhere")
        return body

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
        return self._read_at(data_at + first + _RECORD.size + _MESSAGE.size, size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_summary(self) -> dict[int, int]:
        """Read channels and the index of chunks at the end of the file; return the number of messages by channel."""
        self._file.seek(max(MAGIC_SIZE, self._size - _FOOTER_BYTES - MAGIC_SIZE))
        end = self._file.read()
        if len(end) != _FOOTER_BYTES + MAGIC_SIZE or not end.endswith(_MAGIC) or end[0] != Opcode.FOOTER:
            raise MissingIndexError("the file is cut off")
        footer = Footer.read(ReadDataStream(BytesIO(end[_RECORD.size :])))
        if not footer.summary_start:
            raise MissingIndexError("the file was written without an index")
        self._file.seek(footer.summary_start)
        statistics, chunks = None, []
        for record in StreamReader(self._file, skip_magic=True, record_size_limit=self._size).records:
            if isinstance(record, Schema):
                self._schemas[record.id] = record.name
            elif isinstance(record, Channel):
                self._channels[record.id] = record
            elif isinstance(record, ChunkIndex):
                chunks.append(record)
            elif isinstance(record, Statistics):
                statistics = record
        if statistics is None or not chunks or not all(c.message_index_offsets for c in chunks):
            if statistics is not None and statistics.message_count == 0:
                return {}
            raise MissingIndexError("the file was written without an index")
        self._chunk_indexes = chunks
        return dict(statistics.channel_message_counts)

    def _message_index(self, offset: int) -> list[tuple[int, int]]:
        try:
            return MessageIndex.read(
                ReadDataStream(BytesIO(self._read_at(offset + 9, self._length_at(offset))))
            ).records
        except _DAMAGED as error:
            self.problems.append(f"the index of one chunk is damaged: {error}")
            return []

    def _scan(self) -> dict[int, int]:
        """Find every complete message by reading the file from the start; return the number of messages by channel."""
        self._channels.clear()
        self._schemas.clear()
        self._chunk_indexes = None
        at = MAGIC_SIZE
        while at + _RECORD.size <= self._size:
            self._file.seek(at)
            opcode, length = _RECORD.unpack(self._file.read(_RECORD.size))
            if opcode == Opcode.CHUNK:
                try:
                    for inside, code, body in _records(self._unpacked(at)):
                        self._note(code, body, inside, at)
                except _DAMAGED as error:
                    self.problems.append(f"the chunk at byte {at} cannot be read: {error}")
            elif at + _RECORD.size + length <= self._size:
                if opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE):
                    self._note(opcode, self._file.read(length), at, _NO_CHUNK)
                elif opcode in (Opcode.DATA_END, Opcode.FOOTER):
                    break
            at += _RECORD.size + length
        return {number: len(entries) for number, entries in self._entries.items()}

    def _note(self, opcode: int, body: bytes, at: int, chunk: int) -> None:
        stream = ReadDataStream(BytesIO(body))
        if opcode == Opcode.SCHEMA:
            schema = Schema.read(stream)
            self._schemas[schema.id] = schema.name
        elif opcode == Opcode.CHANNEL:
            channel = Channel.read(stream)
            self._channels[channel.id] = channel
        elif opcode == Opcode.MESSAGE:
            number, _, time_ns, _ = _MESSAGE.unpack_from(body)
            self._entries[number].append((time_ns, at, chunk))

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
                data = _unpack(packed, compression)
            except (zstandard.ZstdError, RuntimeError, *_DAMAGED) as error:
                raise BagError(f"the chunk cannot be unpacked: {error}") from error
            if complete and (len(data) != size or (crc and zlib.crc32(data) != crc)):
                raise BagError("the chunk's checksum is wrong: bytes of it have changed")
            self._chunk = (at, data)
        return self._chunk[1]

    def _length_at(self, at: int) -> int:
        return int(_RECORD.unpack(self._read_at(at, _RECORD.size))[1])

    def _read_at(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        data = self._file.read(min(size, self._size))
        if len(data) != size:
            raise BagError(f"the file ends at byte {self._size}, within a record")
        return data


def _records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, opcode and body of every complete record."""
    at = 0
    while at + _RECORD.size <= len(data):
        opcode, length = _RECORD.unpack_from(data, at)
        end = at + _RECORD.size + length
        if end > len(data):
            return
        # the head of a message is enough here: the image is read when it is needed
        stop = at + _RECORD.size + _MESSAGE.size if opcode == Opcode.MESSAGE else end
        yield at, opcode, data[at + _RECORD.size : stop]
        at = end


def _unpack(packed: bytes, compression: str) -> bytes:
    """Unpack as much as possible of a stream that may be cut off."""
    if compression == "":
        return packed
    if compression == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    if compression == "lz4":
        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(packed))
    raise BagError(f"compression {compression!r} is not known; expected zstd or lz4")
