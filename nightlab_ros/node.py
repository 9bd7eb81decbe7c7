# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `nightlab`: camera images in, semantic masks out. A frame's way is in camera.py."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds: a signal then ends the process with status 0
    from nightlab_ros.interrupt import end_at_signals

    end_at_signals()

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from nightlab_core.classes import load_class_set
from nightlab_core.labels import ClassSet
from nightlab_core.runtime.bundle import MANIFEST_NAME, Bundle, default_bundle, load_bundle, sha256_of
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.latest import LatestWorker
from nightlab_core.version import package_version
from nightlab_ros.bond import create_bond
from nightlab_ros.camera import Camera
from nightlab_ros.capture.service import CaptureService
from nightlab_ros.engine_loading import EngineLoading
from nightlab_ros.engine_waits import EngineWaits
from nightlab_ros.lifecycle import LoggedLifecycleNode
from nightlab_ros.monitoring import degradation as dg
from nightlab_ros.monitoring.diagnostics import PERIOD_S, Diagnostics
from nightlab_ros.monitoring.health import ERROR, OK, HealthReport
from nightlab_ros.parameter_server import ParameterError, change, declare, unknown_parameters, unused_qos_overrides
from nightlab_ros.publishing.run_length import autoware_ids
from nightlab_ros.start import StartError, create_node, start_ros
from nightlab_ros.transport.shared_memory import reclaim

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds after its begin from which configure does not wait for the engines; Nav2's manager waits 5 s in all.
CONFIGURE_WAIT_S = 3.0
#: Longest wait of deactivate and shutdown for a frame in progress, in seconds.
STOP_TIMEOUT_S = 3.0


class NightLabNode(LoggedLifecycleNode):
    """Subscribe to cameras, segment their newest images, and publish the masks. topics.py lists all topics.

    configure loads the engines, in the background if that takes long, and creates the publishers; activate subscribes,
    deactivate waits for the current image, and cleanup frees everything. No wait for an engine is without a limit.
    """

    def __init__(self, stop: threading.Event | None = None, **kwargs: Any) -> None:
        """Declare the parameters. configure does not wait for the engines once `stop`, of the process, is set."""
        self._process_stop = stop or threading.Event()
        self._diagnostics: Diagnostics | None = None
        super().__init__("nightlab", **kwargs)
        self.settings = declare(self)
        for sentence in unknown_parameters(self._parameter_overrides, self._parameters):
            self.get_logger().warning(sentence)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.waits = EngineWaits(STOP_TIMEOUT_S)
        self._cameras: tuple[Camera, ...] = ()
        self._bundle: Bundle | None = None
        self._bundle_sha256 = ""
        self._loading: EngineLoading | None = None
        self._inference: LatestWorker[Callable[[], None]] | None = None
        self._ended_inference: LatestWorker[Callable[[], None]] | None = None
        self._active = False
        self._bond = create_bond(self)
        self._captures = CaptureService(self, lambda: self.settings, lambda: self._cameras, self._reports)
        self._diagnostics = Diagnostics(self, self._reports)

    @property
    def loading_failed(self) -> bool:
        """True if the engines could not be loaded."""
        return self._loading is not None and self._loading.error is not None

    def configure(self) -> None:
        """Create the publishers and load the engines, for which it waits until `CONFIGURE_WAIT_S` after its begin."""
        end_s = time.monotonic() + CONFIGURE_WAIT_S
        self.waits.timeout_s = STOP_TIMEOUT_S
        settings, log = self.settings, self.get_logger()
        self._bundle = bundle = load_bundle(settings.bundle or default_bundle())
        self._bundle_sha256 = sha256_of(bundle.dir / MANIFEST_NAME)
        own = bundle.class_set, self._autoware_ids(bundle.class_set), self._captures.submit
        self._cameras = tuple(Camera(self, name, settings, *own) for name in settings.cameras)
        for camera in self._cameras:
            camera.set_loading(True)
        self._loading = EngineLoading(
            lambda on_progress: Engines.open(bundle, settings.engine_options(), on_progress=on_progress),
            self._prepare,
            lambda error: log.error(f"the engines could not be loaded: {type(error).__name__}: {error}"),
            log.info,
        )
        self._loading.wait(end_s - time.monotonic(), self._process_stop)
        if self._loading.is_running():
            log.info("the engines are being loaded in the background; masks come when they are ready")

    def activate(self) -> None:
        """Subscribe to the cameras."""
        log = self.get_logger()
        self._inference = LatestWorker("inference", lambda run: run(), lambda e: log.error(f"inference thread: {e!r}"))
        for camera in self._cameras:
            camera.start(self._inference)
        self._active = True
        if self._bond is not None:
            self._bond.start()
        log.info("active")
        for sentence in unused_qos_overrides(self._parameter_overrides, self._parameters):
            log.warning(sentence)

    def deactivate(self) -> None:
        """Unsubscribe, and wait for the current images. Raises TimeoutError after `STOP_TIMEOUT_S`."""
        inference, self._inference, self._active = self._inference, None, False
        if self._bond is not None:
            self._bond.stop()
        try:
            if inference is not None:
                self._ended_inference = inference
                for camera in self._cameras:
                    camera.unsubscribe(inference)
                with self.waits.limited():
                    inference.stop(self.waits.timeout_s)
        finally:
            for camera in self._cameras:
                with self.waits.limited():
                    camera.stop(STOP_TIMEOUT_S)

    def free(self) -> None:
        """Free publishers and engines. A thread goes on with engines that take longer, as on a busy machine."""
        cameras, loading, inference = self._cameras, self._loading, self._ended_inference
        self._cameras, self._loading, self._ended_inference = (), None, None

        def free_engines() -> None:
            if inference is not None:  # it may not have ended in time
                inference.stop()
            for camera in cameras:
                camera.close_pipeline()
            if loading is not None:
                loading.close()

        for camera in cameras:
            camera.destroy()
        if not self.waits.free(free_engines):
            self.get_logger().warning(f"freeing the engines did not end within {self.waits.timeout_s:g} s; it goes on")

    def report_failure(self, stop: threading.Event) -> None:
        """Publish on /diagnostics why the process is about to end, once others have had time to find the publisher."""
        assert self._diagnostics is not None
        stop.wait(PERIOD_S)
        self._diagnostics.publish()

    def destroy_node(self) -> None:
        """End the diagnostics and destroy the node. rclpy calls it, too, when `__init__` has failed."""
        if self._diagnostics is not None:
            self._diagnostics.close()
            self._diagnostics = None
            self._log_error("end of captures", lambda: self._captures.close(STOP_TIMEOUT_S))
        super().destroy_node()

    def _autoware_ids(self, classes: ClassSet) -> np.ndarray | None:
        """Return the table of Autoware's ids, or None without `autoware_classes`. Raises ValueError for a wrong one."""
        reference = self.settings.autoware_classes
        if not reference:
            return None
        table, unmapped = autoware_ids(classes, load_class_set(reference))
        if unmapped:
            names = ", ".join(unmapped)
            self.get_logger().warning(f"{reference} maps {names} to no class: Autoware receives them as unknown")
        return table

    def _prepare(self, engines: Engines) -> None:
        """Make the pipelines, on the loading thread."""
        if engines.note:
            self.get_logger().warning(engines.note)
        self.get_logger().info(f"bundle {engines.bundle.manifest.name}, engine {engines.name}")
        for camera in self._cameras:
            camera.open(engines)
            camera.set_loading(False)

    def _count_namesakes(self) -> int:
        """Return the number of nodes with this node's full name. One that was killed counts for up to 20 s."""
        return self.get_node_names_and_namespaces().count((self.get_name(), self.get_namespace()))

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            values = {parameter.name: parameter.value for parameter in parameters}
            self.settings = change(self.settings, values, configured=self._loading is not None)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        for camera in self._cameras:
            camera.change(self.settings)
        return SetParametersResult(successful=True)

    def _reports(self) -> dict[str, HealthReport]:
        """Return the report of each camera, or of the node while it is unconfigured, on the diagnostics thread."""
        loading, cameras = self._loading, self._cameras
        self.callback_errors.flush()
        if loading is None:
            return {
                "": HealthReport(ERROR if self.failure else OK, self.failure or "unconfigured", {"mode": "stopped"})
            }
        loaded, number, own = loading.report(), self._count_namesakes(), self._own_values(loading.engines)
        reports = {}
        for camera in cameras:
            report = camera.report(self._active)
            if loaded is not None and loaded.level >= report.level:
                report = replace(loaded, values=report.values | loaded.values)
            if self.failure:  # of activate: any other transition that fails ends unconfigured
                report = report.with_finding(dg.ACTIVATION_FAILED(failure=self.failure))
            if number > 1:
                report = report.with_finding(dg.NAMESAKES(number=number, name=self.get_fully_qualified_name()))
            reports[camera.name] = replace(report, values=report.values | own)
        return reports

    def _own_values(self, engines: Engines | None) -> dict[str, str]:
        """Return the values that all cameras have in common."""
        assert self._bundle is not None
        values = {"version": package_version(), "bundle": self._bundle.manifest.name}
        values["bundle_sha256"] = self._bundle_sha256
        if engines is not None:
            values |= {"engine": engines.name, **({"engine_note": engines.note} if engines.note else {})}
        return values


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns 0, or 1 if it could not start or an engine hangs."""
    stop = threading.Event()
    # rclpy's own handlers would invalidate the context at once, while a callback or a worker uses it.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stop.set())
    freed_bytes = reclaim()
    node = None
    try:
        start_ros(args)
        node = create_node(lambda: NightLabNode(stop))
        if freed_bytes:
            node.get_logger().warning(dg.KILLED(megabytes=freed_bytes / 1e6).sentence)
        status = _run(node, stop)
    except StartError as error:
        print(f"nightlab: {error}", file=sys.stderr)
        status = 1
    except (ParameterError, ParameterException) as error:
        rclpy.logging.get_logger("nightlab").fatal(str(error))
        status = 1
    finally:
        for number in STOP_SIGNALS:  # a second one while Python shuts down would end the process with an error
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    if node is not None and node.waits.is_freeing:  # Python would wait for the engines without a limit
        os._exit(1 if node.waits.is_hanging else status)
    return status


def _run(node: NightLabNode, stop: threading.Event) -> int:
    """Serve the node until `stop` is set. With autostart, end when it cannot start."""
    if node.settings.autostart:
        for transition in (node.trigger_configure, node.trigger_activate):
            if stop.is_set():
                return 0
            if transition() != TransitionCallbackReturn.SUCCESS:
                node.report_failure(stop)
                return 1
    else:
        node.get_logger().info("unconfigured: a lifecycle manager starts it, or `--ros-args -p autostart:=true`")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not stop.is_set():  # signals are handled between two waits
        executor.spin_once(timeout_sec=0.2)
        if node.settings.autostart and node.loading_failed:
            node.report_failure(stop)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
