# SPDX-License-Identifier: Apache-2.0
"""Subscription to a camera, which hands each image on and counts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # its name in ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

from nightlab_ros.health import LOSS_ADVICE, Health
from nightlab_ros.topics import COMPRESSED_IMAGE, IMAGE

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


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
        health.reset_sequence()
        compressed = transport == "compressed"
        subscribe = partial(
            node.create_subscription,
            CompressedImage if compressed else Image,
            prefix + (COMPRESSED_IMAGE if compressed else IMAGE).name,
            image_callback(self._on_image),
            BEST_EFFORT,
        )
        try:
            self._subscription = subscribe(event_callbacks=SubscriptionEventCallbacks(message_lost=self._on_lost))
        except UnsupportedEventTypeError:
            node.get_logger().info("this middleware does not report lost images: 'lost' in /diagnostics stays 0")
            self._subscription = subscribe()

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def _on_image(self, message: Any, info: Any) -> None:
        overwrote = self._submit(CameraImage(message, time.perf_counter()))
        # Not every distribution names the publisher; without the name, the numbers of several would be mixed up.
        known = "publisher_gid" in info or self._node.count_publishers(self._subscription.topic_name) == 1
        number = info.get("publication_sequence_number") if known else None
        self._health.record_received(clock_s(self._node), str(info.get("publisher_gid")), number)
        if overwrote:
            self._health.record_overwritten()

    def _on_lost(self, event: Any) -> None:
        self._health.record_lost(clock_s(self._node), event.total_count_change)
        self._node.get_logger().warning(LOSS_ADVICE, throttle_duration_sec=60.0)


def image_callback(on_image: Callable[[Any, Any], None], subscription: type = Subscription) -> Callable[..., None]:
    """Return the callback to subscribe with, for `on_image(message, info)`.

    rclpy decides by the number of arguments whether to pass the message info. ROS 2 Humble never passes it; then
    `info` is empty.
    """
    if hasattr(subscription, "CallbackType"):
        return on_image
    return lambda message: on_image(message, {})


def clock_s(node: Node) -> float:
    """Return the time of the node's clock in seconds; it may be simulated."""
    return 1e-9 * node.get_clock().now().nanoseconds
