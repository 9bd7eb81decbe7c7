# SPDX-License-Identifier: Apache-2.0
"""Publish the node's reports on /diagnostics, from a thread that nothing else can block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from nightlab_ros import topics
from nightlab_ros.monitoring.health import HealthReport
from nightlab_ros.publishing.publishers import message_class, qos_overrides, qos_profile

#: Seconds between two messages, by a clock that runs on when simulated time stands still.
PERIOD_S = 1.0


class Diagnostics:
    """Publish reports once a second in every state of the node, also during a transition, until `close`."""

    def __init__(self, node: Node, collect: Callable[[], Mapping[str, HealthReport]]) -> None:
        """`collect` returns a report for each name below the node's: "" is the node itself, "front" a camera."""
        self._node, self._collect = node, collect
        topic = topics.DIAGNOSTICS
        self._publisher = node.create_publisher(
            message_class(topic), topic.name, qos_profile(topic), qos_overriding_options=qos_overrides()
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="diagnostics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and free the publisher."""
        self._stop.set()
        self._thread.join()
        self._node.destroy_publisher(self._publisher)

    def publish(self) -> None:
        """Publish the reports of this moment."""
        node_name, stamp = self._node.get_fully_qualified_name(), self._node.get_clock().now().to_msg()
        self._publisher.publish(diagnostics(self._collect(), node_name, stamp))

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                self.publish()
            except Exception as error:
                self._node.get_logger().error(f"no diagnostics: {error!r}", throttle_duration_sec=60.0)


def diagnostics(reports: Mapping[str, HealthReport], node_name: str, stamp: Any) -> DiagnosticArray:
    """Return reports as a message with one status each. The hardware id is the node's full name, then the camera's."""
    array = DiagnosticArray()
    array.header.stamp = stamp
    levels = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR)
    for name, report in reports.items():
        full_name = f"{node_name}/{name}" if name else node_name
        array.status.append(
            DiagnosticStatus(
                level=levels[report.level],
                name=f"{full_name}: segmentation",
                message=report.message,
                hardware_id=full_name,
                values=[KeyValue(key=key, value=value) for key, value in report.values.items()],
            )
        )
    return array
