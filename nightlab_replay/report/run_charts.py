# SPDX-License-Identifier: Apache-2.0
"""The charts of a run's report, from its figures."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from nightlab_replay.figures.statistics import PairedAccuracy, interval_text, percent
from nightlab_replay.figures.summary import RunSummary
from nightlab_replay.records import METHODS
from nightlab_replay.report import charts
from nightlab_replay.report.svg import WIDTH

#: Classes are listed as confused if at least this share of a class is predicted as the other.
_LEAST_CONFUSED = 0.01
_MOST_CONFUSED = 8
METHOD_NAMES = dict(zip(METHODS, ("image level", "both levels"), strict=True))


def draw(report: RunSummary) -> dict[str, Markup]:
    """Draw the charts of the page by name. A chart without data is left out."""
    drawn = {**_accuracy_charts(report), **_reliability_chart(report), **_time_charts(report)}
    time = report.timeline
    if time.seconds:
        label = f"Light level, confidence and lost frames over {time.seconds[-1]:.0f} seconds"
        starts = list(time.bag_starts.values())
        for name, width in (("timeline", WIDTH), ("timeline_wide", 1120)):
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


def _accuracy_charts(report: RunSummary) -> dict[str, Markup]:
    accuracy = report.accuracy
    if accuracy is None:
        return {}
    both = f"{percent(accuracy.miou[1])} % mIoU with both levels, {percent(accuracy.miou[0])} % with the image level"
    by_light = "; ".join(f"{part.name} {interval_text(part.gain)}" for part in accuracy.by_light)
    drawn = {
        "classes": charts.dumbbells(charts.iou_rows(accuracy.by_class), "IoU, %", f"IoU by class. {both}"),
        "light": charts.forest(
            [(f"{part.name} ({part.frames})", charts.whisker(part.gain)) for part in accuracy.by_light],
            "points of mIoU gained by the second level",
            f"Gain of the second level by light level: {by_light}",
        ),
    }
    matrix = np.array(accuracy.confusion[1], np.float64)
    labelled, predicted = matrix.sum(axis=1) > 0, matrix.sum(axis=0) > 0
    if labelled.any():
        names = [c.name for c in accuracy.by_class]
        shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[labelled][:, predicted]
        rows = [n for n, there in zip(names, labelled, strict=True) if there]
        columns = [n for n, there in zip([*names, "unlabelled"], predicted, strict=True) if there]
        drawn["confusion"] = charts.confusion(shares, rows, columns, f"Confusion of classes with both levels. {both}")
    return drawn


def _reliability_chart(report: RunSummary) -> dict[str, Markup]:
    curves, errors = {}, []
    for method, figures in report.reliability.items():
        name, total = METHOD_NAMES[method], max(sum(figures.pixels), 1)
        confidence, correct = (
            np.array([np.nan if v is None else v for v in a]) for a in (figures.confidence, figures.correct)
        )
        curves[name] = (confidence, correct, np.array(figures.pixels) / total)
        errors.append(f"{name} {percent(figures.expected_calibration_error)} points")
    if not curves:
        return {}
    return {"reliability": charts.reliability(curves, "Reliability; calibration error: " + ", ".join(errors))}


def _time_charts(report: RunSummary) -> dict[str, Markup]:
    drawn = {}
    for name, title, figures in (
        ("total", "Time per frame", report.stages_ms.get("total")),
        ("age", "Age of the mask", report.age_ms),
        ("latency", "Latency", report.latency_ms),
    ):
        if figures is not None:
            edges = np.linspace(0, figures.counts_to, len(figures.counts) + 1).tolist()
            marks = {"p50": figures.p50, "p95": figures.p95, "p99": figures.p99}
            label = f"{title}: median {figures.p50:.1f} ms, p95 {figures.p95:.1f} ms, p99 {figures.p99:.1f} ms"
            drawn[name] = charts.histogram(figures.counts, edges, "ms", marks, label)
    for stage, figures in report.stages_ms.items():
        drawn[f"stage_{stage}"] = charts.sparkline(figures.counts, f"{stage}: from 0 to {figures.counts_to:.1f} ms")
    return drawn


def most_confused(accuracy: PairedAccuracy | None) -> list[tuple[str, str, float, float]]:
    """Return (labelled class, predicted class, share of the class, share of all errors), by number of pixels."""
    if accuracy is None:
        return []
    matrix = np.array(accuracy.confusion[1], np.float64)
    labelled = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    errors, names = max(matrix.sum(), 1.0), [*(c.name for c in accuracy.by_class), "unlabelled"]
    order = [divmod(int(i), matrix.shape[1]) for i in np.argsort(-matrix, axis=None)[:_MOST_CONFUSED]]
    return [
        (names[r], names[c], float(matrix[r, c] / labelled[r]), float(matrix[r, c] / errors))
        for r, c in order
        if labelled[r] and matrix[r, c] / labelled[r] >= _LEAST_CONFUSED
    ]
