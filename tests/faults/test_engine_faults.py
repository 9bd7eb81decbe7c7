# SPDX-License-Identifier: Apache-2.0
"""Engines that fail, hang or answer nonsense: what is wrong is never published, the node says it, and recovers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

from fault_harness import ERROR, IMAGE_LEVEL, WARN, FaultyNode, faulty_node
from faulty_node import RELEASE, Fault
from ros_harness import wait_until

import nightlab_ros.node

pytestmark = [
    pytest.mark.ros,
    pytest.mark.slow,
    pytest.mark.xdist_group("faulty_engines"),
]


@pytest.fixture(scope="module")
def node(tiny_bundle: Path) -> Iterator[FaultyNode]:
    with faulty_node(tiny_bundle, "engine_faults") as under_test:
        yield under_test


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault.IMAGE_RAISES, "a frame failed: RuntimeError: the image engine failed"),
        (Fault.UNKNOWN_CLASS, r"the image network: received label 200, expected labels from 0 to 18, or 255"),
        (Fault.OTHER_SHAPE, r"the image network: received labels uint8 \(1, 32, 48\), expected uint8 \(1, 64, 96\)"),
        (Fault.FLOAT_CONFIDENCE, "the image network: received confidence float32"),
        (Fault.IMAGE_EXITS, "SystemExit"),
    ],
)
def test_without_the_image_level_there_are_no_masks(node: FaultyNode, fault: Fault, sentence: str) -> None:
    failed = int(node.diagnostics()[-1]["failed"])
    values = node.expect(ERROR, sentence, fault)
    assert int(values["failed"]) > failed
    message = node.send(fault)
    node.expect(ERROR, sentence, fault)
    assert not node.masks_of(message)
    node.expect_recovery()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault.HARDNESS_RAISES, "the hardness engine failed"),
        (Fault.HARDNESS_NAN, "the hardness network: received scores with nan"),
        (Fault.REGION_RAISES, "the region engine failed"),
        (Fault.REGION_UNKNOWN_CLASS, "the region network: received label 200"),
        (Fault.HARDNESS_EXITS, "hard regions could not be found: SystemExit: the hardness engine ended the thread"),
        (Fault.REGION_EXITS, "regions could not be read: SystemExit: the region engine ended the thread"),
    ],
)
def test_without_refinement_the_image_level_goes_on(node: FaultyNode, fault: Fault, sentence: str) -> None:
    node.expect(WARN, sentence, fault)
    message = node.send(fault)
    (mask,) = wait_until(lambda: node.masks_of(message), "the image level's mask")
    assert (mask == IMAGE_LEVEL).all()
    node.expect_recovery()


def test_an_engine_that_hands_on_sigint_ends_the_process(node: FaultyNode) -> None:
    received = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: received.set())
    try:
        node.send(Fault.HARDNESS_INTERRUPTED)
        wait_until(received.is_set, "SIGINT in the main thread")
    finally:
        signal.signal(signal.SIGINT, before)
    node.expect_recovery()


@pytest.fixture
def hanging() -> Iterator[Fault]:
    """A fault that ends with the test at the latest."""
    RELEASE.clear()
    yield Fault.HANGS
    RELEASE.set()


def in_progress(node: FaultyNode) -> bool:
    """Return True if the last diagnostics say that a frame is in progress."""
    return "frame_in_progress_s" in node.diagnostics()[-1]


def test_an_engine_that_hangs_blocks_neither_diagnostics_nor_services(node: FaultyNode, hanging: Fault) -> None:
    node.send(hanging)
    assert node.client.set_parameter("max_regions", 3).successful
    node.expect(WARN, r"images arrive, but no mask came out for \d+ s; the frame in progress was begun", Fault.NONE)
    assert node.client.set_parameter("max_regions", 10).successful
    assert in_progress(node)
    RELEASE.set()
    node.expect_recovery()


def test_deactivation_does_not_wait_for_an_engine_that_hangs(tiny_bundle: Path, hanging: Fault) -> None:
    with (
        mock.patch.object(nightlab_ros.node, "STOP_TIMEOUT_S", 0.2),
        faulty_node(tiny_bundle, "engine_hangs") as node,
    ):
        node.send(hanging)
        wait_until(lambda: in_progress(node), "the frame in progress")
        assert not node.client.change_state(4)  # deactivate
        assert node.node.waits.is_hanging
        RELEASE.set()


def test_masks_and_confidence_always_come_together(node: FaultyNode) -> None:
    for fault in (*Fault, Fault.NONE):
        if fault != Fault.HARDNESS_INTERRUPTED and not fault.name.endswith(("HANGS", "SLOW")):
            node.send(fault)
    node.expect_recovery()
    stamps = {
        topic: {(m.header.stamp.sec, m.header.stamp.nanosec) for m in list(node.client.messages[f"nightlab/{topic}"])}
        for topic in ("mask", "confidence")
    }
    newest = max(stamps["mask"])
    assert stamps["mask"] - {newest} == stamps["confidence"] - {newest}
    assert all(np.isin(np.frombuffer(m.data, np.uint8), range(19)).all() for m in node.client.messages["nightlab/mask"])
