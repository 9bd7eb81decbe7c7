# SPDX-License-Identifier: Apache-2.0
"""Compressed bags: a few kB that unpack to any size are refused with their limit, and everything else comes back."""

from __future__ import annotations

import bz2
from errno import ENOSPC
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.typesys import Stores, get_typestore
from tiny_bags import IMAGES

from nightlab_core.data.bags import unpacking
from nightlab_core.data.bags.compressed import decompress_message
from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag

LIMIT = 1 << 20
PACK = {"zstd": unpacking.zstd.compress, "lz4": lz4.frame.compress, "bz2": bz2.compress}


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_UNPACKED_BYTES", LIMIT)
    monkeypatch.setattr(unpacking, "SMALL_FILE_BYTES", LIMIT)
    monkeypatch.setattr(unpacking, "_PIECE_BYTES", LIMIT // 8)


@pytest.mark.parametrize("compression", PACK)
def test_data_come_back_in_pieces_up_to_the_limit(compression: str, low_limits: None) -> None:
    random = np.random.default_rng(0).integers(0, 256, LIMIT // 4, np.uint8).tobytes()
    data = random + bytes(LIMIT - len(random))
    packed = PACK[compression](data)
    assert unpacking.unpack(packed, compression) == (data, True)
    first, complete = unpacking.unpack(packed[: len(packed) // 2], compression)
    assert data.startswith(first) and not complete
    with pytest.raises(BagError, match=f"of {LIMIT + 1} bytes or more when unpacked; expected at most {LIMIT}"):
        unpacking.unpack(PACK[compression](data + b"\0"), compression)
    with pytest.raises(BagError, match=f"unpack to more than the stated {LIMIT - 1}"):
        unpacking.unpack(packed, compression, LIMIT - 1)


def test_a_message_of_rosbag2_beyond_the_limit_is_refused(low_limits: None) -> None:
    packed = PACK["zstd"](bytes(20 * LIMIT))
    assert len(packed) < LIMIT // 100
    with pytest.raises(BagError, match=rf"cannot be decompressed: .*expected at most {LIMIT}"):
        decompress_message(packed)


@pytest.mark.parametrize("compression", Rosbag1Writer.CompressionFormat)
def test_a_chunk_of_ros_1_beyond_the_limit_is_refused(
    tmp_path: Path, compression: Rosbag1Writer.CompressionFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = get_typestore(Stores.ROS1_NOETIC)
    writer = Rosbag1Writer(tmp_path / "drive.bag")
    writer.set_compression(compression)
    time, header, image = (
        types.types[name] for name in ("builtin_interfaces/msg/Time", "std_msgs/msg/Header", "sensor_msgs/msg/Image")
    )
    heights = (32, 64, 32)  # in chunks of their own
    writer.chunk_threshold = 1
    with writer:
        topic = writer.add_connection(IMAGES, image.__msgtype__, typestore=types)
        for at, height in enumerate(heights):
            pixels = np.full(height * 96 * 3, at, np.uint8)
            message = image(header(0, time(at, 0), "camera"), height, 96, "bgr8", 0, 96 * 3, pixels)
            writer.write(topic, at * 10**9, types.serialize_ros1(message, image.__msgtype__))
    with Bag(tmp_path / "drive.bag") as bag:
        assert [(bag.frame(at).image_bgr == at).all() for at in range(3)] == [True] * 3
    monkeypatch.setattr(unpacking, "MAX_UNPACKED_BYTES", 64 * 96 * 3)
    with Bag(tmp_path / "drive.bag") as bag:
        for at in (0, 1, 0, 1, 2):
            frame = bag.frame(at)
            if at == 1:
                assert f"expected at most {64 * 96 * 3}: record the bag in smaller chunks" in frame.reason
            else:
                assert (frame.image_bgr == at).all()


def test_a_file_that_unpacks_to_too_many_bytes_is_refused_and_leaves_nothing(
    tmp_path: Path, low_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "drive_0.mcap.zstd", tmp_path / "temporary"
    path.write_bytes(PACK["zstd"](bytes(20 * LIMIT)))
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(
        BagError, match=rf"unpacks to more than {LIMIT}; expected at most 100 times its size or {LIMIT}"
    ):
        Bag(path)
    assert not list(folder.iterdir())


def test_streams_in_turn_are_unpacked_and_a_cut_one_is_named(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.zstd", tmp_path / "a"
    packed = PACK["zstd"](b"first ") + PACK["zstd"](b"second")
    path.write_bytes(packed)
    assert unpacking.unpack_file(path, plain) == "" and plain.read_bytes() == b"first second"
    path.write_bytes(packed[:-3])
    assert "decompressing ends after" in unpacking.unpack_file(path, plain)
    assert plain.read_bytes().startswith(b"first ")


def test_a_disk_is_not_filled_to_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zstd").write_bytes(PACK["zstd"](b"content"))
    monkeypatch.setattr(unpacking, "_FREE_PART", 1.0)
    monkeypatch.setattr(unpacking, "_FREE_BYTES", 1 << 60)
    with pytest.raises(OSError, match="bytes would be left free") as raised:
        unpacking.unpack_file(tmp_path / "a.zstd", tmp_path / "a")
    assert raised.value.errno == ENOSPC
