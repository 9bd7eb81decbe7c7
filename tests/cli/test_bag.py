# SPDX-License-Identifier: Apache-2.0
"""`nightlab bag`, and other tools that read its bags."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("mcap")

from class_sets import CITYSCAPES19
from command import nightlab
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader
from tiny_bags import make_frames

from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.write import BagWriter
from nightlab_replay.bags import IMAGE_TOPIC, LABEL_TOPIC, START_S


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
def test_a_folder_becomes_a_labelled_bag(folder: Path, tmp_path: Path, storage: str, packing: str) -> None:
    out = tmp_path / "bag"
    done = nightlab("bag", folder, "--out", out, "--rate", 20, "--storage", storage, "--compress", packing)
    assert done.status == 0 and "4 frames, 3 with labels (cityscapes19)" in done.out
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
    assert nightlab("bag", folder, "--out", tmp_path / "bag").status == 0
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
        assert nightlab("bag", folder, "--out", tmp_path / packing, "--compress", packing).status == 0
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
    assert nightlab("bag", tmp_path / "clip.avi", "--out", tmp_path / "bag", "--compress", "jpeg").status == 0
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
    done = nightlab("bag", tmp_path / "drive", "--out", tmp_path / "bag", "--topic", "/rear/image_raw")
    assert done.status == 0
    with Bag(tmp_path / "bag") as written:
        assert (written.label_classes, written.num_labels) == ("camvid11", 2)
        assert [written.frame(index).stamp_ns for index in (0, 1)] == stamps_ns


def test_the_source_topic_has_to_be_named_where_there_are_several(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "drive") as bag:
        for topic in ("/front/image_raw", "/rear/image_raw"):
            bag.image(topic, make_frames(1)[0][0], 1, "", time_ns=1)
    for words, said in (
        ([], "several image topics: name one with --topic"),
        (["--topic", "/left"], "/left is not there"),
    ):
        done = nightlab("bag", tmp_path / "drive", "--out", tmp_path / "bag", *words)
        assert done.status == 1 and done.err.startswith("nightlab bag: ")
        assert all(text in done.err for text in (said, "/front/image_raw", "/rear/image_raw", "--topic"))


def test_a_bag_that_another_process_makes_meanwhile_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder.parent / "bag"
    opened = BagWriter.__enter__

    def late(self: BagWriter) -> BagWriter:
        out.mkdir()
        (out / "bag.mcap").write_text("theirs")
        return opened(self)

    monkeypatch.setattr(BagWriter, "__enter__", late)
    done = nightlab("bag", folder, "--out", out)
    assert done.status == 1 and "exists already" in done.err
    assert (out / "bag.mcap").read_text() == "theirs"


@pytest.mark.parametrize(
    "words, said",
    [
        (["", "--out", "bag"], "received an empty path"),
        (["nowhere", "--out", "bag"], "nowhere does not exist"),
        (["drive", "--out", "drive"], "exists already"),
        (["drive", "--out", "bag", "--rate", "0"], "--rate is 0"),
        (["drive", "--out", "bag", "--rate", "inf"], "--rate is inf"),
        (["drive", "--out", "bag", "--out-topic", "/a", "--out-label-topic", "/a"], "both to be written on /a"),
        (["drive", "--out", "bag", "--glob", "x*"], "no image named"),
        (["drive", "--out", "bag", "--classes", "camvid11"], "name the right class set"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_bag(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(folder.parent)
    done = nightlab("bag", *words)
    assert done.status == 1 and said in done.err and "fault" not in done.err
    assert not Path("bag").exists() and (folder / "images" / "0.png").exists()
