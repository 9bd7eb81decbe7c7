# SPDX-License-Identifier: Apache-2.0
"""A hardness or region engine that hangs: the image level goes on, and diagnostics say so, with a deadline or without.

The engine is released by the test at the latest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

from fault_harness import IMAGE_LEVEL, SIZE_HW, WARN, FaultyNode, faulty_node
from faulty_node import HANGING, RELEASE, Fault
from lifecycle_msgs.msg import Transition
from ros_harness import wait_until

from nightlab_core.runtime import pipeline

pytestmark = [
    pytest.mark.ros,
    pytest.mark.slow,
    pytest.mark.xdist_group("faulty_engines"),
]
KINDS = [
    (Fault.HARDNESS_HANGS, "hard regions could not be found: the hardness network does not answer"),
    (Fault.REGION_HANGS, "regions could not be read: the region network does not answer"),
]


@pytest.fixture(scope="module")
def node(tiny_bundle: Path) -> Iterator[FaultyNode]:
    with faulty_node(tiny_bundle, "lower_path_faults") as under_test:
        yield under_test


@pytest.fixture(autouse=True)
def hanging() -> Iterator[None]:
    RELEASE.clear()
    yield
    RELEASE.set()


def hang(node: FaultyNode, fault: Fault) -> None:
    """Publish images with a fault until an engine hangs: with a deadline, regions may be left out."""
    wait_until(lambda: node.send(fault) and HANGING.wait(0.2), "an engine that hangs")


def expect_image_level(node: FaultyNode, size_hw: tuple[int, int] = SIZE_HW) -> None:
    """Publish an image of a size and wait for its mask, which is the image level's."""
    message = node.send(size_hw=size_hw)
    (mask,) = wait_until(lambda: node.masks_of(message), "the image level's mask")
    assert mask.shape == size_hw and (mask == IMAGE_LEVEL).all()
    # Diagnostics may come before the mask is counted.
    wait_until(lambda: node.diagnostics()[-1]["mode"] == "image level only", "that mode")


@pytest.mark.parametrize(("fault", "reason"), KINDS)
def test_without_a_deadline_a_lower_path_that_hangs_is_a_warning(
    node: FaultyNode, monkeypatch: pytest.MonkeyPatch, fault: Fault, reason: str
) -> None:
    monkeypatch.setattr(pipeline, "PATIENCE_S", 1.0)
    hang(node, fault)
    node.expect(WARN, rf"only the image level's mask, for \d+ s: {reason}", Fault.NONE)
    expect_image_level(node)
    RELEASE.set()
    node.expect_recovery()


@pytest.mark.parametrize("fault", [fault for fault, _ in KINDS])
def test_with_a_deadline_a_lower_path_that_hangs_is_a_warning(
    node: FaultyNode, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(pipeline, "PATIENCE_S", 1e6)
    assert node.client.set_parameter("deadline_ms", 500.0).successful
    try:
        hang(node, fault)
        late = r"only the image level's mask, for \d+ s: no hard region was read before the deadline"
        node.expect(WARN, late, Fault.NONE)
        expect_image_level(node)
    finally:
        RELEASE.set()
        assert node.client.set_parameter("deadline_ms", 0.0).successful
    node.expect_recovery()


@pytest.mark.parametrize("fault", [fault for fault, _ in KINDS])
def test_images_of_other_sizes_get_masks_while_a_lower_path_hangs(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(pipeline, "PATIENCE_S", 0.5)
    with faulty_node(tiny_bundle, f"other_sizes_{fault}") as node:
        hang(node, fault)
        node.expect(WARN, "network does not answer", Fault.NONE)
        for size_hw in ((64, 80), (80, 64), SIZE_HW):
            expect_image_level(node, size_hw)
        assert node.client.change_state(Transition.TRANSITION_DEACTIVATE)
        RELEASE.set()
