# SPDX-License-Identifier: Apache-2.0
"""The benchmark's figures with engines of known cost and a clock that only they advance."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from tiny_bundle import tiny_manifest

from nightlab_core.benchmark import memory
from nightlab_core.benchmark.cameras import camera_memory_mib
from nightlab_core.benchmark.curve import (
    BY_DEADLINE,
    BY_REGIONS,
    BY_SCALE,
    CurvePoint,
    curve_configurations,
    measure_curve,
    share_of_gain,
    with_scale,
)
from nightlab_core.benchmark.deadline import measure_deadline
from nightlab_core.benchmark.measure import Figures, Plan, Subject, measure, smooth_frames
from nightlab_core.benchmark.timing import LEAST_RUNS, Timing, time_in_turns
from nightlab_core.benchmark.work import count_work, matrix_peak_gflops
from nightlab_core.benchmark.wrappers import FixedRegions, OneAtATime, given_boxes
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.runtime import pipeline
from nightlab_core.runtime.bundle import Bundle, EngineKind
from nightlab_core.runtime.clock import Clock
from nightlab_core.runtime.engines.engine import TensorSpec
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.regions import non_maximum_suppression

FRAME_HW = (64, 96)


class FakeClock:
    """Seconds that pass only in `advance`."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now_s

    def advance(self, ms: float) -> None:
        with self._lock:
            self._now_s += ms / 1e3


class CostlyEngine:
    """Engine whose call costs `ms` for each image of 64 x 96 pixels or each crop."""

    name = "fake"
    arithmetic = "float32"

    def __init__(self, kind: EngineKind, clock: FakeClock, ms: float) -> None:
        self.kind, self._clock, self._ms = kind, clock, ms
        self.shapes: list[tuple[int, ...]] = []
        uint8, float32 = np.dtype(np.uint8), np.dtype(np.float32)
        batch = None if kind == "region" else 1
        self.inputs: Mapping[str, TensorSpec] = {
            "crops" if kind == "region" else "frame": TensorSpec(uint8, (batch, None, None, 3))
        }
        self.outputs: Mapping[str, TensorSpec] = {
            name: TensorSpec(uint8, (batch, None, None)) for name in ("labels", "confidence")
        }
        if kind == "hardness":
            self.outputs = {"boxes": TensorSpec(float32, (1, None, 4)), "scores": TensorSpec(float32, (1, None))}

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        pass

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        (array,) = arrays.values()
        self.shapes.append(array.shape)
        batch, height, width, _ = array.shape
        self._clock.advance(self._ms * (batch if self.kind == "region" else height * width / (64 * 96)))
        if self.kind == "hardness":
            return {"boxes": np.zeros((1, 0, 4), np.float32), "scores": np.zeros((1, 0), np.float32)}
        return {name: np.zeros(array.shape[:3], np.uint8) for name in self.outputs}

    def close(self) -> None:
        pass


def engines_of(clock: FakeClock, image_ms: float) -> Engines:
    image, hardness, region = (
        CostlyEngine(kind, clock, ms)
        for kind, ms in (("image", image_ms), ("hardness", 10.0), ("region", 20.0))  # type: ignore[arg-type]
    )
    return Engines(Bundle(Path("none"), tiny_manifest()), image, hardness, region)


def subject(clock: FakeClock, image_ms: float = 80.0, runs: int | None = None) -> Subject:
    @contextmanager
    def open_engines(frame_hw: tuple[int, int]) -> Iterator[Engines]:
        yield engines_of(clock, image_ms)

    return Subject("fake", "auto", open_engines, runs)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(pipeline, "perf_counter", clock)
    return clock


def measured(clock: FakeClock, *subjects: Subject, **plan: object) -> list[Figures]:
    settings = {"frame_hws": (FRAME_HW,), "regions": (0, 1, 10), "runs": 4, "warm_up": 1, "deadline_runs": 2, **plan}
    return measure(subjects, Plan(**settings), clock=clock)  # type: ignore[arg-type]


def test_every_number_of_regions_is_really_read(clock: FakeClock) -> None:
    (figures,) = measured(clock, subject(clock))
    totals = {row.regions: row.total.median_ms for row in figures.pipelines}
    # On this clock the two paths add up.
    assert totals == pytest.approx({None: 80, 0: 90, 1: 110, 10: 290})
    ratios = [row.over_image_level for row in figures.pipelines]
    assert ratios == pytest.approx([1, 90 / 80, 110 / 80, 290 / 80])
    assert {row.total.runs for row in figures.pipelines} == {4}
    assert figures.pipelines[0].stages["region"].median_ms == 0
    assert "total" not in figures.pipelines[0].stages


def test_each_network_is_called_alone_and_at_twice_the_pixels(clock: FakeClock) -> None:
    (figures,) = measured(clock, subject(clock))
    times = {(network.kind, network.shape): network.timing.median_ms for network in figures.networks}
    assert times == pytest.approx(
        {
            ("image", (1, 64, 96, 3)): 80,
            ("hardness", (1, 64, 96, 3)): 10,
            ("region", (1, 32, 48, 3)): 20,
            ("region", (10, 32, 48, 3)): 200,
        }
    )
    # 96 x 128 are exactly twice 64 x 96; the engine's cost is proportional to the pixels.
    assert figures.pixels_doubled == pytest.approx(2)
    assert all(network.work is None and network.gflops is None for network in figures.networks)


def test_further_engines_are_compared_with_the_first_at_the_same_size(clock: FakeClock) -> None:
    sizes = (FRAME_HW, (128, 192))
    found = measured(clock, subject(clock), subject(clock, image_ms=240.0, runs=2), frame_hws=sizes)
    assert [figures.frame_hw for figures in found] == [sizes[0], sizes[0], sizes[1], sizes[1]]
    assert [figures.over_first for figures in found] == pytest.approx([1, 3, 1, 3])
    assert [figures.pipelines[0].total.runs for figures in found] == [4, 2, 4, 2]


def test_numbers_of_regions_beyond_the_bundle_are_left_out(clock: FakeClock) -> None:
    engines = engines_of(clock, 80.0)
    files = engines.bundle.manifest.engines
    region = files.region.model_copy(update={"max_batch": 4})
    manifest = engines.bundle.manifest.model_copy(update={"engines": files.model_copy(update={"region": region})})
    smaller = Engines(Bundle(Path("none"), manifest), engines.image, engines.hardness, engines.region)

    @contextmanager
    def open_engines(frame_hw: tuple[int, int]) -> Iterator[Engines]:
        yield smaller

    (figures,) = measured(clock, Subject("fake", "auto", open_engines))
    assert [row.regions for row in figures.pipelines] == [None, 0, 1]
    assert figures.networks[-1].shape[0] == 4


def test_the_share_of_the_peak_follows_from_work_and_time(clock: FakeClock, tiny_bundle: Path) -> None:
    pytest.importorskip("openvino")
    from nightlab_core.runtime.bundle import load_bundle

    engines = engines_of(clock, 80.0)

    @contextmanager
    def open_engines(frame_hw: tuple[int, int]) -> Iterator[Engines]:
        yield Engines(load_bundle(tiny_bundle), engines.image, engines.hardness, engines.region)

    asked: list[str] = []
    (figures,) = measure(
        [Subject("fake", "auto", open_engines)],
        Plan(frame_hws=(FRAME_HW,), regions=(1,), runs=1, warm_up=0, deadline_runs=1),
        peak_gflops=lambda arithmetic: asked.append(arithmetic) or 100.0,  # type: ignore[func-returns-value]
        clock=clock,
    )
    assert asked == ["float32"]
    for network in figures.networks:
        assert network.work is not None and network.gflops is not None
        assert network.gflops == pytest.approx(1e3 * network.work.gflop / network.timing.median_ms)
        assert network.share_of_peak == pytest.approx(network.gflops / 100)


def test_the_curve_has_accuracy_and_time_of_every_configuration(clock: FakeClock) -> None:
    engines = engines_of(clock, 80.0)
    fixed = Engines(engines.bundle, engines.image, FixedRegions(engines.hardness, 4), engines.region)
    half = np.zeros(FRAME_HW, np.uint8)  # the engines answer class 0 everywhere: half of these pixels are wrong
    half[:32] = 1
    samples = [Sample(image, half, "a") for image in smooth_frames(FRAME_HW, 3)]
    configurations = curve_configurations((1.0, 2.0), (1, 10), (1.3,))
    curve = measure_curve(fixed, samples, engines.bundle.class_set, configurations, clock=clock)
    assert [(point.curve, point.name) for point in curve] == [
        (BY_SCALE, "1"),
        (BY_SCALE, "2"),
        (BY_REGIONS, "1"),
        (BY_REGIONS, "10"),
        (BY_DEADLINE, "1.3"),
    ]
    assert [point.timing.median_ms for point in curve[:4]] == pytest.approx([80, 320, 110, 170])
    assert [point.regions for point in curve[:4]] == [0, 0, 1, 4]
    assert [point.timing.runs for point in curve] == [3] * 5
    assert [point.in_time is None for point in curve] == [True] * 4 + [False]
    # Class 0: half of the union of all pixels. Class 1 is never predicted.
    assert [point.miou for point in curve] == pytest.approx([0.25] * 5)


def test_the_share_of_the_gain_of_ten_regions() -> None:
    def point(curve: str, name: str, miou: float) -> CurvePoint:
        return CurvePoint(curve, name, miou, Timing(0, 0, 0, 1), 0.0, None)

    alone, three, ten = (
        point(curve, name, miou)
        for curve, name, miou in ((BY_SCALE, "1", 0.5), (BY_REGIONS, "3", 0.59), (BY_REGIONS, "10", 0.6))
    )
    assert share_of_gain([alone, three, ten], 3) == pytest.approx(0.9)
    assert share_of_gain([alone, ten], 3) is None
    assert share_of_gain([alone, three, point(BY_REGIONS, "10", 0.5)], 3) is None


class SimulatedClock(Clock):
    """The clock of a pipeline, which only the engines advance."""

    def __init__(self, clock: FakeClock) -> None:
        self.now_s = clock  # type: ignore[method-assign]

    def wait(self, condition: threading.Condition, seconds: float) -> bool:
        """Let the other thread act."""
        condition.wait(0.002)
        return True


@pytest.mark.parametrize(("factor", "read"), [(1.2, 0), (1.45, 1), (4.0, 10)])
def test_masks_in_time_and_regions_read_by_a_deadline(clock: FakeClock, factor: float, read: int) -> None:
    figures = measure_deadline(
        engines_of(clock, 80.0), smooth_frames(FRAME_HW), 80.0, factor=factor, runs=5, clock=SimulatedClock(clock)
    )
    # On this clock the image level and the detector take 90 ms, and each region 20 ms.
    assert figures.deadline_ms == pytest.approx(80 * factor)
    assert (figures.in_time, figures.regions, figures.timing.runs) == (1.0, read, 5)


def test_masks_that_are_late_are_counted(clock: FakeClock) -> None:
    engines = engines_of(clock, 80.0)
    late = measure_deadline(engines, smooth_frames(FRAME_HW), 60.0, factor=1.0, runs=4, clock=SimulatedClock(clock))
    assert (late.in_time, late.regions) == (0.0, 0.0)


def test_a_scale_changes_the_input_of_the_image_level_alone() -> None:
    engines = engines_of(FakeClock(), 80.0)
    files = with_scale(engines, 1.5).bundle.manifest.engines
    assert files.image.input_hw == (96, 128)  # 96 x 144 in multiples of 32
    assert files.hardness == engines.bundle.manifest.engines.hardness
    assert engines.bundle.manifest.engines.image.input_hw == (64, 96)
    with pytest.raises(ValueError, match="received 0, expected a number above 0"):
        with_scale(engines, 0)
    with pytest.raises(ValueError, match="received no frames"):
        measure_curve(engines, [], engines.bundle.class_set, curve_configurations((1.0,), (), ()))


def test_calls_take_turns_and_the_warm_up_is_not_counted() -> None:
    clock, order = FakeClock(), []

    def call(name: str, *costs_ms: float) -> None:
        clock.advance(costs_ms[order.count(name)])
        order.append(name)

    calls = {"a": lambda: call("a", 500, 1, 2, 3), "b": lambda: call("b", 900, 10, 20, 30)}
    times = time_in_turns(calls, 3, 1, clock)
    assert order == ["a", "b"] * 4
    assert times["a"] == pytest.approx([1, 2, 3]) and times["b"] == pytest.approx([10, 20, 30])


def test_a_limit_ends_the_rounds_but_leaves_enough() -> None:
    clock = FakeClock()
    assert len(time_in_turns({"a": lambda: clock.advance(10_000)}, 30, 1, clock, limit_s=5)["a"]) == LEAST_RUNS
    assert len(time_in_turns({"a": lambda: clock.advance(1000)}, 30, 0, clock, limit_s=9.5)["a"]) == 10


def test_percentiles() -> None:
    assert Timing.of(list(range(101))) == Timing(50, 95, 99, 101)
    with pytest.raises(ValueError, match="expected at least one"):
        Timing.of([])


def test_given_boxes_survive_the_suppression() -> None:
    for count in range(11):
        boxes = given_boxes(count)[0]
        assert boxes.shape == (count, 4) and (boxes >= 0).all() and (boxes <= 1).all()
        assert len(non_maximum_suppression(boxes, np.linspace(1, 0.9, count), 0.0, 10)) == count
    with pytest.raises(ValueError, match="received 11, expected 0 to 10"):
        given_boxes(11)


def test_wrapped_engines_run_the_network_and_leave_it_open() -> None:
    clock = FakeClock()
    inner = CostlyEngine("hardness", clock, 10.0)
    frame = np.zeros((1, 64, 96, 3), np.uint8)
    fixed = FixedRegions(OneAtATime(inner, threading.Lock()), 3)
    fixed.prepare(frame=frame.shape)
    assert fixed(frame=frame)["boxes"].shape == (1, 3, 4) and inner.shapes == [frame.shape]
    fixed.close()
    fixed(frame=frame)
    assert clock() == pytest.approx(0.02)


def test_smooth_frames_differ_and_never_change() -> None:
    first, second = smooth_frames((48, 64))
    assert first.shape == (48, 64, 3) and first.dtype == np.uint8 and (first != second).any()
    assert (first == smooth_frames((48, 64))[0]).all()


def test_the_peak_of_memory_can_be_reset() -> None:
    memory.reset_peak()
    before = memory.peak_mib()
    block = np.ones(64 << 20, np.uint8)
    assert memory.peak_mib() > before + 32
    del block


def test_parameters_and_arithmetic_of_a_graph(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "full"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["a", "depthwise"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=8),
        helper.make_node("ConvTranspose", ["b", "up"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["c", "to_offsets"], ["o"], kernel_shape=[1, 1]),
        helper.make_node("DeformConv", ["c", "deformed", "o"], ["d"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["d", "matrix"], ["y"]),
    ]
    shapes = {
        "full": (8, 3, 3, 3),
        "depthwise": (8, 1, 3, 3),
        "up": (8, 4, 2, 2),
        "to_offsets": (18, 4, 1, 1),
        "deformed": (5, 4, 3, 3),
        "matrix": (16, 7),
    }
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight(name, *shape) for name, shape in shapes.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "net.onnx")
    work = count_work(tmp_path / "net.onnx", {"x": (1, 3, 12, 16)})
    assert work.parameters == sum(int(np.prod(shape)) for shape in shapes.values())
    small, large = 6 * 8, 12 * 16  # pixels
    products = small * 8 * 27 + small * 8 * 9 + small * 8 * 4 * 4 + large * 18 * 4 + large * 5 * 36 + 5 * 12 * 7 * 16
    assert work.gflop == pytest.approx(2 * products / 1e9)


def test_the_peak_is_the_fastest_product() -> None:
    pytest.importorskip("openvino")
    ticks = iter([0.0, 9.0, 10.0, 14.0, 20.0, 22.0])  # 9 s for the warm-up, then 4 and 2 s
    peak = matrix_peak_gflops("float32", 1, side=64, runs=2, clock=lambda: next(ticks))
    assert peak == pytest.approx(2 * 64**3 / 2 / 1e9)


def test_each_further_camera_is_a_pipeline_whose_memory_is_measured(clock: FakeClock) -> None:
    marks = iter([100.0, 112.0, 121.0])
    engines = engines_of(clock, 80.0)
    assert camera_memory_mib(engines, (64, 96), memory_mib=lambda: next(marks)) == (12.0, 9.0)
    assert camera_memory_mib(engines, (64, 96), memory_mib=lambda: None) == ()
