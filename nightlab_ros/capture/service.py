# SPDX-License-Identifier: Apache-2.0
"""The service `~/capture`, and captures that the node makes by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rclpy.node import Node

from nightlab_core.runtime.latest import LatestWorker
from nightlab_ros.camera import Camera, SegmentedFrame
from nightlab_ros.capture.store import CaptureError, CaptureStore, capture_files
from nightlab_ros.monitoring.health import HealthReport
from nightlab_ros.parameters import NodeSettings
from nightlab_ros.topics import CAPTURE_SERVICE


class CaptureService:
    """Capture the last frame of each camera when the service is called, and frames that cameras ask for."""

    def __init__(
        self,
        node: Node,
        settings: Callable[[], NodeSettings],
        cameras: Callable[[], Sequence[Camera]],
        reports: Callable[[], Mapping[str, HealthReport]],
    ) -> None:
        """Offer the service. The three functions return the node's current settings, cameras and reports."""
        self._node, self._settings, self._cameras, self._reports = node, settings, cameras, reports
        self._worker: LatestWorker[tuple[Camera, SegmentedFrame]] = LatestWorker(
            "capture", lambda item: self._log_capture(*item), self._failed
        )
        self._service: Any = None
        try:
            from std_srvs.srv import Trigger
        except ImportError:
            node.get_logger().warning(
                f"std_srvs is not installed: the service {CAPTURE_SERVICE} is not offered. "
                "Install it with ROS, as ros-$ROS_DISTRO-std-srvs"
            )
        else:
            self._service = node.create_service(Trigger, CAPTURE_SERVICE, self.on_request)

    def close(self, timeout_s: float) -> None:
        """End the service and its thread. Raises TimeoutError if a capture takes longer to write."""
        if self._service is not None:
            self._node.destroy_service(self._service)
        self._worker.stop(timeout_s)

    def submit(self, camera: Camera, frame: SegmentedFrame) -> None:
        """Capture a frame on the service's thread. If several wait, the newest of each camera is captured."""
        self._worker.submit((camera, frame), camera.name)

    def on_request(self, request: Any, response: Any) -> Any:
        """Answer a std_srvs/Trigger: `message` names the captures, or says why there are none."""
        frames = [(camera, camera.last_frame) for camera in self._cameras()]
        try:
            paths = [self._capture(camera, frame) for camera, frame in frames if frame is not None]
        except CaptureError as error:
            response.success, response.message = False, str(error)
        else:
            response.success = bool(paths)
            response.message = ", ".join(map(str, paths)) or "no frame has been published yet: activate the node first"
        return response

    def _capture(self, camera: Camera, frame: SegmentedFrame) -> Path:
        settings, header = self._settings(), frame.image.message.header
        origin = {
            "camera": camera.name,
            "frame_id": header.frame_id,
            "stamp": f"{header.stamp.sec}.{header.stamp.nanosec:09}",
            "settings": settings.model_dump(),
        }
        report = self._reports()[camera.name]
        store = CaptureStore(settings.capture_dir, settings.capture_max_mb)
        return store.save(camera.name, capture_files(frame.frame_bgr, frame.result, origin, report))

    def _log_capture(self, camera: Camera, frame: SegmentedFrame) -> None:
        path = self._capture(camera, frame)
        self._node.get_logger().info(f"the confidence is low: captured {path}")

    def _failed(self, error: BaseException) -> None:
        self._node.get_logger().error(f"no capture: {error}", throttle_duration_sec=60.0)
