# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node ``nightlab``: camera images in, semantic masks out.

The callback only keeps the newest image; a worker thread converts it, runs the pipeline and publishes. Configure loads
the bundle, activate starts, deactivate stops, cleanup frees; each says in the log why it failed.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # its name in ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

from nightlab_core.data.images import ImageError, message_to_bgr
from nightlab_core.runtime.bundle import default_bundle
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.latest import LatestWorker
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_ros.build_progress import BuildReporter
from nightlab_ros.health import LOSS_ADVICE, Health, Report
from nightlab_ros.messages import choose_converter, to_bgr
from nightlab_ros.parameters import ParameterError, changed, declare, unknown_parameters
from nightlab_ros.publishers import RELIABLE, Publishers, diagnostics

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def image_callback(on_image: Callable[[Any, Any], None], subscription: type = Subscription) -> Callable[..., None]:
    """What to subscribe with, for `on_image` of a message and of what the middleware knows of its way.

    ROS 2 Humble calls with the message alone, and then nothing is known; later ones go by the number of arguments.
    """
    if hasattr(subscription, "CallbackType"):
        return on_image
    return lambda msg: on_image(msg, {})


class NightLabNode(LifecycleNode):
    """Subscribes to ``image`` or ``image/compressed``; publishes what publishers.py lists, and /diagnostics."""

    def __init__(self, stop: threading.Event | None = None, **kwargs: Any) -> None:
        """`stop`, once set, ends a build of engines that is under way."""
        super().__init__("nightlab", **kwargs)
        self._stop_asked = threading.Event() if stop is None else stop
        self.settings = declare(self)
        for sentence in unknown_parameters(self._parameter_overrides, self._parameters):
            self.get_logger().warning(sentence)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._health = Health()
        self._engines: Engines | None = None
        self._pipeline: Pipeline | None = None
        self._outputs: Publishers | None = None
        self._worker: LatestWorker[tuple[Any, float]] | None = None
        self._subscription: Any = None
        self._diagnostics: Any = None
        self._timer: Any = None
        self._prepared_hw: tuple[int, int] | None = None
        self._tried_hw: tuple[int, int] | None = None

    # Lifecycle. rclpy swallows what these raise, hence _attempt.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the bundle and create every publisher."""
        return self._attempt("configure", self._configure, undo=self._free)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to listen and to work."""
        super().on_activate(state)
        return self._attempt("activate", self._start, undo=partial(self._stop, state))

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening, and wait for the frame at hand."""
        return self._attempt("deactivate", partial(self._stop, state))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free engines and publishers."""
        return self._attempt("cleanup", self._free)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything, from any state."""
        return self._attempt("shutdown", self._free)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, so that the node can be configured anew."""
        return self._attempt("error processing", self._free)

    def _attempt(
        self, name: str, action: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        try:
            action()
        except Exception as error:
            self.get_logger().error(f"{name} failed: {type(error).__name__}: {error}")
            if undo is None:  # half stopped is no state to stay in: error processing frees the rest
                return TransitionCallbackReturn.ERROR
            return TransitionCallbackReturn.FAILURE if self._undone(name, undo) else TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _undone(self, name: str, undo: Callable[[], None]) -> bool:
        try:
            undo()
        except Exception as error:
            self.get_logger().error(f"undoing {name} failed: {type(error).__name__}: {error}")
            return False
        return True

    def _configure(self) -> None:
        settings = self.settings
        size_hw = settings.image_size[::-1] if settings.image_size != (0, 0) else None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
        self._engines = engines = Engines.open(
            settings.bundle or default_bundle(),
            settings.engines(),
            on_progress=BuildReporter(self._publish, self.get_logger().info, self._stop_asked),
        )
        self._pipeline = pipeline = Pipeline(engines, settings.pipeline())
        if engines.note:
            self.get_logger().warning(engines.note)
        converter = "cv2.imdecode" if settings.transport == "compressed" else choose_converter().name
        manifest = engines.bundle.manifest
        self.get_logger().info(f"bundle {manifest.name}, engine {engines.name}, images by {converter}")
        self._health = Health()
        self._outputs = Publishers(self, engines.bundle.class_set, self._health.stages)
        # By a clock that goes on when a bag is paused, or when nobody publishes /clock: that has to be told too.
        self._timer = self.create_timer(1.0, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if size_hw is not None:
            self._prepare(pipeline, size_hw)

    def _start(self) -> None:
        assert self._outputs is not None
        self._outputs.start()
        self._worker = LatestWorker("pipeline", self._process, self._process_failed)
        self._health.resubscribed()
        compressed = self.settings.transport == "compressed"
        subscribe = partial(
            self.create_subscription,
            CompressedImage if compressed else Image,
            "image/compressed" if compressed else "image",
            image_callback(self._on_image),
            BEST_EFFORT,
        )
        try:
            self._subscription = subscribe(event_callbacks=SubscriptionEventCallbacks(message_lost=self._on_lost))
        except UnsupportedEventTypeError:
            self.get_logger().info("this middleware does not tell which images it lost: 'lost' stays 0")
            self._subscription = subscribe()

    def _stop(self, state: LifecycleState) -> None:
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
            self._subscription = None
        if self._worker is not None:
            if self._worker.stop():
                self._health.overwritten()
            self._worker = None
        if self._outputs is not None:
            self._outputs.stop()
        super().on_deactivate(state)

    def _free(self) -> None:
        self._stop(LifecycleState("", 0))
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        if self._diagnostics is not None:
            self.destroy_publisher(self._diagnostics)
            self._diagnostics = None
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None
        if self._engines is not None:
            self._engines.close()
            self._engines = None
        self._prepared_hw = self._tried_hw = None

    def close(self) -> None:
        """Stop and free everything, whatever the state; for the end of the process."""
        self._free()

    # The executor's thread.

    def _on_image(self, msg: Any, info: Any) -> None:
        if self._worker is None:
            return
        overwrote = self._worker.submit((msg, time.perf_counter()))
        # Not every distribution names the publisher; without the name, the numbers of several would be mixed up.
        alone = "publisher_gid" in info or self.count_publishers(self._subscription.topic_name) == 1
        number = info.get("publication_sequence_number") if alone else None
        self._health.received(self._now_s(), str(info.get("publisher_gid")), number)
        if overwrote:
            self._health.overwritten()

    def _on_lost(self, event: Any) -> None:
        self._health.lost(self._now_s(), event.total_count_change)
        self.get_logger().warning(LOSS_ADVICE, throttle_duration_sec=60.0)

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            values = {parameter.name: parameter.value for parameter in parameters}
            self.settings = changed(self.settings, values, configured=self._pipeline is not None)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if self._pipeline is not None:
            self._pipeline.settings = self.settings.pipeline()
        return SetParametersResult(successful=True)

    def _report(self) -> None:
        assert self._engines is not None
        report = self._health.report(self._now_s(), active=self._worker is not None)
        report.values["mode"] = self.settings.mode
        report.values["engine"] = self._engines.name
        if self._engines.note:
            report.values["engine_note"] = self._engines.note
        report.values["bundle"] = self._engines.bundle.manifest.name
        self._publish(report)

    def _publish(self, report: Report) -> None:
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(diagnostics(report, self.get_fully_qualified_name(), stamp))

    # The worker's thread.

    def _process(self, item: tuple[Any, float]) -> None:
        assert self._pipeline is not None and self._outputs is not None
        msg, received = item
        settings = self.settings
        begun = time.perf_counter()
        frame_bgr = message_to_bgr(msg, to_bgr)
        converted = time.perf_counter()
        if frame_bgr.shape[:2] != self._prepared_hw:
            self._prepare(self._pipeline, frame_bgr.shape[:2])
        result = self._pipeline(frame_bgr)
        self._outputs.result(result, msg.header)
        now_s = self._now_s()
        stages_ms = {"wait": 1e3 * (begun - received), "convert": 1e3 * (converted - begun)}
        stages_ms |= {stage: ms for stage, ms in result.stages_ms.items() if ms > 0.0}  # 0: it did not run
        stages_ms["latency"] = 1e3 * (time.perf_counter() - received)
        if settings.overlay:
            self._outputs.overlay(frame_bgr, result.labels, settings.overlay_opacity, msg.header)
        stamp_s = msg.header.stamp.sec + 1e-9 * msg.header.stamp.nanosec
        self._health.processed(now_s, stamp_s, stages_ms, result.light_level)
        self._outputs.stages(stages_ms)

    def _process_failed(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
        self._health.failed(self._now_s(), reason)
        self.get_logger().error(f"no mask for this image: {reason}", throttle_duration_sec=5.0)

    def _prepare(self, pipeline: Pipeline, frame_hw: tuple[int, int]) -> None:
        size = f"{frame_hw[1]}x{frame_hw[0]}"
        if frame_hw != self._tried_hw:  # a size that cannot be prepared for is tried at every frame, and told once
            self.get_logger().info(f"preparing the engines for images of {size}")
        self._tried_hw = frame_hw
        self._health.preparing(f"preparing the engines for images of {size}")
        seconds = pipeline.prepare(frame_hw)
        self._prepared_hw = frame_hw
        self._health.preparing("")
        self.get_logger().info(f"prepared for {size} in {seconds:.1f} s")

    def _now_s(self) -> float:
        return 1e-9 * self.get_clock().now().nanoseconds


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; 0, or 1 if it could not start."""
    stop = threading.Event()
    # rclpy's own handlers would invalidate the context at once, under whatever callback or worker is using it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        node = NightLabNode(stop)
        success = TransitionCallbackReturn.SUCCESS
        if node.settings.autostart and not (node.trigger_configure() == success == node.trigger_activate()):
            return 1
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.is_set():  # signals are seen between two waits
            executor.spin_once(timeout_sec=0.2)
    except (ParameterError, ParameterException) as error:
        rclpy.logging.get_logger("nightlab").fatal(str(error))
        return 1
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
