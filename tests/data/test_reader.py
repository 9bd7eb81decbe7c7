# SPDX-License-Identifier: Apache-2.0
"""Undamaged bags: their frames and labels, and the choice of topics."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

pytest.importorskip("mcap")

from class_sets import CITYSCAPES19
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tiny_bags import FRAME_ID, IMAGES, LABELS, START_NS, STEP_NS, make_frames, write_tiny_bag

from nightlab_core.data.bags import compressed
from nightlab_core.data.bags.metadata import CLASSES_KEY
from nightlab_core.data.bags.protocol import BagError, Topic
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.write import BagWriter, Packing, StorageName

STORAGES = ("mcap", "sqlite3")


def check(bag: Bag, frames: list, first: int = 0) -> None:
    assert len(bag) == len(frames)
    for index in (*range(first, len(frames)), 0):  # also backwards
        image, labels = frames[index]
        frame = bag.frame(index, CITYSCAPES19)
        np.testing.assert_array_equal(frame.image_bgr, image)
        np.testing.assert_array_equal(frame.labels, labels)
        assert (frame.stamp_ns, frame.frame_id, frame.reason) == (START_NS + index * STEP_NS, FRAME_ID, "")
        assert frame.time_ns == frame.stamp_ns + 1_000_000


@pytest.mark.parametrize("packing", ["none", "png"])
@pytest.mark.parametrize("storage", STORAGES)
def test_frames_and_labels_are_read_as_they_were_written(
    tmp_path: Path, storage: StorageName, packing: Packing
) -> None:
    frames = make_frames(7)
    path = write_tiny_bag(tmp_path / "bag", frames, storage=storage, packing=packing)
    with Bag(path) as bag:
        assert (bag.problems, bag.label_classes, bag.num_labels) == ([], "cityscapes19", 7)
        check(bag, frames)
    (file,) = (f for f in path.iterdir() if f.suffix in (".mcap", ".db3"))
    with Bag(file) as bag:  # beside the metadata.yaml that lists it
        assert (bag.problems, bag.label_classes) == ([], "cityscapes19")
        check(bag, frames)
    with Bag(Path(shutil.copy(file, tmp_path))) as bag:  # without metadata.yaml only the class set is unknown
        assert (bag.problems, bag.label_classes) == ([], None)
        check(bag, frames)
    with Bag(Path(shutil.copy(file, path / f"other{file.suffix}"))) as bag:  # metadata.yaml does not list this file
        assert bag.label_classes is None


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE, CompressionMode.STORAGE])
def test_compressed_bags_are_read(tmp_path: Path, mode: CompressionMode) -> None:
    frames = make_frames(4)
    plain = write_tiny_bag(tmp_path / "plain", frames)
    storage = StoragePlugin.MCAP if mode == CompressionMode.STORAGE else StoragePlugin.SQLITE3
    writer = Writer(tmp_path / "packed", version=8, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    writer.set_custom_data(CLASSES_KEY, "camvid11")
    types = get_typestore(Stores.ROS2_HUMBLE)
    with Reader(plain) as reader, writer:
        topics = {c.topic: writer.add_connection(c.topic, c.msgtype, typestore=types) for c in reader.connections}
        for connection, time_ns, raw in reader.messages():
            writer.write(topics[connection.topic], time_ns, raw)
    with Bag(tmp_path / "packed") as bag:
        assert bag.label_classes == "camvid11"
        check(bag, frames)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_files_of_a_split_bag_are_read_in_order(tmp_path: Path, storage: StorageName) -> None:
    frames = make_frames(22)
    folder = tmp_path / "split"
    folder.mkdir()
    for part in range(11):  # more than ten: 10 comes after 9, not after 1
        write_tiny_bag(tmp_path / str(part), frames[2 * part : 2 * part + 2], storage=storage)
        (file,) = (f for f in (tmp_path / str(part)).iterdir() if f.suffix in (".mcap", ".db3"))
        shutil.copy(file, folder / f"split_{part}{file.suffix}")
    with Bag(folder) as bag:
        # every part starts at the same time, so equal times keep the order of the files
        found = sorted((bag.frame(i).time_ns, i) for i in range(len(bag)))
        assert [i for _, i in found] == list(range(22))
        np.testing.assert_array_equal(bag.frame(9).image_bgr, frames[18][0])
        np.testing.assert_array_equal(bag.frame(10).image_bgr, frames[20][0])
        assert "metadata.yaml is missing" in bag.problems[0]


def test_a_file_that_metadata_does_not_list_is_a_problem(tmp_path: Path) -> None:
    bag = write_tiny_bag(tmp_path / "bag", make_frames(2))
    shutil.copy(bag / "bag.mcap", bag / "bag_1.mcap")
    shutil.copy(bag / "bag.mcap", bag / "._bag.mcap")
    with Bag(bag) as opened:
        assert len(opened) == 2
        (problem,) = opened.problems
        assert "does not list bag_1.mcap, which is not read" in problem


def test_labels_of_another_camera_are_not_used_unless_they_are_named(tmp_path: Path) -> None:
    ((image, labels),) = make_frames(1)
    with BagWriter(tmp_path / "bag") as bag:
        for topic in ("/left/image_raw", "/left/image_raw/compressed", "/right/image_raw", "/left/labels"):
            pixels = labels if "image" not in topic else image
            bag.image(topic, pixels, 1, "", time_ns=1, packing="png" if "compressed" in topic else "none")
    for topic, asked, used in (
        ("/left/image_raw", None, True),
        ("/left/image_raw/compressed", None, True),
        ("/right/image_raw", None, False),
        ("/right/image_raw", "/left/labels", True),
    ):
        with Bag(tmp_path / "bag", topic, asked) as opened:
            assert (opened.num_labels == 1) is used, topic
            said = [note for note in opened.notes if "/left/labels is not used" in note]
            assert bool(said) is not used and all("belongs to /left/image_raw" in note for note in said)


def test_labels_may_be_recorded_after_all_images(tmp_path: Path) -> None:
    frames = make_frames(5)
    with BagWriter(tmp_path / "bag") as bag:
        for index, (image, _) in enumerate(frames):
            bag.image(IMAGES, image, index + 1, "", time_ns=index)
        for index in (3, 1):
            bag.image("/gt", frames[index][1], index + 1, "", time_ns=10**12 + index)
    with Bag(tmp_path / "bag") as opened:
        labelled = [frame.index for frame in opened.frames(0, 5, CITYSCAPES19) if frame.labels is not None]
        assert labelled == [1, 3]
        np.testing.assert_array_equal(opened.frame(3, CITYSCAPES19).labels, frames[3][1])


def test_a_stamp_of_zero_is_replaced_by_the_recording_time(tmp_path: Path) -> None:
    ((image, labels),) = make_frames(1)
    with BagWriter(tmp_path / "bag") as bag:
        bag.image(IMAGES, image, 0, "", time_ns=77)
        bag.image(LABELS, labels, 0, "", time_ns=77)
    with Bag(tmp_path / "bag") as opened:
        frame = opened.frame(0, CITYSCAPES19)
        assert frame.stamp_ns == 77 and frame.labels is not None


def test_topics_are_listed_if_several_are_possible(tmp_path: Path) -> None:
    ((image, labels),) = make_frames(1)
    with BagWriter(tmp_path / "bag") as bag:
        for topic in ("/left/image_raw", "/left/image_raw/compressed", "/right/image_raw", "/right/labels", "/left/gt"):
            pixels = labels if "image" not in topic else image
            bag.image(topic, pixels, 1, "", time_ns=1, packing="png" if "compressed" in topic else "none")
    with pytest.raises(ValueError, match=r"several image topics: name one with --topic[\s\S]*/right/image_raw .* 1"):
        Bag(tmp_path / "bag")
    with pytest.raises(ValueError, match=r"several label topics: name one with --label-topic"):
        Bag(tmp_path / "bag", "/left/image_raw")
    with pytest.raises(ValueError, match=r"image topic /none is not there"):
        Bag(tmp_path / "bag", "/none")
    with Bag(tmp_path / "bag", "/left/image_raw", "/left/gt") as opened:
        assert opened.frame(0, CITYSCAPES19).labels is not None


@pytest.mark.parametrize(("raw", "packed", "chosen"), [(1, 1, ""), (2, 1, ""), (1, 2, "/compressed")])
def test_of_a_camera_recorded_raw_and_compressed_the_form_with_more_messages_is_read(
    raw: int, packed: int, chosen: str, tmp_path: Path
) -> None:
    ((image, _),) = make_frames(1)
    with BagWriter(tmp_path / "bag") as bag:
        for number in range(raw):
            bag.image(IMAGES, image, number, "", time_ns=number)
        for number in range(packed):
            bag.image(f"{IMAGES}/compressed", image, number, "", time_ns=number, packing="jpeg")
        for topic in ("/depth/image/compressedDepth", "/aligned_depth_to_color/image_raw"):
            bag.image(topic.removesuffix("/compressed"), image, 1, "", time_ns=1, packing="png")
    with Bag(tmp_path / "bag") as opened:
        assert opened.image_topic == IMAGES + chosen
        assert [f"{opened.image_topic} is read" in note for note in opened.notes] == [True]
    with Bag(tmp_path / "bag", IMAGES) as opened:
        assert (opened.image_topic, opened.notes) == (IMAGES, [])


def write_ros1_mcap(path: Path, frames: list, profile: str) -> Path:
    """Write the images as ROS 1 serialises them into an MCAP file."""
    types = get_typestore(Stores.ROS1_NOETIC)
    image_type, header_type = types.types["sensor_msgs/msg/Image"], types.types["std_msgs/msg/Header"]
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start(profile, "test")
        schema = writer.register_schema("sensor_msgs/Image", "ros1msg", b"")
        channel = writer.register_channel(IMAGES, "ros1", schema)
        for number, (image, _) in enumerate(frames):
            header = header_type(number, types.types["builtin_interfaces/msg/Time"](7, number), "front")
            height, width = image.shape[:2]
            message = image_type(header, height, width, "bgr8", 0, 3 * width, image.reshape(-1))
            writer.add_message(channel, number, bytes(types.serialize_ros1(message, "sensor_msgs/msg/Image")), number)
        writer.finish()
    return path


@pytest.mark.parametrize("profile", ["ros1", ""])
def test_messages_of_ros_1_in_mcap_are_read(profile: str, tmp_path: Path) -> None:
    frames = make_frames(3)
    with Bag(write_ros1_mcap(tmp_path / "drive.mcap", frames, profile)) as bag:
        assert bag.topics == {IMAGES: Topic("sensor_msgs/msg/Image", 3)}
        for number, frame in enumerate(bag.frames(0, 3)):
            assert np.array_equal(frame.image_bgr, frames[number][0]), frame.reason
            assert (frame.stamp_ns, frame.frame_id) == (7_000_000_000 + number, "front")


def packed_bag(path: Path) -> Path:
    """Write a bag that is compressed by the file."""
    writer = Writer(path, version=8, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode.FILE, CompressionFormat.ZSTD)
    types = get_typestore(Stores.ROS2_HUMBLE)
    with Reader(write_tiny_bag(path.with_name("plain"), make_frames(2))) as reader, writer:
        for connection, time_ns, raw in reader.messages():
            added = {c.topic: c for c in writer.connections}
            topic = added.get(connection.topic) or writer.add_connection(
                connection.topic, connection.msgtype, typestore=types
            )
            writer.write(topic, time_ns, raw)
    return path


def test_a_process_decompresses_a_file_once_and_names_a_full_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = packed_bag(tmp_path / "bag"), []
    decompress = compressed.unpack_file
    monkeypatch.setattr(compressed, "_COPIES", {})
    monkeypatch.setattr(compressed, "unpack_file", lambda *files: calls.append(files) or decompress(*files))
    for _ in range(3):
        with Bag(path) as bag, Bag(next(path.glob("*.zstd"))) as again:
            assert (len(bag), len(again)) == (2, 2)
    assert len(calls) == 1
    folder = calls[0][1].parent

    def disk_full(*files: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compressed, "unpack_file", disk_full)
    monkeypatch.setattr(compressed, "gettempdir", lambda: "/full")
    (tmp_path / "other").mkdir()
    other = packed_bag(tmp_path / "other" / "bag")
    with pytest.raises(BagError, match=r"into /full: .*No space left on device; set TMPDIR"):
        Bag(other)
    assert not folder.exists()  # nobody used it, and its space was needed


def test_a_file_without_permission_is_named_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_bag(tmp_path / "bag", make_frames(2))
    (path / "metadata.yaml").unlink()
    shutil.copy(path / "bag.mcap", path / "bag_1.mcap")
    opened = Path.open

    def open_file(file: Path, *args: str, **options: str) -> IO[Any]:
        if file.name == "bag_1.mcap":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *args, **options)

    monkeypatch.setattr(Path, "open", open_file)
    with Bag(path) as bag:
        assert len(bag) == 2
        assert "bag_1.mcap cannot be opened: [Errno 13] Permission denied" in bag.problems[1]
    with pytest.raises(BagError, match=r"cannot be opened: .*Permission denied"):
        Bag(path / "bag_1.mcap")


def test_a_bag_without_images_lists_its_topics(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic("/tf", "std_msgs/msg/Header")
    with pytest.raises(ValueError, match=r"no topic of camera images[\s\S]*/tf  std_msgs/msg/Header  0"):
        Bag(tmp_path / "bag")


@pytest.mark.parametrize("storage", STORAGES)
def test_an_empty_topic_is_a_problem(tmp_path: Path, storage: StorageName) -> None:
    with BagWriter(tmp_path / "bag", storage) as bag:
        bag.add_topic(IMAGES, "sensor_msgs/msg/Image")
    with Bag(tmp_path / "bag") as opened:
        assert len(opened) == 0
        assert opened.problems == [f"{IMAGES} holds no message that can be read"]


def test_paths_that_are_no_bag_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Bag(tmp_path / "nothing")
    with pytest.raises(BagError, match="it holds nothing"):
        Bag(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(BagError, match="no rosbag"):
        Bag(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "labels, reason",
    [
        (np.zeros((3, 3), np.uint8), r"expected the same \(H, W\)"),
        (np.full((48, 64), 77, np.uint8), "hold the ids"),
        (np.zeros((48, 64, 3), np.uint8), "'bgr8'; expected mono8"),
    ],
)
def test_a_frame_keeps_its_image_if_its_labels_cannot_be_used(tmp_path: Path, labels: np.ndarray, reason: str) -> None:
    ((image, _),) = make_frames(1)
    with BagWriter(tmp_path / "bag") as bag:
        bag.image(IMAGES, image, 1, "", time_ns=1)
        bag.image(LABELS, labels, 1, "", time_ns=1)
    with Bag(tmp_path / "bag") as opened:
        frame = opened.frame(0, CITYSCAPES19)
    assert frame.image_bgr is not None and frame.labels is None
    assert re.search(reason, frame.reason), frame.reason
