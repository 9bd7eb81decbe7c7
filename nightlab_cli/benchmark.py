# SPDX-License-Identifier: Apache-2.0
"""`nightlab benchmark`: measure the speed of a bundle's networks and pipeline on this machine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nightlab_cli.benchmark_output import Request, measure_everything, measure_node_only
from nightlab_cli.benchmark_subjects import bundle_subject, checkpoint_subject
from nightlab_cli.engine import Library, choose_library
from nightlab_cli.errors import Verbose
from nightlab_cli.options import Bundle as BundleOption
from nightlab_cli.options import (
    Frames,
    Glob,
    Threads,
    hold_output,
    parse_size_hw,
    pipeline_settings,
    repeated_option,
)
from nightlab_cli.style import new_app
from nightlab_core.benchmark.curve import OTHER, Configuration, curve_configurations
from nightlab_core.benchmark.measure import Plan
from nightlab_core.output import check_report
from nightlab_core.runtime.bundle import Bundle, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import EngineChoice, PrecisionChoice
from nightlab_core.runtime.settings import MAX_REGIONS

FRAME_HW = (720, 1280)
#: Scales of the image level's input in the curve of accuracy against time.
SCALES = (0.75, 1.0, 1.25, 1.5)
#: Deadlines of that curve, as multiples of the image level's median time.
DEADLINES = (1.3, 1.6, 2.0)
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
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="Such as camvid/val: measure mean IoU against time on it, too; can be repeated.",
        ),
    ] = None,
    glob: Glob = "*",
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
    deadline: Annotated[
        list[float] | None,
        typer.Option(
            "--deadline",
            metavar="FACTOR",
            help="With --dataset: deadline over the image level's median; can be repeated.",
            show_default="1.3 1.6 2",
        ),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME=VALUE",
            help="With --dataset: compare both levels with these settings of the pipeline, separated by spaces, "
            "instead of scales and deadlines; can be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Write benchmark.json here; with --dataset curve.json, too, and a picture."
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here, too.")] = None,
    node: Annotated[
        bool,
        typer.Option(
            "--node",
            help="Measure the ROS node instead, with --summary also: highest rate, latency, jitter, load, overhead.",
        ),
    ] = False,
    plans: Annotated[
        bool, typer.Option("--plans", help="Compare forms of TensorRT plans on this GPU instead.")
    ] = False,
    summary: Annotated[
        bool,
        typer.Option("--summary", help="Print the main figures in one table only, with the memory of a second camera."),
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
    nightlab benchmark --summary --node --checkpoint checkpoints/nightlab-lite.pt
    """
    if (data is None) != (not dataset):
        raise typer.BadParameter("--data and --dataset belong together: give both")
    if plans + node > 1 or ((plans or (node and not summary)) and (dataset or checkpoint is not None)):
        raise typer.BadParameter(
            "--node, --plans, and --dataset or --checkpoint exclude each other: give one; "
            "--summary takes --node with the others"
        )
    if json is not None:
        check_report(json, lambda content: isinstance(content, dict) and content.keys() >= {"machine", "versions"})
    if out is not None:
        hold_output(context, out)
    opened, sizes_hw = load_bundle(bundle or default_bundle()), tuple(dict.fromkeys(image_size or [FRAME_HW]))
    if plans:
        from nightlab_cli.benchmark_plans import measure_plans

        measure_plans(opened, sizes_hw[0], choose_library(library), runs or PLAN_RUNS)
        return
    if node:
        one_size = {} if summary else {"--image-size": image_size}
        refuse_several({"--engine": engine, "--precision": precision, **one_size})
    refuse_too_many(regions or (), opened)
    request = Request(
        bundle=opened,
        engine=(engine or ["auto"])[0],
        precision=(precision or ["auto"])[0],
        threads=threads,
        plan=Plan(
            frame_hws=sizes_hw,
            regions=Plan.regions if regions is None else regions,
            runs=runs or Plan.runs,
            warm_up=warm_up,
            deadline_runs=runs or Plan.deadline_runs,
            limit_s=None if runs else LIMIT_S,
        ),
        data=data,
        datasets=tuple(dataset or ()),
        glob=glob,
        frames=frames,
        json=json,
        out=out,
    )
    if node and not summary:
        measure_node_only(request)
        return
    chosen = itertools.product(dict.fromkeys(engine or ["auto"]), dict.fromkeys(precision or ["auto"]))
    subjects = [bundle_subject(opened, name, form, threads) for name, form in chosen]
    if checkpoint is not None:
        subjects.append(checkpoint_subject(checkpoint, request.plan.runs))
    numbers = [number for number in request.plan.regions if number]
    measure_everything(request, subjects, configurations(numbers, scale, deadline, others), summary=summary, node=node)


def configurations(
    regions: Sequence[int],
    scales: Sequence[float] | None,
    deadlines: Sequence[float] | None,
    others: Sequence[str] | None,
) -> list[Configuration]:
    """Return what is run on a data set. `others` are texts "NAME=VALUE ...". Raises ValueError that names a setting."""
    found = curve_configurations(
        scales or ((1.0,) if others else SCALES), regions, deadlines or (() if others else DEADLINES)
    )
    return found + [Configuration(OTHER, text, pipeline_settings(text.split())) for text in others or ()]


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
