# SPDX-License-Identifier: Apache-2.0
"""The kinds of charts that the pages contain, as inline SVG.

Each function takes plain numbers. `label` is for screen readers and names the chart's main finding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from nightlab_replay.figures.statistics import ClassAccuracy, Interval
from nightlab_replay.report.svg import WIDTH, Axis, dot, line, path, rect, svg, text, x_axis, y_axis

#: Height of a row in charts with one row per class, and the place of their x axis.
ROW = 22
_ROWS_LEFT, _ROWS_RIGHT = 118, WIDTH - 12


def histogram(counts: Sequence[int], edges: Sequence[float], unit: str, marks: dict[str, float], label: str) -> Markup:
    """Draw counts between edges (one more than counts), with labelled vertical marks such as percentiles."""
    x, y = Axis(edges[0], edges[-1], 40, WIDTH - 10), Axis(0, max([*counts, 1]), 160, 42)
    parts = y_axis(y, x.start, x.end)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        title = f"{count} frames from {low:.1f} to {high:.1f} {unit}"
        parts.append(rect(x.at(low), y.at(count), x.at(high) - x.at(low) - 0.6, y.start - y.at(count), "fill-b", title))
    for place, (name, value) in enumerate(marks.items()):
        top = 8 + 11 * place  # one below the other, so that neighbours do not overlap
        parts.append(line(x.at(value), top + 3, x.at(value), y.start, "mark"))
        near_end = x.at(value) > x.end - 30
        parts.append(text(x.at(value) + (-3 if near_end else 3), top + 4, name, anchor="end" if near_end else "start"))
    return svg(WIDTH, 194, label, parts + x_axis(x, y.start, unit))


def reliability(curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], label: str) -> Markup:
    """Draw name -> (mean confidence, share correct, share of pixels) by bin, all 0..1, NaN for empty bins.

    Below the diagonal the confidence is higher than the accuracy. The bars show the pixels of the last curve. The
    curves are coloured "a" and "b" in their order.
    """
    x, y, bars = Axis(0, 1, 36, WIDTH - 10), Axis(0, 1, 250, 10), Axis(0, 1, 310, 264)
    parts = [*y_axis(y, x.start, x.end, form=".1f"), line(x.start, y.start, x.end, y.end, "diagonal")]
    for kind, (name, (confidence, correct, share)) in zip("ab", curves.items(), strict=False):
        xs, ys = [x.at(v) if math.isfinite(v) else math.nan for v in confidence], [y.at(v) for v in correct]
        filled = [i for i in range(len(xs)) if math.isfinite(xs[i])]
        parts.append(path([xs[i] for i in filled], [ys[i] for i in filled], f"line-{kind}"))
        for i in filled:
            title = (
                f"{name}: confidence {confidence[i]:.2f}, correct {correct[i]:.2f}, {100 * share[i]:.1f} % of pixels"
            )
            parts.append(dot(xs[i], ys[i], f"fill-{kind}", title, 3))
    if curves:
        shares = list(curves.values())[-1][2]
        step, most = (x.end - x.start) / len(shares), max(float(np.max(shares)), 1e-9)
        for i, share in enumerate(shares):
            top = bars.at(float(share) / most)
            parts.append(rect(x.start + i * step, top, step - 1, bars.start - top, "fill-dim"))
    return svg(WIDTH, 344, label, parts + x_axis(x, bars.start, "confidence; bars: share of pixels"))


def time_curves(curves: Mapping[str, Sequence[tuple[str, float, float]]], y_title: str, label: str) -> Markup:
    """Draw name -> (name of the point, milliseconds, value) as dots joined in the order of time, from 0 ms.

    The curves, three at most, are coloured "a", "b" and "c" in their order.
    """
    points = [point for curve in curves.values() for point in curve]
    values = [value for _, _, value in points]
    margin = max((max(values) - min(values)) * 0.12, 0.2)
    x = Axis(0, 1.15 * max(ms for _, ms, _ in points), 46, WIDTH - 10)
    y = Axis(min(values) - margin, max(values) + margin, 230 + 13 * len(curves), 21 + 13 * len(curves))
    parts = [text(x.start, 10, y_title, "dim", "start"), *y_axis(y, x.start, x.end)]
    for place, (kind, (name, curve)) in enumerate(zip("abc", curves.items(), strict=False)):
        ordered = sorted(curve, key=lambda point: point[1])
        xs, ys = [x.at(ms) for _, ms, _ in ordered], [y.at(value) for _, _, value in ordered]
        below = 23 + 13 * place
        parts += [dot(x.start + 6, below, f"fill-{kind}"), text(x.start + 14, below + 4, name, "", "start")]
        parts.append(path(xs, ys, f"line-{kind}"))
        for (point, ms, value), left, top in zip(ordered, xs, ys, strict=True):
            parts.append(dot(left, top, f"fill-{kind}", f"{name}, {point}: {value:.2f} at {ms:.1f} ms"))
            parts.append(text(left, top + 15 if kind == "c" else top - 7, point, "small"))  # "c" lies close to "b"
    return svg(WIDTH, y.start + 36, label, parts + x_axis(x, y.start, "ms, median"))


@dataclass(frozen=True)
class Whisker:
    """A difference with its interval. `kind` is "good", "bad" or "even"."""

    difference: float
    low: float
    high: float
    kind: str


def whisker(gain: Interval | None) -> Whisker | None:
    """Convert an interval to percentage points, coloured by its verdict."""
    if gain is None:
        return None
    kind = {"better": "good", "worse": "bad"}.get(gain.verdict, "even")
    return Whisker(100 * gain.difference, 100 * gain.low_95, 100 * gain.high_95, kind)


def iou_rows(classes: Sequence[ClassAccuracy]) -> list[tuple[str, float | None, float | None]]:
    """Return the rows of `dumbbells` with the IoU of each class in per cent."""
    shares = [(c.name, *c.iou) for c in classes]
    return [(name, None if a is None else 100 * a, None if b is None else 100 * b) for name, a, b in shares]


def forest(rows: Sequence[tuple[str, Whisker | None]], unit: str, label: str) -> Markup:
    """Draw one named difference per row around a line at zero, a dash for None."""
    values = [abs(v) for _, w in rows if w is not None for v in (w.difference, w.low, w.high)]
    reach = max([*values, 0.1]) * 1.08
    x, height = Axis(-reach, reach, _ROWS_LEFT, _ROWS_RIGHT), ROW * len(rows) + 8
    parts = [*x_axis(x, height, unit, grid_to=4), line(x.at(0), 4, x.at(0), height, "zero")]
    for place, (name, w) in enumerate(rows):
        y = ROW * place + ROW / 2 + 6
        parts += _row_name(name, x, y, known=w is not None)
        if w is not None:
            title = f"{name}: {w.difference:+.2f} [{w.low:+.2f}, {w.high:+.2f}]"
            parts.append(line(x.at(w.low), y, x.at(w.high), y, f"whisker {w.kind}"))
            parts.append(dot(x.at(w.difference), y, w.kind, title, 4))
    return svg(WIDTH, height + 36, label, parts)


def dumbbells(rows: Sequence[tuple[str, float | None, float | None]], unit: str, label: str) -> Markup:
    """Draw (name, first, second) per row on a scale of 0 to 100, both values as joined dots, a dash for None."""
    x, height = Axis(0, 100, _ROWS_LEFT, _ROWS_RIGHT), ROW * len(rows) + 8
    parts = x_axis(x, height, unit, grid_to=4)
    for place, (name, first, second) in enumerate(rows):
        y = ROW * place + ROW / 2 + 6
        known = first is not None and second is not None
        parts += _row_name(name, x, y, known)
        if first is not None and second is not None:
            title = f"{name}: {first:.1f} and {second:.1f}"
            parts.append(line(x.at(first), y, x.at(second), y, "whisker even"))
            parts += [dot(x.at(first), y, "fill-a", title), dot(x.at(second), y, "fill-b", title)]
    return svg(WIDTH, height + 36, label, parts)


def _row_name(name: str, x: Axis, y: float, known: bool) -> list[str]:
    parts = [text(x.start - 10, y + 4, name, anchor="end")]
    return parts if known else [*parts, text(x.start + 8, y + 4, "—", "dim")]


def confusion(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str) -> Markup:
    """Draw shares of each row's labelled pixels, (R, K) in 0..1, as shaded cells, with per cent from 1 % on."""
    cell, left, top = 27, 96, 84
    parts = []
    for k, name in enumerate(columns):
        parts.append(text(left + cell * k + 17, top - 6, name, anchor="start", turn=-55))
    for r, name in enumerate(rows):
        y = top + cell * r
        parts.append(text(left - 6, y + 17, name, anchor="end"))
        for k, share in enumerate(shares[r]):
            title = f"{name} predicted as {columns[k]}: {100 * share:.2f} % of its pixels"
            strength = f"fill-opacity:{0.06 + 0.94 * math.sqrt(share):.3f}"
            kind = "cell-good" if name == columns[k] else "cell-bad"
            parts.append(rect(left + cell * k, y, cell - 1.5, cell - 1.5, kind, title, strength))
            if share >= 0.01:
                strong = "on-cell" if share > 0.35 else ""
                parts.append(text(left + cell * k + 12.5, y + 17, f"{100 * share:.0f}", f"small {strong}"))
    width = left + cell * len(columns) + 40  # the last turned name extends to the right
    limits = f"min-width:{0.75 * width:.0f}px;max-width:{1.15 * width:.0f}px"  # a phone scrolls over many classes
    return svg(width, top + cell * len(rows) + 4, label, parts, "matrix", limits)


def heat_map(grid: np.ndarray, aspect: float, label: str) -> Markup:
    """Draw values (h, w), 0..1, as an image of width / height = `aspect`, from dark (0) to bright (largest)."""
    height = WIDTH / aspect
    cell_h, cell_w = height / grid.shape[0], WIDTH / grid.shape[1]
    most = max(float(grid.max()), 1e-9)
    parts = [rect(0, 0, WIDTH, height, "fill-ground")]
    for r, c in zip(*np.nonzero(grid), strict=True):
        strength = f"fill-opacity:{float(grid[r, c]) / most:.2f}"
        title = f"in {100 * grid[r, c]:.0f} % of the frames"
        parts.append(rect(c * cell_w, r * cell_h, cell_w + 0.3, cell_h + 0.3, "fill-heat", title, strength))
    return svg(WIDTH, height, label, parts)


def sparkline(counts: Sequence[int], label: str) -> Markup:
    """Draw a small histogram for a table cell."""
    most, step = max([*counts, 1]), 96 / max(len(counts), 1)
    bars = [
        rect(i * step, 20 - 20 * count / most, step - 0.5, 20 * count / most, "fill-b")
        for i, count in enumerate(counts)
    ]
    return svg(96, 20, label, bars, "spark")


def timeline(
    seconds: Sequence[float],
    light_level: Sequence[float | None],
    confidence: Sequence[float | None],
    lost: Sequence[int],
    starts: Sequence[float],
    label: str,
    width: int = WIDTH,
) -> Markup:
    """Draw light level (log scale), confidence and lost frames over the same seconds. Bags begin at `starts`."""
    x = Axis(0, max([*seconds, 1.0]), 46, width - 10)
    light_y, confidence_y = Axis(0.001, 1, 96, 22, log=True), Axis(0, 1, 206, 132)
    lost_y = Axis(0, max([*lost, 1]), 282, 242)
    parts = []
    for name, axis, most in (
        ("light level", light_y, 4),
        ("mean confidence", confidence_y, 2),
        ("frames lost", lost_y, 1),
    ):
        parts += [text(x.start, axis.end - 7, name, "dim", "start"), *y_axis(axis, x.start, x.end, most)]
    for start in starts[1:]:
        parts.append(line(x.at(start), light_y.end, x.at(start), lost_y.start, "zero"))
    xs = [x.at(s) for s in seconds]
    for axis, values, kind in ((light_y, light_level, "line-a"), (confidence_y, confidence, "line-b")):
        ys = [math.nan if v is None else axis.at(v) for v in values]
        drawn = [(xs[i], y) for i, y in enumerate(ys)]
        for start in starts[1:]:  # no line from one bag to the next
            drawn.insert(sum(place < x.at(start) for place, _ in drawn), (x.at(start), math.nan))
        parts.append(path([p[0] for p in drawn], [p[1] for p in drawn], kind))
        single = [i for i, y in enumerate(ys) if math.isfinite(y) and not _has_neighbour(ys, i)]
        parts += [dot(xs[i], ys[i], kind.replace("line", "fill"), radius=2) for i in single]
    for place, count in zip(xs, lost, strict=True):
        if count:
            parts.append(rect(place - 1, lost_y.at(count), 2, lost_y.start - lost_y.at(count), "bad", f"{count} lost"))
    kind = "" if width <= WIDTH else "across"
    return svg(width, 316, label, parts + x_axis(x, lost_y.start, "seconds", most=width // 80), kind)


def _has_neighbour(values: Sequence[float], place: int) -> bool:
    return any(math.isfinite(v) for v in (*values[max(place - 1, 0) : place], *values[place + 1 : place + 2]))
