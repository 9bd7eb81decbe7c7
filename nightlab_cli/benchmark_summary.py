# SPDX-License-Identifier: Apache-2.0
"""The table of `nightlab benchmark --summary`: the figures by which NightLab's speed is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table

from nightlab_core.benchmark.curve import CurvePoint, share_of_gain
from nightlab_core.benchmark.measure import Figures
from nightlab_core.runtime.settings import PipelineSettings

if TYPE_CHECKING:  # needs ROS
    from nightlab_ros.node_benchmark import NodeFigures


@dataclass(frozen=True)
class SummaryColumn:
    """Everything that was measured with one set of engines on frames of one size; None or () was not measured."""

    figures: Figures
    eager: Figures | None = None  #: of a checkpoint in eager PyTorch, on frames of the same size
    camera_mib: Sequence[float] = ()  #: memory of each camera after the first
    node: NodeFigures | None = None
    curves: Mapping[str, Sequence[CurvePoint]] = field(default_factory=dict)  #: by data set

    @property
    def title(self) -> str:
        """Library, precision and size of the frames."""
        height, width = self.figures.frame_hw
        return f"{self.figures.engine}, {self.figures.arithmetic or self.figures.precision}, {width}x{height}"

    def rows(self, datasets: Sequence[str]) -> dict[str, str]:
        """Return the figures as text by their name, in the same order for every column."""
        figures = self.figures
        by_regions = {row.regions: row.over_image_level for row in figures.pipelines}
        image = next(network for network in figures.networks if network.kind == "image")
        most = max((n for n in figures.networks if n.kind == "region"), key=lambda network: network.shape[0])
        default, deadline = PipelineSettings().max_regions, figures.deadline
        eager = None if self.eager is None else _image_level_ms(self.eager) / _image_level_ms(figures)
        rows = {
            f"both levels, default of {default} regions, over image level": _text(
                by_regions.get(default), " x", "--regions"
            )
        }
        for dataset in datasets:
            share = share_of_gain(self.curves.get(dataset, ()), default)
            rows[f"share of ten regions' gain at the default, {dataset}"] = _percent(share, "a gain by ten regions")
        return rows | {
            "ten regions over image level": _text(by_regions.get(10), " x", "--regions"),
            "eager PyTorch over image level": _text(eager, " x", "--checkpoint"),
            "share of the matrix peak, image network": _percent(image.share_of_peak, "OpenVINO"),
            f"a region's own time, {most.shape[0]} in a call": _text(most.timing.median_ms / most.shape[0], " ms"),
            "image network, pixels doubled": _text(figures.pixels_doubled, " x", "a free size of input"),
            f"masks in time, deadline of {deadline.factor:g} x image level": _percent(deadline.in_time),
            "regions read by that deadline": _text(deadline.regions, ""),
            "second camera on the same engines": _text(next(iter(self.camera_mib), None), " MiB", "Linux"),
            "node, 10 Hz: frames answered": self._answered(),
            "node overhead, median": _text(
                self.node.overhead.median_ms if self.node and self.node.overhead else None, " ms", "--node"
            ),
        }

    def _answered(self) -> str:
        trial = next((trial for trial in self.node.at_rates if trial.rate_hz == 10), None) if self.node else None
        return "needs --node" if trial is None else f"{trial.sent - trial.lost} of {trial.sent}"


def summary_table(columns: Sequence[SummaryColumn]) -> Table:
    """Return one table; a figure that was not measured says what it needs."""
    table = Table(box=None)
    datasets = list(dict.fromkeys(dataset for column in columns for dataset in column.curves))
    found = [column.rows(datasets) for column in columns]
    table.add_column("")
    for column in columns:
        table.add_column(column.title, justify="right")
    names = list(dict.fromkeys(name for rows in found for name in rows))
    for name in names:
        table.add_row(name, *(rows.get(name, "") for rows in found))
    return table


def _text(value: float | None, unit: str, needs: str = "") -> str:
    return f"needs {needs}" if value is None else f"{value:.2f}{unit}"


def _percent(share: float | None, needs: str = "") -> str:
    return f"needs {needs}" if share is None else f"{100 * share:.0f} %"


def _image_level_ms(figures: Figures) -> float:
    """Return the median of the image level alone."""
    return figures.pipelines[0].total.median_ms
