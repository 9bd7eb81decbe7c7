# SPDX-License-Identifier: Apache-2.0
"""Properties of bag reading: a cut or changed file gives the images that were written, or our own errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from class_sets import CITYSCAPES19
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.typesys import Stores, get_typestore
from tiny_bags import IMAGES, START_NS, make_frames, write_tiny_bag

from nightlab_core.data.bags import compressed
from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.topics import TopicError
from nightlab_core.data.bags.unpacking import zstd

FRAMES = make_frames(4, (8, 12))
KINDS = (".mcap", ".db3", ".bag", ".mcap.zstd")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same frames in a file of each format, named "whole"."""
    folder = tmp_path_factory.mktemp("bags")
    mcap = next(write_tiny_bag(folder / "a", FRAMES).glob("*.mcap")).read_bytes()
    db3 = next(write_tiny_bag(folder / "b", FRAMES, storage="sqlite3").glob("*.db3")).read_bytes()
    types = get_typestore(Stores.ROS1_NOETIC)
    image_type, header_type = types.types["sensor_msgs/msg/Image"], types.types["std_msgs/msg/Header"]
    with Rosbag1Writer(folder / "c.bag") as writer:
        topic = writer.add_connection(IMAGES, "sensor_msgs/msg/Image", typestore=types)
        for number, (image, _) in enumerate(FRAMES):
            header = header_type(number, types.types["builtin_interfaces/msg/Time"](7, number), "front")
            message = image_type(header, *image.shape[:2], "bgr8", 0, 3 * image.shape[1], image.reshape(-1))
            raw = types.serialize_ros1(message, "sensor_msgs/msg/Image")
            writer.write(topic, START_NS + number, raw)
    files = {".mcap": mcap, ".db3": db3, ".bag": (folder / "c.bag").read_bytes(), ".mcap.zstd": zstd.compress(mcap)}
    for kind, data in files.items():
        (folder / f"whole{kind}").write_bytes(data)
    return folder


def read(path: Path) -> list[np.ndarray]:
    """Return the images that can be read; raises errors of our own alone."""
    compressed._delete(compressed._COPIES)
    try:
        with Bag(path, IMAGES) as bag:
            found = list(bag.frames(0, len(bag), CITYSCAPES19))
    except (BagError, TopicError) as error:
        assert str(error)
        return []
    assert all(frame.reason for frame in found if frame.image_bgr is None)
    return [frame.image_bgr for frame in found if frame.image_bgr is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_gives_all_images(kind: str, whole: Path) -> None:
    assert np.array_equal(read(whole / f"whole{kind}"), [image for image, _ in FRAMES])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(part=st.floats(0, 1))
def test_a_cut_file_gives_images_that_were_written(kind: str, whole: Path, part: float) -> None:
    data, path = (whole / f"whole{kind}").read_bytes(), whole / f"cut{kind}"
    path.write_bytes(data[: int(part * len(data))])
    for image in read(path):
        assert any(np.array_equal(image, written) for written, _ in FRAMES)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(part=st.floats(0, 0.999), change=st.binary(min_size=1, max_size=12))
def test_a_changed_file_raises_errors_of_our_own_alone(kind: str, whole: Path, part: float, change: bytes) -> None:
    data, path = (whole / f"whole{kind}").read_bytes(), whole / f"changed{kind}"
    at = int(part * len(data))
    path.write_bytes(data[:at] + change + data[at + len(change) :])
    for image in read(path):
        assert image.dtype == np.uint8 and image.shape[2] == 3
