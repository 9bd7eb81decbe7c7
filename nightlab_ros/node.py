# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `nightlab`: camera images in, semantic masks out. Read `NightLabNode.segment` first."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from nightlab_core.data.image_header import ImageError
from nightlab_core.data.images import message_to_bgr
from nightlab_core.data.pixel_depth import PixelDepth
from nightlab_core.runtime.bundle import default_bundle
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.latest import LatestWorker
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.refinement import Outcome
from nightlab_ros.build_progress import BuildProgressReporter
from nightlab_ros.camera_stream import CameraImage, CameraStream, clock_s
from nightlab_ros.distinct_lines import DistinctLines
from nightlab_ros.health import Health
from nightlab_ros.lifecycle import LoggedLifecycleNode
from nightlab_ros.parameters import ParameterError, change, declare, unknown_parameters
from nightlab_ros.publishers import DiagnosticsPublisher, Publishers
from nightlab_ros.transport.shared_memory import reclaim

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class NightLabNode(LoggedLifecycleNode):
    """Subscribe to a camera, segment its newest image, and publish the mask. topics.py lists all topics.

    configure opens the bundle and the publishers, activate subscribes, deactivate waits for the current image, and
    cleanup frees everything.
    """

    def __init__(self, stop: threading.Event | None = None, **kwargs: Any) -> None:
        """Declare the parameters. Setting `stop` ends a build of engines that runs in configure."""
        super().__init__("nightlab", **kwargs)
        self._stop_requested = threading.Event() if stop is None else stop
        self.settings = declare(self)
        for sentence in unknown_parameters(self._parameter_overrides, self._parameters):
            self.get_logger().warning(sentence)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._health = Health()
        self._depth = PixelDepth()
        self._engines: Engines | None = None
        self._pipeline: Pipeline | None = None
        self._outputs: Publishers | None = None
        self._stream: CameraStream | None = None
        self._worker: LatestWorker[CameraImage] | None = None
        self._diagnostics: DiagnosticsPublisher | None = None
        self._timer: Any = None
        self._prepared_hw: tuple[int, int] | None = None
        self._lines = DistinctLines()

    def segment(self, image: CameraImage) -> None:
        """Convert an image, run the pipeline, publish. Runs on the stream's thread."""
        assert self._pipeline is not None and self._outputs is not None
        settings, header = self.settings, image.message.header
        start_s = time.perf_counter()
        frame_bgr = message_to_bgr(image.message, self._depth)
        stages_ms = {"wait": 1e3 * (start_s - image.received_s), "convert": 1e3 * (time.perf_counter() - start_s)}
        if frame_bgr.shape[:2] != self._prepared_hw:
            self._prepare(self._pipeline, frame_bgr.shape[:2])
        result = self._pipeline(frame_bgr)
        self._outputs.publish_result(result, header)
        published_s = clock_s(self)
        stages_ms |= {stage: ms for stage, ms in result.stages_ms.items() if ms > 0.0}  # 0: the stage did not run
        stages_ms["latency"] = 1e3 * (time.perf_counter() - image.received_s)
        if settings.overlay:
            self._outputs.publish_overlay(frame_bgr, result.labels, settings.overlay_opacity, header)
        stamp_s = header.stamp.sec + 1e-9 * header.stamp.nanosec
        self._health.record_processed(published_s, stamp_s, stages_ms, result.light_level, result.refine_reason)
        left_out, late = (int((result.outcomes == outcome).sum()) for outcome in (Outcome.LEFT_OUT, Outcome.LATE))
        self._health.record_regions(left_out, late, result.hardness_late)
        self._outputs.publish_stages(stages_ms)

    def configure(self) -> None:
        """Open the engines, which may build them, and create the publishers."""
        settings = self.settings
        self._diagnostics = DiagnosticsPublisher(self)
        progress = BuildProgressReporter(self._diagnostics.publish, self.get_logger().info, self._stop_requested)
        self._engines = engines = Engines.open(
            settings.bundle or default_bundle(), settings.engine_options(), on_progress=progress
        )
        self._pipeline = Pipeline(engines, settings.pipeline_settings())
        self._depth = PixelDepth(settings.pixel_bits, self.get_logger().warning)
        if engines.note:
            self.get_logger().warning(engines.note)
        manifest = engines.bundle.manifest
        self.get_logger().info(f"bundle {manifest.name}, engine {engines.name}")
        self._health = Health(limits=settings.health_limits())
        self._outputs = Publishers(self, engines.bundle.class_set, self._health.record_stages)
        # The steady clock runs on when a bag is paused or nobody publishes /clock, which has to be reported, too.
        self._timer = self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if settings.image_hw is not None:
            self._prepare(self._pipeline, settings.image_hw)

    def activate(self) -> None:
        """Subscribe to the camera."""
        assert self._outputs is not None
        self._outputs.start(self.settings.confidence_threshold)
        self._worker = worker = LatestWorker("pipeline", self.segment, self._on_error)
        self.get_logger().info("active")
        self._stream = CameraStream(self, "", self.settings.transport, self._health, worker.submit)

    def deactivate(self) -> None:
        """Unsubscribe, and wait for the current image."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._worker is not None:
            if self._worker.stop():
                self._health.record_overwritten()
            self._worker = None
        if self._outputs is not None:
            self._outputs.stop()

    def free(self) -> None:
        """Free publishers and engines."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
        for publishers in (self._diagnostics, self._outputs):
            if publishers is not None:
                publishers.destroy()
        for part in (self._pipeline, self._engines):
            if part is not None:
                part.close()
        self._timer = self._diagnostics = self._outputs = self._pipeline = self._engines = None
        self._prepared_hw = None

    def _prepare(self, pipeline: Pipeline, frame_hw: tuple[int, int]) -> None:
        """Compile for images of this size and warm up. A size that fails is tried at each image, but logged once."""
        size = f"{frame_hw[1]}x{frame_hw[0]}"
        if line := self._lines.line(f"preparing the engines for images of {size}"):
            self.get_logger().info(line)
        self._health.set_delay_reason(f"preparing the engines for images of {size}")
        seconds = pipeline.prepare(frame_hw)
        self._prepared_hw = frame_hw
        self._health.record_prepared(frame_hw)
        self._health.set_delay_reason("")
        if line:
            self.get_logger().info(f"prepared for {size} in {seconds:.1f} s")

    def _count_namesakes(self) -> int:
        """Return the number of nodes with this node's full name. One that was killed counts for up to 20 s."""
        own = (self.get_name(), self.get_namespace())
        return self.get_node_names_and_namespaces().count(own)

    def _on_error(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
        self._health.record_failed(reason)
        if line := self._lines.line(f"no mask for this image: {reason}"):
            self.get_logger().error(line)

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            values = {parameter.name: parameter.value for parameter in parameters}
            self.settings = change(self.settings, values, configured=self._pipeline is not None)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if self._pipeline is not None:
            self._pipeline.settings = self.settings.pipeline_settings()
            self._health.limits = self.settings.health_limits()
        if self._stream is not None and self._outputs is not None and "confidence_threshold" in values:
            self._outputs.publish_label_info(self.settings.confidence_threshold)
        return SetParametersResult(successful=True)

    def _report(self) -> None:
        assert self._engines is not None and self._diagnostics is not None
        report = self._health.report(clock_s(self), active=self._stream is not None)
        if (number := self._count_namesakes()) > 1:
            report = report.with_warning(f"{number} nodes have the name {self.get_fully_qualified_name()}: rename one")
        report.values["engine"] = self._engines.name
        if self._engines.note:
            report.values["engine_note"] = self._engines.note
        report.values["bundle"] = self._engines.bundle.manifest.name
        self._diagnostics.publish(report)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns 0, or 1 if it could not start."""
    stop = threading.Event()
    # rclpy's own handlers would invalidate the context at once, while a callback or the worker uses it.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    freed_bytes = reclaim()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = NightLabNode(stop)
        if freed_bytes:
            node.get_logger().info(f"deleted {freed_bytes / 1e6:.0f} MB of shared memory of processes that have ended")
        success = TransitionCallbackReturn.SUCCESS
        if node.settings.autostart and not (node.trigger_configure() == success == node.trigger_activate()):
            return 1
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.is_set():  # signals are handled between two waits
            executor.spin_once(timeout_sec=0.2)
    except (ParameterError, ParameterException) as error:
        rclpy.logging.get_logger("nightlab").fatal(str(error))
        return 1
    finally:
        for number in STOP_SIGNALS:  # a second one while Python shuts down would end the process with an error
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
