# SPDX-License-Identifier: Apache-2.0
"""`nightlab benchmark`: measure the speed of a bundle's networks and pipeline on this machine."""

from __future__ import annotations

import itertools
import json as json_module
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from nightlab_cli.benchmark_tables import curve_svg, curve_table, print_figures, print_node
from nightlab_cli.engine import Library, choose_library
from nightlab_cli.errors import Verbose
from nightlab_cli.options import Bundle as BundleOption
from nightlab_cli.options import Frames, Threads, hold_output, new_console, parse_size_hw, repeated_option
from nightlab_cli.style import new_app
from nightlab_core.benchmark.curve import CurvePoint, measure_curve
from nightlab_core.benchmark.measure import Figures, Plan, Subject, measure
from nightlab_core.benchmark.work import matrix_peak_gflops
from nightlab_core.benchmark.wrappers import OneAtATime
from nightlab_core.data.datasets.catalogue import open_set
from nightlab_core.data.datasets.paired import LabelledImages, Sample
from nightlab_core.files import write_atomic
from nightlab_core.runtime.bundle import Bundle, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions, Precision, PrecisionChoice
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.settings import MAX_REGIONS
from nightlab_replay.provenance import describe_bundle, machine, versions

FRAME_HW = (720, 1280)
#: Scales of the image level's input in the curve of accuracy against time.
SCALES = (0.75, 1.0, 1.25, 1.5)
#: Where --runs is not given, the pipelines, and then the networks, are timed for so many seconds at most.
LIMIT_S = 40.0
#: Calls of a plan on a GPU, where --runs is not given.
PLAN_RUNS = 500
#: One in so many calls is made of eager PyTorch, which takes several times as long.
BASELINE_SHARE = 3
app = new_app()


def parse_regions(text: str) -> tuple[int, ...]:
    """Return the numbers of regions from a text such as 0,1,3,10. Raises BadParameter."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) <= MAX_REGIONS for word in words):
        raise typer.BadParameter(f"received '{text}', expected numbers from 0 to {MAX_REGIONS}, such as 0,1,3,10")
    return tuple(dict.fromkeys(int(word) for word in words))


def bundle_subject(bundle: Bundle, engine: EngineChoice, precision: PrecisionChoice, threads: int) -> Subject:
    """Return a bundle on one library in one precision."""

    def open_engines(frame_hw: tuple[int, int]) -> Engines:
        return Engines.open(
            bundle, EngineOptions(engine=engine, precision=precision, threads=threads, frame_hw=frame_hw)
        )

    return Subject(engine, precision, open_engines)


def checkpoint_subject(path: Path, runs: int) -> Subject:
    """Return a checkpoint in eager PyTorch, one stage after another."""

    @contextmanager
    def open_engines(frame_hw: tuple[int, int]) -> Iterator[Engines]:
        from nightlab_core.models.engine import open_checkpoint

        with open_checkpoint(path) as engines:
            lock = threading.Lock()
            image, hardness, region = (
                OneAtATime(engine, lock) for engine in (engines.image, engines.hardness, engines.region)
            )
            yield replace(engines, image=image, hardness=hardness, region=region)

    return Subject("torch", "float32", open_engines, max(1, runs // BASELINE_SHARE))


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
        bool, typer.Option("--node", help="Measure the ROS node instead: highest rate, latency, jitter, load.")
    ] = False,
    plans: Annotated[
        bool, typer.Option("--plans", help="Compare forms of TensorRT plans on this GPU instead.")
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
        from nightlab_ros.node_benchmark import measure_node

        parameters = {
            "bundle": str(opened.dir.resolve()),
            "engine": (engine or ["auto"])[0],
            "precision": (precision or ["auto"])[0],
            "threads": str(threads),
        }
        with new_console(stderr=True).status("") as status:
            measured = measure_node(parameters, (image_size or [FRAME_HW])[0], status.update)
        print_node(console, measured)
        write_files({**origin(opened, parameters["engine"]), "node": asdict(measured)}, [], "", json, out)
        return
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
    print_figures(console, found, peaks)
    if curve:
        console.print()
        console.print(curve_table(curve, f"{dataset}, {curve[0].timing.runs} frames"))
    write_files(as_json(opened, found, plan, peaks, curve), curve, str(dataset), json, out)


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
