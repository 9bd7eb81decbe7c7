# SPDX-License-Identifier: Apache-2.0
"""Which engine runs: every rule of "auto" and of "tensorrt", with plans that TensorRT for RTX really built.

The GPU is made up, and so are the engines that would load the plans on it; what is found, built and said is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnxruntime")

from nightlab_core.runtime.bundle import Bundle, load_bundle
from nightlab_core.runtime.engines.engine import BuildProgress, BuildStopped, EngineOptions, OnProgress, TensorSpec
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.engines.tensorrt import engine as tensorrt
from nightlab_core.runtime.engines.tensorrt.build import build_command
from nightlab_core.runtime.engines.tensorrt.cuda import CudaError, Device
from nightlab_core.runtime.engines.tensorrt.libraries import TensorRtError, import_library
from nightlab_core.runtime.engines.tensorrt.plans import PlanError, Shape, plan_files

RTX = Device("NVIDIA RTX A2000", "8.6", 6 << 30)
FRAME_HW = (64, 96)


class LoadedPlan(tensorrt.TensorRtEngine):
    """Stands where an engine on the GPU would: it opens its plan as that does."""

    opened: list[LoadedPlan] = []  # noqa: RUF012 - emptied for every test
    fail_on: str = ""

    def __init__(self, library: Any, open_plan: Any, shapes: Mapping[str, Shape]) -> None:
        self.header, self.plan = open_plan(shapes)
        self.name, self._open_plan, self.closed = library.name, open_plan, False
        if self.header.key.kind == type(self).fail_on:
            raise TensorRtError("the plan is refused on this GPU")
        self.inputs = {n: TensorSpec(np.dtype(i.dtype), i.shape) for n, i in self.header.inputs.items()}
        self.outputs = {n: TensorSpec(np.dtype(i.dtype), i.shape) for n, i in self.header.outputs.items()}
        self.opened.append(self)

    def prepare(self, **shapes: Shape) -> None:
        self._open_plan(shapes)

    def close(self) -> None:
        self.closed = True


def open_engines(bundle: Bundle, *, on_progress: OnProgress = lambda progress: True, **options: Any) -> Engines:
    # Nothing is measured: the engines made up here cannot run.
    return Engines.open(bundle, EngineOptions(calibration_s=0.0, **options), on_progress=on_progress)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU, TensorRT for RTX and no plans; returns the cache's folder."""
    monkeypatch.setenv("NIGHTLAB_PLANS", str(tmp_path / "plans"))
    monkeypatch.setattr(tensorrt, "find_device", lambda: (RTX, ""))
    monkeypatch.setattr(tensorrt, "installed_libraries", lambda: [import_library("tensorrt_rtx")])
    monkeypatch.setattr(tensorrt, "TensorRtEngine", LoadedPlan)
    LoadedPlan.opened.clear()
    monkeypatch.setattr(LoadedPlan, "fail_on", "")
    return tmp_path / "plans"


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tensorrt, "find_device", lambda: (None, "cudaErrorNoDevice: no CUDA-capable device is detected")
    )
    monkeypatch.setattr(tensorrt, "has_driver", lambda: False)


def test_auto_loads_existing_plans_and_builds_only_on_request(bundle: Bundle, machine: Path) -> None:
    # A GPU but no plan: the next engine, and a sentence with the command.
    engines = open_engines(bundle, frame_hw=FRAME_HW)
    assert engines.name in ("openvino", "onnxruntime")
    assert str(RTX) in engines.note and "there is no plan of the image network" in engines.note
    command = f"NIGHTLAB_PLANS={machine} nightlab engine build --bundle {bundle.dir} --image-size 96x64"
    assert engines.note.endswith(f"Build it with: {command}")
    assert not machine.exists()

    # The same with leave to build: it builds all three, telling how far it is.
    heard: list[BuildProgress] = []

    def listen(progress: BuildProgress) -> bool:
        heard.append(progress)
        return True

    engines = open_engines(bundle, frame_hw=FRAME_HW, build=True, on_progress=listen)
    assert (engines.name, engines.note) == ("tensorrt_rtx", "")
    assert [kind for kind in ("image", "hardness", "region") if any(p.kind == kind for p in heard)] == [
        "image", "hardness", "region"
    ]  # fmt: skip
    assert len(plan_files(machine)) == 3

    # A GPU and plans that fit: they are loaded, and nothing is built.
    heard.clear()
    for engine in ("auto", "tensorrt"):
        engines = open_engines(bundle, engine=engine, frame_hw=FRAME_HW, build=True, on_progress=listen)
        assert engines.name == "tensorrt_rtx" and heard == []

    # Another precision is another plan.
    engines = open_engines(bundle, frame_hw=FRAME_HW, precision="float32")
    assert engines.name != "tensorrt_rtx"
    assert "precision: built with float16, here it is float32" in engines.note
    assert engines.note.endswith("--image-size 96x64 --precision float32")

    # So is another camera.
    engines = open_engines(bundle, frame_hw=(96, 64))
    assert "shapes: built for frame (1, 64, 96, 3), here it is frame (1, 96, 64, 3)" in engines.note

    # A damaged plan is not loaded.
    path = next(path for path in plan_files(machine) if path.name.startswith("region"))
    path.write_bytes(path.read_bytes()[:-5])
    engines = open_engines(bundle, frame_hw=FRAME_HW)
    assert engines.name != "tensorrt_rtx" and "it was cut short" in engines.note
    assert LoadedPlan.opened[-1].header.key.kind == "hardness" and LoadedPlan.opened[-1].closed  # none stays open
    with pytest.raises(PlanError, match=f"(?s)cut short.*Build it with: .*nightlab engine build --bundle {bundle.dir}"):
        open_engines(bundle, engine="tensorrt", frame_hw=FRAME_HW)


def test_auto_without_a_gpu_gives_no_note(bundle: Bundle, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    engines = open_engines(bundle, frame_hw=FRAME_HW, build=True)
    assert engines.note == "" and engines.name in ("openvino", "onnxruntime")
    assert not machine.exists()
    with pytest.raises(CudaError, match=r"engine 'tensorrt' needs an NVIDIA GPU .*no CUDA-capable device"):
        open_engines(bundle, engine="tensorrt", frame_hw=FRAME_HW)


def test_a_driver_without_a_usable_gpu_gives_a_note(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's bindings may be missing or newer than the driver: the CPU must not take over in silence."""
    without_gpu(monkeypatch)
    monkeypatch.setattr(tensorrt, "has_driver", lambda: True)
    engines = open_engines(bundle, frame_hw=FRAME_HW)
    assert engines.name in ("openvino", "onnxruntime")
    assert "no CUDA-capable device is detected" in engines.note and "'cuda-bindings<13'" in engines.note
    assert open_engines(bundle, engine="onnxruntime", frame_hw=FRAME_HW).note == ""


def test_a_gpu_without_tensorrt_gives_a_note_that_names_the_package(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "installed_libraries", list)
    assert "TensorRT is not installed: JetPack" in open_engines(bundle, frame_hw=FRAME_HW).note
    with pytest.raises(ImportError, match="pip install tensorrt-rtx-cu13"):
        open_engines(bundle, engine="tensorrt", frame_hw=FRAME_HW)


def test_tensorrt_needs_the_cameras_size(bundle: Bundle) -> None:
    assert "set image_size" in open_engines(bundle).note
    with pytest.raises(PlanError, match="set image_size"):
        open_engines(bundle, engine="tensorrt", build=True)


def test_a_plan_that_the_gpu_refuses_is_reported_and_closed(
    bundle: Bundle, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_engines(bundle, frame_hw=FRAME_HW, build=True)
    LoadedPlan.opened.clear()
    monkeypatch.setattr(LoadedPlan, "fail_on", "region")
    engines = open_engines(bundle, frame_hw=FRAME_HW)
    assert engines.name != "tensorrt_rtx" and "the plan is refused on this GPU" in engines.note
    assert f"clean --all, then {build_command(bundle, FRAME_HW)}" in engines.note
    assert [plan.closed for plan in LoadedPlan.opened] == [True, True]


def test_an_engine_that_the_user_chose_is_used_without_tensorrt(bundle: Bundle, machine: Path) -> None:
    engines = open_engines(bundle, engine="onnxruntime", frame_hw=FRAME_HW, build=True)
    assert (engines.name, engines.note) == ("onnxruntime", "") and not machine.exists()


def test_a_stopped_build_opens_no_engine(bundle: Bundle, machine: Path) -> None:
    for engine in ("auto", "tensorrt"):
        with pytest.raises(BuildStopped):
            open_engines(
                bundle,
                engine=engine,
                frame_hw=FRAME_HW,
                build=True,
                on_progress=lambda progress: progress.step == "rewriting the graph",
            )
    assert not plan_files(machine)


def test_another_camera_size_does_not_start_a_build(bundle: Bundle, machine: Path) -> None:
    """The first frame may not have the size that was promised: then the plan is missed while the node is active."""
    with open_engines(bundle, frame_hw=FRAME_HW, build=True) as engines:
        assert engines.name == "tensorrt_rtx" and engines.note == ""
        before = plan_files(machine)
        message = r"(?s)The camera's size is not image_size, 96x64: .*--image-size WIDTHxHEIGHT"
        with pytest.raises(PlanError, match=message):
            engines.prepare((96, 64))
        assert plan_files(machine) == before


def test_the_suggested_build_command_is_complete(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTLAB_PLANS")
    assert build_command(bundle, (720, 1280)) == f"nightlab engine build --bundle {bundle.dir} --image-size 1280x720"
    monkeypatch.setenv("NIGHTLAB_PLANS", "/my plans")
    assert build_command(bundle, (720, 1280)).startswith("NIGHTLAB_PLANS='/my plans' nightlab engine build ")
