# SPDX-License-Identifier: Apache-2.0
"""Bags of a few kB that name any number of messages, or messages of any size, are refused with the limit."""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

import pytest
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.typesys import Stores, get_typestore
from tiny_bags import IMAGES, make_frames, write_tiny_bag

from nightlab_core.data.bags import protocol, sqlite
from nightlab_core.data.bags.mcap import McapFile
from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.rosbag1 import Rosbag1File
from nightlab_core.data.bags.unpacking import zstd

LIMIT = 100
SCHEMA = struct.pack("<H", 1) + b"".join(struct.pack("<I", len(t)) + t for t in (b"sensor_msgs/msg/Image", b"", b""))
CHANNEL = struct.pack("<HH", 1, 1) + b"".join(struct.pack("<I", len(t)) + t for t in (IMAGES.encode(), b"cdr", b""))
MESSAGE = struct.pack("<HIQQ", 1, 0, 1, 1)


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_MESSAGES", LIMIT)
    monkeypatch.setattr(protocol, "BYTES_PER_MESSAGE", 1 << 30)


def record(opcode: int, body: bytes) -> bytes:
    """Return a record of MCAP."""
    return struct.pack("<BQ", opcode, len(body)) + body


def mcap(path: Path, *records: bytes) -> Path:
    """Write an MCAP file."""
    path.write_bytes(b"\x89MCAP0\r\n" + record(1, bytes(8)) + b"".join(records))
    return path


def chunk(compression: bytes, content: bytes, packed: bytes) -> bytes:
    """Return the record of an MCAP file's chunk."""
    head = struct.pack("<QQQII", 0, 0, len(content), 0, len(compression)) + compression
    return record(6, head + struct.pack("<Q", len(packed)) + packed)


@pytest.mark.parametrize("number", [LIMIT, LIMIT + 1])
def test_a_chunk_of_many_empty_messages_is_refused(tmp_path: Path, number: int) -> None:
    content = record(3, SCHEMA) + record(4, CHANNEL) + record(5, MESSAGE) * number
    path = mcap(tmp_path / "drive.mcap", chunk(b"zstd", content, zstd.compress(content)))
    if number == LIMIT:
        assert McapFile(path).index(IMAGES).shape == (LIMIT, 3)
    else:
        with pytest.raises(BagError, match=f"{path}: received .* name {LIMIT + 1} messages .* at most {LIMIT}"):
            McapFile(path)


def test_many_chunks_that_name_one_index_are_refused(tmp_path: Path) -> None:
    """The index of a chunk names 10 messages, and 11 chunks name that index."""
    path = mcap(tmp_path / "drive.mcap", chunk(b"", record(5, MESSAGE), record(5, MESSAGE)))
    chunk_at, index_at = 25, path.stat().st_size
    index = record(7, struct.pack("<HI", 1, 160) + struct.pack("<QQ", 1, 0) * 10)
    place = struct.pack("<QQQQ", 0, 0, chunk_at, index_at - chunk_at) + struct.pack("<IHQ", 10, 1, index_at)
    statistics = struct.pack("<QHIIIIQQ", 110, 1, 1, 0, 0, 11, 1, 1) + struct.pack("<IHQ", 10, 1, 110)
    footer = record(2, struct.pack("<QQI", index_at + len(index), 0, 0)) + b"\x89MCAP0\r\n"
    summary = [record(3, SCHEMA), record(4, CHANNEL), *[record(8, place + bytes(24))] * 11, record(11, statistics)]
    path.write_bytes(path.read_bytes() + index + b"".join(summary) + footer)
    with McapFile(path)._file, pytest.raises(BagError, match=f"{path}: received .* messages .* at most {LIMIT}"):
        McapFile(path).index(IMAGES)


def test_many_chunks_of_ros_1_that_name_one_index_are_refused(tmp_path: Path) -> None:
    types = get_typestore(Stores.ROS1_NOETIC)
    with Rosbag1Writer(path := tmp_path / "drive.bag") as writer:
        topic = writer.add_connection("/topic", "std_msgs/msg/Empty", typestore=types)
        for at in range(10):
            writer.write(topic, at, b"")
    assert Rosbag1File(path).topics["/topic"].count == 10
    data = path.read_bytes().replace(b"chunk_count=" + struct.pack("<I", 1), b"chunk_count=" + struct.pack("<I", 11))
    chunk_info = data[-116:]  # the last record of the file
    path.write_bytes(data + 10 * chunk_info)
    with pytest.raises(BagError, match=f"^{path}: received .* name 110 messages or more; expected at most {LIMIT}"):
        Rosbag1File(path)


@pytest.mark.parametrize(
    "messages",
    [
        "VIEW messages AS SELECT 1 AS id, 1 AS topic_id, 1 AS timestamp, zeroblob(900000000) AS data",
        "TABLE messages (id INTEGER, topic_id INTEGER, timestamp INTEGER, data BLOB AS (zeroblob(900000000)))",
    ],
)
def test_sqlite_tables_that_are_computed_are_refused(tmp_path: Path, messages: str) -> None:
    with sqlite3.connect(path := tmp_path / "drive.db3") as file:
        file.execute("CREATE TABLE topics (id INTEGER, name TEXT, type TEXT)")
        file.execute(f"CREATE {messages}")
    with pytest.raises(BagError, match=f"^{path}: nothing can be read: messages is missing, or is a view or computed"):
        sqlite.SqliteFile(path)


def test_an_sqlite_file_of_too_many_or_too_large_messages_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_bag(tmp_path / "drive", make_frames(3), storage="sqlite3", labelled=False)
    (path,) = folder.glob("*.db3")
    monkeypatch.setattr(sqlite, "MAX_UNPACKED_BYTES", 48 * 64 * 3)
    with Bag(path) as bag:
        assert "string or blob too big" in str(bag.raw(0))
    monkeypatch.setattr(protocol, "MAX_MESSAGES", 2)
    with pytest.raises(BagError, match=f"^{path}: received .* name 3 messages or more; expected at most 2"):
        sqlite.SqliteFile(path)
