# SPDX-License-Identifier: Apache-2.0
"""`nightlab benchmark`: measure the speed of a bundle's networks and pipeline on this machine."""

from __future__ import annotations

import itertools
import json as json_module
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nightlab_cli.engine import Library, choose_library
from nightlab_cli.errors import Verbose
from nightlab_cli.options import Bundle as BundleOption
from nightlab_cli.options import Threads, new_console, parse_size_hw, repeated_option
from nightlab_cli.style import new_app
from nightlab_core.benchmark.measure import Figures, NetworkFigures, PipelineFigures, Plan, Subject, measure
from nightlab_core.benchmark.work import HINTS, matrix_peak_gflops
from nightlab_core.benchmark.wrappers import OneAtATime
from nightlab_core.files import write_atomic
from nightlab_core.runtime.bundle import Bundle, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions, PrecisionChoice
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import MAX_REGIONS
from nightlab_replay.provenance import describe_bundle, machine, versions

FRAME_HW = (720, 1280)
#: Where --runs is not given, the pipelines, and then the networks, are timed for so many seconds at most.
LIMIT_S = 40.0
#: Calls of a plan on a GPU, where --runs is not given.
PLAN_RUNS = 500
#: One in so many calls is made of eager PyTorch, which takes several times as long.
BASELINE_SHARE = 3
#: Stages whose medians the table shows, all but resizing.
SHOWN_STAGES = ("image", "hardness", "crop", "region", "merge")

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


def pipeline_table(figures: Figures, first: Figures) -> Table:
    """Return the times of the pipeline, one row for each number of regions."""
    name = f"{figures.engine}, {figures.arithmetic or figures.precision}"
    height, width = figures.frame_hw
    ratio = "" if figures is first or figures.over_first is None else f", image level x {figures.over_first:.2f}"
    table = Table(title=f"{name}, {width}x{height}, {figures.peak_mib:.0f} MiB{ratio}", box=None, title_justify="left")
    table.add_column("ms", no_wrap=True)
    for column in ("median", "p95", "p99", "ratio", *SHOWN_STAGES):
        table.add_column(column, justify="right")
    for row in figures.pipelines:
        ratio = "" if row.over_image_level is None else f"{row.over_image_level:.2f}"
        total = (f"{ms:.1f}" for ms in (row.total.median_ms, row.total.p95_ms, row.total.p99_ms))
        stages = (f"{row.stages[stage].median_ms:.1f}" for stage in SHOWN_STAGES)
        table.add_row(row_name(row), *total, ratio, *stages)
    return table


def row_name(row: PipelineFigures) -> str:
    """Return the name of a configuration, for example "3 regions"."""
    if row.regions is None:
        return "image level"
    return f"{row.regions} region{'' if row.regions == 1 else 's'}"


def network_table(figures: Figures) -> Table:
    """Return the times of the networks called alone."""
    table = Table(box=None)
    table.add_column("network", no_wrap=True)
    for column in ("median", "p95", "p99", "M param.", "GFLOP", "GFLOP/s", "of peak"):
        table.add_column(column, justify="right")
    for network in figures.networks:
        timing = (f"{ms:.1f}" for ms in (network.timing.median_ms, network.timing.p95_ms, network.timing.p99_ms))
        table.add_row(_network_name(network), *timing, *_work_cells(network))
    return table


def _network_name(network: NetworkFigures) -> str:
    batch, height, width, _ = network.shape
    return f"{network.kind} {width}x{height}" + (f" x {batch}" if batch > 1 else "")


def _work_cells(network: NetworkFigures) -> tuple[str, str, str, str]:
    if network.work is None:
        return "", "", "", ""
    parameters, gflop = f"{network.work.parameters / 1e6:.2f}", f"{network.work.gflop:.2f}"
    speed = "" if network.gflops is None else f"{network.gflops:.0f}"
    return parameters, gflop, speed, "" if network.share_of_peak is None else f"{100 * network.share_of_peak:.0f} %"


def print_figures(console: Console, found: Sequence[Figures], peaks: dict[str, float]) -> None:
    """Print the tables of each set of engines and frame size."""
    first: dict[tuple[int, int], Figures] = {}
    for figures in found:
        base = first.setdefault(figures.frame_hw, figures)
        console.print(pipeline_table(figures, base))
        console.print()
        console.print(network_table(figures))
        if figures.pixels_doubled is not None:
            console.print(f"image network, pixels doubled: {figures.pixels_doubled:.2f} times the time")
        if figures.note:
            console.print(figures.note, soft_wrap=True)
        console.print()
    for arithmetic, gflops in peaks.items():
        console.print(f"matrix peak of this machine in {arithmetic}: {gflops:.0f} GFLOP/s")
    console.print("ratio: median over that of the image level alone. Stages are medians; both paths overlap.")


def as_json(bundle: Bundle, found: Sequence[Figures], plan: Plan, peaks: dict[str, float]) -> dict[str, Any]:
    """Return everything that was measured, with the machine, versions and hashes of the bundle."""
    return {
        "machine": machine(),
        "versions": versions(),
        "bundle": describe_bundle(bundle, found[0].engine).model_dump(mode="json"),
        "plan": asdict(plan),
        "matrix_peak_gflops": peaks,
        "figures": [asdict(figures) for figures in found],
    }


def peak_measurer(threads: int) -> tuple[Callable[[str], float | None], dict[str, float]]:
    """Return a function from a precision to the machine's matrix peak, measured once, and the peaks found so far."""
    peaks: dict[str, float] = {}

    @lru_cache
    def peak(arithmetic: str) -> float | None:
        if arithmetic not in HINTS:
            return None
        try:
            peaks[arithmetic] = matrix_peak_gflops(arithmetic, threads)
        except ImportError:
            return None
        return peaks[arithmetic]

    return peak, peaks


@app.command()
def benchmark(
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
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here, too.")] = None,
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
    nightlab benchmark --engine openvino --engine onnxruntime --json speed.json
    nightlab benchmark --checkpoint checkpoints/nightlab-lite.pt --regions 3
    """
    opened, console = load_bundle(bundle or default_bundle()), new_console()
    if plans:
        from nightlab_cli.benchmark_plans import measure_plans

        hw = (image_size or [FRAME_HW])[0]
        measure_plans(opened, hw, choose_library(library), runs or PLAN_RUNS)
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
    calls = found[0].pipelines[0].total.runs
    console.print(f"bundle {opened.manifest.name}, {calls} calls each after {plan.warm_up} for warm-up")
    console.print(f"{machine()['cpu']}, {machine()['cores']} cores")
    console.print()
    print_figures(console, found, peaks)
    if json is not None:
        write_atomic(json, json_module.dumps(as_json(opened, found, plan, peaks), indent=1))
