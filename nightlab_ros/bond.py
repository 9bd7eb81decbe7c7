# SPDX-License-Identifier: Apache-2.0
"""Bond with Nav2's lifecycle manager, which takes a node without heartbeats for dead.

The manager listens on the topic `bond` for bond/msg/Status with the node's name as id. The protocol is bondcpp's: the
node sends `active` true while it is active, and false once when it is not any more.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from nightlab_ros.publishing.publishers import qos_overrides

#: Seconds between two heartbeats, and those after which the other side may take the node for dead, as Nav2's own nodes.
PERIOD_S, TIMEOUT_S = 0.1, 4.0
TOPIC, DEPTH = "bond", 5


class Bond:
    """Call `publish(True)` every `period_s` from `start` to `stop`, on a thread of its own, then `publish(False)`."""

    def __init__(self, publish: Callable[[bool], None], period_s: float = PERIOD_S) -> None:
        self._publish, self._period_s = publish, period_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the heartbeats."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="bond", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeats, and tell it. Harmless if there are none."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._publish(False)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._publish(True)
            self._stop.wait(self._period_s)


def create_bond(node: Node) -> Bond | None:
    """Return the bond of a node, or None if the ROS package bond is not installed."""
    try:
        from bond.msg import Status
    except ImportError:
        node.get_logger().debug("bond is not installed: set bond_timeout to 0.0 in a lifecycle manager of Nav2")
        return None
    publisher = node.create_publisher(Status, TOPIC, DEPTH, qos_overriding_options=qos_overrides())
    instance = str(uuid.uuid4())

    def publish(active: bool) -> None:
        stamp = node.get_clock().now().to_msg()
        publisher.publish(status_message(Status, stamp, node.get_name(), instance, active))

    return Bond(publish)


def status_message(status: type, stamp: Any, node_name: str, instance: str, active: bool) -> Any:
    """Return a bond/msg/Status; `instance` tells both ends of a bond apart."""
    message = status(
        id=node_name,
        instance_id=instance,
        active=active,
        heartbeat_timeout=TIMEOUT_S,
        heartbeat_period=PERIOD_S,
    )
    message.header.stamp = stamp
    return message
