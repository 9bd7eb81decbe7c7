# SPDX-License-Identifier: Apache-2.0
"""The demo's ear: a ROS node that keeps every mask the node `nightlab` publishes, and when it came."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from nightlab_ros.demo.report import Mask

NODE = "/nightlab"
#: The node reports once a second.
REPORT_TIMEOUT_S = 5.0


class Monitor:
    """Listens on its own thread. Receipt is timed in the callback, before anything else is done with a message."""

    def __init__(self) -> None:
        #: by stamp in nanoseconds
        self.masks: dict[int, Mask] = {}
        self.image_level: dict[int, Mask] = {}
        #: the node's latest diagnostics, and how often they came
        self.diagnostics: dict[str, str] = {}
        self.reports = 0
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node("demo")
        # Deeper than the node's own depth of 1: a burst waits here rather than being lost while a mask is packed.
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        self._node.create_subscription(Image, f"{NODE}/mask", lambda m: self._keep(m, self.masks), qos)
        self._node.create_subscription(
            Image, f"{NODE}/debug/image_level_mask", lambda m: self._keep(m, self.image_level), qos
        )
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def has_answer(self, stamp_ns: int) -> bool:
        """True when both masks of the frame with this stamp are here."""
        return stamp_ns in self.masks and stamp_ns in self.image_level

    def forget(self) -> None:
        """Drop what came so far."""
        self.masks.clear()
        self.image_level.clear()

    def await_report(self) -> None:
        """Until the diagnostics count all that came so far: the second from now was made after this call, whenever the
        first was. A node that says nothing for `REPORT_TIMEOUT_S` is not waited for."""
        seen, end = self.reports, time.monotonic() + REPORT_TIMEOUT_S
        while self.reports < seen + 2 and time.monotonic() < end:
            time.sleep(0.02)

    def close(self) -> None:
        """Stop listening and free ROS."""
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def _keep(self, message: Any, into: dict[int, Mask]) -> None:
        received_ns = self._node.get_clock().now().nanoseconds
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        pixels = np.frombuffer(message.data, np.uint8)
        into[stamp_ns] = Mask.pack(
            pixels.reshape(message.height, message.step)[:, : message.width],
            message.encoding,
            message.header.frame_id,
            (received_ns - stamp_ns) / 1e6,
        )

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.hardware_id == NODE:
                self.diagnostics = {item.key: item.value for item in status.values}
                self.reports += 1
