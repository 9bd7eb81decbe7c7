# SPDX-License-Identifier: Apache-2.0
"""The report's charts, from its figures."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from nightlab_replay.accuracy import Accuracy
from nightlab_replay.intervals import Interval
from nightlab_replay.records import METHODS
from nightlab_replay.report import charts
from nightlab_replay.report.page import percent
from nightlab_replay.report.words import bracket
from nightlab_replay.summary import Report

#: Classes that are mixed up are named when at least this share of a class is read as the other.
_LEAST_MIXED = 0.01
_MOST_MIXED = 8
METHOD_NAMES = dict(zip(METHODS, ("image level", "both levels"), strict=True))


def draw(report: Report) -> dict[str, Markup]:
    """The page's charts by name; a chart that has nothing to show is left out."""
    drawn = {**_accuracy_charts(report), **_speed_charts(report)}
    time = report.timeline
    if time.seconds:
        label = f"Light level, confidence and lost frames over {time.seconds[-1]:.0f} seconds"
        starts = list(time.bag_starts.values())
        for name, width in (("timeline", charts.WIDTH), ("timeline_wide", 1120)):
            drawn[name] = charts.timeline(
                time.seconds, time.light_level, time.confidence, time.lost, starts, label, width
            )
    heat = np.array(report.behaviour.region_heat or 0.0)
    if heat.any():
        row, column = (int(i) for i in np.unravel_index(heat.argmax(), heat.shape))
        left, top = 100 * (column + 0.5) / heat.shape[1], 100 * (row + 0.5) / heat.shape[0]
        most = percent(float(heat.max()), 0)
        label = f"Hard regions: most often {left:.0f} % from the left, {top:.0f} % from the top, in {most} % of frames"
        drawn["heat"] = charts.heat_map(heat, heat.shape[1] / heat.shape[0], label)
    return drawn


def _accuracy_charts(report: Report) -> dict[str, Markup]:
    accuracy = report.accuracy
    if accuracy is None:
        return {}
    both = f"{percent(accuracy.miou[1])} % mIoU with both levels, {percent(accuracy.miou[0])} % with the image level"
    rows = [(c.name, in_percent(c.iou[0]), in_percent(c.iou[1])) for c in accuracy.by_class]
    by_light = "; ".join(f"{part.name} {bracket(part.gain)}" for part in accuracy.by_light)
    drawn = {
        "classes": charts.dumbbells(rows, "IoU, %", f"IoU by class. {both}"),
        "light": charts.forest(
            [(f"{part.name} ({part.frames})", whisker(part.gain)) for part in accuracy.by_light],
            "points of mIoU that the second level adds",
            f"What the second level adds, by light level: {by_light}",
        ),
    }
    matrix = np.array(accuracy.confusion[1], np.float64)
    true, read = matrix.sum(axis=1) > 0, matrix.sum(axis=0) > 0
    names = [c.name for c in accuracy.by_class]
    columns = [*names, "unlabelled"]
    if true.any():
        shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[true][:, read]
        held = [n for n, there in zip(names, true, strict=True) if there]
        taken = [n for n, there in zip(columns, read, strict=True) if there]
        drawn["confusion"] = charts.confusion(shares, held, taken, f"Confusion of classes with both levels. {both}")
    curves = {}
    for method, figures in report.reliability.items():
        total = max(sum(figures.pixels), 1)
        arrays = [np.array([np.nan if v is None else v for v in a]) for a in (figures.confidence, figures.correct)]
        curves[METHOD_NAMES[method]] = (arrays[0], arrays[1], np.array(figures.pixels) / total)
    if curves:
        errors = [
            f"{METHOD_NAMES[m]} {percent(f.expected_calibration_error)} points" for m, f in report.reliability.items()
        ]
        drawn["reliability"] = charts.reliability(curves, "Reliability; calibration error: " + ", ".join(errors))
    return drawn


def _speed_charts(report: Report) -> dict[str, Markup]:
    drawn = {}
    for name, what, figures in (
        ("total", "Time a frame", report.stages_ms.get("total")),
        ("age", "Age of the mask", report.age_ms),
        ("latency", "Latency", report.latency_ms),
    ):
        if figures is not None:
            edges = np.linspace(0, figures.counts_to, len(figures.counts) + 1).tolist()
            marks = {"p50": figures.p50, "p95": figures.p95, "p99": figures.p99}
            label = f"{what}: median {figures.p50:.1f} ms, p95 {figures.p95:.1f} ms, p99 {figures.p99:.1f} ms"
            drawn[name] = charts.histogram(figures.counts, edges, "ms", marks, label)
    for stage, figures in report.stages_ms.items():
        drawn[f"stage_{stage}"] = charts.spark(figures.counts, f"{stage}: from 0 to {figures.counts_to:.1f} ms")
    return drawn


def whisker(gain: Interval | None) -> charts.Whisker | None:
    """In points, coloured by what the interval bears out."""
    if gain is None:
        return None
    kind = {"better": "good", "worse": "bad"}.get(gain.verdict, "even")
    return charts.Whisker(100 * gain.difference, 100 * gain.low_95, 100 * gain.high_95, kind)


def in_percent(value: float | None) -> float | None:
    """A share in per cent."""
    return None if value is None else 100 * value


def most_mixed(accuracy: Accuracy | None) -> list[tuple[str, str, float, float]]:
    """(true class, read as, share of the true class, share of all errors), by the number of pixels."""
    if accuracy is None:
        return []
    matrix = np.array(accuracy.confusion[1], np.float64)
    true = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    errors, names = max(matrix.sum(), 1.0), [*(c.name for c in accuracy.by_class), "unlabelled"]
    order = [divmod(int(i), matrix.shape[1]) for i in np.argsort(-matrix, axis=None)[:_MOST_MIXED]]
    return [
        (names[r], names[c], float(matrix[r, c] / true[r]), float(matrix[r, c] / errors))
        for r, c in order
        if true[r] and matrix[r, c] / true[r] >= _LEAST_MIXED
    ]
