# SPDX-License-Identifier: Apache-2.0
"""Real builds by TensorRT for RTX, which needs no GPU for them; and the build's own rules."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx")

import onnx
from onnx import TensorProto, helper

from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle, EngineKind, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import BuildProgress, BuildStopped
from nightlab_core.runtime.engines.tensorrt.build import Precision, build_plan, plan_key, plan_shapes
from nightlab_core.runtime.engines.tensorrt.compiler import serialize
from nightlab_core.runtime.engines.tensorrt.cuda import Device
from nightlab_core.runtime.engines.tensorrt.libraries import (
    RTX_CAPABILITIES,
    Target,
    TensorRtError,
    TensorRtLibrary,
    import_library,
)
from nightlab_core.runtime.engines.tensorrt.plans import (
    PlanError,
    PlanHeader,
    PlanKey,
    find_plan,
    locked,
    plan_files,
    read_plan,
)

ROOT = Path(__file__).parents[3]
FRAME_HW = (64, 96)


@pytest.fixture(scope="module")
def library() -> TensorRtLibrary:
    return import_library("tensorrt_rtx")


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def key_of(
    bundle: Bundle,
    library: TensorRtLibrary,
    kind: EngineKind = "image",
    precision: Precision = "float16",
    frame_hw: tuple[int, int] = FRAME_HW,
) -> PlanKey:
    shapes = plan_shapes(bundle, kind, frame_hw)
    return plan_key(bundle, kind, library, library.target(None), precision, shapes)


@pytest.fixture(scope="module")
def shipped(library: TensorRtLibrary, tmp_path_factory: pytest.TempPathFactory) -> dict[EngineKind, PlanHeader]:
    """The shipped bundle's three networks in half precision, as `nightlab engine build` makes them."""
    bundle, folder = load_bundle(default_bundle()), tmp_path_factory.mktemp("plans")
    headers = {}
    for kind in ENGINE_KINDS:
        key = key_of(bundle, library, kind, frame_hw=(720, 1280))
        headers[kind], was_built = build_plan(bundle, key, library, folder)
        assert was_built
        read_plan(folder / key.file_name, key)
    return headers


@pytest.mark.slow
def test_the_shipped_bundle_builds_in_half_precision(shipped: dict[EngineKind, PlanHeader]) -> None:
    assert {kind: header.plan_bytes > 1_000_000 for kind, header in shipped.items()} == dict.fromkeys(shipped, True)
    assert shipped["image"].key.shapes["frame"] == ((1, 416, 736, 3),) * 3
    crop = (*load_bundle(default_bundle()).manifest.engines.region.input_hw, 3)
    assert shipped["region"].key.shapes["crops"] == ((1, *crop), (10, *crop), (10, *crop))


@pytest.mark.slow
def test_layers_that_half_precision_would_harm_stay_in_float32(shipped: dict[EngineKind, PlanHeader]) -> None:
    """The network is strongly typed, so that the types it was parsed with are those that run."""
    for kind, header in shipped.items():
        half, full = header.layers["float16"], header.layers["float32"]
        assert half["CONVOLUTION"] > 30 and "CONVOLUTION" not in full, kind
        fragile = {"GRID_SAMPLE", "NORMALIZATION", "SOFTMAX", "REDUCE", "TOPK", "UNARY"}
        assert not fragile & set(half), kind
        if kind != "hardness":
            assert {"GRID_SAMPLE", "NORMALIZATION", "REDUCE"} <= set(full), kind
            context = kind == "image" and load_bundle(default_bundle()).manifest.engines.region.context
            assert header.layers["uint8"] == {"CAST": 3 if context else 2}  # labels, confidence, context


@pytest.mark.slow
def test_a_float32_build_has_no_half_precision_layer(library: TensorRtLibrary, tmp_path: Path) -> None:
    bundle = load_bundle(default_bundle())
    header, _ = build_plan(bundle, key_of(bundle, library, "hardness", "float32"), library, tmp_path)
    assert "float16" not in header.layers and header.layers["float32"]["CONVOLUTION"] > 30


def test_the_parsers_error_names_the_layer(library: TensorRtLibrary) -> None:
    """The shipped graph as it is: TensorRT has no DeformConv, which is why it is rewritten before."""
    bundle = load_bundle(default_bundle())
    model = onnx.load(bundle.path("image"))
    graph = model.graph  # bytes are cast at once, so that the parser gets as far as the convolution
    name = graph.input[0].name
    for node in graph.node:
        node.input[:] = ["number" if i == name else i for i in node.input]
    graph.node.insert(0, helper.make_node("Cast", [name], ["number"], to=TensorProto.FLOAT))
    first = next(node.name for node in graph.node if node.op_type == "DeformConv")
    with pytest.raises(TensorRtError) as refused:
        serialize(library, model.SerializeToString(), key_of(bundle, library), lambda progress: True)
    message = str(refused.value)
    assert message.startswith("TensorRT's parser refuses the image network: ")
    assert f"layer '{first}' (DeformConv)" in message


def test_bytes_that_are_not_a_graph_are_refused(tiny: Bundle, library: TensorRtLibrary) -> None:
    with pytest.raises(TensorRtError, match="TensorRT's parser refuses the image network"):
        serialize(library, b"no graph at all", key_of(tiny, library), lambda progress: True)


def test_shapes_that_the_network_does_not_take_are_refused(tiny: Bundle, library: TensorRtLibrary) -> None:
    from nightlab_core.runtime.engines.tensorrt.graphs import tensorrt_graph

    model = tensorrt_graph(onnx.load(tiny.path("region")), "float16", {}).SerializeToString()
    crop = (10, 16, 16, 3)  # the network has 32x48
    key = key_of(tiny, library, "region").model_copy(update={"shapes": {"crops": (crop, crop, crop)}})
    with pytest.raises(TensorRtError, match=r"TensorRT \d.* cannot build the region network: .+"):
        serialize(library, model, key, lambda progress: True)


def test_progress_rises_to_the_end(tiny: Bundle, library: TensorRtLibrary, tmp_path: Path) -> None:
    heard: list[BuildProgress] = []

    def listen(progress: BuildProgress) -> bool:
        heard.append(progress)
        return True

    build_plan(tiny, key_of(tiny, library), library, tmp_path, listen)
    fractions = [progress.fraction for progress in heard]
    assert fractions == sorted(fractions) and fractions[0] == 0.0 and fractions[-1] == 1.0
    assert {progress.kind for progress in heard} == {"image"}
    assert [progress.step for progress in heard][-1] == "stored"


def test_a_build_can_be_stopped(tiny: Bundle, library: TensorRtLibrary, tmp_path: Path) -> None:
    with pytest.raises(BuildStopped, match="the build of the image network was stopped"):
        build_plan(tiny, key_of(tiny, library), library, tmp_path, lambda progress: progress.step.startswith("rewr"))
    assert plan_files(tmp_path) == []
    _, was_built = build_plan(tiny, key_of(tiny, library), library, tmp_path)
    assert was_built


def test_an_error_of_the_progress_listener_is_raised(tiny: Bundle, library: TensorRtLibrary, tmp_path: Path) -> None:
    def listen(progress: BuildProgress) -> bool:
        if progress.step != "rewriting the graph":
            raise KeyError("in the listener")
        return True

    with pytest.raises(KeyError, match="in the listener"):
        build_plan(tiny, key_of(tiny, library), library, tmp_path, listen)
    assert plan_files(tmp_path) == []


def test_an_intact_plan_is_kept_and_a_damaged_one_is_built_again(
    tiny: Bundle, library: TensorRtLibrary, tmp_path: Path
) -> None:
    key = key_of(tiny, library)
    first, was_built = build_plan(tiny, key, library, tmp_path)
    again, was_built_again = build_plan(tiny, key, library, tmp_path)
    assert (was_built, was_built_again) == (True, False) and again == first
    path = tmp_path / key.file_name
    path.write_bytes(path.read_bytes()[:-1])
    _, was_built = build_plan(tiny, key, library, tmp_path)
    assert was_built
    read_plan(path, key)


def test_a_bundle_that_changed_since_it_was_opened_gets_no_plan(
    library: TensorRtLibrary, tmp_path: Path, tiny: Bundle
) -> None:
    """Its plan would be stored under the old file's sum, and be loaded for it."""
    folder = Path(shutil.copytree(tiny.dir, tmp_path / "bundle"))
    bundle = load_bundle(folder)
    with bundle.path("image").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(PlanError, match=r"image\.onnx: received SHA-256 .* was changed since the bundle was opened"):
        build_plan(bundle, key_of(bundle, library), library, tmp_path / "plans")
    assert plan_files(tmp_path / "plans") == []


def test_a_missing_package_is_named(
    library: TensorRtLibrary, tmp_path: Path, tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"one is missing .*onnx.*: pip install onnx onnxruntime"):
        build_plan(tiny, key_of(tiny, library), library, tmp_path)


def test_waiting_for_another_process_can_be_stopped(tiny: Bundle, library: TensorRtLibrary, tmp_path: Path) -> None:
    heard: list[str] = []

    def listen(progress: BuildProgress) -> bool:
        heard.append(progress.step)
        return len(heard) < 3

    with locked(tmp_path), pytest.raises(BuildStopped, match="the wait for another process"):
        build_plan(tiny, key_of(tiny, library), library, tmp_path, listen)
    assert set(heard) == {"waiting for another process that builds"}


def test_one_logger_serves_the_process(library: TensorRtLibrary, caplog: pytest.LogCaptureFixture) -> None:
    """TensorRT keeps the first logger that it is given, even once its owner is gone, and warns of every other one."""
    with caplog.at_level("WARNING"):
        runtimes = [library.trt.Runtime(import_library("tensorrt_rtx").logger()) for _ in range(3)]
    assert None not in runtimes and "logger passed into" not in caplog.text
    library.messages.clear()
    assert runtimes[2].deserialize_cuda_engine(b"no plan at all") is None
    assert library.messages


def test_a_plan_is_built_for_the_target(library: TensorRtLibrary) -> None:
    assert library.target(None) == Target(RTX_CAPABILITIES)
    assert library.target(Device("RTX A2000", "8.6", 0)) == Target(RTX_CAPABILITIES)
    assert library.target(Device("Tesla T4", "7.5", 0)) == Target(("7.5",), "Tesla T4")
    assert library.target(None, ("8.9", "8.6")) == Target(("8.6", "8.9"))
    with pytest.raises(TensorRtError, match=r"does not know compute capability 8\.7; it knows 7\.5, 8\.0, 8\.6"):
        library.target(None, ("8.6", "8.7"))
    assert set(RTX_CAPABILITIES) <= set(library.known_capabilities())


def test_tensorrt_itself_builds_on_the_gpu_only() -> None:
    library = TensorRtLibrary("tensorrt", None)
    orin = Device("Orin", "8.7", 0)
    assert library.target(orin) == library.target(orin, ("8.7",)) == Target(("8.7",), "Orin")
    with pytest.raises(TensorRtError, match="builds only on the GPU that will run the plan"):
        library.target(None)
    with pytest.raises(TensorRtError, match=r"for the GPU at hand, Orin .*received compute capabilities 8\.9"):
        library.target(orin, ("8.9",))


#: Builds the tiny bundle's image network, and is killed by `kill -9` at one moment of it.
KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from nightlab_core.runtime.engines.tensorrt import build as builder
from nightlab_core.runtime.bundle import load_bundle
from nightlab_core.runtime.engines.tensorrt.libraries import import_library

folder, moment = Path(sys.argv[2]), sys.argv[3]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
fsync, replace = os.fsync, Path.replace

def dying_fsync(descriptor):
    if moment == "half written":
        os.truncate(f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_size // 2)
    if moment in ("half written", "written"):
        die()
    fsync(descriptor)

def dying_replace(source, target):
    if moment == "before the rename":
        die()
    replace(source, target)
    if moment == "after the rename":
        die()

def listen(progress):
    if moment == "building" and progress.step != "rewriting the graph":
        die()
    return True

os.fsync, Path.replace = dying_fsync, dying_replace
bundle, library = load_bundle(sys.argv[1]), import_library("tensorrt_rtx")
shapes = builder.plan_shapes(bundle, "image", (64, 96))
key = builder.plan_key(bundle, "image", library, library.target(None), "float16", shapes)
print(builder.build_plan(bundle, key, library, folder, listen)[1])
"""


def start_build(bundle: Bundle, folder: Path, moment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KILLED_BUILD, str(bundle.dir), str(folder), moment]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("building", {".lock"}),
        ("half written", {".lock", ".image-KEY.plan.PID"}),
        ("written", {".lock", ".image-KEY.plan.PID"}),
        ("before the rename", {".lock", ".image-KEY.plan.PID"}),
        ("after the rename", {".lock", "image-KEY.plan"}),
    ],
)
def test_killing_a_build_leaves_a_complete_plan_or_none(
    tiny: Bundle, library: TensorRtLibrary, tmp_path: Path, moment: str, left: set[str]
) -> None:
    process = start_build(tiny, tmp_path, moment)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors
    key = key_of(tiny, library)
    digest = key.file_name[len("image-") : -len(".plan")]
    assert names(tmp_path) == {name.replace("KEY", digest).replace("PID", str(process.pid)) for name in left}
    for path in plan_files(tmp_path):
        read_plan(path, key)  # raises where it is not whole
    _, was_built = build_plan(tiny, key, library, tmp_path)  # its lock died with it, and what it left is swept up
    assert was_built is ("image-KEY.plan" not in left)
    assert names(tmp_path) == {".lock", key.file_name}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_two_processes_build_a_plan_once(tiny: Bundle, library: TensorRtLibrary, tmp_path: Path) -> None:
    processes = [start_build(tiny, tmp_path, "never") for _ in range(2)]
    results = [process.communicate(timeout=300) for process in processes]
    assert sorted(output for output, _ in results) == ["False\n", "True\n"], results
    find_plan(tmp_path, key_of(tiny, library))
