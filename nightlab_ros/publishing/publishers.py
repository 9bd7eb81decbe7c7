# SPDX-License-Identifier: Apache-2.0
"""Publishers of the node. Each message has the stamp and frame_id of the image that it was made from."""

from __future__ import annotations

import json
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
from std_msgs.msg import Float64, Header, String

from nightlab_core.labels import ClassSet, overlay
from nightlab_core.runtime.latest import LatestWorker
from nightlab_core.runtime.pipeline import Result
from nightlab_core.runtime.regions import resize_image, resize_labels
from nightlab_ros import topics
from nightlab_ros.publishing.camera_info import CalibrationError, fitted_camera_info
from nightlab_ros.publishing.messages import (
    detections,
    image_message,
    jpeg_message,
    label_info,
    png_message,
    region_records,
    runs_message,
)
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
        self,
        node: LifecycleNode,
        prefix: str,
        classes: ClassSet,
        autoware_ids: np.ndarray | None,
        on_stages: Callable[[Mapping[str, float]], None],
    ) -> None:
        """Create the publishers. `classes` is the masks' class set; `on_stages` gets the milliseconds of an overlay.

        `prefix` stands between the node's name and a topic's: "" or, of a named camera, for example "front/".
        `autoware_ids`, uint8 (256,), turns ids into those of Autoware; without it nothing is published for Autoware.
        """
        self._node, self._prefix, self._classes, self._on_stages = node, prefix, classes, on_stages
        self._publishers: list[Any] = []
        self._mask, self._mask_png = self._create(topics.MASK), self._create(topics.MASK_PNG)
        self._confidence = self._create(topics.CONFIDENCE)
        self._mask_info = self._create(topics.MASK_INFO)
        self._overlay, self._overlay_jpeg = self._create(topics.OVERLAY), self._create(topics.OVERLAY_JPEG)
        self._autoware_ids = autoware_ids
        if autoware_ids is not None:
            self._autoware_mask = self._create(topics.AUTOWARE_MASK)
        self._image_level = self._create(topics.IMAGE_LEVEL_MASK)
        self._region_outcomes = self._create(topics.REGION_OUTCOMES)
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

    def publish_result(self, result: Result, header: Header, size_hw: tuple[int, int]) -> None:
        """Publish maps of `size_hw`, (H, W), the mask first. A message is made only while someone subscribes to it."""
        labels = resize_labels(result.labels, size_hw)
        if _is_watched(self._mask):
            self._mask.publish(image_message(labels, "mono8", header))
        if _is_watched(self._confidence):
            self._confidence.publish(image_message(resize_image(result.confidence, size_hw), "mono8", header))
        if self._autoware_ids is not None and _is_watched(self._autoware_mask):
            self._autoware_mask.publish(runs_message(self._autoware_ids[labels], header))
        if self._vision_msgs is not None and _is_watched(self._regions):
            self._regions.publish(detections(self._vision_msgs, result, header))
        if _is_watched(self._image_level):
            self._image_level.publish(image_message(resize_labels(result.image_labels, size_hw), "mono8", header))
        if _is_watched(self._mask_png):
            self._mask_png.publish(png_message(labels, header))
        if _is_watched(self._region_outcomes):
            stamp_ns = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
            content = {"stamp_ns": stamp_ns, "regions": region_records(result)}
            self._region_outcomes.publish(String(data=json.dumps(content)))

    def publish_camera_info(
        self, info: CameraInfo, image_hw: tuple[int, int], size_hw: tuple[int, int], header: Header
    ) -> None:
        """Publish the calibration of `image_hw` for a mask of `size_hw`. One of other images is refused, and logged."""
        if not _is_watched(self._mask_info):
            return
        try:
            fitted = fitted_camera_info(info, image_hw, size_hw)
        except CalibrationError as error:
            self._node.get_logger().warning(
                f"~/{self._prefix}camera_info is not published: {error}", throttle_duration_sec=60.0
            )
            return
        fitted.header = header
        self._mask_info.publish(fitted)

    def publish_overlay(self, frame_bgr: np.ndarray, labels: np.ndarray, opacity: float, header: Header) -> None:
        """Draw and publish the overlay on its own thread, if there is a subscription. The newest one waits there."""
        watched = _is_watched(self._overlay) or _is_watched(self._overlay_jpeg)
        if self._overlay_worker is not None and watched:
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
        if _is_watched(self._overlay):
            self._overlay.publish(image_message(drawn, "bgr8", item.header))
        if _is_watched(self._overlay_jpeg):
            self._overlay_jpeg.publish(jpeg_message(drawn, item.header))
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
    """Return the option that takes parameters `qos_overrides.TOPIC...` for the policies reliability, depth, history."""
    return QoSOverridingOptions.with_default_policies()


def _vision_msgs() -> ModuleType | None:
    """Return the module vision_msgs.msg, which comes with ROS on a vehicle but not from pip, or None."""
    try:
        import vision_msgs.msg
    except ImportError:
        return None
    return vision_msgs.msg
