# SPDX-License-Identifier: Apache-2.0
"""Properties of all readers: a frame in any supported form comes back equal; damage is an error or changes nothing."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("hypothesis")

from class_sets import CITYSCAPES19
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.typesys import Stores, get_typestore

from nightlab_core.data.bags.unpacking import zstd
from nightlab_core.data.bags.write import BagWriter
from nightlab_core.data.datasets.paired import LabelledImages, PairedFolder
from nightlab_core.data.frames import FrameSource, open_frames

IMAGES, LABELS, TYPE, TIME_NS = "/camera/image_raw", "/camera/labels", "sensor_msgs/msg/Image", 10**18
ROS1 = get_typestore(Stores.ROS1_NOETIC)
Frame = tuple[np.ndarray, np.ndarray]


def write_folder(extension: str, *options: int) -> Callable[[Path, Frame], Path]:
    def write(folder: Path, frame: Frame) -> Path:
        for name, pixels in (("images", frame[0]), ("labels", frame[1])):
            (folder / name).mkdir()
            suffix, given_options = (extension, list(options)) if name == "images" else (".png", [])
            (folder / name / f"a{suffix}").write_bytes(cv2.imencode(suffix, pixels, given_options)[1].tobytes())
        return folder

    return write


def write_bag(storage: Any, packing: Any) -> Callable[[Path, Frame], Path]:
    def write(folder: Path, frame: Frame) -> Path:
        with BagWriter(folder / "bag", storage, "cityscapes19") as bag:
            for topic, pixels in zip((IMAGES, LABELS), frame, strict=True):
                bag.image(topic, pixels, TIME_NS, "front", time_ns=TIME_NS, packing=packing)
        return folder / "bag"

    return write


def write_compressed_file(folder: Path, frame: Frame) -> Path:
    (mcap,) = write_bag("mcap", "none")(folder, frame).glob("*.mcap")
    (folder / "file.mcap.zstd").write_bytes(zstd.compress(mcap.read_bytes()))
    return folder / "file.mcap.zstd"


def ros1_messages(frame: Frame) -> dict[str, bytes]:
    """The serialised messages of ROS 1 by topic."""
    messages = {}
    for topic, pixels in zip((IMAGES, LABELS), frame, strict=True):
        header = ROS1.types["std_msgs/msg/Header"](0, ROS1.types["builtin_interfaces/msg/Time"](10**9, 0), "front")
        encoding, channels = ("bgr8", 3) if pixels.ndim == 3 else ("mono8", 1)
        fields = (header, *pixels.shape[:2], encoding, 0, channels * pixels.shape[1], pixels.reshape(-1))
        messages[topic] = bytes(ROS1.serialize_ros1(ROS1.types[TYPE](*fields), TYPE))
    return messages


def write_rosbag1(folder: Path, frame: Frame) -> Path:
    with Rosbag1Writer(folder / "drive.bag") as writer:
        for topic, raw in ros1_messages(frame).items():
            writer.write(writer.add_connection(topic, TYPE, typestore=ROS1), TIME_NS, raw)
    return folder / "drive.bag"


def write_ros1_in_mcap(folder: Path, frame: Frame) -> Path:
    with (folder / "drive.mcap").open("wb") as file:
        writer = McapWriter(file)
        writer.start("ros1")
        for topic, raw in ros1_messages(frame).items():
            schema = writer.register_schema("sensor_msgs/Image", "ros1msg", b"")
            writer.add_message(writer.register_channel(topic, "ros1", schema), TIME_NS, raw, TIME_NS)
        writer.finish()
    return folder / "drive.mcap"


FORMS: dict[str, Callable[[Path, Frame], Path]] = {
    "PNG": write_folder(".png"),
    "BMP": write_folder(".bmp"),
    "TIFF": write_folder(".tiff"),
    "WebP": write_folder(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
    "MCAP": write_bag("mcap", "none"),
    "MCAP of PNG messages": write_bag("mcap", "png"),
    "SQLite": write_bag("sqlite3", "none"),
    "SQLite of PNG messages": write_bag("sqlite3", "png"),
    "compressed MCAP": write_compressed_file,
    "ROS 1": write_rosbag1,
    "ROS 1 in MCAP": write_ros1_in_mcap,
}


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    size = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    ids = st.sampled_from([*range(19), 255])
    return draw(hnp.arrays(np.uint8, (*size, 3))), draw(hnp.arrays(np.uint8, size, elements=ids))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=8)
@given(frame=frames())
def test_a_frame_in_any_form_comes_back_equal(form: str, frame: Frame) -> None:
    if form in ("TIFF", "WebP") and not hasattr(cv2, "imdecodemulti"):
        pytest.skip("OpenCV is older than 4.10")
    with tempfile.TemporaryDirectory() as folder:
        path = FORMS[form](Path(folder), frame)
        readers: list[FrameSource | LabelledImages] = [open_frames(path)]
        if (path / "images").is_dir():
            readers.append(PairedFolder(path / "images", path / "labels", CITYSCAPES19))
        for reader in readers:
            (found,) = reader
            assert np.array_equal(found.image_bgr, frame[0]) and np.array_equal(found.labels, frame[1])


@pytest.mark.parametrize("part", ["images", "labels"])
@settings(max_examples=30)
@given(place=st.floats(0, 0.999), change=st.binary(max_size=6))
def test_a_damaged_file_in_a_folder_is_an_error_or_changes_nothing(part: str, place: float, change: bytes) -> None:
    noise = np.random.default_rng(1).integers(0, 19, (12, 9, 3), np.uint8)
    frame = noise, noise[..., 0]
    with tempfile.TemporaryDirectory() as folder:
        path = FORMS["PNG"](Path(folder), frame)
        file = path / part / "a.png"
        data = file.read_bytes()
        at = int(place * len(data))
        file.write_bytes(data[:at] + (change + data[at + len(change) :] if change else b""))
        for read in (open_frames, lambda path: PairedFolder(path / "images", path / "labels", CITYSCAPES19)):
            with contextlib.suppress(ValueError):
                (found,) = read(path)
                assert np.array_equal(found.image_bgr, frame[0]) and np.array_equal(found.labels, frame[1])
