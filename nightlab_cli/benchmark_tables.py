# SPDX-License-Identifier: Apache-2.0
"""Tables and the picture of `nightlab benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from nightlab_core.benchmark.curve import CurvePoint
from nightlab_core.benchmark.deadline import DeadlineFigures
from nightlab_core.benchmark.measure import Figures, NetworkFigures, PipelineFigures

if TYPE_CHECKING:  # needs ROS
    from nightlab_ros.node_benchmark import NodeFigures

#: Stages whose medians the table shows, all but resizing.
SHOWN_STAGES = ("image", "hardness", "crop", "region", "merge")


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


def deadline_line(figures: DeadlineFigures) -> str:
    """Return the sentence on the frames with a deadline."""
    return (
        f"deadline of {figures.factor:g} x image level, {figures.deadline_ms:.0f} ms: {100 * figures.in_time:.0f} % of "
        f"{figures.timing.runs} masks in time, {figures.regions:.1f} regions read"
    )


def print_figures(console: Console, found: Sequence[Figures], peaks: dict[str, float]) -> None:
    """Print the tables of each set of engines and frame size."""
    first: dict[tuple[int, int], Figures] = {}
    for figures in found:
        base = first.setdefault(figures.frame_hw, figures)
        console.print(pipeline_table(figures, base))
        console.print()
        console.print(network_table(figures))
        console.print(deadline_line(figures.deadline), soft_wrap=True)
        if figures.pixels_doubled is not None:
            console.print(f"image network, pixels doubled: {figures.pixels_doubled:.2f} times the time")
        if figures.choice:
            console.print("chosen: " + "\n  measured ".join(figures.choice), soft_wrap=True)
        if figures.note:
            console.print(figures.note, soft_wrap=True)
        console.print()
    for arithmetic, gflops in peaks.items():
        console.print(f"matrix peak of this machine in {arithmetic}: {gflops:.0f} GFLOP/s")
    console.print("ratio: median over that of the image level alone. Stages are medians; both paths overlap.")


def curve_table(curve: Sequence[CurvePoint], title: str) -> Table:
    """Return the accuracy and the time of each configuration."""
    table = Table(title=title, box=None, title_justify="left")
    table.add_column("")
    for column in ("mIoU, %", "regions", "median ms", "p95", "p99", "in time"):
        table.add_column(column, justify="right", no_wrap=True)
    for point in curve:
        timing = (f"{ms:.1f}" for ms in (point.timing.median_ms, point.timing.p95_ms, point.timing.p99_ms))
        in_time = "" if point.in_time is None else f"{100 * point.in_time:.0f} %"
        table.add_row(
            f"{point.curve}: {point.name}", f"{100 * point.miou:.2f}", f"{point.regions:.1f}", *timing, in_time
        )
    return table


def print_node(console: Console, figures: NodeFigures, engine: str, precision: str) -> None:
    """Print the node's highest rate, and a table of the rates at which it was measured."""
    height, width = figures.frame_hw
    name = f"node, engine {engine}, precision {precision}, {width}x{height}"
    console.print(f"{name}: highest rate with less than 5 % lost {figures.highest_rate_hz:.1f} Hz")
    table = Table(box=None)
    for column in ("Hz", "sent", "lost", "latency, median ms", "p95", "p99", "jitter, ms", "CPU load"):
        table.add_column(column, justify="right")
    for trial in figures.at_rates:
        timing = trial.latency
        times = ("", "", "") if timing is None else (timing.median_ms, timing.p95_ms, timing.p99_ms)
        figures_ms = [f"{ms:.1f}" if isinstance(ms, float) else "" for ms in (*times, trial.jitter_ms)]
        load = "" if trial.cpu_load is None else f"{100 * trial.cpu_load:.0f} %"
        table.add_row(f"{trial.rate_hz:g}", str(trial.sent), str(trial.lost), *figures_ms, load)
    console.print(table)
    if (overhead := figures.overhead) is not None:
        milliseconds = f"median {overhead.median_ms:.1f} ms, p95 {overhead.p95_ms:.1f} ms"
        console.print(f"node overhead at {overhead.rate_hz:.1f} Hz: {milliseconds}")
        console.print("overhead: from an image's arrival until its mask is published, without the pipeline's own time.")
    console.print("jitter: standard deviation of the intervals between masks. CPU load: 100 % is one core.")
