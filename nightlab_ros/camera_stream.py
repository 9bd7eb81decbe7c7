# SPDX-License-Identifier: Apache-2.0
"""Subscription to a camera, which hands each image on and counts it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import rclpy
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from nightlab_ros.monitoring.health import Health
from nightlab_ros.monitoring.health_rules import mixed_publishers
from nightlab_ros.topics import COMPRESSED_IMAGE, IMAGE
from nightlab_ros.transport.profile import loss_advice
from nightlab_ros.transport.subscription import MatchedSubscription


@dataclass(frozen=True)
class CameraImage:
    """An image message, and when the node received it."""

    message: Any  #: sensor_msgs/Image or sensor_msgs/CompressedImage
    received_s: float  #: by `time.perf_counter`


class CameraStream:
    """Subscribe to a camera's images until `close`, and count in `health` the images received, lost and overwritten."""

    def __init__(
        self,
        node: Node,
        prefix: str,
        transport: Literal["raw", "compressed"],
        health: Health,
        submit: Callable[[CameraImage], bool],
    ) -> None:
        """Call `submit` for each image; it returns True if an image that waited is dropped.

        `prefix` stands before the topic's name: "" or, of a named camera, for example "front/".
        """
        self._node, self._health, self._submit = node, health, submit
        health.start_stream()
        compressed = transport == "compressed"
        self._loss_advice = ""
        self._subscription = MatchedSubscription(
            node,
            CompressedImage if compressed else Image,
            prefix + (COMPRESSED_IMAGE if compressed else IMAGE).name,
            self._on_image,
            self._on_lost,
            self._on_match,
        )

    def close(self) -> None:
        """Unsubscribe."""
        self._subscription.close()

    def _on_image(self, message: Any, info: Any) -> None:
        overwrote = self._submit(CameraImage(message, time.perf_counter()))
        # Not every distribution names the publisher; without the name, the numbers of several would be mixed up.
        known = "publisher_gid" in info or self._node.count_publishers(self._subscription.topic) == 1
        number = info.get("publication_sequence_number") if known else None
        self._health.record_received(str(info.get("publisher_gid")), number)
        if overwrote:
            self._health.record_overwritten()

    def _on_lost(self, number: int) -> None:
        self._health.record_lost(number)
        self._node.get_logger().warning(self._loss_advice, throttle_duration_sec=60.0)

    def _on_match(self, reliability: str, by_parameter: bool, publishers: Sequence[str]) -> None:
        middleware = rclpy.get_rmw_implementation_identifier()
        self._loss_advice = loss_advice(reliability, middleware, by_parameter=by_parameter)
        self._health.set_source(reliability, publishers, self._loss_advice)
        if len(publishers) > 1:
            self._node.get_logger().warning(mixed_publishers(publishers))


def clock_s(node: Node) -> float:
    """Return the time of the node's clock in seconds; it may be simulated."""
    return 1e-9 * node.get_clock().now().nanoseconds
