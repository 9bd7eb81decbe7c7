# SPDX-License-Identifier: Apache-2.0
"""A simulated clock that is negative, jumps or stands still: the node goes on and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

from fault_harness import OK, WARN, FaultyNode, faulty_node, picture
from rosgraph_msgs.msg import Clock

pytestmark = [
    pytest.mark.ros,
    pytest.mark.slow,
    pytest.mark.xdist_group("faulty_clock"),
]


@pytest.fixture(scope="module")
def node(tiny_bundle: Path) -> Iterator[FaultyNode]:
    with faulty_node(tiny_bundle, "clock_faults", use_sim_time=True) as under_test:
        yield under_test


@pytest.fixture(scope="module")
def set_clock(node: FaultyNode) -> Callable[[int], None]:
    publisher = node.client.node.create_publisher(Clock, "/clock", 10)

    def publish(seconds: int, nanoseconds: int = 0) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = seconds, nanoseconds
        publisher.publish(message)

    return publish


def run_at(node: FaultyNode, set_clock: Callable[..., None], seconds: int) -> None:
    """Let simulated time run from `seconds` on, with images of that time, until diagnostics are OK."""
    message = node.client.image(picture())
    for tick in range(400):
        set_clock(seconds + tick // 20, tick % 20 * 50_000_000)
        message.header.stamp.sec, message.header.stamp.nanosec = seconds + tick // 20, tick % 20 * 50_000_000
        try:
            node.expect(OK, "^running$", message, patience_s=0.1)
        except AssertionError:
            continue
        return
    raise AssertionError(f"not running at {seconds} s: {node.diagnostics()[-1:]}")


@pytest.mark.parametrize("seconds", [1000, 5000, 10])
def test_a_jump_of_the_clock_changes_nothing(node: FaultyNode, set_clock: Callable[..., None], seconds: int) -> None:
    run_at(node, set_clock, seconds)
    node.expect_masks()


def test_a_negative_clock_ends_nothing(node: FaultyNode, set_clock: Callable[..., None]) -> None:
    for seconds in (-5, -(2**31), 2**31 - 1, 0):
        set_clock(seconds)
        node.expect_masks()
    run_at(node, set_clock, 7000)


def test_a_clock_that_stands_still_is_a_warning(node: FaultyNode, set_clock: Callable[..., None]) -> None:
    run_at(node, set_clock, 8000)
    message = node.client.image(picture())
    message.header.stamp.sec = 8000
    node.expect(WARN, r"the node's clock has stood still for \d+ s: check use_sim_time and /clock", message)
    run_at(node, set_clock, 9000)
