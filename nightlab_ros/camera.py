# SPDX-License-Identifier: Apache-2.0
"""One camera of the node: its subscription, pipeline, publishers and statistics. Read `Camera.process` first."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CameraInfo

from nightlab_core.data.image_header import ImageError
from nightlab_core.data.images import message_to_bgr
from nightlab_core.data.pixel_depth import PixelDepth
from nightlab_core.labels import ClassSet
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.latest import LatestWorker
from nightlab_core.runtime.pipeline import Pipeline, Result
from nightlab_core.runtime.refinement import Outcome
from nightlab_ros.camera_stream import CameraImage, CameraStream, clock_s
from nightlab_ros.capture_trigger import CaptureTrigger
from nightlab_ros.monitoring.distinct_lines import DistinctLines
from nightlab_ros.monitoring.health import OK, Health, HealthReport
from nightlab_ros.monitoring.health_rules import LOADING_S
from nightlab_ros.parameters import NodeSettings
from nightlab_ros.publishing.publishers import Publishers, qos_overrides, qos_profile
from nightlab_ros.topics import CAMERA_INFO

#: A frame that has been in progress for so many seconds is named in the message of /diagnostics.
LONG_FRAME_S = 1.0
#: Masks that wait for a slow publisher at most; the oldest is dropped for a newer one.
PUBLISH_DEPTH = 3
#: Characters of the reason of a failure in /diagnostics and in the log.
MAX_REASON = 600


@dataclass(frozen=True)
class SegmentedFrame:
    """A frame that is ready to be published."""

    image: CameraImage
    frame_bgr: np.ndarray  #: uint8 (H, W, 3)
    result: Result
    stages_ms: dict[str, float]  #: of the stages that ran so far


class Camera:
    """Everything that belongs to one camera. Several share the engines and the inference thread."""

    def __init__(
        self,
        node: LifecycleNode,
        name: str,
        settings: NodeSettings,
        classes: ClassSet,
        autoware_ids: np.ndarray | None,
        on_capture: Callable[[Camera, SegmentedFrame], None],
    ) -> None:
        """Create the publishers. `name` is "" for the only camera of a node, whose topics have no prefix.

        `autoware_ids`, uint8 (256,), turns the ids of `classes` into Autoware's; None: nothing is published for it.
        `on_capture` receives frames that are to be captured because their confidence is low at night.
        """
        self.name = name
        self.last_frame: SegmentedFrame | None = None  #: the newest one that was published
        self._on_capture, self._capture_trigger = on_capture, CaptureTrigger()
        self._node, self._settings = node, settings
        self._prefix = f"{name}/" if name else ""
        self._health = Health(limits=settings.health_limits())
        self._depth = PixelDepth(settings.pixel_bits, node.get_logger().warning)
        self._outputs = Publishers(node, self._prefix, classes, autoware_ids, self._health.record_stages)
        self._pipeline: Pipeline | None = None
        self._stream: CameraStream | None = None
        self._info_subscription: Any = None
        self._info: CameraInfo | None = None  # the newest calibration
        self._publishing: LatestWorker[SegmentedFrame] | None = None
        self._ended_publishing: LatestWorker[SegmentedFrame] | None = None
        self._errors = DistinctLines(lambda line: node.get_logger().error(line))
        self._steps = DistinctLines(lambda line: node.get_logger().info(line))
        self._begun_s: float | None = None  # when the frame in progress was begun, by `time.monotonic`

    def process(self, image: CameraImage) -> None:
        """Segment an image and hand it to the publishing thread, without waiting. Runs on the inference thread."""
        self._begun_s = time.monotonic()
        try:
            frame = self._segment(image)
            if self._publishing is None or self._publishing.submit(frame):
                self._health.record_overwritten()
        except BaseException as error:  # also SystemExit, so that every image is counted
            self._on_error(error)
        finally:
            self._begun_s = None

    def open(self, engines: Engines) -> None:
        """Create the pipeline, run each network once, and prepare if the size of the images is known.

        Raises EngineError for an output that cannot be used, and the exceptions of the image engine.
        """
        pipeline = Pipeline(engines, self._settings.pipeline_settings(), tolerant=True)
        try:
            pipeline.check_outputs(self._settings.image_hw)
            if self._settings.image_hw is not None:
                self._prepare(pipeline, self._settings.image_hw)
        except BaseException:
            pipeline.close()
            raise
        self._pipeline = pipeline
        self.change(self._settings)  # they may have changed meanwhile

    def change(self, settings: NodeSettings) -> None:
        """Use other settings from the next frame on."""
        before, self._settings = self._settings, settings
        if self._publishing is not None and settings.confidence_threshold != before.confidence_threshold:
            self._outputs.publish_label_info(settings.confidence_threshold)
        self._health.limits = settings.health_limits()
        if self._pipeline is not None:
            self._pipeline.settings = settings.pipeline_settings()

    def start(self, inference: LatestWorker[Any]) -> None:
        """Subscribe; `inference` calls a function for the newest image. The node's publishers are active."""
        self._outputs.start(self._settings.confidence_threshold)
        self._publishing = LatestWorker(f"{self._prefix}publishing", self._publish, self._on_error, PUBLISH_DEPTH)

        def submit(image: CameraImage) -> bool:
            if self._pipeline is None:  # the engines are still being loaded: the image is dropped
                return True
            return inference.submit(partial(self.process, image), self.name)

        self._info_subscription = self._node.create_subscription(
            CameraInfo,
            self._prefix + CAMERA_INFO.name,
            self._on_info,
            qos_profile(CAMERA_INFO),
            qos_overriding_options=qos_overrides(),
        )
        self._stream = CameraStream(self._node, self._prefix, self._settings.transport, self._health, submit)

    def unsubscribe(self, inference: LatestWorker[Any]) -> None:
        """Take no more images; the one that waits is dropped."""
        if self._stream is not None:
            self._stream.close()
            self._node.destroy_subscription(self._info_subscription)
            self._stream = self._info = None
        self._drop(inference.withdraw(self.name))

    def stop(self, timeout_s: float) -> None:
        """Publish what is in progress. Raises TimeoutError if that takes longer."""
        self._flush_lines(everything=True)
        if self._publishing is not None:
            self._ended_publishing, self._publishing = self._publishing, None
            self._drop(self._ended_publishing.stop(timeout_s))
        self._outputs.stop(timeout_s)

    def destroy(self) -> None:
        """Free the publishers."""
        self._outputs.destroy()

    def close_pipeline(self) -> None:
        """Wait for the last mask to be published, and end the pipeline's thread, which waits for its engine."""
        if self._ended_publishing is not None:  # it may not have ended in time
            self._ended_publishing.stop()
        if self._pipeline is not None:
            self._pipeline.close()

    def set_loading(self, is_loading: bool) -> None:
        """Tell that the engines are being loaded, or no longer."""
        self._health.set_delay_reason("the engines are being loaded" if is_loading else "", LOADING_S)

    def report(self, active: bool) -> HealthReport:
        """Return the camera's statistics, and for how long a frame has been in progress. Log counts that are due."""
        self._flush_lines()
        report = self._health.report(clock_s(self._node), active=active)
        begun_s = self._begun_s
        if begun_s is None:
            return report
        age_s = time.monotonic() - begun_s
        message = report.message
        if report.level > OK and age_s >= LONG_FRAME_S:
            message += f"; the frame in progress was begun {age_s:.0f} s ago"
        return HealthReport(report.level, message, {**report.values, "frame_in_progress_s": f"{age_s:.1f}"})

    def _flush_lines(self, everything: bool = False) -> None:
        for lines in (self._errors, self._steps):
            lines.flush(everything)

    def _drop(self, number: int) -> None:
        for _ in range(number):
            self._health.record_overwritten()

    def _segment(self, image: CameraImage) -> SegmentedFrame:
        """Convert an image and run the pipeline."""
        assert self._pipeline is not None
        start_s = time.perf_counter()
        frame_bgr = message_to_bgr(image.message, self._depth)
        stages_ms = {"wait": 1e3 * (start_s - image.received_s), "convert": 1e3 * (time.perf_counter() - start_s)}
        if not self._pipeline.is_prepared(frame_bgr.shape[:2]):
            self._prepare(self._pipeline, frame_bgr.shape[:2])
        result = self._pipeline(frame_bgr, stamp_s(image.message.header))
        stages_ms |= {stage: ms for stage, ms in result.stages_ms.items() if ms > 0.0}  # 0: the stage did not run
        return SegmentedFrame(image, frame_bgr, result, stages_ms)

    def _publish(self, frame: SegmentedFrame) -> None:
        """Publish a frame and count it. Runs on the publishing thread."""
        header, result = frame.image.message.header, frame.result
        start_s = time.perf_counter()
        size_hw = self._output_hw(result.labels.shape)
        self._outputs.publish_result(result, header, size_hw)
        if (info := self._info) is not None:
            self._outputs.publish_camera_info(info, result.labels.shape, size_hw, header)
        published_s, end_s = clock_s(self._node), time.perf_counter()
        latency_ms = 1e3 * (end_s - frame.image.received_s)
        own_ms = latency_ms - frame.stages_ms["wait"] - frame.stages_ms.get("total", 0.0)
        stages_ms = frame.stages_ms | {
            "publish": 1e3 * (end_s - start_s),
            "overhead": own_ms,
            "latency": latency_ms,
        }
        if self._settings.overlay:
            self._outputs.publish_overlay(frame.frame_bgr, result.labels, self._settings.overlay_opacity, header)
        self._health.record_processed(published_s, stamp_s(header), stages_ms, result.light_level, result.refine_reason)
        left_out, late = (int((result.outcomes == outcome).sum()) for outcome in (Outcome.LEFT_OUT, Outcome.LATE))
        self._health.record_regions(left_out, late, result.hardness_late)
        self._health.record_refinement(result.refinement_error, late=result.refinement_late)
        if result.refinement_error:
            self._errors.add(f"only the image level's mask for this image{self._suffix}: {result.refinement_error}")
        self._outputs.publish_stages(stages_ms)
        self.last_frame, settings = frame, self._settings
        if self._capture_trigger.is_due(
            result, settings.capture_below_confidence, settings.night_below, settings.capture_period_s
        ):
            self._on_capture(self, frame)

    def _output_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size (height, width) of the masks of images of this size."""
        if self._settings.output_size == "input":
            return image_hw
        assert self._pipeline is not None
        return self._pipeline.bundle.manifest.engines.image.network_hw(image_hw)

    def _on_info(self, info: CameraInfo) -> None:
        self._info = info

    def _prepare(self, pipeline: Pipeline, frame_hw: tuple[int, int]) -> None:
        """Compile for images of this size and warm up. A size that fails is tried at each image, but logged once."""
        size = f"{frame_hw[1]}x{frame_hw[0]}"
        is_new = self._steps.add(f"preparing the engines for images of {size}")
        self._health.set_delay_reason(f"preparing the engines for images of {size}")
        seconds = pipeline.prepare(frame_hw)
        self._health.record_prepared(frame_hw)
        self._health.set_delay_reason("")
        if is_new:
            self._node.get_logger().info(f"prepared for {size} in {seconds:.1f} s")

    def _on_error(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            _thread.interrupt_main()  # which ends the process, as SIGINT does
        reason = str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
        if len(reason) > MAX_REASON:  # it may quote a name of any length from the message
            reason = f"{reason[: MAX_REASON // 2]} ... {reason[-MAX_REASON // 2 :]}"
        self._health.record_failed(reason)
        self._errors.add(f"no mask for this image{self._suffix}: {reason}")

    @property
    def _suffix(self) -> str:
        return f" of {self.name}" if self.name else ""


def stamp_s(header: Any) -> float:
    """Return a header's stamp in seconds."""
    return header.stamp.sec + 1e-9 * header.stamp.nanosec
