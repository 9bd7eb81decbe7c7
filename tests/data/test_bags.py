# SPDX-License-Identifier: Apache-2.0
"""Frames and label maps that `open_frames` reads from bags."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from nightlab_core.data.bags.metadata import CLASSES_KEY, bag_information, custom_data, custom_data_of_file
from nightlab_core.data.frames import open_frames

SIZE_HW = (20, 31)  # an odd width, so that rows need padding to four bytes
STORE = get_typestore(Stores.ROS2_JAZZY)
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (*SIZE_HW, 3), np.uint8)


def label_map(index: int) -> np.ndarray:
    return np.random.default_rng(100 + index).integers(0, 19, SIZE_HW, np.uint8)


def header(stamp_ns: int) -> object:
    time = STORE.types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return STORE.types["std_msgs/msg/Header"](stamp=time, frame_id="camera")


def image(pixels: np.ndarray, encoding: str, stamp_ns: int, padding: int = 0) -> object:
    rows = pixels.reshape(SIZE_HW[0], -1)
    rows = np.hstack([rows, np.full((SIZE_HW[0], padding), 77, np.uint8)])
    return STORE.types[IMAGE](
        header=header(stamp_ns),
        height=SIZE_HW[0],
        width=SIZE_HW[1],
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=np.ascontiguousarray(rows).ravel(),
    )


def compressed(pixels: np.ndarray, stamp_ns: int) -> object:
    data = cv2.imencode(".png", pixels)[1].ravel()
    return STORE.types[COMPRESSED](header=header(stamp_ns), format="png", data=data)


def write_bag(path: Path, messages: list[tuple[str, str, int, object]], plugin: StoragePlugin) -> Path:
    """Write (topic, type, time of recording in ns, message) in this order."""
    with Writer(path, version=8, storage_plugin=plugin) as writer:
        connections = {}
        for topic, kind, time_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], time_ns, STORE.serialize_cdr(message, kind))
    return path


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("padding", [0, 3])
def test_images_get_the_labels_of_their_stamp_even_if_recorded_later(
    tmp_path: Path, plugin: StoragePlugin, padding: int
) -> None:
    stamps = [10**9 + i * 10**8 for i in range(3)]
    rgb = [np.ascontiguousarray(picture(i)[..., ::-1]) for i in range(3)]
    messages = [("/front/image_raw", IMAGE, t + 5, image(rgb[i], "rgb8", t, padding)) for i, t in enumerate(stamps)]
    # the label of frame 1 is missing, that of frame 0 comes last
    messages += [
        ("/front/labels", IMAGE, stamps[i] + 10**9 * k, image(label_map(i), "mono8", stamps[i]))
        for k, i in ((1, 2), (4, 0))
    ]
    bag = write_bag(tmp_path / "bag", messages, plugin)
    (file,) = [f for f in bag.iterdir() if f.suffix in (".mcap", ".db3")]
    for given in (bag, file):
        source = open_frames(given)
        frames = list(source)
        assert source.num_frames == 3 and [f.stamp_s for f in frames] == [1.0, 1.1, 1.2]
        for i, frame in enumerate(frames):
            np.testing.assert_array_equal(frame.image_bgr, picture(i))
        np.testing.assert_array_equal(frames[0].labels, label_map(0))
        assert frames[1].labels is None
        np.testing.assert_array_equal(frames[2].labels, label_map(2))


def test_compressed_images_and_labels_without_stamps_use_the_recording_time(tmp_path: Path) -> None:
    messages = [
        ("/camera/image/compressed", COMPRESSED, 7 * 10**9, compressed(picture(0), 0)),
        ("/camera/ground_truth/compressed", COMPRESSED, 7 * 10**9, compressed(label_map(0), 0)),
    ]
    (frame,) = open_frames(write_bag(tmp_path / "bag", messages, StoragePlugin.MCAP))
    np.testing.assert_array_equal(frame.image_bgr, picture(0))
    np.testing.assert_array_equal(frame.labels, label_map(0))
    assert frame.stamp_s == 7.0


@pytest.mark.parametrize(
    "folder, own, expected", [("camvid", "cityscapes19", "cityscapes19"), ("camvid", None, "camvid11")]
)
def test_the_class_set_of_the_bag_takes_precedence_over_the_path(
    tmp_path: Path, folder: str, own: str | None, expected: str
) -> None:
    path = tmp_path / folder / "bag"
    path.parent.mkdir()
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        if own:
            writer.set_custom_data(CLASSES_KEY, own)
        topic = writer.add_connection("/image", IMAGE, typestore=STORE)
        writer.write(topic, 5, STORE.serialize_cdr(image(picture(0), "bgr8", 5), IMAGE))
    assert open_frames(path).classes.key == expected
    assert open_frames(path, classes="camvid11").classes.key == "camvid11"
    expected_data = {CLASSES_KEY: own} if own else {}
    assert custom_data_of_file(path / "bag.mcap") == custom_data(bag_information(path)) == expected_data
    (path / "metadata.yaml").write_text("none of this: [")
    assert custom_data_of_file(path / "bag.mcap") == {}
    with pytest.raises(ValueError):
        bag_information(path)


def test_a_topic_must_be_named_if_a_bag_has_several(tmp_path: Path) -> None:
    messages = [
        (f"/{side}/image", IMAGE, 5 + i, image(picture(i), "bgr8", 5 + i)) for i, side in enumerate(("left", "right"))
    ]
    bag = write_bag(tmp_path / "bag", messages, StoragePlugin.MCAP)
    with pytest.raises(ValueError, match=r"several image topics: name one[\s\S]*/left/image .*\n  /right/image "):
        open_frames(bag)
    with pytest.raises(ValueError, match="/rear/image"):
        open_frames(bag, topic="/rear/image")
    (frame,) = open_frames(bag, topic="/right/image")
    np.testing.assert_array_equal(frame.image_bgr, picture(1))


def test_labels_in_a_wrong_encoding_and_corrupt_images_are_refused(tmp_path: Path) -> None:
    messages = [
        ("/image", IMAGE, 5, image(picture(0), "bgr8", 5)),
        ("/labels", IMAGE, 5, image(picture(0), "bgr8", 5)),
    ]
    with pytest.raises(ValueError, match="encoding 'bgr8'; expected mono8"):
        list(open_frames(write_bag(tmp_path / "colours", messages, StoragePlugin.MCAP)))
    broken = STORE.types[COMPRESSED](header=header(5), format="jpeg", data=np.zeros(9, np.uint8))
    with pytest.raises(ValueError, match=r"format 'jpeg' beginning with 0000.*expected a JPEG or PNG"):
        list(open_frames(write_bag(tmp_path / "broken", [("/image", COMPRESSED, 5, broken)], StoragePlugin.MCAP)))


def test_a_bag_without_a_message_is_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "bag", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/image", IMAGE, typestore=STORE)
    with pytest.raises(ValueError, match="holds no image message"):
        open_frames(tmp_path / "bag")
