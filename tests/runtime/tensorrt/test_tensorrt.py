# SPDX-License-Identifier: Apache-2.0
"""The engine on doubles of CUDA and TensorRT: order, sizes, freeing, and failures at every single call."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from fake_gpu import FakeCuda, FakeTensorRt, Ledger, fake_header, fake_library
from tiny_bundle import image_level, region_level

from nightlab_core.runtime.engines.engine import TensorSpec
from nightlab_core.runtime.engines.tensorrt import engine as engine_module
from nightlab_core.runtime.engines.tensorrt.cuda import CudaError
from nightlab_core.runtime.engines.tensorrt.engine import TensorRtEngine
from nightlab_core.runtime.engines.tensorrt.libraries import TensorRtError
from nightlab_core.runtime.engines.tensorrt.plans import PlanError, PlanHeader, Shape, TensorInfo

CROP = (4, 6, 3)
SIZES_HW = ((4, 6), (6, 4), (8, 8))
MAPS = {name: TensorInfo(dtype="uint8", shape=(None, None, None)) for name in ("labels", "confidence")}


def image_network(frame: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(("labels", "confidence"), image_level(frame), strict=True))


def region_network(crops: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(("labels", "confidence"), region_level(crops), strict=True))


def image_header(height: int, width: int) -> PlanHeader:
    shape = (1, height, width, 3)
    info = TensorInfo(dtype="uint8", shape=(1, None, None, 3))
    return fake_header("image", {"frame": (shape, shape, shape)}, {"frame": info}, MAPS)


REGION_HEADER = fake_header(
    "region",
    {"crops": ((1, *CROP), (10, *CROP), (10, *CROP))},
    {"crops": TensorInfo(dtype="uint8", shape=(None, *CROP))},
    MAPS,
)


class Machine:
    """A GPU, its plans, and engines on it."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.cuda = FakeCuda(self.ledger)
        self.opened: list[Mapping[str, Shape]] = []
        networks: dict[bytes, Any] = {b"regio": (region_network, REGION_HEADER)}
        for height, width in SIZES_HW:
            networks[f"{height}x{width}".encode()] = (image_network, image_header(height, width))
        self.library = fake_library(self.cuda, networks)
        self.trt: FakeTensorRt = self.library.trt

    def open_plan(self, shapes: Mapping[str, Shape]) -> tuple[PlanHeader, bytes]:
        self.opened.append(dict(shapes))
        if "crops" in shapes:
            return REGION_HEADER, b"regio"
        height, width = shapes["frame"][1:3]
        if (height, width) not in SIZES_HW:
            raise PlanError(f"no plan for {height}x{width}; build it with: nightlab engine build")
        return image_header(height, width), f"{height}x{width}".encode()

    def image(self, **options: Any) -> TensorRtEngine:
        return TensorRtEngine(self.library, self.open_plan, {"frame": (1, 4, 6, 3)}, cuda=self.cuda, **options)

    def region(self, **options: Any) -> TensorRtEngine:
        return TensorRtEngine(self.library, self.open_plan, {"crops": (10, *CROP)}, cuda=self.cuda, **options)

    def assert_nothing_is_left(self) -> None:
        if self.ledger.alive:  # perhaps an exception holds the last reference
            gc.collect()
        assert self.ledger.alive == set()


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield Machine()


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_the_engine_reports_the_networks_inputs_and_outputs(machine: Machine) -> None:
    engine = machine.image()
    assert engine.name == "tensorrt"
    assert engine.inputs == {"frame": TensorSpec(np.dtype(np.uint8), (1, None, None, 3))}
    assert set(engine.outputs) == {"labels", "confidence"}
    engine.close()


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_results_are_right_for_every_batch_size_in_any_order(machine: Machine, cuda_graphs: bool) -> None:
    engine = machine.region(cuda_graphs=cuda_graphs)
    for seed, batch in enumerate((10, 1, 7, 7, 2, 10)):
        crops = random_bytes(batch, *CROP, seed=seed)
        labels, confidence = region_level(crops)
        output = engine(crops=crops)
        np.testing.assert_array_equal(output["labels"], labels)
        np.testing.assert_array_equal(output["confidence"], confidence)
    assert len(machine.opened) == 1
    assert "begin_capture" not in machine.ledger.calls  # a recording holds for one shape only
    engine.close()
    machine.assert_nothing_is_left()


def test_cuda_calls_have_the_expected_order_and_sizes(machine: Machine) -> None:
    engine = machine.region()
    frame, maps = 10 * 4 * 6 * 3, 10 * 4 * 6
    assert machine.ledger.calls == [
        "make runtime",
        "deserialize_cuda_engine",
        "make engine",
        "create_execution_context",
        "make context",
        "create_stream",
        "set_input_shape",
        f"allocate {frame}",
        f"allocate_pinned {frame}",
        "set_tensor_address",
        f"allocate {maps}",
        f"allocate_pinned {maps}",
        "set_tensor_address",
        f"allocate {maps}",
        f"allocate_pinned {maps}",
        "set_tensor_address",
    ]
    machine.ledger.calls.clear()
    engine(crops=random_bytes(10, *CROP))
    engine(crops=random_bytes(3, *CROP))
    run = ["copy_to_device {0}", "execute", "copy_to_host {1}", "copy_to_host {1}", "synchronize"]
    first = [step.format(frame, maps) for step in run]
    second = [step.format(3 * 4 * 6 * 3, 3 * 4 * 6) for step in run]
    assert machine.ledger.calls == [*first, "set_input_shape", *second]  # nothing is allocated for a frame
    machine.ledger.calls.clear()
    engine.close()
    frees = ["free_pinned", "free"] * 3
    assert machine.ledger.calls == [
        "synchronize", "drop context", "drop engine", "drop runtime", *frees, "destroy_stream"
    ]  # fmt: skip
    machine.assert_nothing_is_left()


def test_tensorrt_for_rtx_compiles_shapes_at_once_and_not_in_the_background(machine: Machine) -> None:
    machine.image().close()
    assert machine.trt.runtime_configs == [None]  # TensorRT itself has no such choice
    strategies = SimpleNamespace(LAZY="lazy", EAGER="eager")
    machine.trt.DynamicShapesKernelSpecializationStrategy = strategies  # type: ignore[attr-defined]
    machine.region().close()
    assert machine.trt.runtime_configs[1].dynamic_shapes_kernel_specialization_strategy == "eager"
    machine.assert_nothing_is_left()


def test_the_installed_tensorrt_for_rtx_has_the_api_that_the_engine_uses() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER != trt.DynamicShapesKernelSpecializationStrategy.LAZY
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(trt.ICudaEngine, "create_runtime_config")


def test_a_fixed_shape_runs_as_one_cuda_graph(machine: Machine) -> None:
    engine = machine.image(cuda_graphs=True)
    capture = machine.ledger.calls.index("begin_capture")
    assert machine.ledger.calls.index("execute") < capture  # TensorRT's first run cannot be recorded
    machine.ledger.calls.clear()
    for seed in range(3):
        frame = random_bytes(1, 4, 6, 3, seed=seed)
        np.testing.assert_array_equal(engine(frame=frame)["labels"], image_level(frame)[0])
    assert machine.ledger.calls == ["launch", "synchronize"] * 3
    engine.close()
    assert machine.ledger.calls[6:8] == ["synchronize", "destroy_graph"]
    machine.assert_nothing_is_left()


def test_results_are_not_overwritten_by_later_calls(machine: Machine) -> None:
    engine = machine.image()
    frame = random_bytes(1, 4, 6, 3)
    first = engine(frame=frame)["confidence"]
    kept = first.copy()
    engine(frame=255 - frame)
    np.testing.assert_array_equal(first, kept)
    engine.close()
    np.testing.assert_array_equal(first, kept)


def test_plans_of_sizes_that_alternate_stay_loaded(machine: Machine) -> None:
    engine = machine.image()
    for height, width in SIZES_HW * 3:
        engine(frame=random_bytes(1, height, width, 3))
    assert len(machine.opened) == len(SIZES_HW)
    engine.close()
    machine.assert_nothing_is_left()


def test_plans_are_loaded_per_size_and_the_oldest_is_closed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "KEPT_SIZES", 2)
    engine = machine.image()
    for height, width in (*SIZES_HW, *SIZES_HW, SIZES_HW[-1]):
        frame = random_bytes(1, height, width, 3)
        np.testing.assert_array_equal(engine(frame=frame)["labels"], image_level(frame)[0])
        assert sum(kind == "engine" for kind, _ in machine.ledger.alive) <= 2
    assert len(machine.opened) == 6  # the first is used at once, the last twice
    with pytest.raises(PlanError, match="no plan for 10x10; build it with: nightlab engine build"):
        engine.prepare(frame=(1, 10, 10, 3))
    engine(frame=random_bytes(1, 8, 8, 3))  # still works
    engine.close()
    machine.assert_nothing_is_left()


def test_prepare_loads_and_runs_once(machine: Machine) -> None:
    engine = machine.image()
    engine.prepare(frame=(1, 8, 8, 3))
    assert machine.opened == [{"frame": (1, 4, 6, 3)}, {"frame": (1, 8, 8, 3)}]
    assert machine.ledger.calls.count("execute") == 1
    engine.close()


def test_inputs_that_do_not_fit_are_refused_before_any_cuda_call(machine: Machine) -> None:
    engine = machine.image()
    machine.ledger.calls.clear()
    with pytest.raises(ValueError, match=r"tensorrt engine: input 'frame' received float32"):
        engine(frame=np.zeros((1, 4, 6, 3), np.float32))
    with pytest.raises(ValueError, match=r"received inputs \['picture'\], expected \['frame'\]"):
        engine(picture=random_bytes(1, 4, 6, 3))
    assert machine.ledger.calls == []
    engine.close()


def test_arrays_that_are_not_contiguous_are_read_correctly(machine: Machine) -> None:
    engine = machine.image()
    frame = random_bytes(1, 4, 6, 3)[..., ::-1]
    np.testing.assert_array_equal(engine(frame=frame)["labels"], image_level(frame)[0])
    engine.close()


def test_a_closed_engine_raises_an_error(machine: Machine) -> None:
    engine = machine.image()
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine(frame=random_bytes(1, 4, 6, 3))


def test_each_engine_has_its_own_stream(machine: Machine) -> None:
    engines = [machine.image(), machine.region()]
    assert sum(kind == "stream" for kind, _ in machine.ledger.alive) == 2
    for engine in engines:
        engine.close()
    machine.assert_nothing_is_left()


def test_concurrent_calls_run_one_at_a_time(machine: Machine) -> None:
    engine = machine.region()
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(20):
            crops = random_bytes(1 + (seed + turn) % 10, *CROP, seed=100 * seed + turn)
            if not np.array_equal(engine(crops=crops)["labels"], region_level(crops)[0]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    engine.close()


def live(machine: Machine) -> None:
    """Load, run, change the shape, load another plan, close: every call that there is."""
    engine = machine.image(cuda_graphs=True)
    try:
        engine(frame=random_bytes(1, 4, 6, 3))
        engine(frame=random_bytes(1, 6, 4, 3))
    finally:
        engine.close()
    region = machine.region()
    try:
        region(crops=random_bytes(10, *CROP))
        region(crops=random_bytes(2, *CROP))
    finally:
        region.close()


def number_of_calls() -> int:
    machine = Machine()
    live(machine)
    machine.assert_nothing_is_left()
    return machine.ledger.fallible


@pytest.mark.parametrize("fail_at", range(number_of_calls()))
def test_any_failing_cuda_call_leaves_no_leak_and_no_double_free(fail_at: int) -> None:
    machine = Machine()
    machine.ledger.fail_at = fail_at
    with pytest.raises(CudaError, match="made to fail"):
        live(machine)
    machine.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("deserialize_cuda_engine", r"tensorrt 99\.1 cannot load the plan: deserialize_cuda_engine was refused"),
        ("create_execution_context", r"tensorrt 99\.1 has no memory to run the plan: create_execution_context was"),
        ("set_input_shape", r"refuses 'crops' of shape \(10, 4, 6, 3\): set_input_shape was refused"),
        ("set_tensor_address", r"refuses the buffer of 'crops'"),
    ],
)
def test_a_refusal_by_tensorrt_is_an_error_with_its_message(machine: Machine, call: str, message: str) -> None:
    machine.trt.refuse.add(call)
    with pytest.raises(TensorRtError, match=message):
        machine.region()
    machine.assert_nothing_is_left()


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_engine_works_after_a_failed_run(machine: Machine, cuda_graphs: bool) -> None:
    engine = machine.region(cuda_graphs=cuda_graphs)
    machine.trt.refuse.add("execute")
    with pytest.raises(TensorRtError, match="cannot run the region network: execute was refused by TensorRT"):
        engine(crops=random_bytes(10, *CROP))
    machine.trt.refuse.clear()
    crops = random_bytes(10, *CROP, seed=5)
    np.testing.assert_array_equal(engine(crops=crops)["labels"], region_level(crops)[0])
    engine.close()
    machine.assert_nothing_is_left()


def test_a_plan_whose_tensors_differ_from_its_header_is_refused(machine: Machine) -> None:
    header = image_header(4, 6)
    other = header.model_copy(update={"outputs": {"labels": MAPS["labels"]}})
    machine.trt.networks = {b"4x6": (image_network, other)}
    with pytest.raises(TensorRtError, match=r"the plan's inputs and outputs are .* its header says"):
        machine.image()
    machine.assert_nothing_is_left()
