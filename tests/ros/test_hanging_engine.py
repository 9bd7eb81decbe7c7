# SPDX-License-Identifier: Apache-2.0
"""An engine that never answers: transitions end, diagnostics go on, the process ends, and what was left is freed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnxruntime")

from fake_engines import known_boxes, plain_maps
from fake_node import FakeNode, fake_node
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import TransitionCallbackReturn
from ros_harness import Client, NodeProcess, wait_until

from nightlab_core.runtime import pipeline as pipeline_module
from nightlab_ros import node as node_module
from nightlab_ros.monitoring import diagnostics as diagnostics_module
from nightlab_ros.monitoring.health import ERROR

pytestmark = pytest.mark.ros

#: The node with engines that hang from their 41st call on, and short waits.
HANGING = """
import sys, threading
from nightlab_core.runtime.engines import onnxruntime
from nightlab_ros import node

call, calls = onnxruntime.OnnxRuntimeEngine.__call__, []
def hang(self, **arrays):
    calls.append(1)
    if len(calls) > 40:
        print("hanging", flush=True)
        threading.Event().wait()
    return call(self, **arrays)

onnxruntime.OnnxRuntimeEngine.__call__ = hang
node.STOP_TIMEOUT_S = 0.5
sys.exit(node.main())
"""


class HangingNode(NodeProcess):
    program = ("-c", HANGING)


class Hanging:
    """An image engine that hangs once `armed` is set, until `go` is."""

    def __init__(self) -> None:
        self.armed, self.begun, self.go = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        if self.armed.is_set():
            self.begun.set()
            assert self.go.wait(60)
        return plain_maps(3, 200)(frame)


def hang(fake: FakeNode, engine: Hanging) -> None:
    """Start the node, and let its engine hang in a frame."""
    fake.start()
    fake.receive(stamp=0)
    fake.wait_for_counts(processed=1)
    engine.armed.set()
    fake.receive(stamp=1)
    assert engine.begun.wait(20)


def test_deactivate_ends_in_a_clear_error_and_the_node_can_be_configured_again(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    engine = Hanging()
    monkeypatch.setattr(node_module, "STOP_TIMEOUT_S", 0.05)
    with fake_node(monkeypatch, tiny_bundle, engine) as fake:
        hang(fake, engine)
        assert fake.node.trigger_deactivate() == TransitionCallbackReturn.ERROR
        report = fake.report()
        assert report.level == ERROR and report.message.startswith("deactivate failed: TimeoutError: the inference")
        assert fake.node.waits.is_hanging and fake.masks == [("", 0, (48, 64))]
        abandoned = fake.engines[0]
        assert abandoned.image.closed == 0  # type: ignore[attr-defined]

        engine.armed.clear()
        fake.start()
        fake.receive(stamp=2)
        fake.wait_for_counts(processed=1)
        engine.go.set()  # the call returns at last
        wait_until(lambda: abandoned.image.closed == 1, "the abandoned engines to be freed", 20.0)  # type: ignore[attr-defined]
        wait_until(lambda: not fake.node.waits.is_freeing, "the end of the thread that freed them", 20.0)
        assert not fake.node.waits.is_hanging, "the process may end with status 0"
        assert [stamp for _, stamp, _ in fake.masks] == [0, 2]
        assert fake.counts()["received"] == 1


def test_engines_that_take_long_to_be_freed_are_no_error(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    go = threading.Event()
    with fake_node(monkeypatch, tiny_bundle) as fake:
        fake.start()
        monkeypatch.setattr(fake.engines[0].image, "close", lambda: go.wait(60))
        assert fake.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        fake.node.waits.timeout_s = 0.05
        assert fake.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        assert fake.node.waits.is_freeing and not fake.node.waits.is_hanging and fake.node.failure == ""
        go.set()


def test_a_hardness_engine_that_hangs_costs_neither_masks_nor_transitions(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    go = threading.Event()

    def hang(frame: np.ndarray) -> dict[str, np.ndarray]:
        assert go.wait(60)
        return known_boxes()(frame)

    monkeypatch.setattr(pipeline_module, "PATIENCE_S", 0.05)
    with fake_node(monkeypatch, tiny_bundle) as fake:
        fake.start()
        fake.engines[0].hardness.answer = hang  # type: ignore[attr-defined]
        for stamp in range(3):
            fake.receive(stamp=stamp)
            fake.wait_for_counts(processed=stamp + 1)
        report = fake.report()
        assert "hard regions could not be found: the hardness network does not answer" in report.message
        assert report.values["mode"] == "image level only" and report.values["refinement_failed"] == "3"
        fake.node.waits.timeout_s = 0.05
        assert fake.node.trigger_deactivate() == fake.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
        assert fake.node.waits.is_freeing and not fake.node.waits.is_hanging
        go.set()
        wait_until(lambda: not fake.node.waits.is_freeing, "the end of the thread that freed the engines", 20.0)


def test_diagnostics_go_on_while_a_transition_waits(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    engine = Hanging()
    monkeypatch.setattr(node_module, "STOP_TIMEOUT_S", 0.25)
    monkeypatch.setattr(diagnostics_module, "PERIOD_S", 0.01)
    with fake_node(monkeypatch, tiny_bundle, engine) as fake:
        hang(fake, engine)
        published: list[bool] = []
        waiting = threading.Event()
        monkeypatch.setattr(
            fake.node._diagnostics, "_collect", lambda: published.append(waiting.is_set()) or fake.node._reports()
        )
        waiting.set()
        assert fake.node.trigger_deactivate() == TransitionCallbackReturn.ERROR
        assert published.count(True) >= 2
        engine.go.set()


def test_callbacks_do_not_wait_for_a_frame(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    engine = Hanging()
    with fake_node(monkeypatch, tiny_bundle, engine) as fake:
        hang(fake, engine)
        for stamp in range(2, 50):
            fake.receive(stamp=stamp)
        assert fake.counts() == {"received": 50, "processed": 1, "failed": 0, "dropped": 47}
        assert float(fake.report().values["frame_in_progress_s"]) >= 0
        engine.go.set()
        fake.wait_for_counts(processed=3, dropped=47)


def test_a_signal_ends_a_process_whose_engine_hangs(tiny_bundle: Path) -> None:
    process, client = HangingNode("", bundle=str(tiny_bundle), autostart=True, engine="onnxruntime"), Client()
    try:
        camera = client.node.create_publisher(type(client.image(np.zeros((48, 64, 3), np.uint8))), "image", 1)

        def hangs() -> bool:
            camera.publish(client.image(np.zeros((48, 64, 3), np.uint8)))
            return bool(process.logged("hanging"))

        wait_until(hangs, "an engine that hangs")
        assert not client.change_state(Transition.TRANSITION_DEACTIVATE)
        wait_until(lambda: client.state() == "unconfigured", "the state after the error")
        assert client.diagnostics(lambda values: values["level"] == "2")["message"].startswith("deactivate failed")
        assert process.stop() == 1
        assert process.logged("TimeoutError") and not process.logged("Traceback|terminate called")
    finally:
        client.close()
        process.stop()
