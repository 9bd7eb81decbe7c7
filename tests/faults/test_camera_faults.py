# SPDX-License-Identifier: Apache-2.0
"""Cameras that send damage, absurd sizes, wrong stamps, floods, or nothing: no invented mask, no image uncounted."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

from fault_harness import ERROR, WARN, FaultyNode, faulty_node, picture
from faulty_node import Fault
from ros_harness import Client, wait_until
from sensor_msgs.msg import Image

pytestmark = [
    pytest.mark.ros,
    pytest.mark.slow,
    pytest.mark.xdist_group("faulty_cameras"),
]


@pytest.fixture(scope="module")
def node(tiny_bundle: Path) -> Iterator[FaultyNode]:
    with faulty_node(tiny_bundle, "camera_faults") as under_test:
        yield under_test


@pytest.fixture(scope="module")
def compressed(tiny_bundle: Path) -> Iterator[FaultyNode]:
    with faulty_node(tiny_bundle, "compressed_faults", transport="compressed") as under_test:
        yield under_test


def test_every_image_of_a_flood_is_counted(node: FaultyNode) -> None:
    def counted() -> int:
        node.client.messages["/diagnostics"].clear()
        wait_until(node.diagnostics, "diagnostics")
        return sum(int(node.diagnostics()[-1][name]) for name in ("processed", "failed", "dropped"))

    node.expect_masks()
    counted()  # may have been made before the last mask was counted
    missed = node.published - counted()  # images from before the subscription was matched
    for _ in range(600):
        node.send()
    node.expect_masks()  # only a later image shows that the last ones of the flood are missing
    wait_until(lambda: node.published - counted() == missed, "every image in the counts")


@pytest.mark.parametrize(("height", "width"), [(1, 100_000), (20_000, 16)])
def test_thin_pictures_are_refused(node: FaultyNode, height: int, width: int) -> None:
    message = node.client.image(np.zeros((height, width, 3), np.uint8))
    node.expect(ERROR, rf"received an image of {width}x{height} pixels; expected sides of at most 64 to 1", message)
    assert not node.masks_of(message)
    node.expect_recovery()


def test_data_that_does_not_fit_its_header_is_refused(node: FaultyNode) -> None:
    message = node.client.image(picture())
    message.height *= 2
    node.expect(ERROR, "received 9216 bytes for 64x96 bgr8 with step 192; expected 18432", message)
    node.expect_recovery()


def test_an_encoding_of_any_length_is_refused_in_a_short_sentence(node: FaultyNode) -> None:
    message = node.client.image(picture())
    message.encoding = "x" * 100_000
    values = node.expect(ERROR, "a frame failed: received encoding 'xxx.* ... .*, expected|expected one of", message)
    assert len(values["message"]) < 1500 and max(map(len, values.values())) < 1500
    node.expect_recovery()


@pytest.mark.parametrize(
    ("seconds", "sentence"),
    [(-1_000_000_000, r"images are stamped \d+ hours in the past"), (3600, "images are stamped in the future")],
)
def test_wrong_stamps_are_a_warning(node: FaultyNode, seconds: int, sentence: str) -> None:
    message = node.client.image(picture())
    message.header.stamp.sec += seconds
    node.expect(WARN, sentence, message)
    node.expect_recovery()


def test_two_publishers_are_named(node: FaultyNode) -> None:
    second = Client("camera_faults_two")
    try:
        publisher = second.node.create_publisher(Image, "/camera_faults/image", 10)
        publisher.publish(second.image(picture()))
        node.expect(WARN, r"client and .*client publish the same camera topic, and their images mix", Fault.NONE)
    finally:
        second.close()
    node.expect_recovery()


def test_silence_is_a_warning_and_ends_with_the_next_image(node: FaultyNode) -> None:
    node.expect(WARN, r"no images for \d+\.\d s")
    node.expect_recovery()


def test_sizes_that_alternate_are_a_warning_and_every_size_gets_its_mask(tiny_bundle: Path) -> None:
    sizes_hw = [(48, 64 + 16 * step) for step in range(6)]  # more than the node keeps prepared
    with faulty_node(tiny_bundle, "alternating_sizes") as node:
        for size_hw in sizes_hw:
            message = node.send(size_hw=size_hw)
            (mask,) = wait_until(lambda message=message: node.masks_of(message), "the mask")
            assert mask.shape == size_hw
        values = node.expect(WARN, r"images of \d sizes alternate, and the engines were prepared \d times", Fault.NONE)
        assert values["image_sizes"] == str(len(sizes_hw))


def jpeg() -> bytes:
    """A JPEG with enough detail that damage lies inside its data."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def zeroed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[: middle - 200] + bytes(400) + data[middle + 200 :]


def of_double_height(data: bytes) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    height = struct.unpack(">H", data[place : place + 2])[0]
    return data[:place] + struct.pack(">H", 2 * height) + data[place + 2 :]


def png_bomb(side: int) -> bytes:
    """A small PNG file of side x side black pixels of one bit."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed, row = zlib.compressobj(9), bytes(side // 8 + 2)
    rows = b"".join([*(packed.compress(row) for _ in range(side)), packed.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut to 10 % with an end marker", jpeg()[: len(jpeg()) // 10] + b"\xff\xd9"),
        ("cut without an end marker", jpeg()[: len(jpeg()) // 2]),
        ("zeroed in the middle", zeroed(jpeg())),
        ("with twice its height", of_double_height(jpeg())),
        ("no image", b"no image"),
        ("empty", b""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_give_no_mask(compressed: FaultyNode, name: str, data: bytes) -> None:
    message = compressed.client.compressed(data, "jpeg")
    compressed.expect(ERROR, "a frame failed: .*(received|damaged|cut short|expected)", message)
    assert not compressed.masks_of(message)
    compressed.expect_recovery()


def test_a_small_file_of_many_pixels_is_refused_by_its_header(compressed: FaultyNode) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = compressed.client.compressed(png_bomb(20_000), "png")
    compressed.expect(ERROR, "received an image of 20000x20000 pixels; expected at most 67108864 pixels", message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000
    compressed.expect_recovery()
