# SPDX-License-Identifier: Apache-2.0
"""`nightlab benchmark`: measure the speed of a bundle's networks and pipeline on this machine."""

from __future__ import annotations

import itertools
import json as json_module
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from nightlab_cli.benchmark_subjects import bundle_subject, checkpoint_subject
from nightlab_cli.benchmark_tables import curve_svg, curve_table, print_figures, print_node, summary_table
from nightlab_cli.engine import Library, choose_library
from nightlab_cli.errors import Verbose
from nightlab_cli.options import Bundle as BundleOption
from nightlab_cli.options import Frames, Threads, hold_output, new_console, parse_size_hw, repeated_option
from nightlab_cli.style import new_app
from nightlab_core.benchmark.cameras import camera_memory_mib
from nightlab_core.benchmark.curve import CurvePoint, measure_curve
from nightlab_core.benchmark.measure import Figures, Plan, measure
from nightlab_core.benchmark.work import matrix_peak_gflops
from nightlab_core.data.datasets.catalogue import open_set
from nightlab_core.data.datasets.paired import LabelledImages, Sample
from nightlab_core.files import write_atomic
from nightlab_core.runtime.bundle import Bundle, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import EngineChoice, Precision, PrecisionChoice
from nightlab_core.runtime.settings import MAX_REGIONS
from nightlab_replay.provenance import describe_bundle, machine, versions

FRAME_HW = (720, 1280)
#: Scales of the image level's input in the curve of accuracy against time.
SCALES = (0.75, 1.0, 1.25, 1.5)
#: Where --runs is not given, the pipelines, and then the networks, are timed for so many seconds at most.
LIMIT_S = 40.0
#: Calls of a plan on a GPU, where --runs is not given.
PLAN_RUNS = 500
app = new_app()


def parse_regions(text: str) -> tuple[int, ...]:
    """Return the numbers of regions from a text such as 0,1,3,10. Raises BadParameter."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) <= MAX_REGIONS for word in words):
        raise typer.BadParameter(f"received '{text}', expected numbers from 0 to {MAX_REGIONS}, such as 0,1,3,10")
    return tuple(dict.fromkeys(int(word) for word in words))


def origin(bundle: Bundle, engine: str) -> dict[str, Any]:
    """Return the machine, the versions of the libraries and the hashes of the bundle."""
    described = describe_bundle(bundle, engine).model_dump(mode="json")
    return {"machine": machine(), "versions": versions(), "bundle": described}


def as_json(
    bundle: Bundle, found: Sequence[Figures], plan: Plan, peaks: dict[str, float], curve: Sequence[CurvePoint]
) -> dict[str, Any]:
    """Return everything that was measured, with the machine, versions and hashes of the bundle."""
    return {
        **origin(bundle, found[0].engine),
        "plan": asdict(plan),
        "matrix_peak_gflops": peaks,
        "figures": [asdict(figures) for figures in found],
        "curve": [asdict(point) for point in curve],
    }


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


@app.command()
def benchmark(
    context: typer.Context,
    bundle: BundleOption = None,
    image_size: Annotated[
        list[Any] | None,
        typer.Option(
            "--image-size",
            metavar="WIDTHxHEIGHT",
            parser=parse_size_hw,
            help="Size of the camera's images; can be repeated.",
            show_default="1280x720",
        ),
    ] = None,
    engine: Annotated[
        list[Any] | None, repeated_option("--engine", EngineChoice, "Library that runs the networks")
    ] = None,
    precision: Annotated[list[Any] | None, repeated_option("--precision", PrecisionChoice, "Arithmetic")] = None,
    threads: Threads = 0,
    regions: Annotated[
        Any,
        typer.Option(
            "--regions", metavar="N,N", parser=parse_regions, help="Numbers of regions.", show_default="0,1,3,10"
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            "--runs", metavar="N", min=1, help="Number of calls to time.", show_default="30, fewer on a slow machine"
        ),
    ] = None,
    warm_up: Annotated[
        int, typer.Option("--warm-up", metavar="N", min=0, help="Calls before those that are timed.")
    ] = Plan.warm_up,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="FILE", help="Measure this checkpoint in eager PyTorch, too."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FOLDER", help="Folder of the data sets, for --dataset.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="NAME", help="Such as camvid/val: measure mean IoU against time on it, too."),
    ] = None,
    frames: Frames = None,
    scale: Annotated[
        list[float] | None,
        typer.Option(
            "--scale",
            metavar="FACTOR",
            help="With --dataset: scale of the image level's input; can be repeated.",
            show_default="0.75 1 1.25 1.5",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Write benchmark.json and, with --dataset, curve.svg here."),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here, too.")] = None,
    node: Annotated[
        bool,
        typer.Option("--node", help="Measure the ROS node instead: highest rate, latency, jitter, load, overhead."),
    ] = False,
    plans: Annotated[
        bool, typer.Option("--plans", help="Compare forms of TensorRT plans on this GPU instead.")
    ] = False,
    summary: Annotated[
        bool,
        typer.Option("--summary", help="Print the main ratios in one table only, with the memory of a second camera."),
    ] = False,
    library: Library = None,
    verbose: Verbose = False,
) -> None:
    """Measure a bundle on this machine: each network, each stage, and both levels at several numbers of regions.

    Every number of regions is really read: given boxes replace those of the hardness network, which runs as well.
    Compare ratios within one run, and measure while nothing else runs.

    Examples:

    \b
    nightlab benchmark
    nightlab benchmark --data DATA --dataset camvid/val --out speed
    nightlab benchmark --engine openvino --engine onnxruntime --json speed.json
    nightlab benchmark --checkpoint checkpoints/nightlab-lite.pt --regions 3
    nightlab benchmark --summary --checkpoint checkpoints/nightlab-lite.pt
    """
    if (data is None) != (dataset is None):
        raise typer.BadParameter("--data and --dataset belong together: give both")
    if node + plans + (dataset is not None or checkpoint is not None) > 1:
        raise typer.BadParameter("--node, --plans, and --dataset or --checkpoint exclude each other: give one")
    if out is not None:
        hold_output(context, out)
    opened, console = load_bundle(bundle or default_bundle()), new_console()
    if plans:
        from nightlab_cli.benchmark_plans import measure_plans

        hw = (image_size or [FRAME_HW])[0]
        measure_plans(opened, hw, choose_library(library), runs or PLAN_RUNS)
        return
    if node:
        refuse_several({"--engine": engine, "--precision": precision, "--image-size": image_size})
        from nightlab_ros.node_benchmark import measure_node

        parameters = {
            "bundle": str(opened.dir.resolve()),
            "engine": (engine or ["auto"])[0],
            "precision": (precision or ["auto"])[0],
            "threads": str(threads),
        }
        with new_console(stderr=True).status("") as status:
            measured = measure_node(parameters, (image_size or [FRAME_HW])[0], status.update)
        print_node(console, measured, parameters["engine"], parameters["precision"])
        write_files({**origin(opened, parameters["engine"]), "node": asdict(measured)}, [], "", json, out)
        return
    refuse_too_many(regions or (), opened)
    plan = Plan(
        frame_hws=tuple(dict.fromkeys(image_size or [FRAME_HW])),
        regions=Plan.regions if regions is None else regions,
        runs=runs or Plan.runs,
        warm_up=warm_up,
        limit_s=None if runs else LIMIT_S,
    )
    chosen = itertools.product(dict.fromkeys(engine or ["auto"]), dict.fromkeys(precision or ["auto"]))
    subjects = [bundle_subject(opened, name, form, threads) for name, form in chosen]
    if checkpoint is not None:
        subjects.append(checkpoint_subject(checkpoint, plan.runs))
    peak, peaks = peak_measurer(threads)
    with new_console(stderr=True).status("") as status:
        found = measure(subjects, plan, peak_gflops=peak, on_step=status.update)
        curve = []
        if data is not None and dataset is not None:
            samples, classes = open_set(data, dataset, complete=False, classes=opened.class_set)
            with subjects[0].open(samples[0].labels.shape) as engines:
                curve = measure_curve(
                    engines,
                    every_nth(samples, frames),
                    classes,
                    scales=scale or SCALES,
                    regions=[number for number in plan.regions if number],
                    on_step=status.update,
                )
    calls = found[0].pipelines[0].total.runs
    console.print(f"bundle {opened.manifest.name}, {calls} calls each after {plan.warm_up} for warm-up")
    console.print(f"{machine()['cpu']}, {machine()['cores']} cores")
    console.print()
    camera_mib: tuple[float, ...] = ()
    if summary:
        with subjects[0].open(plan.frame_hws[0]) as engines:
            engines.prepare(plan.frame_hws[0])
            camera_mib = camera_memory_mib(engines, plan.frame_hws[0])
        eager = next((f for f in found if f.engine == "torch" and f.frame_hw == found[0].frame_hw), None)
        console.print(summary_table(found[0], eager, camera_mib))
    else:
        print_figures(console, found, peaks)
    if curve:
        console.print()
        console.print(curve_table(curve, f"{dataset}, {curve[0].timing.runs} frames"))
    figures = as_json(opened, found, plan, peaks, curve) | {"camera_mib": camera_mib}
    write_files(figures, curve, str(dataset), json, out)


def refuse_several(options: dict[str, list[Any] | None]) -> None:
    """Raise BadParameter for an option that was given more than once, where only one value can be measured."""
    for name, values in options.items():
        if values and len(values) > 1:
            raise typer.BadParameter(f"{name}: received {len(values)} values, but --node measures one: run it for each")


def refuse_too_many(regions: Sequence[int], bundle: Bundle) -> None:
    """Raise BadParameter for numbers of regions that the bundle cannot read."""
    most = bundle.manifest.engines.region.max_batch
    if beyond := [number for number in regions if number > most]:
        raise typer.BadParameter(f"--regions: received {beyond[0]}, but this bundle's max_batch is {most}")


def every_nth(samples: LabelledImages, most: int | None) -> Sequence[Sample]:
    """Return at most `most` samples, at equal distances."""
    step = 1 if most is None else max(1, math.ceil(len(samples) / most))
    if step == 1:
        return samples
    pairs = list(zip(samples.images, samples.labels, strict=True))[::step]
    return LabelledImages(pairs, samples.classes, samples.file_ids, samples.finer_labels)


def write_files(
    figures: dict[str, Any], curve: Sequence[CurvePoint], dataset: str, json: Path | None, out: Path | None
) -> None:
    """Write the figures into the file `json` and the folder `out`, and the picture of the curve into `out`."""
    text = json_module.dumps(figures, indent=1)
    if json is not None:
        write_atomic(json, text)
    if out is not None:
        write_atomic(out / "benchmark.json", text)
        if curve:
            write_atomic(out / "curve.svg", curve_svg(curve, dataset))
