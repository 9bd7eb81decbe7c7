# SPDX-License-Identifier: Apache-2.0
"""Every transition and why it fails, simulated time, the compressed transport, and how the process ends."""

from __future__ import annotations

import contextlib
import gc
import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnxruntime")

import rclpy
from builtin_interfaces.msg import Time
from class_sets import CITYSCAPES19
from diagnostic_msgs.msg import DiagnosticArray
from fake_node import fake_node
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_harness import Client, NodeProcess, diagnostic_values, node_in_process, pixels_of, wait_until
from rosgraph_msgs.msg import Clock

from nightlab_ros import node as node_module
from nightlab_ros.camera import Camera
from nightlab_ros.camera_stream import CameraStream
from nightlab_ros.monitoring.health import ERROR, WARN
from nightlab_ros.parameter_server import ParameterError
from nightlab_ros.transport.subscription import message_callback

pytestmark = pytest.mark.ros


def flat(green: int, size_hw: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size_hw, 3), (0, green, 200), np.uint8)


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[NodeProcess, Client]]]:
    started: list[Any] = []

    def start_node(namespace: str = "", **parameters: Any) -> tuple[NodeProcess, Client]:
        started.append(NodeProcess(namespace, engine="onnxruntime", **parameters))
        started.append(Client(namespace))
        return started[-2], started[-1]

    yield start_node
    for one in reversed(started):
        one.close() if isinstance(one, Client) else one.stop()


def test_a_whole_life(start: Callable[..., Any], tiny_bundle: Path, tmp_path: Path) -> None:
    process, client = start(bundle=str(tmp_path), image_size=[64, 48])
    assert client.state() == "unconfigured"
    assert process.wait_for_log("unconfigured: a lifecycle manager starts it, or")

    # Configure logs why it fails, and works once that is corrected.
    assert not client.change_state(Transition.TRANSITION_CONFIGURE)
    assert client.state() == "unconfigured"
    assert process.wait_for_log(f"configure failed: BundleError: {tmp_path}/bundle.yaml: no such file")
    assert client.set_parameter("bundle", str(tiny_bundle)).successful
    assert client.change_state(Transition.TRANSITION_CONFIGURE)
    assert client.state() == "inactive"
    assert process.wait_for_log(r"prepared for 64x48 in \d+\.\d s")
    assert client.diagnostics()["message"] == "inactive"
    refused = client.set_parameter("bundle", str(tmp_path))
    assert refused.reason == "bundle takes effect at the next configure: deactivate and cleanup first"

    # Only an active node subscribes and publishes masks.
    assert client.node.count_subscribers("image") == 0
    assert client.change_state(Transition.TRANSITION_ACTIVATE)
    camera = client.connect(client.image(flat(20)))

    def running() -> bool:
        camera.publish(client.image(flat(20)))
        values = client.diagnostics()
        return (values["message"], values["level"]) == ("running", "0")

    wait_until(running, "diagnostics of a running node")
    assert client.change_state(Transition.TRANSITION_DEACTIVATE)
    assert client.state() == "inactive"
    wait_until(lambda: client.node.count_subscribers("image") == 0, "the end of the subscription")
    masks = len(client.messages["nightlab/mask"])
    camera.publish(client.image(flat(20)))
    time.sleep(0.2)
    assert len(client.messages["nightlab/mask"]) == masks

    # It starts again; images published meanwhile do not count as dropped.
    assert client.change_state(Transition.TRANSITION_ACTIVATE)
    wait_until(camera.get_subscription_count, "the subscription")
    wait_until(
        lambda: camera.publish(client.image(flat(40))) or len(client.messages["nightlab/mask"]) > masks, "a mask"
    )
    assert (pixels_of(client.messages["nightlab/mask"][-1]) == 40 // 14).all()
    assert client.diagnostics()["lost"] == "0"

    # Cleanup frees everything, so that another configuration can follow.
    assert client.change_state(Transition.TRANSITION_DEACTIVATE)
    assert client.change_state(Transition.TRANSITION_CLEANUP)
    assert client.state() == "unconfigured"
    wait_until(lambda: client.node.count_publishers("nightlab/mask") == 0, "the end of the publishers")
    assert client.set_parameter("transport", "compressed").successful
    assert client.change_state(Transition.TRANSITION_CONFIGURE)
    assert client.change_state(Transition.TRANSITION_ACTIVATE)
    wait_until(lambda: client.node.count_subscribers("image/compressed") == 1, "the compressed subscription")
    assert client.change_state(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert client.state() == "finalized"
    assert process.stop() == 0
    assert not process.logged("Traceback|terminate called|Exception")


def test_compressed_images_in_a_namespace(start: Callable[..., Any], tiny_bundle: Path) -> None:
    process, client = start("front", bundle=str(tiny_bundle), autostart=True, transport="compressed")
    png, jpeg = (cv2.imencode(extension, flat(40))[1].tobytes() for extension in (".png", ".jpg"))
    camera = client.connect(client.compressed(png, "png"), "image/compressed")
    for data, image_format in ((png, "png"), (jpeg, "jpeg")):
        message = client.compressed(data, image_format)
        mask = client.ask(camera, message)
        assert mask.header == message.header and pixels_of(mask).shape == (48, 64)
        assert (pixels_of(mask) == 40 // 14).all()

    def reported() -> bool:
        camera.publish(client.compressed(jpeg[: len(jpeg) // 2], "jpeg"))
        values = client.diagnostics(lambda values: values["failed"] != "0")
        return "cut short" in values["message"] and values["name"] == "/front/nightlab: segmentation"

    wait_until(reported, "a report that names the failure while it is new")
    assert process.wait_for_log("no mask for this image: .* cut short")
    client.ask(camera, client.compressed(png, "png"))


def test_simulated_time(start: Callable[..., Any], tiny_bundle: Path) -> None:
    """Age and rate are those of /clock, faster than the wall clock and years away from it."""
    _, client = start(bundle=str(tiny_bundle), autostart=True, use_sim_time=True, image_size=[64, 48])
    camera = client.connect(client.image(flat(20)))
    client.listen(DiagnosticArray, "/diagnostics")
    clock = client.node.create_publisher(Clock, "/clock", 1)
    wait_until(clock.get_subscription_count, "the node's clock")
    now_ms = 5_000_000

    def tick(milliseconds: int) -> None:
        nonlocal now_ms
        now_ms += milliseconds
        clock.publish(Clock(clock=Time(sec=now_ms // 1000, nanosec=now_ms % 1000 * 1_000_000)))
        time.sleep(0.01)

    def newest() -> dict[str, str] | None:
        messages = [m for m in list(client.messages["/diagnostics"]) if m.header.stamp.sec >= 5004]
        return diagnostic_values(messages[-1]) if messages else None

    tick(0)

    def running() -> dict[str, str] | None:
        """Publish an image that is 250 ms old; the values in which half of the images and more are that old."""
        tick(100)
        message = client.image(flat(20))
        age_ms = now_ms - 250
        message.header.stamp = Time(sec=age_ms // 1000, nanosec=age_ms % 1000 * 1_000_000)
        client.ask(camera, message)
        values = newest()
        return values if values and (values["message"], values["frame_age_ms_p50"]) == ("running", "250.00") else None

    values = wait_until(running, "diagnostics by the simulated clock")
    assert float(values["rate_hz"]) > 0 and values["level"] == "0"

    def silent() -> bool:
        tick(1000)
        return (newest() or {})["level"] == "1"

    wait_until(silent, "a warning")
    assert (newest() or {})["message"].startswith("no images for ")


def test_a_simulated_clock_that_nobody_publishes_is_reported(start: Callable[..., Any], tiny_bundle: Path) -> None:
    _, client = start(bundle=str(tiny_bundle), autostart=True, use_sim_time=True)
    client.connect(client.image(flat(20)))
    values = client.diagnostics(lambda values: values["processed"] != "0")
    assert (values["level"], "use_sim_time" in values["message"]) == ("1", True)


def test_a_size_that_cannot_be_prepared_for_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []

    def prepare(frame_hw: tuple[int, int]) -> float:
        if frame_hw == (48, 64):
            return 0.5
        raise RuntimeError("there is no plan for this size")

    with node_in_process() as node:
        camera = Camera(node, "", node.settings, CITYSCAPES19, None, lambda camera, frame: None)
        monkeypatch.setattr(node, "get_logger", lambda: SimpleNamespace(info=logged.append))
        for frame_hw in [(30, 40)] * 3 + [(48, 64)] + [(30, 40)] * 2:
            with contextlib.suppress(RuntimeError):
                camera._prepare(SimpleNamespace(prepare=prepare), frame_hw)  # type: ignore[arg-type]
        camera.destroy()
    assert logged == [
        "preparing the engines for images of 40x30",
        "preparing the engines for images of 64x48",
        "prepared for 64x48 in 0.5 s",
    ]


def test_humble_calls_with_the_message_alone() -> None:
    """rclpy counts the callback's arguments to decide how to call it; Humble always passes one."""
    calls = []
    for_humble = message_callback(lambda msg, info: calls.append((msg, info)), subscription=object)
    for_humble("image")
    assert calls == [("image", {})]
    later = message_callback(lambda msg, info: calls.append((msg, info)))
    inspect.signature(later).bind("image", {})
    with pytest.raises(TypeError):
        inspect.signature(later).bind("image")


@pytest.mark.parametrize("by", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_the_active_node_cleanly(
    start: Callable[..., Any], tiny_bundle: Path, by: signal.Signals
) -> None:
    process, client = start(bundle=str(tiny_bundle), autostart=True)
    client.connect(client.image(flat(20)))
    assert process.stop(by) == 0
    assert not process.logged("Traceback|terminate called|Exception|ERROR")


def test_autostart_that_fails_ends_the_process_with_its_reason(start: Callable[..., Any], tmp_path: Path) -> None:
    process, _ = start(bundle=str(tmp_path), autostart=True)
    assert process.end() == 1
    assert process.logged("configure failed: BundleError: .*no such file")


def test_a_node_that_cannot_start_says_why_in_diagnostics_before_it_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(node_module, "PERIOD_S", 0.0)
    with node_in_process(bundle=str(tmp_path), autostart=True) as node:
        published: list[Any] = []
        monkeypatch.setattr(node._diagnostics._publisher, "publish", published.append)
        assert node_module._run(node, threading.Event()) == 1
        values = diagnostic_values(published[-1])
        assert (values["level"], values["mode"]) == ("2", "stopped")
        assert values["message"].startswith(f"configure failed: BundleError: {tmp_path}/bundle.yaml: no such file")


def test_a_failed_activation_is_an_error_in_diagnostics_until_it_succeeds(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    with fake_node(monkeypatch, tiny_bundle) as fake:
        assert fake.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        with monkeypatch.context() as broken:
            broken.setattr(CameraStream, "__init__", Mock(side_effect=RuntimeError("no such topic")))
            assert fake.node.trigger_activate() == TransitionCallbackReturn.FAILURE
        report = fake.report()
        assert (report.level, report.message) == (ERROR, "activate failed: RuntimeError: no such topic")
        assert report.values["mode"] == "no masks"
        assert fake.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        assert (fake.report().level, fake.report().message) == (WARN, "no images yet")


def test_qos_overrides_are_taken_for_every_topic(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    with fake_node(monkeypatch, tiny_bundle, autoware_classes="autoware16") as fake:
        fake.start(record=False)
        topics = {f"{p.topic_name}.publisher" for p in fake.node.publishers}
        topics |= {f"{s.topic_name}.subscription" for s in fake.node.subscriptions}
        topics -= {"/rosout.publisher", "/parameter_events.publisher", "/nightlab/transition_event.publisher"}
        assert len(topics) > 20 and {"/image.subscription", "/camera_info.subscription"} < topics
        assert [t for t in sorted(topics) if f"qos_overrides.{t}.depth" not in fake.node._parameters] == []


def test_a_bad_value_at_the_start_ends_the_process_with_its_reason(start: Callable[..., Any]) -> None:
    process, _ = start(refine="both")
    assert process.end() == 1
    assert process.logged("FATAL.*refine: received 'both'") and not process.logged("Traceback")


def test_all_bad_values_at_the_start_are_named_at_once() -> None:
    bad = {"max_regions": 11, "overlay": 3, "image_size": [640, 0], "threads": "two"}
    bad |= {"qos_overrides./image.subscription.reliability": "perhaps"}
    with pytest.raises(ParameterError) as raised, node_in_process(**bad, overlay_opacity=0.3):
        pass
    assert all(f"{name}: received" in str(raised.value) for name in bad)
    assert "overlay_opacity" not in str(raised.value)


def test_an_integer_is_taken_for_a_floating_point_parameter() -> None:
    with node_in_process(overlay_opacity=1) as node:
        assert node.settings.overlay_opacity == 1.0
        (result,) = node.set_parameters([Parameter("warn_age_ms", value=250)])
        assert result.successful and node.settings.warn_age_ms == 250.0
        (result,) = node.set_parameters([Parameter("overlay_opacity", value=2)])
        assert not result.successful and "overlay_opacity: received 2" in result.reason
        (result,) = node.set_parameters([Parameter("overlay_opacity", value="half")])
        assert not result.successful and "overlay_opacity: received 'half'" in result.reason


def test_a_negative_clock_is_logged_once_and_ignored(capfd: pytest.CaptureFixture[str]) -> None:
    with node_in_process(use_sim_time=True) as node:
        clock = next(s for s in node.subscriptions if s.topic_name == "/clock")
        for sec in (7, -5, -5):
            clock.callback(Clock(clock=Time(sec=sec)))
        assert node.get_clock().now().nanoseconds == 7 * 10**9
    assert capfd.readouterr().err.count("a message on /clock is ignored: ValueError") == 1


def test_two_nodes_of_one_name_are_reported() -> None:
    gc.collect()  # nodes of other tests live until then
    with node_in_process() as node:
        wait_until(lambda: node._count_namesakes() == 1, "the end of the last test's node")
        twin = rclpy.create_node("nightlab", context=node.context)
        wait_until(lambda: node._count_namesakes() == 2, "the second node")
        twin.destroy_node()


def test_a_misspelt_parameter_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    with node_in_process(max_region=3):
        pass
    expected = "received the parameter 'max_region', which this node does not have: did you mean 'max_regions'"
    assert expected in capfd.readouterr().err
