# SPDX-License-Identifier: Apache-2.0
"""A node with faulty engines in this process, spun by a thread of its own, and a camera and a client over real DDS."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from faulty_node import Fault, patched
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from ros_harness import ENVIRONMENT, Client, parameter_arguments, pixels_of, wait_until
from sensor_msgs.msg import Image

OK, WARN, ERROR = "0", "1", "2"
SIZE_HW = (48, 64)
#: Label of an image without a fault where it is not refined, and where it is.
IMAGE_LEVEL, REFINED = 2, 16


def picture(fault: int = Fault.NONE, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """An image that asks the engines for a fault; its labels are IMAGE_LEVEL and, in regions, REFINED."""
    return np.full((*size_hw, 3), (fault, 14 * IMAGE_LEVEL, 200), np.uint8)


class FaultyNode:
    """An active node under test, with a camera that publishes what a test wants."""

    def __init__(self, node: Any, namespace: str) -> None:
        self.node = node
        self.client = Client(namespace)
        self.client.listen(Image, "nightlab/mask")
        self.client.listen(Image, "nightlab/confidence")
        self.client.listen(DiagnosticArray, "/diagnostics")
        self._cameras: dict[type, Any] = {}
        self.published = 0  #: images so far

    def publish(self, message: Any) -> Any:
        """Publish a message and return it."""
        kind = type(message)
        if kind not in self._cameras:
            topic = "image" if kind is Image else "image/compressed"
            self._cameras[kind] = self.client.node.create_publisher(kind, topic, 10)
        self._cameras[kind].publish(message)
        self.published += 1
        return message

    def send(self, fault: int = Fault.NONE, size_hw: tuple[int, int] = SIZE_HW) -> Any:
        """Publish an image that asks the engines for a fault, and return the message."""
        pixels = picture(fault, size_hw)
        if self.node.settings.transport == "raw":
            return self.publish(self.client.image(pixels))
        return self.publish(self.client.compressed(cv2.imencode(".png", pixels)[1].tobytes(), "png"))

    def masks_of(self, message: Any) -> list[np.ndarray]:
        """The masks that have come for a message, uint8 (H, W)."""
        masks = list(self.client.messages["nightlab/mask"])
        return [pixels_of(m) for m in masks if m.header.stamp == message.header.stamp]

    def expect_masks(self) -> np.ndarray:
        """Publish good images until a mask comes that is right, and return it."""

        sent: list[Any] = []

        def answered() -> list[np.ndarray]:
            sent.append(self.send())
            with contextlib.suppress(AssertionError):
                return wait_until(lambda: [mask for each in sent for mask in self.masks_of(each)], "a mask", 0.3)
            return []

        mask = wait_until(answered, "a mask of a good image", 60.0)[0]
        assert set(np.unique(mask)) == {IMAGE_LEVEL, REFINED}
        return mask

    def expect(self, level: str, sentence: str, message: Any = None, patience_s: float = 60.0) -> dict[str, str]:
        """Publish `message`, or images with that fault, until diagnostics have the level and match the sentence."""
        seen: list[str] = []

        def reported() -> dict[str, str] | None:
            self.client.messages["/diagnostics"].clear()
            if isinstance(message, int):
                self.send(message)
            elif message is not None:
                message.header.stamp.nanosec += 1
                self.publish(message)
            time.sleep(0.05)
            for values in self.diagnostics():
                seen.append(f"{values['level']} {values['message']}")
                if values["level"] == level and re.search(sentence, values["message"]):
                    return values
            return None

        try:
            return wait_until(reported, "diagnostics", patience_s)
        except AssertionError:
            raise AssertionError(f"no {level} {sentence!r}; the last ones: {seen[-3:]}") from None

    def expect_recovery(self) -> None:
        """Publish good images until masks are right and diagnostics are OK."""
        self.expect_masks()
        self.expect(OK, "^running$", Fault.NONE)

    def diagnostics(self) -> list[dict[str, str]]:
        """The values of all diagnostics since they were last cleared, with "level" and "message"."""
        found = []
        for array in list(self.client.messages["/diagnostics"]):
            for status in array.status:
                values = {pair.key: pair.value for pair in status.values}
                found.append({**values, "level": str(status.level[0]), "message": status.message})
        return found


@contextlib.contextmanager
def faulty_node(bundle: Path, namespace: str, **parameters: Any) -> Iterator[FaultyNode]:
    """Yield an active node with faulty engines, whose diagnostics come ten times a second."""
    import nightlab_ros.monitoring.diagnostics
    from nightlab_ros.node import NightLabNode

    os.environ.update(ENVIRONMENT)
    context = Context()
    arguments = ["--ros-args", "-r", f"__ns:=/{namespace}", *parameter_arguments({"bundle": str(bundle), **parameters})]
    rclpy.init(args=arguments, context=context)
    with patched(), mock.patch.object(nightlab_ros.monitoring.diagnostics, "PERIOD_S", 0.1):
        node = NightLabNode(context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=_spin, args=(executor,))
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        thread.start()
        under_test = FaultyNode(node, namespace)
        try:
            under_test.expect_masks()
            under_test.client.messages["/diagnostics"].clear()
            wait_until(under_test.diagnostics, "diagnostics")
            yield under_test
        finally:
            under_test.client.close()
            executor.shutdown()
            thread.join()
            node.close()
            node.destroy_node()
            rclpy.shutdown(context=context)


def _spin(executor: SingleThreadedExecutor) -> None:
    with contextlib.suppress(ExternalShutdownException):
        executor.spin()
