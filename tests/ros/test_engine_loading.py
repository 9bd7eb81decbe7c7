# SPDX-License-Identifier: Apache-2.0
"""Loading engines in the background: builds of TensorRT plans, their progress, failures and interruptions."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnxruntime")

from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import TransitionCallbackReturn
from ros_harness import Client, NodeProcess, node_in_process, wait_until

from nightlab_core.runtime.engines.engine import BuildProgress
from nightlab_ros.engine_loading import EngineLoading
from nightlab_ros.monitoring.health import ERROR

pytestmark = pytest.mark.ros

#: The node with a GPU that does not exist, and with builds whose steps wait. TensorRT for RTX builds plans without a
#: GPU, but cannot load them.
WITH_GPU = """
import sys, time
from nightlab_core.runtime.engines.tensorrt import engine
from nightlab_core.runtime.engines.tensorrt import compiler
from nightlab_core.runtime.engines.tensorrt.cuda import Device
from nightlab_ros import node

def waiting_monitor(trt):
    monitor = make_monitor(trt)
    step_complete = monitor.step_complete
    monitor.step_complete = lambda phase, step: (wait(monitor), step_complete(phase, step))[1]
    return monitor

make_monitor, compiler._monitor = compiler._monitor, waiting_monitor
engine.find_device = lambda: (Device("NVIDIA RTX A2000", "8.6", 0), "")
node.STOP_TIMEOUT_S = 100.0  # a busy machine may be slow
"""
#: Builds slow enough to be watched.
SLOW_STEPS = """
wait = lambda monitor: time.sleep(0.05)
sys.exit(node.main())
"""
#: Builds that go on until they are stopped.
ENDLESS_STEPS = """
def wait(monitor):
    while not monitor.stopped:
        time.sleep(0.01)

node.CONFIGURE_WAIT_S = 0.1
sys.exit(node.main())
"""


class NodeWithGpu(NodeProcess):
    program = ("-c", WITH_GPU + SLOW_STEPS)


class NodeWithEndlessBuild(NodeProcess):
    program = ("-c", WITH_GPU + ENDLESS_STEPS)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., tuple[NodeProcess, Client]]]:
    started: list[Any] = []
    monkeypatch.setenv("NIGHTLAB_PLANS", str(tmp_path / "plans"))

    def start_node(kind: type[NodeProcess] = NodeWithGpu, **parameters: Any) -> tuple[NodeProcess, Client]:
        started.append(kind("", image_size=[96, 64], **parameters))
        started.append(Client())
        return started[-2], started[-1]

    yield start_node
    for one in reversed(started):
        one.close() if isinstance(one, Client) else one.stop()


def plans(tmp_path: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (tmp_path / "plans").glob("*.plan"))


def test_it_builds_while_configuring_and_diagnostics_show_it(
    start: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    process, client = start(bundle=str(tiny_bundle), build_engines=True)
    shown: dict[str, str] = {}

    def watch() -> None:
        shown.update(client.diagnostics(lambda values: float(values.get("build_percent", 0)) > 0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert client.change_state(Transition.TRANSITION_CONFIGURE)
    watcher.join()
    assert shown["message"].startswith("building TensorRT plans: ") and shown["level"] == "0"
    assert shown["build_network"] in ("image", "hardness", "region") and shown["build_phase"]

    # Without a GPU TensorRT cannot load the plans: the node reports that and runs another engine.
    assert process.wait_for_log(
        "there is a GPU, NVIDIA RTX A2000 .*, but TensorRT does not run: .*cannot load the plan"
    )
    assert plans(tmp_path) == ["hardness", "image", "region"]
    assert client.state() == "inactive"
    values = client.diagnostics(lambda values: values["message"] == "inactive")
    assert values["engine"] in ("openvino", "onnxruntime") and "cannot load the plan" in values["engine_note"]
    assert client.change_state(Transition.TRANSITION_CLEANUP)
    assert process.stop() == 0
    assert not process.logged("Traceback|terminate called")


def test_without_leave_to_build_it_names_the_command(
    start: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    process, client = start(bundle=str(tiny_bundle))
    assert client.change_state(Transition.TRANSITION_CONFIGURE)
    assert process.wait_for_log(f"nightlab engine build --bundle {tiny_bundle} --image-size 96x64")
    assert plans(tmp_path) == []
    assert client.set_parameter("build_engines", True).reason.startswith(
        "build_engines takes effect at the next configure"
    )
    assert client.change_state(Transition.TRANSITION_CLEANUP)
    assert client.set_parameter("engine", "tensorrt").successful
    assert not client.change_state(Transition.TRANSITION_CONFIGURE)
    assert client.state() == "unconfigured"
    assert process.wait_for_log("configure failed: PlanError: there is no plan of the image network")


def test_a_signal_ends_a_build(start: Callable[..., Any], tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    process, _ = start(NodeWithEndlessBuild, bundle=str(tiny_bundle), build_engines=True, autostart=True)
    process.wait_for_log("building the TensorRT plan of the image network")
    assert process.stop(signal.SIGINT) == 0
    assert process.logged("BuildStopped: the build of the image network was stopped")
    assert plans(tmp_path) == [] and not process.logged("Traceback|terminate called")


def test_tensorrt_without_a_gpu_fails_with_the_reason(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with node_in_process(bundle=str(tiny_bundle), engine="tensorrt", build_engines=True, image_size=[96, 64]) as node:
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    expected = "configure failed: CudaError: engine 'tensorrt' needs an NVIDIA GPU and its driver"
    assert expected in capfd.readouterr().err


#: Of a process that goes on.
NEVER = threading.Event()


class LoadingSteps:
    """Engines that open and prepare when the test says so, and what was logged."""

    def __init__(self) -> None:
        self.go, self.logged, self.errors = threading.Event(), [], []  # type: ignore[var-annotated]
        self.engines, self.closed, self.prepared = SimpleNamespace(close=self.close), 0, 0
        self.progress: list[bool] = []

    def load(self, fail: str = "", error: type[BaseException] = ValueError) -> EngineLoading:
        def open_engines(on_progress: Callable[[BuildProgress], bool]) -> Any:
            self.progress.append(on_progress(BuildProgress("image", 0.25, "Timing tactics")))
            assert self.go.wait(10)
            self.progress.append(on_progress(BuildProgress("image", 0.5, "Timing tactics")))
            if fail:
                raise error(fail)
            return self.engines

        return EngineLoading(open_engines, self.prepare, self.errors.append, self.logged.append)

    def prepare(self, engines: Any) -> None:
        self.prepared += 1

    def close(self) -> None:
        self.closed += 1


def test_loading_goes_on_after_the_wait_and_reports_its_progress() -> None:
    steps = LoadingSteps()
    loading = steps.load()
    loading.wait(0.01, NEVER)
    wait_until(lambda: steps.progress, "the first step")
    report = loading.report()
    assert report is not None and report.message == "building TensorRT plans: image 25 %" and loading.is_running()
    assert report.values == {"build_network": "image", "build_percent": "25", "build_phase": "Timing tactics"}
    steps.go.set()
    loading.wait(10, NEVER)
    assert (loading.report(), loading.engines, steps.prepared) == (None, steps.engines, 1)
    building, loaded = steps.logged
    assert building == "building the TensorRT plan of the image network"
    assert loaded.startswith("the engines are loaded, after ")
    loading.close()
    assert steps.closed == 1


def test_the_wait_ends_when_the_process_is_to_end() -> None:
    steps, stop = LoadingSteps(), threading.Event()
    loading = steps.load()
    stop.set()
    loading.wait(1e6, stop)
    assert loading.is_running()
    steps.go.set()
    loading.close()


def test_closing_ends_a_build_and_frees_what_was_opened() -> None:
    steps = LoadingSteps()
    loading = steps.load()
    wait_until(lambda: steps.progress, "the first step")
    closer = threading.Thread(target=loading.close)
    closer.start()
    wait_until(loading._cancelled.is_set, "the request to end")
    steps.go.set()
    closer.join(10)
    assert (steps.progress, steps.prepared, steps.closed) == ([True, False], 0, 1)
    assert not any("loaded" in line for line in steps.logged)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_failure_after_the_wait_is_reported_and_raised_by_the_next_one(error: type[BaseException]) -> None:
    steps = LoadingSteps()
    loading = steps.load(fail="no such plan", error=error)
    loading.wait(0.01, NEVER)
    steps.go.set()
    with pytest.raises(error, match="no such plan"):
        loading.wait(10, NEVER)
    report = loading.report()
    assert report is not None and report.level == ERROR
    assert report.message == (
        f"the engines could not be loaded: {error.__name__}: no such plan; cleanup, then configure again"
    )
    assert [str(error) for error in steps.errors] == ["no such plan"]
