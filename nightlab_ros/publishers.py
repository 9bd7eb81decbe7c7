# SPDX-License-Identifier: Apache-2.0
"""Everything that the node publishes, each with the stamp and frame_id of the image it was made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Float64

from nightlab_core.labels import ClassSet, overlay
from nightlab_core.runtime.latest import LatestWorker
from nightlab_core.runtime.pipeline import STAGES as PIPELINE_STAGES
from nightlab_core.runtime.pipeline import Result
from nightlab_ros.health import Report
from nightlab_ros.messages import image_message

#: The node's own stages beside the pipeline's; each has a topic ``~/debug/<stage>_ms``.
#: wait: from the callback until the worker took the image; convert: message to array; latency: from the callback until
#: all of the frame but its overlay was published; overlay: drawn on its own thread, after the mask.
STAGES = ("wait", "convert", *PIPELINE_STAGES, "latency", "overlay")

RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Publishers:
    """Lifecycle publishers: silent until the node is active."""

    def __init__(self, node: LifecycleNode, classes: ClassSet, painted: Callable[[dict[str, float]], None]) -> None:
        """``painted`` gets the milliseconds that an overlay took, as ``stages`` does."""
        self._node, self._classes, self._painted = node, classes, painted
        self._all: list[Any] = []
        self._mask = self._create(Image, "~/mask")
        self._confidence = self._create(Image, "~/confidence")
        self._overlay = self._create(Image, "~/overlay")
        self._image_level = self._create(Image, "~/debug/image_level_mask")
        self._stages = {stage: self._create(Float64, f"~/debug/{stage}_ms") for stage in STAGES}
        self._vision_msgs = _vision_msgs()
        if self._vision_msgs is None:
            node.get_logger().warning(
                "vision_msgs is not installed: ~/regions and ~/label_info are not published. "
                "Install it with ROS, as ros-$ROS_DISTRO-vision-msgs"
            )
        else:
            self._regions = self._create(self._vision_msgs.Detection2DArray, "~/regions")
            self._label_info = self._create(self._vision_msgs.LabelInfo, "~/label_info", LATCHED)
        self._painter: LatestWorker[tuple[np.ndarray, np.ndarray, float, Any]] | None = None

    def start(self) -> None:
        """Start the overlay's thread and latch the label info; call when the publishers are active."""
        self._painter = LatestWorker("overlay", self._paint, self._paint_failed)
        if self._vision_msgs is not None:
            stamp = self._node.get_clock().now().to_msg()
            self._label_info.publish(label_info(self._vision_msgs, self._classes, stamp))

    def stop(self) -> None:
        """Stop the overlay's thread."""
        if self._painter is not None:
            self._painter.stop()
            self._painter = None

    def destroy(self) -> None:
        """Stop, and free every publisher."""
        self.stop()
        for publisher in self._all:
            self._node.destroy_lifecycle_publisher(publisher)
        self._all.clear()

    def result(self, result: Result, header: Any) -> None:
        """Publish mask and confidence first, as others wait for them; then regions and the image level's own mask."""
        self._mask.publish(image_message(result.labels, "mono8", header))
        self._confidence.publish(image_message(result.confidence, "mono8", header))
        if self._vision_msgs is not None:
            self._regions.publish(detections(self._vision_msgs, result, header))
        if self._image_level.get_subscription_count() > 0:
            self._image_level.publish(image_message(result.image_labels, "mono8", header))

    def overlay(self, frame_bgr: np.ndarray, labels: np.ndarray, opacity: float, header: Any) -> None:
        """Draw and publish the overlay on its own thread, if someone listens; while that is busy, the newest waits."""
        if self._painter is not None and self._overlay.get_subscription_count() > 0:
            self._painter.submit((frame_bgr, labels, opacity, header))

    def stages(self, stages_ms: Mapping[str, float]) -> None:
        """Publish the milliseconds of every stage that ran."""
        for stage, milliseconds in stages_ms.items():
            self._stages[stage].publish(Float64(data=float(milliseconds)))

    def _create(self, message_type: Any, topic: str, qos: QoSProfile = RELIABLE) -> Any:
        publisher = self._node.create_lifecycle_publisher(message_type, topic, qos)
        self._all.append(publisher)
        return publisher

    def _paint(self, item: tuple[np.ndarray, np.ndarray, float, Any]) -> None:
        frame_bgr, labels, opacity, header = item
        start = time.perf_counter()
        self._overlay.publish(image_message(overlay(frame_bgr, labels, self._classes, opacity), "bgr8", header))
        stages_ms = {"overlay": 1e3 * (time.perf_counter() - start)}
        self._painted(stages_ms)
        self.stages(stages_ms)

    def _paint_failed(self, error: Exception) -> None:
        self._node.get_logger().error(f"overlay failed: {error!r}", throttle_duration_sec=5.0)


def diagnostics(report: Report, name: str, stamp: Any) -> DiagnosticArray:
    """A report as diagnostic_msgs. The hardware id is the node's full name, as several cameras have a node each."""
    level = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR)[report.level]
    status = DiagnosticStatus(level=level, name=f"{name}: segmentation", message=report.message, hardware_id=name)
    status.values = [KeyValue(key=key, value=value) for key, value in report.values.items()]
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array


def detections(vision_msgs: Any, result: Result, header: Any) -> Any:
    """The hard regions as vision_msgs/Detection2DArray; the class id says whether the region was refined."""
    array = vision_msgs.Detection2DArray()
    array.header = header
    regions = zip(result.boxes_xyxy, result.scores, result.refined, strict=True)
    for index, (box, score, refined) in enumerate(regions):
        x0, y0, x1, y1 = (float(value) for value in box)
        detection = vision_msgs.Detection2D()
        detection.header = header
        detection.id = str(index)
        detection.bbox.center.position.x, detection.bbox.center.position.y = (x0 + x1) / 2, (y0 + y1) / 2
        detection.bbox.size_x, detection.bbox.size_y = x1 - x0, y1 - y0
        hypothesis = vision_msgs.ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = "refined" if refined else "hard"
        hypothesis.hypothesis.score = float(score)
        detection.results = [hypothesis]
        array.detections.append(detection)
    return array


def label_info(vision_msgs: Any, classes: ClassSet, stamp: Any) -> Any:
    """What the ids of the mask mean, as vision_msgs/LabelInfo. 255 is not among them: unlabelled is no class."""
    info = vision_msgs.LabelInfo()
    info.header.stamp = stamp
    info.class_map = [vision_msgs.VisionClass(class_id=i, class_name=name) for i, name in enumerate(classes.names)]
    return info


def _vision_msgs() -> ModuleType | None:
    """vision_msgs comes with ROS on a vehicle, but is not among the pip wheels."""
    try:
        import vision_msgs.msg
    except ImportError:
        return None
    return vision_msgs.msg
