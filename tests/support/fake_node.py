# SPDX-License-Identifier: Apache-2.0
"""A node in this process on fake engines, fed without a middleware: images in by hand, masks out in a list."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engines import FakeEngine, known_boxes, plain_maps
from rclpy.lifecycle import TransitionCallbackReturn
from ros_harness import node_in_process, wait_until
from std_msgs.msg import Header

from nightlab_core.runtime.bundle import load_bundle
from nightlab_core.runtime.engines.open import Engines
from nightlab_ros import node as node_module
from nightlab_ros.camera import Camera
from nightlab_ros.monitoring.health import HealthReport
from nightlab_ros.publishing.messages import image_message


class FakeNode:
    """A configured and active node, its fake engines, and the masks that it published as (camera, stamp, shape)."""

    def __init__(self, node: Any, engines: list[Engines]) -> None:
        self.node, self.engines = node, engines
        self.masks: list[tuple[str, int, tuple[int, ...]]] = []

    def start(self, record: bool = True) -> None:
        """Configure and activate. `record` puts the list of masks in place of their publishers."""
        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        for camera in self.node._cameras if record else ():
            self.record(camera)
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def record(self, camera: Camera) -> None:
        def publish_result(result: Any, header: Header, size_hw: tuple[int, int]) -> None:
            self.masks.append((camera.name, header.stamp.sec, result.labels.shape))

        camera._outputs.publish_result = publish_result  # type: ignore[method-assign]

    def camera(self, name: str = "") -> Camera:
        return next(camera for camera in self.node._cameras if camera.name == name)

    def receive(
        self, camera: str = "", stamp: int = 1, size_hw: tuple[int, int] = (48, 64), broken: bool = False
    ) -> None:
        """Let an image arrive, as the subscription's callback does."""
        header = Header(frame_id=camera)
        header.stamp.sec = stamp
        message = image_message(np.zeros((*size_hw, 3), np.uint8), "bgr8", header)
        if broken:
            message.data = message.data[:-1]
        stream = self.camera(camera)._stream
        assert stream is not None
        stream._on_image(message, {"publisher_gid": [1]})

    def report(self, camera: str = "") -> HealthReport:
        return self.node._reports()[camera]

    def counts(self, camera: str = "") -> dict[str, int]:
        values = self.report(camera).values
        return {name: int(values[name]) for name in ("received", "processed", "failed", "dropped")}

    def wait_for_counts(self, camera: str = "", **expected: int) -> None:
        wait_until(lambda: expected.items() <= self.counts(camera).items(), f"{camera} {expected}", patience_s=20.0)


@contextlib.contextmanager
def fake_node(
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    answer: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None,
    **parameters: Any,
) -> Iterator[FakeNode]:
    """Yield a node with these parameters on fake engines. `answer` is the image engine's."""
    opened: list[Engines] = []

    def open_engines(*_: Any, **__: Any) -> Engines:
        image = FakeEngine("image", answer or plain_maps(3, 200))
        hardness, region = FakeEngine("hardness", known_boxes()), FakeEngine("region", plain_maps(5, 250))
        opened.append(Engines(load_bundle(bundle), image, hardness, region))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(node_module.Engines, "open", open_engines)
    # Nodes of other tests in this process are known to the middleware for a while.
    monkeypatch.setattr(node_module.NightLabNode, "_count_namesakes", lambda self: 1)
    with node_in_process(bundle=str(bundle), **parameters) as node:
        yield FakeNode(node, opened)
