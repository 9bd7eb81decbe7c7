# SPDX-License-Identifier: Apache-2.0
"""Measure the speed of engines: each network alone, and the pipeline at each number of regions. Start at `measure`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np

from nightlab_core.benchmark import memory
from nightlab_core.benchmark.deadline import FRAMES, DeadlineFigures, measure_deadline
from nightlab_core.benchmark.timing import Clock, Timing, time_in_turns
from nightlab_core.benchmark.work import Work, count_work
from nightlab_core.benchmark.wrappers import FixedRegions
from nightlab_core.runtime.bundle import EngineFile, EngineKind
from nightlab_core.runtime.engines.engine import Engine
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import STAGES, Pipeline, Result
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings


@dataclass(frozen=True)
class Subject:
    """Engines to measure, by the name of their library and the precision that was asked for."""

    engine: str
    precision: str
    open: Callable[[tuple[int, int]], AbstractContextManager[Engines]]  #: takes the frames' (height, width)
    runs: int | None = None  #: number of calls, where it differs from the others'


@dataclass(frozen=True)
class Plan:
    """Extent of a measurement."""

    frame_hws: tuple[tuple[int, int], ...] = ((720, 1280),)
    regions: tuple[int, ...] = (0, 1, 3, 10)
    runs: int = 30
    warm_up: int = 3
    deadline_runs: int = FRAMES  #: frames with a deadline, where a subject has no number of calls of its own
    limit_s: float | None = None  #: the pipelines, networks and deadline each stop after so many seconds


@dataclass(frozen=True)
class PipelineFigures:
    """Times of the pipeline with one number of regions."""

    regions: int | None  #: None: the image level alone; 0: both levels, and the hardness network finds nothing
    total: Timing
    stages: dict[str, Timing]  #: by name in `pipeline.STAGES`, without the total
    over_image_level: float | None = None  #: ratio of the medians; None if the image level was not measured


@dataclass(frozen=True)
class NetworkFigures:
    """Times of one network called alone."""

    kind: EngineKind
    shape: tuple[int, ...]  #: of its input, (batch, height, width, 3)
    timing: Timing
    work: Work | None = None  #: None if the ONNX file or OpenVINO is missing
    gflops: float | None = None  #: 10^9 operations per second at the median
    share_of_peak: float | None = None  #: `gflops` over the machine's matrix peak in the same precision


@dataclass(frozen=True)
class Figures:
    """Everything that was measured with one set of engines on frames of one size."""

    engine: str
    precision: str  #: as asked for
    arithmetic: str | None  #: precision that the library computes in on the CPU; None: it does not say
    frame_hw: tuple[int, int]
    prepare_s: float
    peak_mib: float  #: largest memory of the process while it ran
    pipelines: tuple[PipelineFigures, ...]
    networks: tuple[NetworkFigures, ...]
    deadline: DeadlineFigures
    pixels_doubled: float | None  #: time of the image network at twice the pixels, over its time at its own size
    note: str = ""  #: why a faster library was skipped
    #: How the engines run, then a line for each measurement that led to it; empty if they have one form only.
    choice: tuple[str, ...] = ()
    over_first: float | None = None  #: median of the image level, over that of the first engines at this frame size


def measure(
    subjects: Sequence[Subject],
    plan: Plan = Plan(),
    *,
    peak_gflops: Callable[[str], float | None] = lambda arithmetic: None,
    on_step: Callable[[str], None] = lambda text: None,
    clock: Clock = perf_counter,
) -> list[Figures]:
    """Measure every subject at every frame size, one after the other.

    Args:
        subjects: what to measure. Raises what opening their engines raises.
        plan: frame sizes, numbers of regions and calls.
        peak_gflops: the machine's matrix peak, 10^9 operations per second, by precision; None if it is not known.
        on_step: receives the name of each step before it begins.
        clock: seconds.
    """
    found: list[Figures] = []
    for frame_hw in plan.frame_hws:
        first: Figures | None = None
        for subject in subjects:
            name = f"{subject.engine} {subject.precision}, {frame_hw[1]}x{frame_hw[0]}"
            on_step(f"{name}: opening")
            memory.reset_peak()
            runs = subject.runs or plan.runs
            with subject.open(frame_hw) as engines:
                figures = _measure_engines(
                    engines, subject, dataclasses.replace(plan, runs=runs), frame_hw, peak_gflops,
                    _named(on_step, name), clock,
                )  # fmt: skip
            first = first or figures
            ratio = _ratio(figures.pipelines[0].total.median_ms, first.pipelines[0].total.median_ms)
            found.append(dataclasses.replace(figures, over_first=ratio))
    return found


def _named(on_step: Callable[[str], None], name: str) -> Callable[[str], None]:
    return lambda step: on_step(f"{name}: {step}")


def smooth_frames(frame_hw: tuple[int, int], count: int = 2) -> list[np.ndarray]:
    """Return different frames of smooth random colours, uint8 (H, W, 3) BGR, always the same."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 9, 16, 3), np.uint8)
    return [cv2.resize(image, frame_hw[::-1], interpolation=cv2.INTER_CUBIC) for image in coarse]


def _measure_engines(
    engines: Engines,
    subject: Subject,
    plan: Plan,
    frame_hw: tuple[int, int],
    peak_gflops: Callable[[str], float | None],
    on_step: Callable[[str], None],
    clock: Clock,
) -> Figures:
    on_step("preparing")
    start = clock()
    engines.prepare(frame_hw)
    prepare_s = clock() - start
    on_step("pipeline")
    pipelines = _measure_pipelines(engines, plan, frame_hw, clock)
    on_step("deadline")
    deadline = measure_deadline(
        engines, smooth_frames(frame_hw), pipelines[0].total.median_ms,
        runs=subject.runs or plan.deadline_runs, warm_up=plan.warm_up, limit_s=plan.limit_s,
    )  # fmt: skip
    on_step("networks")
    arithmetic = getattr(engines.image, "arithmetic", None)
    networks, doubled = _measure_networks(engines, plan, frame_hw, clock)
    peak_mib = memory.peak_mib()  # before the matrices of the peak
    peak = peak_gflops(arithmetic) if arithmetic else None
    return Figures(
        engine=engines.name,
        precision=subject.precision,
        arithmetic=arithmetic,
        frame_hw=frame_hw,
        prepare_s=prepare_s,
        peak_mib=peak_mib,
        pipelines=pipelines,
        networks=tuple(_with_peak(network, peak) for network in networks),
        deadline=deadline,
        pixels_doubled=doubled,
        note=engines.note,
        choice=_choice(engines),
    )


def _choice(engines: Engines) -> tuple[str, ...]:
    choice = engines.choice
    return tuple(map(str, (choice, *choice.comparisons))) if choice.form else ()


def _measure_pipelines(
    engines: Engines, plan: Plan, frame_hw: tuple[int, int], clock: Clock
) -> tuple[PipelineFigures, ...]:
    """Time the image level alone and both levels with each number of regions that the bundle allows, in turns."""
    results: dict[int | None, list[Result]] = {}
    calls: dict[int | None, Callable[[], object]] = {}
    with ExitStack() as stack:
        most = engines.bundle.manifest.engines.region.max_batch
        for regions in (None, *(count for count in dict.fromkeys(plan.regions) if count <= most)):
            pipeline = stack.enter_context(_pipeline(engines, regions))
            calls[regions] = _pipeline_call(pipeline, smooth_frames(frame_hw), results.setdefault(regions, []))
        times_ms = time_in_turns(calls, plan.runs, plan.warm_up, clock, plan.limit_s)
    image_level = Timing.of(times_ms[None])
    found = []
    for regions, times in times_ms.items():
        stages_ms = [result.stages_ms for result in results[regions][-len(times) :]]
        if any(int(result.refined.sum()) != (regions or 0) for result in results[regions]):
            raise RuntimeError(f"the pipeline did not read {regions} regions in every frame")
        stages = {name: Timing.of([ms[name] for ms in stages_ms]) for name in STAGES if name != "total"}
        total = Timing.of(times)
        found.append(PipelineFigures(regions, total, stages, _ratio(total.median_ms, image_level.median_ms)))
    return tuple(found)


def _pipeline(engines: Engines, regions: int | None) -> Pipeline:
    if regions is None:
        return Pipeline(engines, PipelineSettings(refine="never"))
    fixed = dataclasses.replace(engines, hardness=FixedRegions(engines.hardness, regions))
    return Pipeline(fixed, PipelineSettings(max_regions=MAX_REGIONS, score_threshold=0.0))


def _pipeline_call(pipeline: Pipeline, frames_bgr: Sequence[np.ndarray], results: list[Result]) -> Callable[[], object]:
    """Return a call that segments the next of the frames, again from the first after the last, and keeps the result."""
    frames = itertools.cycle(frames_bgr)
    return lambda: results.append(pipeline(next(frames)))


def _measure_networks(
    engines: Engines, plan: Plan, frame_hw: tuple[int, int], clock: Clock
) -> tuple[list[NetworkFigures], float | None]:
    """Time each network alone, in turns: the region network with one crop and with the most of `plan.regions`."""
    files = engines.bundle.manifest.engines
    image_hw = files.image.network_hw(frame_hw)
    shapes: list[tuple[EngineKind, tuple[int, ...]]] = [
        ("image", (1, *image_hw, 3)),
        ("hardness", (1, *files.hardness.network_hw(frame_hw), 3)),
    ]
    batches = sorted({1, min(max((1, *plan.regions)), files.region.max_batch)})
    shapes += [("region", (batch, *files.region.input_hw, 3)) for batch in batches]
    doubled_hw = _doubled(files.image, image_hw)
    doubled: tuple[EngineKind, tuple[int, ...]] = ("image", (1, *doubled_hw, 3))
    can_double = engines.image.inputs["frame"].accepts_shape(doubled[1])
    wanted = [*shapes, *([doubled] if can_double else [])]
    calls = {(kind, shape): _network_call(engines, kind, shape) for kind, shape in wanted}
    timings = {
        key: Timing.of(times)
        for key, times in time_in_turns(calls, plan.runs, plan.warm_up, clock, plan.limit_s).items()
    }
    ratio = None
    if can_double:
        # The sides are multiples of the network's, so that the pixels are not exactly twice as many.
        ratio = _ratio(timings[doubled].median_ms, timings[shapes[0]].median_ms)
        ratio = ratio and ratio * 2 * math.prod(image_hw) / math.prod(doubled_hw)
    return [
        NetworkFigures(kind, shape, timings[kind, shape], _work(engines, kind, shape)) for kind, shape in shapes
    ], ratio


def _doubled(file: EngineFile, size_hw: tuple[int, int]) -> tuple[int, int]:
    height, width = (max(1, round(side * math.sqrt(2) / file.multiple)) * file.multiple for side in size_hw)
    return height, width


def _network_call(engines: Engines, kind: EngineKind, shape: tuple[int, ...]) -> Callable[[], object]:
    name, *others = shapes = _input_shapes(engines, kind, shape)
    batch, height, width, _ = shape
    arrays = {name: np.stack(smooth_frames((height, width), batch))}
    arrays |= {other: np.zeros(shapes[other], np.uint8) for other in others}
    engine: Engine = getattr(engines, kind)
    return lambda: engine(**arrays)


def _input_shapes(engines: Engines, kind: EngineKind, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all inputs of a network, by name, from that of its frame or crops (N, H, W, 3)."""
    if kind != "region":
        return {"frame": shape}
    return engines.bundle.manifest.engines.region.input_shapes(
        shape[0], (shape[1], shape[2]), len(engines.bundle.class_set)
    )


def _work(engines: Engines, kind: EngineKind, shape: tuple[int, ...]) -> Work | None:
    path: Path = engines.bundle.path(kind)
    try:
        return count_work(path, _input_shapes(engines, kind, shape)) if path.is_file() else None
    except ImportError:
        return None


def _with_peak(network: NetworkFigures, peak: float | None) -> NetworkFigures:
    if network.work is None or not network.timing.median_ms:
        return network
    gflops = 1e3 * network.work.gflop / network.timing.median_ms
    return dataclasses.replace(network, gflops=gflops, share_of_peak=gflops / peak if peak else None)


def _ratio(time_ms: float, base_ms: float) -> float | None:
    return time_ms / base_ms if base_ms else None
