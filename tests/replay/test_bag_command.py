# SPDX-License-Identifier: Apache-2.0
"""nightlab-bag, and what other tools make of its bags."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader
from tiny_bags import make_frames

from nightlab_core.data.bags.read import Bag
from nightlab_core.data.bags.write import BagWriter
from nightlab_core.labels import CITYSCAPES19
from nightlab_replay.bag import IMAGE_TOPIC, LABEL_TOPIC, START_S, main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("images", "labels"):
        (tmp_path / "drive" / part).mkdir(parents=True)
    for index, (image, labels) in enumerate(make_frames(4)):
        cv2.imwrite(str(tmp_path / "drive" / "images" / f"{index}.png"), image)
        if index != 2:
            cv2.imwrite(str(tmp_path / "drive" / "labels" / f"{index}.png"), labels)
    return tmp_path / "drive"


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("packing", ["none", "png"])
def test_a_folder_becomes_a_labelled_bag(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], storage: str, packing: str
) -> None:
    out = tmp_path / "bag"
    assert main([str(folder), str(out), "--fps", "20", "--storage", storage, "--compress", packing]) == 0
    assert "4 frames, 3 with labels (cityscapes19)" in capsys.readouterr().out
    with Bag(out) as bag:
        assert bag.label_classes == "cityscapes19" and bag.kind == storage and bag.problems == []
        for index, (image, labels) in enumerate(make_frames(4)):
            frame = bag.frame(index, CITYSCAPES19)
            np.testing.assert_array_equal(frame.image_bgr, image)
            assert frame.stamp_ns == frame.time_ns == round((START_S + index / 20) * 1e9)
            if index == 2:
                assert frame.labels is None
            else:
                np.testing.assert_array_equal(frame.labels, labels)


def test_the_mcap_library_and_rosbags_read_it(folder: Path, tmp_path: Path) -> None:
    assert main([str(folder), str(tmp_path / "bag")]) == 0
    with (tmp_path / "bag" / "bag.mcap").open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        assert reader.get_header().profile == "ros2"
        found = [(schema.name, schema.encoding, channel.topic) for schema, channel, _ in reader.iter_messages()]
    assert found.count(("sensor_msgs/msg/Image", "ros2msg", IMAGE_TOPIC)) == 4
    assert found.count(("sensor_msgs/msg/Image", "ros2msg", LABEL_TOPIC)) == 3
    with AnyReader([tmp_path / "bag"]) as rosbags:  # checks the definitions' hashes
        assert {name: topic.msgcount for name, topic in rosbags.topics.items()} == {IMAGE_TOPIC: 4, LABEL_TOPIC: 3}


@pytest.mark.ros
def test_rclpy_reads_its_messages(folder: Path, tmp_path: Path) -> None:
    serialization = pytest.importorskip("rclpy.serialization")
    from sensor_msgs.msg import CompressedImage, Image

    for packing, kind in (("none", Image), ("png", CompressedImage)):
        assert main([str(folder), str(tmp_path / packing), "--compress", packing]) == 0
        with Bag(tmp_path / packing) as bag:
            message = serialization.deserialize_message(bag.raw(1), kind)
        assert message.header.frame_id == "camera" and message.header.stamp.sec == int(START_S)
        if packing == "none":
            pixels = np.frombuffer(message.data, np.uint8).reshape(48, 64, 3)
        else:
            pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(pixels, make_frames(4)[1][0])


def test_a_video_becomes_a_bag(tmp_path: Path) -> None:
    video = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 48))
    if not video.isOpened():
        pytest.skip("this OpenCV cannot write MJPG")
    for image, _ in make_frames(5):
        video.write(image)
    video.release()
    assert main([str(tmp_path / "clip.avi"), str(tmp_path / "bag"), "--compress", "jpeg"]) == 0
    with Bag(tmp_path / "bag") as bag:
        assert (len(bag), bag.label_topic) == (5, None)
        assert np.diff(bag.times_ns).tolist() == [50_000_000] * 4


def test_another_bag_keeps_its_stamps_and_its_class_set(tmp_path: Path) -> None:
    stamps_ns = [1_763_846_812_123_456_789, 1_763_846_812_223_456_780]  # the camera's own, as of a real recording
    with BagWriter(tmp_path / "drive", classes="camvid11") as bag:
        for stamp_ns, (image, _) in zip(stamps_ns, make_frames(2), strict=True):
            for topic in ("/front/image_raw", "/rear/image_raw"):
                bag.image(topic, image, stamp_ns, "", time_ns=stamp_ns + 5)
            bag.image("/rear/labels", np.full((48, 64), 10, np.uint8), stamp_ns, "", time_ns=stamp_ns + 6)
    assert main([str(tmp_path / "drive"), str(tmp_path / "bag"), "--source-topic", "/rear/image_raw"]) == 0
    with Bag(tmp_path / "bag") as written:
        assert (written.label_classes, written.num_labels) == ("camvid11", 2)
        assert [written.frame(index).stamp_ns for index in (0, 1)] == stamps_ns


def test_the_source_topic_has_to_be_named_where_there_are_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BagWriter(tmp_path / "drive") as bag:
        for topic in ("/front/image_raw", "/rear/image_raw"):
            bag.image(topic, make_frames(1)[0][0], 1, "", time_ns=1)
    for words, said in (([], "not clear which image topic"), (["--source-topic", "/left"], "/left is not there")):
        assert main([str(tmp_path / "drive"), str(tmp_path / "bag"), *words]) == 1
        error = capsys.readouterr().err
        assert said in error and "/front/image_raw, /rear/image_raw" in error and "--source-topic" in error


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere", "bag"], "nowhere does not exist"),
        (["drive", "drive"], "exists already"),
        (["drive", "bag", "--fps", "0"], "--fps is 0"),
        (["drive", "bag", "--glob", "x*"], "no image named"),
        (["drive", "bag", "--classes", "camvid11"], "name the right class set"),
    ],
)
def test_mistakes(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    assert main(words) == 1
    assert said in capsys.readouterr().err
    assert not Path("bag").exists() and (folder / "images" / "0.png").exists()
