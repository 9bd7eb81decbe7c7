# SPDX-License-Identifier: Apache-2.0
"""Publishers of the node. Each message has the stamp and frame_id of the image that it was made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Float64, Header

from nightlab_core.labels import ClassSet, overlay
from nightlab_core.runtime.latest import LatestWorker
from nightlab_core.runtime.pipeline import Result
from nightlab_ros import topics
from nightlab_ros.publishing.messages import image_message
from nightlab_ros.topics import NodeTopic


class _Overlay(NamedTuple):
    """An overlay to draw: frame uint8 (H, W, 3) BGR, labels uint8 (H, W), opacity 0 to 1, and the image's header."""

    frame_bgr: np.ndarray
    labels: np.ndarray
    opacity: float
    header: Header


class Publishers:
    """A camera's lifecycle publishers, silent until the node is active."""

    def __init__(
        self, node: LifecycleNode, prefix: str, classes: ClassSet, on_stages: Callable[[Mapping[str, float]], None]
    ) -> None:
        """Create the publishers. `classes` is the masks' class set; `on_stages` gets the milliseconds of an overlay.

        `prefix` stands between the node's name and a topic's: "" or, of a named camera, for example "front/".
        """
        self._node, self._prefix, self._classes, self._on_stages = node, prefix, classes, on_stages
        self._publishers: list[Any] = []
        self._mask = self._create(topics.MASK)
        self._confidence = self._create(topics.CONFIDENCE)
        self._mask_info = self._create(topics.MASK_INFO)
        self._overlay = self._create(topics.OVERLAY)
        self._image_level = self._create(topics.IMAGE_LEVEL_MASK)
        self._stages = {stage: self._create(topic) for stage, topic in topics.STAGE_TOPICS.items()}
        self._vision_msgs = _vision_msgs()
        if self._vision_msgs is None:
            node.get_logger().warning(
                "vision_msgs is not installed: ~/regions and ~/label_info are not published. "
                "Install it with ROS, as ros-$ROS_DISTRO-vision-msgs",
                once=True,
            )
        else:
            self._regions = self._create(topics.REGIONS)
            self._label_info = self._create(topics.LABEL_INFO)
        self._overlay_worker: LatestWorker[_Overlay] | None = None

    def start(self, threshold: float) -> None:
        """Start the overlay's thread and publish the label info; call this when the publishers are active."""
        self._overlay_worker = LatestWorker("overlay", self._draw_overlay, self._overlay_failed)
        self.publish_label_info(threshold)

    def publish_label_info(self, threshold: float) -> None:
        """Publish the class names and the confidence below which pixels are unlabelled, 0 to 1."""
        if self._vision_msgs is not None:
            stamp = self._node.get_clock().now().to_msg()
            self._label_info.publish(label_info(self._vision_msgs, self._classes, stamp, threshold))

    def stop(self, timeout_s: float) -> None:
        """Stop the overlay's thread. Raises TimeoutError if it takes longer."""
        if self._overlay_worker is not None:
            worker, self._overlay_worker = self._overlay_worker, None
            worker.stop(timeout_s)

    def destroy(self) -> None:
        """Free every publisher."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def publish_result(self, result: Result, header: Header) -> None:
        """Publish the mask first, because others wait for it. The rest is made only while someone subscribes."""
        self._mask.publish(image_message(result.labels, "mono8", header))
        if _is_watched(self._confidence):
            self._confidence.publish(image_message(result.confidence, "mono8", header))
        if self._vision_msgs is not None and _is_watched(self._regions):
            self._regions.publish(detections(self._vision_msgs, result, header))
        if _is_watched(self._image_level):
            self._image_level.publish(image_message(result.image_labels, "mono8", header))

    def publish_camera_info(self, info: CameraInfo, labels: np.ndarray, header: Header) -> None:
        """Publish a calibration with a mask's header. One of another size than the mask is refused, and logged."""
        if not _is_watched(self._mask_info):
            return
        if (info.height, info.width) != labels.shape:
            self._node.get_logger().warning(
                f"~/{self._prefix}camera_info is not published: received a calibration for {info.width}x{info.height}, "
                f"but images of {labels.shape[1]}x{labels.shape[0]}; give both the same size",
                throttle_duration_sec=60.0,
            )
            return
        info.header = header
        self._mask_info.publish(info)

    def publish_overlay(self, frame_bgr: np.ndarray, labels: np.ndarray, opacity: float, header: Header) -> None:
        """Draw and publish the overlay on its own thread, if there is a subscription. The newest one waits there."""
        if self._overlay_worker is not None and _is_watched(self._overlay):
            self._overlay_worker.submit(_Overlay(frame_bgr, labels, opacity, header))

    def publish_stages(self, stages_ms: Mapping[str, float]) -> None:
        """Publish the milliseconds of each stage that ran."""
        for stage, milliseconds in stages_ms.items():
            if _is_watched(self._stages[stage]):
                self._stages[stage].publish(Float64(data=float(milliseconds)))

    def _create(self, topic: NodeTopic) -> Any:
        publisher = self._node.create_lifecycle_publisher(
            message_class(topic),
            topic.name.replace("~/", f"~/{self._prefix}"),
            qos_profile(topic),
            qos_overriding_options=qos_overrides(),
        )
        self._publishers.append(publisher)
        return publisher

    def _draw_overlay(self, item: _Overlay) -> None:
        start_s = time.perf_counter()
        drawn = overlay(item.frame_bgr, item.labels, self._classes, item.opacity)
        self._overlay.publish(image_message(drawn, "bgr8", item.header))
        stages_ms = {"overlay": 1e3 * (time.perf_counter() - start_s)}
        self._on_stages(stages_ms)
        self.publish_stages(stages_ms)

    def _overlay_failed(self, error: BaseException) -> None:
        self._node.get_logger().error(f"no overlay for this image: {error!r}", throttle_duration_sec=5.0)


def _is_watched(publisher: Any) -> bool:
    return publisher.get_subscription_count() > 0


def message_class(topic: NodeTopic) -> type:
    """Return the class of a topic's messages. Raises ImportError if its package is not installed."""
    module, _, name = topic.message_type.replace("/", ".").rpartition(".")
    return getattr(import_module(module), name)


def qos_profile(topic: NodeTopic) -> QoSProfile:
    """Return a topic's quality of service."""
    reliable, latched = topic.reliability == "reliable", topic.latched
    return QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def qos_overrides() -> QoSOverridingOptions:
    """Return the option that takes parameters `qos_overrides.TOPIC.publisher.POLICY`: reliability, depth, history."""
    return QoSOverridingOptions.with_default_policies()


def detections(vision_msgs: Any, result: Result, header: Header) -> Any:
    """Return the hard regions as vision_msgs/Detection2DArray, with the class id "refined" or "hard"."""
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


def label_info(vision_msgs: Any, classes: ClassSet, stamp: Any, threshold: float) -> Any:
    """Return class names and confidence threshold as vision_msgs/LabelInfo; 255, unlabelled, is no class."""
    info = vision_msgs.LabelInfo(threshold=float(threshold))
    info.header.stamp = stamp
    info.class_map = [vision_msgs.VisionClass(class_id=i, class_name=name) for i, name in enumerate(classes.names)]
    return info


def _vision_msgs() -> ModuleType | None:
    """Return the module vision_msgs.msg, which comes with ROS on a vehicle but not from pip, or None."""
    try:
        import vision_msgs.msg
    except ImportError:
        return None
    return vision_msgs.msg
