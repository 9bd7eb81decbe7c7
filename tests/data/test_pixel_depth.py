# SPDX-License-Identifier: Apache-2.0
"""Cameras of 10, 12 and 14 bits give the picture of 8 bits, in messages, bags, folders and training."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from nightlab_core.classes import load_class_set
from nightlab_core.data.bags.write import BagWriter
from nightlab_core.data.datasets.catalogue import open_dataset, open_set
from nightlab_core.data.datasets.paired import PairedFolder
from nightlab_core.data.datasets.unlabelled import UnlabelledImages
from nightlab_core.data.frames import open_frames
from nightlab_core.data.images import fill_image, message_to_bgr
from nightlab_core.data.pixel_depth import FIRST_FRAMES, PixelDepth
from nightlab_core.data.rendered.shapes import CLASSES
from nightlab_replay.execute import BagSource

#: uint8 (4, 256): every grey level.
GREY = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
BGR = np.repeat(GREY[..., None], 3, axis=-1)


def of_bits(bits: int, grey: np.ndarray = GREY) -> np.ndarray:
    """The picture as a camera of so many bits sends it, uint16."""
    return np.rint(grey * (((1 << bits) - 1) / 255)).astype(np.uint16)


@pytest.mark.parametrize("packing", ["raw", "png"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_stream_is_scaled_by_the_measured_bits(bits: int, packing: str) -> None:
    reports: list[str] = []
    depth = PixelDepth(report=reports.append)
    for _ in range(FIRST_FRAMES + 2):
        message: Any = fill_image(SimpleNamespace(), of_bits(bits), "mono16")
        if packing == "png":
            message = SimpleNamespace(format="16UC1; png compressed ", data=cv2.imencode(".png", of_bits(bits))[1])
            message.data = message.data.ravel()
        np.testing.assert_array_equal(message_to_bgr(message, depth), BGR)
    assert depth.bits == bits and len(reports) == (bits < 16)
    assert all(f"hold {bits} significant bits" in report for report in reports)


def test_without_a_stream_all_16_bits_count() -> None:
    assert message_to_bgr(fill_image(SimpleNamespace(), of_bits(12), "mono16")).max() == 16


def test_bits_are_fixed_after_the_first_frames_and_later_values_are_reported_once() -> None:
    reports: list[str] = []
    depth = PixelDepth(report=reports.append)
    depth.to_8_bits(np.zeros((2, 2), np.uint16))
    assert depth.bits == 16  # black frames tell nothing
    for _ in range(FIRST_FRAMES):
        depth.to_8_bits(of_bits(10))
    for _ in range(2):
        assert depth.to_8_bits(np.full((2, 2), 4000, np.uint16)).tolist() == [[255, 255]] * 2
    assert depth.bits == 10 and len(reports) == 2
    assert "received the pixel value 4000, above the 1023 of 10 significant bits" in reports[1]


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_dark_values_in_the_high_bits_are_16_bits_and_said_to_be(bits: int) -> None:
    reports: list[str] = []
    depth = PixelDepth(report=reports.append)
    stored = (of_bits(bits) // 16) << (16 - bits)
    depth.measure([stored])
    assert depth.bits == 16 and "the low 2 bits of all values are 0" in reports[0]
    np.testing.assert_array_equal(depth.to_8_bits(stored), cv2.convertScaleAbs(stored, alpha=255 / 65535))
    assert len(reports) == 1


def test_a_hot_pixel_is_not_measured_and_is_clipped_with_a_warning() -> None:
    reports: list[str] = []
    depth = PixelDepth(report=reports.append)
    pixels = of_bits(12)
    pixels[0, 0] = 65535
    expected = BGR[..., 0].copy()
    expected[0, 0] = 255
    depth.measure([pixels])
    np.testing.assert_array_equal(depth.to_8_bits(pixels), expected)
    assert "hold 12 significant bits" in reports[0] and "received the pixel value 65535" in reports[1]


@pytest.mark.parametrize(
    ("is_bigendian", "doubtful"), [(sys.byteorder == "big", False), (sys.byteorder != "big", True)]
)
def test_a_byte_order_that_is_not_the_data_s_is_a_warning(is_bigendian: bool, doubtful: bool) -> None:
    reports: list[str] = []
    depth = PixelDepth(report=reports.append)
    for _ in range(FIRST_FRAMES + 2):
        message = fill_image(SimpleNamespace(), of_bits(12), "mono16")
        message.is_bigendian = int(is_bigendian)
        message_to_bgr(message, depth)
    assert len(reports) == 1 and ("4095 with the bytes exchanged" in reports[0]) == doubtful


def test_8_bits_in_the_high_byte_raise_no_doubt() -> None:
    reports: list[str] = []
    depth = PixelDepth(report=reports.append)
    depth.measure([GREY.astype(np.uint16) << 8])
    assert (depth.bits, reports) == (16, [])


def test_given_bits_are_used_as_they_are() -> None:
    reports: list[str] = []
    depth = PixelDepth(12, reports.append)
    np.testing.assert_array_equal(depth.to_8_bits(of_bits(12)[:, :100]), GREY[:, :100])
    assert not reports
    for bits in (-1, 7, 17):
        with pytest.raises(ValueError, match=f"received {bits} significant bits; expected 8 to 16"):
            PixelDepth(bits)


def write_bag(path: Path, frames: list[np.ndarray]) -> Path:
    with BagWriter(path) as bag:
        types = bag._types.types
        for index, pixels in enumerate(frames):
            filled = fill_image(SimpleNamespace(), pixels, "mono16", bag._header(10**18 + index, "camera"))
            data = np.frombuffer(filled.data, np.uint8)
            fields = (filled.header, 4, 256, "mono16", int(sys.byteorder == "big"), filled.step, data)
            bag._write("/camera/image_raw", types["sensor_msgs/msg/Image"](*fields), 10**18 + index)
    return path


def write_folder(path: Path, frames: dict[str, np.ndarray]) -> Path:
    for folder in ("images", "labels"):
        (path / folder).mkdir(parents=True)
    for name, pixels in frames.items():
        cv2.imwrite(str(path / "images" / f"{name}.png"), pixels)
        cv2.imwrite(str(path / "labels" / f"{name}.png"), np.zeros_like(GREY))
    return path


def test_bags_are_scaled_by_their_first_frames(tmp_path: Path) -> None:
    source = open_frames(write_bag(tmp_path / "bag", [of_bits(12), of_bits(12, GREY // 16)]))
    assert source.problems == () and len(source.notes) == 1 and "12 significant bits" in source.notes[0]
    bright, dark = source
    np.testing.assert_array_equal(bright.image_bgr, BGR)
    np.testing.assert_array_equal(dark.image_bgr, BGR // 16)


def test_every_reader_takes_the_number_of_bits(tmp_path: Path) -> None:
    dark = of_bits(12, GREY // 16)  # measured, its bits would be 8
    bag, folder = write_bag(tmp_path / "bag", [dark]), write_folder(tmp_path / "folder", {"a": dark})
    known, _ = open_set(tmp_path, "folder", pixel_bits=12)
    for read in (
        open_frames(bag, pixel_bits=12),
        open_frames(folder, pixel_bits=12),
        BagSource("bag", str(bag), "/camera/image_raw", None, 12).open().frames(0, 1),
        known,
        known.matching("a"),
        open_dataset("folder", folder, classes=load_class_set("bdd18"), pixel_bits=12)[0],
        UnlabelledImages(folder / "images", pixel_bits=12),
    ):
        (frame,) = read
        np.testing.assert_array_equal(frame.image_bgr, BGR // 16)


def test_folders_and_training_are_scaled_by_their_first_files(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": of_bits(12), "b": of_bits(12, GREY // 16)})
    for read in (
        [frame.image_bgr for frame in open_frames(tmp_path)],
        [sample.image_bgr for sample in PairedFolder(tmp_path / "images", tmp_path / "labels", CLASSES)],
        [sample.image_bgr for sample in UnlabelledImages(tmp_path / "images")],
    ):
        np.testing.assert_array_equal(read[0], BGR)
        np.testing.assert_array_equal(read[1], BGR // 16)
    reverse = PairedFolder(tmp_path / "images", tmp_path / "labels", CLASSES)
    np.testing.assert_array_equal(reverse[1].image_bgr, BGR // 16)  # whichever is read first
