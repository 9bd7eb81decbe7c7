# SPDX-License-Identifier: Apache-2.0
"""Every consumer of a bag gets the same frames and labels, in every storage format and encoding."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from class_sets import CITYSCAPES19
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tiny_bags import FRAME_ID, START_NS, STEP_NS, make_frames

from nightlab_core.data.bags.messages import deserialize
from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.frames import FrameSource, open_frames
from nightlab_core.data.images import message_to_bgr
from nightlab_replay.bags import write_labelled_bag
from nightlab_replay.execute import BagSource

COUNT = 3
FRAMES = make_frames(COUNT, (12, 18))
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
#: Two camera streams with the same pixels, the second with rows padded to 64 bytes, and labels as PNG.
CAMERAS = {"/bgr/image_raw": "bgr8", "/rgb/image_raw": "rgb8", "/packed/image/compressed": "png"}
LABELS = {"/camera/labels": "mono8", "/camera/labels_png/gt": "png"}


def message(types: dict, pixels: np.ndarray, encoding: str, header: object) -> object:
    if encoding == "png":
        return types[COMPRESSED](header, "png", cv2.imencode(".png", pixels)[1].ravel())
    rows = (pixels[..., ::-1] if encoding == "rgb8" else pixels).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, 64 - rows.shape[1])), constant_values=0xEE)
    return types[IMAGE](header, *pixels.shape[:2], encoding, 0, 64, np.ascontiguousarray(rows).ravel())


def write(writer: Rosbag1Writer | Writer, store: Stores) -> None:
    typestore = get_typestore(store)
    serialize = typestore.serialize_ros1 if store is Stores.ROS1_NOETIC else typestore.serialize_cdr
    sequence = (0,) if store is Stores.ROS1_NOETIC else ()
    with writer:
        topics = {}
        for topic, encoding in {**CAMERAS, **LABELS}.items():
            kind = COMPRESSED if encoding == "png" else IMAGE
            topics[topic] = writer.add_connection(topic, kind, typestore=typestore)
            for index, (image, labels) in enumerate(FRAMES):
                stamp_ns = START_NS + index * STEP_NS
                stamp = typestore.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
                header = typestore.types["std_msgs/msg/Header"](*sequence, stamp, FRAME_ID)
                packed = message(typestore.types, labels if topic in LABELS else image, encoding, header)
                writer.write(topics[topic], stamp_ns + 5, serialize(packed, kind))


def rosbag1(folder: Path) -> Path:
    write(Rosbag1Writer(folder / "drive.bag"), Stores.ROS1_NOETIC)
    return folder / "drive.bag"


def rosbag2(folder: Path, plugin: StoragePlugin, compression: CompressionMode | None = None) -> Path:
    writer = Writer(folder / "drive", version=8, storage_plugin=plugin)
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    write(writer, Stores.ROS2_JAZZY)
    return folder / "drive"


BAGS: dict[str, Callable[[Path], Path]] = {
    "rosbag1": rosbag1,
    "mcap": lambda folder: rosbag2(folder, StoragePlugin.MCAP),
    "sqlite3": lambda folder: rosbag2(folder, StoragePlugin.SQLITE3),
    "compressed file": lambda folder: rosbag2(folder, StoragePlugin.SQLITE3, CompressionMode.FILE),
    "compressed messages": lambda folder: rosbag2(folder, StoragePlugin.MCAP, CompressionMode.MESSAGE),
}


@pytest.fixture
def vehicle(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation with the vehicle's requirements alone."""
    monkeypatch.delitem(sys.modules, "nightlab_core.data.bags.mcap", raising=False)
    for package in ("mcap", "mcap.data_stream", "zstandard"):
        monkeypatch.setitem(sys.modules, package, None)


def check_consumers(path: Path, folder: Path, camera: str, labels: str) -> None:
    """Read a bag as the node, demo, player and training, `nightlab bag` and replay do."""
    with BagSource("drive", str(path), camera, labels).open() as bag:
        assert bag.problems == [] and len(bag) == COUNT
        replayed = [bag.frame(index, CITYSCAPES19) for index in range(COUNT)]
        raw = [bag.raw(index) for index in range(COUNT)]
    source = open_frames(path, topic=camera, label_topic=labels)
    assert (source.num_frames, source.problems) == (COUNT, ())
    played = list(source)
    write_labelled_bag(source, folder / "copy")
    copied = list(open_frames(folder / "copy"))
    for index, (image, ids) in enumerate(FRAMES):
        stamp_ns = START_NS + index * STEP_NS
        frame = replayed[index]
        assert (frame.stamp_ns, frame.time_ns, frame.frame_id, frame.reason) == (stamp_ns, stamp_ns + 5, FRAME_ID, "")
        assert (played[index].stamp_ns, copied[index].stamp_ns) == (stamp_ns, stamp_ns)
        data = raw[index]
        assert isinstance(data, bytes)
        taken = message_to_bgr(deserialize(data, COMPRESSED if CAMERAS[camera] == "png" else IMAGE))
        for found in (frame.image_bgr, played[index].image_bgr, copied[index].image_bgr, taken):
            np.testing.assert_array_equal(found, image)
        for found in (frame.labels, played[index].labels, copied[index].labels):
            np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize("camera, labels", [*zip(CAMERAS, (*LABELS, *LABELS), strict=False)])
@pytest.mark.parametrize("kind", BAGS)
def test_every_consumer_gets_the_same_frames_and_labels(tmp_path: Path, kind: str, camera: str, labels: str) -> None:
    check_consumers(BAGS[kind](tmp_path), tmp_path, camera, labels)


@pytest.mark.usefixtures("vehicle")
@pytest.mark.parametrize("kind", BAGS)
def test_bags_need_only_the_requirements_of_the_vehicle(tmp_path: Path, kind: str) -> None:
    check_consumers(BAGS[kind](tmp_path), tmp_path, "/rgb/image_raw", "/camera/labels")


def test_a_bag_of_ros_1_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = BAGS["rosbag1"](tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BagError, match=r"drive\.bag cannot be opened: .*try `rosbag reindex`"):
        Bag(path)


def check_images(source: FrameSource) -> None:
    for frame, (image, _) in zip(source, FRAMES, strict=True):
        np.testing.assert_array_equal(frame.image_bgr, image)


def test_frames_of_a_damaged_bag_come_with_its_problems(tmp_path: Path) -> None:
    path = BAGS["mcap"](tmp_path) / "drive.mcap"
    path.write_bytes(path.read_bytes()[:-100])
    source = open_frames(path, topic="/bgr/image_raw", label_topic="/camera/labels")
    check_images(source)
    assert len(source.problems) == 1 and "the file is cut off" in source.problems[0]
    (tmp_path / "bare").mkdir()
    path.rename(tmp_path / "bare" / "drive.mcap")
    source = open_frames(tmp_path / "bare", topic="/bgr/image_raw", label_topic="/camera/labels")
    check_images(source)
    assert "metadata.yaml is missing" in source.problems[0]


@pytest.mark.parametrize("name", ["run #3", "why?", "100%25 night"])
def test_a_sqlite_bag_may_lie_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    source = open_frames(BAGS["mcap"](tmp_path), topic="/bgr/image_raw", label_topic="/camera/labels")
    write_labelled_bag(source, tmp_path / name / "bag", storage="sqlite3")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "drive"])
    check_images(open_frames(tmp_path / name / "bag"))
