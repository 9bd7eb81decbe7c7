# SPDX-License-Identifier: Apache-2.0
"""Damaged bags: readable messages are read without a wrong pixel, and the rest is reported as missing."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap")

from class_sets import CITYSCAPES19
from mcap.writer import CompressionType, IndexType, Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Reader as Rosbag2Reader
from rosbags.rosbag2 import Writer as Rosbag2Writer
from rosbags.typesys import Stores, get_typestore
from tiny_bags import IMAGES, LABELS, START_NS, STEP_NS, make_frames, write_tiny_bag

from nightlab_core.data.bags import compressed, unpacking
from nightlab_core.data.bags.mcap import McapFile
from nightlab_core.data.bags.messages import IMAGE_TYPE
from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.write import BagWriter

COUNT, SIZE_HW = 12, (160, 200)


@pytest.fixture(scope="module")
def frames() -> list:
    return make_frames(COUNT, SIZE_HW)


def rewrite_mcap(source: Path, target: Path, **options: Any) -> Path:
    """Write the images of a bag into an MCAP file of another form."""
    with Bag(source) as bag, target.open("wb") as file:
        writer = Writer(file, **options)
        writer.start("ros2")
        schema = writer.register_schema("sensor_msgs/msg/Image", "ros2msg", b"")
        channel = writer.register_channel(IMAGES, "cdr", schema)
        for index in range(COUNT):
            raw, time_ns = bag.raw(index), int(bag.times_ns[index])
            assert isinstance(raw, bytes)
            writer.add_message(channel, time_ns, raw, time_ns)
        writer.finish()
    return target


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory, frames: list) -> dict[str, Path]:
    """One file of each format, with chunks of about 1 MB (8 frames)."""
    folder = tmp_path_factory.mktemp("bags")
    found = {}
    for storage in ("mcap", "sqlite3"):
        path = write_tiny_bag(folder / storage, frames, storage=storage)
        (found[storage],) = (f for f in path.iterdir() if f.suffix in (".mcap", ".db3"))
    for kind in ("zstd", "lz4"):  # by another library, with checksums
        options = {"chunk_size": 2**20, "compression": CompressionType[kind.upper()]}
        found[kind] = rewrite_mcap(found["mcap"], folder / f"{kind}.mcap", **options)
    return found


def readable(path: Path, frames: list) -> tuple[int, list[str]]:
    """Return the number of readable frames, each compared with the written one, and all problems and reasons."""
    by_stamp = {START_NS + index * STEP_NS: frame for index, frame in enumerate(frames)}
    with Bag(path, IMAGES) as bag:
        found = 0
        reasons = list(bag.problems)
        for frame in bag.frames(0, len(bag), CITYSCAPES19):
            if frame.reason:
                reasons.append(frame.reason)
            if frame.image_bgr is None:
                assert frame.reason
                continue
            image, labels = by_stamp[frame.stamp_ns]
            np.testing.assert_array_equal(frame.image_bgr, image)
            if frame.labels is not None:
                np.testing.assert_array_equal(frame.labels, labels)
            found += 1
    return found, reasons


@pytest.mark.parametrize("kind", ["mcap", "sqlite3", "zstd", "lz4"])
def test_a_file_that_is_cut_off_anywhere_gives_its_first_part(
    tmp_path: Path, bags: dict[str, Path], frames: list, kind: str
) -> None:
    data = bags[kind].read_bytes()
    path = tmp_path / bags[kind].name
    random = np.random.default_rng(0)
    ends = [0, 1, 7, 8, 20, 99, 100, 4095, 4096, 5000, len(data) - 4096, len(data) - 40, len(data) - 8, len(data) - 1]
    counts = {}
    for end in sorted({*ends, *random.integers(0, len(data), 40).tolist()}):
        path.write_bytes(data[:end])
        try:
            counts[end], reasons = readable(path, frames)
        except BagError as error:
            counts[end] = 0
            assert path.name in str(error)
            assert end < 20_000  # before the first frame's end, or within the list of topics
            continue
        assert reasons, f"cut at byte {end} of {len(data)} without a reason"
    found = [counts[end] for end in sorted(counts)]
    assert found == sorted(found)  # more bytes never give fewer frames
    for end, count in counts.items():
        assert count >= int(COUNT * end / len(data)) - 2, f"cut at byte {end} of {len(data)}: {count} frames"


@pytest.mark.parametrize("kind", ["mcap", "zstd", "lz4"])
def test_a_damaged_chunk_does_not_affect_other_chunks(
    tmp_path: Path, bags: dict[str, Path], frames: list, kind: str
) -> None:
    data = bytearray(bags[kind].read_bytes())
    path = tmp_path / bags[kind].name
    data[200_000:200_008] = b"\xff" * 8
    path.write_bytes(data)
    with Bag(path, IMAGES) as bag:
        last = bag.frame(COUNT - 1)
        assert last.image_bgr is not None
        np.testing.assert_array_equal(last.image_bgr, frames[-1][0])
        unreadable = [frame for frame in bag.frames(0, COUNT) if frame.image_bgr is None]
    if kind != "mcap":  # rosbags writes no checksums
        assert 0 < len(unreadable) < COUNT and all("chunk" in frame.reason for frame in unreadable)


@pytest.mark.parametrize("options", [{"use_chunking": False}, {"index_types": IndexType.NONE}])
def test_mcap_files_without_chunks_or_index_are_read(
    tmp_path: Path, bags: dict[str, Path], frames: list, options: dict[str, Any]
) -> None:
    path = rewrite_mcap(bags["mcap"], tmp_path / "other.mcap", **options)
    found, reasons = readable(path, frames)
    assert found == COUNT and len(reasons) == 1 and "without an index" in reasons[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < readable(path, frames)[0] < COUNT


def compress(frames: list, path: Path, mode: CompressionMode) -> Path:
    """Write the images into a compressed bag."""
    plain = write_tiny_bag(path.with_name("plain"), frames, storage="sqlite3", labelled=False)
    writer = Rosbag2Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with Rosbag2Reader(plain) as reader, writer:
        topic = writer.add_connection(IMAGES, IMAGE_TYPE, typestore=get_typestore(Stores.ROS2_HUMBLE))
        for _, time_ns, raw in reader.messages():
            writer.write(topic, time_ns, raw)
    return path


def test_a_damaged_compressed_message_does_not_affect_others(tmp_path: Path, frames: list) -> None:
    path = compress(frames, tmp_path / "packed", CompressionMode.MESSAGE)
    assert readable(path / "packed.db3", frames) == (COUNT, [])  # also without metadata.yaml
    connection = sqlite3.connect(path / "packed.db3")
    connection.execute("UPDATE messages SET data = substr(data, 1, 99) WHERE id = 5")
    connection.commit()
    connection.close()
    found, reasons = readable(path, frames)
    assert found == COUNT - 1 and len(reasons) == 1 and "cannot be decompressed" in reasons[0]


def test_a_compressed_file_that_is_cut_off_gives_its_first_part(tmp_path: Path, frames: list) -> None:
    path = compress(frames, tmp_path / "packed", CompressionMode.FILE) / "packed.db3.zstd"
    assert readable(path, frames) == (COUNT, [])  # also without metadata.yaml
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, reasons = readable(path, frames)
    assert 0 < found < COUNT and "decompressing ends after" in reasons[0]
    path.write_bytes(b"nothing of use")
    with pytest.raises(BagError, match=r"packed\.db3\.zstd: nothing can be read"):
        Bag(path)


def test_a_child_process_reads_its_parent_s_decompressed_copy(
    tmp_path: Path, frames: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compress(frames, tmp_path / "packed", CompressionMode.FILE) / "packed.db3.zstd"
    assert readable(path, frames) == (COUNT, [])
    (copy,) = (copy for key, copy in compressed._COPIES.items() if key[0] == str(path))
    monkeypatch.setattr(compressed, "_COPIES", {})  # as in a child, which has its parent's environment
    monkeypatch.setattr(compressed, "_decompressed", lambda path: pytest.fail("it was decompressed again"))
    assert readable(path, frames) == (COUNT, [])
    compressed._delete(list(compressed._COPIES))
    assert copy.plain.is_file(), "the parent deletes it"
    copy.plain.unlink()
    monkeypatch.undo()
    compressed._COPIES.pop((str(path), path.stat().st_size, path.stat().st_mtime_ns))
    assert readable(path, frames) == (COUNT, []), "without the parent's copy it is decompressed"


def test_label_maps_whose_stamp_cannot_be_read_are_counted(tmp_path: Path, bags: dict[str, Path], frames: list) -> None:
    path = tmp_path / "labels.db3"
    shutil.copy(bags["sqlite3"], path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE messages SET data = x'0001' WHERE id = (SELECT max(id) FROM messages)")
    connection.commit()
    connection.close()
    assert readable(path, frames) == (COUNT, [f"1 messages of {LABELS} cannot be read"])


@pytest.mark.parametrize("kind", ["mcap", "zstd", "sqlite3"])
def test_random_damage_raises_only_value_errors(tmp_path: Path, bags: dict[str, Path], kind: str) -> None:
    data = bags[kind].read_bytes()
    path = tmp_path / bags[kind].name
    for seed in range(12):
        random = np.random.default_rng(seed)
        damaged = bytearray(data)
        # half of the damage at the beginning and end, which hold the structure
        for at in (
            *random.integers(0, len(data), 4),
            *random.integers(0, 9000, 3),
            len(data) - random.integers(1, 3000),
        ):
            damaged[at] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            with Bag(path, IMAGES) as bag:
                for frame in bag.frames(0, len(bag), CITYSCAPES19):
                    assert frame.image_bgr is not None or frame.reason
        except ValueError as error:
            assert str(error)


def test_missing_or_unusable_metadata(tmp_path: Path, bags: dict[str, Path], frames: list) -> None:
    folder = tmp_path / "bag"
    shutil.copytree(bags["mcap"].parent, folder)
    metadata = folder / "metadata.yaml"
    text = metadata.read_text()
    metadata.unlink()
    found, reasons = readable(folder, frames)
    assert found == COUNT and "metadata.yaml is missing" in reasons[0]
    for nonsense in ("", ":", "rosbag2_bagfile_information: 3", text[: len(text) // 2]):
        metadata.write_text(nonsense)
        found, reasons = readable(folder, frames)
        assert found == COUNT and (reasons or nonsense == text[: len(text) // 2])
    metadata.write_text(text.replace("mcap.mcap", "gone.mcap"))
    found, reasons = readable(folder, frames)
    assert found == COUNT and "gone.mcap is missing" in reasons[0]


def test_copies_of_a_file_in_another_form_are_read_once(tmp_path: Path, bags: dict[str, Path], frames: list) -> None:
    folder = tmp_path / "bag"
    folder.mkdir()
    shutil.copy(bags["mcap"], folder / "drive_0.mcap")
    (folder / "drive_0.mcap.zstd").write_bytes(unpacking.zstd.compress(bags["mcap"].read_bytes()))
    shutil.copy(bags["sqlite3"], folder / "drive_0.db3")
    found, reasons = readable(folder, frames)
    assert found == COUNT
    assert reasons[1:] == [f"drive_0.{other} is not read: drive_0.db3 has its name" for other in ("mcap", "mcap.zstd")]
    (folder / "drive_0.db3").unlink()
    (folder / "drive_0.mcap").unlink()
    assert readable(folder, frames)[0] == COUNT


def test_a_split_bag_with_one_damaged_file(tmp_path: Path, bags: dict[str, Path], frames: list) -> None:
    folder = tmp_path / "bag"
    folder.mkdir()
    shutil.copy(bags["mcap"], folder / "bag_0.mcap")
    (folder / "bag_1.mcap").write_bytes(b"nothing of use")
    found, reasons = readable(folder, frames)
    assert found == COUNT
    assert any("bag_1.mcap" in reason and "do not begin as an MCAP" in reason for reason in reasons)


def test_unknown_encodings_changing_sizes_and_decreasing_stamps(tmp_path: Path) -> None:
    types = get_typestore(Stores.ROS2_HUMBLE).types
    time_type, header_type = types["builtin_interfaces/msg/Time"], types["std_msgs/msg/Header"]
    with BagWriter(tmp_path / "bag") as bag:
        for index, (encoding, size) in enumerate([("bgr8", 4), ("32FC1", 4), ("bgr8", 6), ("\x00", 4), ("bgr8", 4)]):
            header = header_type(time_type(10 - index, 0), "")
            pixels = np.zeros(size * size * 3, np.uint8)
            message = types["sensor_msgs/msg/Image"](header, size, size, encoding, 0, size * 3, pixels)
            bag._write(IMAGES, message, index)
        truncated = types["sensor_msgs/msg/Image"](header, 9, 9, "bgr8", 0, 27, np.zeros(5, np.uint8))
        bag._write(IMAGES, truncated, 10)
        bag._write(LABELS, truncated, 10)
    with Bag(tmp_path / "bag") as opened:
        got = list(opened.frames(0, 6, CITYSCAPES19))
    assert [frame.image_bgr is not None for frame in got] == [True, False, True, False, True, False]
    assert "'32FC1'; expected one of bgr8" in got[1].reason
    assert "received 5 bytes for 9x9" in got[5].reason
    assert [frame.stamp_ns for frame in got[:5]] == [(10 - i) * 10**9 for i in range(5)]


def test_a_killed_recorder_leaves_messages_in_the_log(tmp_path: Path, bags: dict[str, Path], frames: list) -> None:
    path, copy = tmp_path / "recorded.db3", tmp_path / "killed" / "recorded.db3"
    shutil.copy(bags["sqlite3"], path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    last = connection.execute("SELECT max(id) FROM messages").fetchone()[0]
    connection.execute("UPDATE messages SET topic_id = topic_id WHERE id = ?", (last,))
    rows = connection.execute("SELECT topic_id, timestamp, data FROM messages WHERE id >= ?", (last - 1,)).fetchall()
    connection.executemany("INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)", rows)
    connection.commit()
    copy.parent.mkdir()
    for name in ("recorded.db3", "recorded.db3-wal"):  # copied while the writer has them open
        shutil.copy(tmp_path / name, copy.parent / name)
    connection.close()
    assert readable(copy, frames)[0] == COUNT + 1


def test_a_record_outside_chunks_that_is_damaged_is_reported(tmp_path: Path) -> None:
    channel = struct.pack("<HHI", 0, 0, 2**20) + b"/t"  # its topic would be a megabyte long
    path = tmp_path / "cut.mcap"
    path.write_bytes(b"\x89MCAP0\r\n" + struct.pack("<BQ", 4, len(channel)) + channel)
    file = McapFile(path)
    assert any("the record at byte 8 cannot be read" in problem for problem in file.problems)
    file.close()
