# SPDX-License-Identifier: Apache-2.0
"""Run the measurements of `nightlab benchmark`, print them, and write its files."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from nightlab_cli.benchmark_summary import SummaryColumn, summary_table
from nightlab_cli.benchmark_tables import curve_table, print_figures, print_node
from nightlab_cli.options import new_console
from nightlab_core.benchmark.cameras import camera_memory_mib
from nightlab_core.benchmark.curve import Configuration, CurvePoint, measure_curve
from nightlab_core.benchmark.measure import Figures, Plan, Subject, measure
from nightlab_core.benchmark.work import matrix_peak_gflops
from nightlab_core.data.datasets.catalogue import open_set
from nightlab_core.data.datasets.paired import LabelledImages, Sample
from nightlab_core.files import write_atomic
from nightlab_core.runtime.bundle import Bundle
from nightlab_core.runtime.engines.engine import EngineChoice, Precision, PrecisionChoice
from nightlab_replay.provenance import describe_bundle, machine, versions
from nightlab_replay.report.curves import CURVE_NAME, StoredCurves, curve_chart, networks_of
from nightlab_replay.report.svg import standalone

if TYPE_CHECKING:  # needs ROS
    from nightlab_ros.node_benchmark import NodeFigures

Curves = Mapping[str, Sequence[CurvePoint]]


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    bundle: Bundle
    engine: EngineChoice  #: of the node and of the curves: the first that was given
    precision: PrecisionChoice
    threads: int
    plan: Plan
    data: Path | None  #: folder of the data sets
    datasets: tuple[str, ...]
    glob: str
    frames: int | None  #: of a data set at most
    json: Path | None  #: file of all figures
    out: Path | None  #: folder of all files


def measure_everything(
    request: Request,
    subjects: Sequence[Subject],
    configurations: Sequence[Configuration],
    *,
    summary: bool,
    node: bool,
) -> None:
    """Measure engines, curves and, with `summary`, cameras and the node; print tables and write the files."""
    console, plan = new_console(), request.plan
    peak, peaks = peak_measurer(request.threads)
    nodes: dict[tuple[int, int], NodeFigures] = {}
    camera_mib: tuple[float, ...] = ()
    with new_console(stderr=True).status("") as status:
        found = measure(subjects, plan, peak_gflops=peak, on_step=status.update)
        curves = measure_curves(request, subjects[0], configurations, status.update)
        if summary:
            with subjects[0].open(plan.frame_hws[0]) as engines:
                engines.prepare(plan.frame_hws[0])
                camera_mib = camera_memory_mib(engines, plan.frame_hws[0])
        if node:
            nodes = {frame_hw: measure_node(request, frame_hw, status.update) for frame_hw in plan.frame_hws}
    console.print(f"bundle {request.bundle.manifest.name}, {plan.runs} calls each after {plan.warm_up} for warm-up")
    console.print(f"{machine()['cpu']}, {machine()['cores']} cores")
    console.print()
    if summary:
        console.print(summary_table(summary_columns(found, camera_mib, nodes, curves)))
    else:
        print_figures(console, found, peaks)
    for dataset, curve in curves.items():
        console.print()
        console.print(curve_table(curve, f"{dataset}, {curve[0].timing.runs} frames"))
    figures = {
        **origin(request.bundle, found[0].engine),
        "plan": asdict(plan),
        "matrix_peak_gflops": peaks,
        "figures": [asdict(figures) for figures in found],
        "camera_mib": camera_mib,
        "nodes": [asdict(figures) for figures in nodes.values()],
    }
    write_files(request, figures, curves)


def measure_node_only(request: Request) -> None:
    """Measure the node with frames of one size, print the figures and write the files."""
    with new_console(stderr=True).status("") as status:
        measured = measure_node(request, request.plan.frame_hws[0], status.update)
    print_node(new_console(), measured, request.engine, request.precision)
    write_files(request, {**origin(request.bundle, request.engine), "node": asdict(measured)}, {})


def measure_node(request: Request, frame_hw: tuple[int, int], on_step: Callable[[str], None]) -> NodeFigures:
    """Start the node and measure it."""
    from nightlab_ros import node_benchmark

    parameters = {
        "bundle": str(request.bundle.dir.resolve()),
        "engine": request.engine,
        "precision": request.precision,
        "threads": str(request.threads),
    }
    return node_benchmark.measure_node(parameters, frame_hw, on_step)


def measure_curves(
    request: Request, subject: Subject, configurations: Sequence[Configuration], on_step: Callable[[str], None]
) -> dict[str, list[CurvePoint]]:
    """Measure the curve of each data set."""
    curves: dict[str, list[CurvePoint]] = {}
    if request.data is None:
        return curves
    for dataset in request.datasets:

        def on_frame(text: str, name: str = dataset) -> None:
            on_step(f"{name}: {text}")

        samples, classes = open_set(request.data, dataset, request.glob, False, request.bundle.class_set)
        with subject.open(samples[0].labels.shape) as engines:
            curves[dataset] = measure_curve(
                engines,
                every_nth(samples, request.frames),
                classes,
                configurations,
                on_step=on_frame,
            )
    return curves


def every_nth(samples: LabelledImages, most: int | None) -> Sequence[Sample]:
    """Return at most `most` samples, at equal distances."""
    step = 1 if most is None else max(1, math.ceil(len(samples) / most))
    if step == 1:
        return samples
    pairs = list(zip(samples.images, samples.labels, strict=True))[::step]
    return LabelledImages(pairs, samples.classes, samples.file_ids, samples.finer_labels)


def summary_columns(
    found: Sequence[Figures],
    camera_mib: Sequence[float],
    nodes: Mapping[tuple[int, int], NodeFigures],
    curves: Curves,
) -> list[SummaryColumn]:
    """Return a column for each set of engines and frame size. Cameras and curves were measured with the first one."""
    eager = {figures.frame_hw: figures for figures in found if figures.engine == "torch"}
    columns = [figures for figures in found if figures.engine != "torch"]
    return [
        SummaryColumn(
            figures,
            eager.get(figures.frame_hw),
            camera_mib if figures is columns[0] else (),
            nodes.get(figures.frame_hw),
            curves if figures is columns[0] else {},
        )
        for figures in columns
    ]


def origin(bundle: Bundle, engine: str) -> dict[str, Any]:
    """Return the machine, the versions of the libraries and the hashes of the bundle."""
    described = describe_bundle(bundle, engine).model_dump(mode="json")
    return {"machine": machine(), "versions": versions(), "bundle": described}


def peak_measurer(threads: int) -> tuple[Callable[[str], float | None], dict[str, float]]:
    """Return a function from a precision to the machine's matrix peak, measured once, and the peaks found so far."""
    peaks: dict[str, float] = {}

    @lru_cache
    def peak(arithmetic: str) -> float | None:
        if arithmetic not in get_args(Precision):
            return None
        try:
            peaks[arithmetic] = matrix_peak_gflops(cast(Precision, arithmetic), threads)
        except ImportError:
            return None
        return peaks[arithmetic]

    return peak, peaks


def write_files(request: Request, figures: dict[str, Any], curves: Curves) -> None:
    """Write all figures into the file `json` and the folder `out`, and there the curves alone and their pictures."""
    points = {dataset: [asdict(point) for point in curve] for dataset, curve in curves.items()}
    text = json_module.dumps(figures | {"curves": points}, indent=1)
    if request.json is not None:
        write_atomic(request.json, text)
    if request.out is None:
        return
    write_atomic(request.out / "benchmark.json", text)
    if not curves:
        return
    stored = StoredCurves(
        cpu=figures["machine"]["cpu"],
        cores=figures["machine"]["cores"],
        engine=figures["bundle"]["engine"],
        bundle=request.bundle.manifest.name,
        networks=networks_of(request.bundle),
        curves={dataset: tuple(curve) for dataset, curve in curves.items()},
    )
    write_atomic(request.out / CURVE_NAME, stored.model_dump_json(indent=1) + "\n")
    for dataset, curve in curves.items():
        picture = standalone(curve_chart(curve, dataset))
        write_atomic(request.out / f"curve_{dataset.replace('/', '_')}.svg", picture)
