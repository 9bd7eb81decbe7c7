# SPDX-License-Identifier: Apache-2.0
"""Charts as inline SVG, for pages that load nothing: no script, no style of their own, colours from the page's CSS.

Each takes plain numbers and returns `Markup`. Widths are in CSS pixels at the size where 11 px letters can be read; the
page lets a chart grow with its column. `label` is what a screen reader says, and should name the chart's main finding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH = 360
ROW = 22  #: height of a row in charts of one row a class


@dataclass(frozen=True)
class Axis:
    """A span of numbers and where it lies on the page: `start` and `end` in pixels (end above start for y)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; beyond the ends it stays at the end."""
        low, high, value = (math.log10(max(v, 1e-12)) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.0
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """At most about `most` round values between the ends."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            step = max(1, math.ceil(len(powers) / most))
            return [10.0**p for p in powers[::step]]
        rough = (self.high - self.low) / max(most, 1)
        if not rough > 0:
            return [self.low]
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def svg(width: float, height: float, label: str, body: Sequence[str], kind: str = "", style: str = "") -> Markup:
    """The element round a chart's parts; `kind` is a CSS class."""
    style = f' style="{style}"' if style else ""
    return Markup(
        f'<svg class="chart {kind}"{style} viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        + "".join(body)
        + "</svg>"
    )


def text(x: float, y: float, what: object, kind: str = "", anchor: str = "middle", turn: float = 0) -> str:
    """Letters with their baseline at y."""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{turned}>{escape(what)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, title: str = "", style: str = "") -> str:
    """A filled box, with a title that shows when pointed at."""
    shown = f"><title>{escape(title)}</title></rect>" if title else "/>"
    style = f' style="{style}"' if style else ""
    width, height = max(width, 0), max(height, 0)
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"{style}{shown}'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def dot(x: float, y: float, kind: str, title: str = "", radius: float = 3.5) -> str:
    """A point."""
    shown = f"><title>{escape(title)}</title></circle>" if title else "/>"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"{shown}'


def path(xs: Sequence[float], ys: Sequence[float], kind: str) -> str:
    """A line through the points; NaN breaks it."""
    moves, pen_down = [], False
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            moves.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = math.isfinite(y)
    return f'<path d="{"".join(moves)}" class="{kind}"/>'


def short(value: float) -> str:
    """A number as a tick shows it: no trailing zeros, thousands as k."""
    shown = f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:.6g}"
    return shown.replace("-", "−")


def x_axis(axis: Axis, y: float, title: str = "", most: int = 5, grid_to: float | None = None) -> list[str]:
    """Ticks below the line y, the title below them, and grid lines up to `grid_to`."""
    parts = [line(axis.start, y, axis.end, y, "axis")]
    for tick in axis.ticks(most):
        x = axis.at(tick)
        parts.append(line(x, y, x, y + 3 if grid_to is None else grid_to, "axis" if grid_to is None else "grid"))
        parts.append(text(x, y + 14, short(tick)))
    if title:
        parts.append(text((axis.start + axis.end) / 2, y + 29, title, "dim"))
    return parts


def y_axis(axis: Axis, x: float, x_end: float, most: int = 4, form: str = "") -> list[str]:
    """Ticks left of x, with grid lines to x_end."""
    parts = []
    for tick in axis.ticks(most):
        y = axis.at(tick)
        parts.append(line(x, y, x_end, y, "grid"))
        parts.append(text(x - 5, y + 4, format(tick, form) if form else short(tick), anchor="end"))
    return parts


def histogram(counts: Sequence[int], edges: Sequence[float], unit: str, marks: dict[str, float], label: str) -> Markup:
    """Bars of counts between edges (one more than counts), with labelled vertical marks such as percentiles."""
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
    """Name -> (mean confidence, share correct, share of pixels) by bin, all 0..1, NaN for empty bins.

    Below the diagonal the confidence promises more than it keeps. The bars show where the pixels are (of the last
    curve). Kinds "a" and "b" colour the curves in order.
    """
    x, y, bars = Axis(0, 1, 36, WIDTH - 10), Axis(0, 1, 250, 10), Axis(0, 1, 310, 264)
    parts = [*y_axis(y, x.start, x.end, form=".1f"), line(x.start, y.start, x.end, y.end, "diagonal")]
    for kind, (name, (confidence, correct, share)) in zip("ab", curves.items(), strict=False):
        xs, ys = [x.at(v) if math.isfinite(v) else math.nan for v in confidence], [y.at(v) for v in correct]
        held = [i for i in range(len(xs)) if math.isfinite(xs[i])]
        parts.append(path([xs[i] for i in held], [ys[i] for i in held], f"line-{kind}"))
        for i in held:
            title = f"{name}: said {confidence[i]:.2f}, right {correct[i]:.2f}, {100 * share[i]:.1f} % of pixels"
            parts.append(dot(xs[i], ys[i], f"fill-{kind}", title, 3))
    if curves:
        shares = list(curves.values())[-1][2]
        step, most = (x.end - x.start) / len(shares), max(float(np.max(shares)), 1e-9)
        for i, share in enumerate(shares):
            top = bars.at(float(share) / most)
            parts.append(rect(x.start + i * step, top, step - 1, bars.start - top, "fill-dim"))
    return svg(WIDTH, 344, label, parts + x_axis(x, bars.start, "confidence; bars: share of the pixels"))


@dataclass(frozen=True)
class Whisker:
    """A difference with its interval; `kind` is "good", "bad" or "even"."""

    difference: float
    low: float
    high: float
    kind: str


def forest(rows: Sequence[tuple[str, Whisker | None]], unit: str, label: str) -> Markup:
    """A named difference a row, about a line at zero; a dash for None."""
    values = [abs(v) for _, w in rows if w is not None for v in (w.difference, w.low, w.high)]
    reach = max([*values, 0.1]) * 1.08
    left, height = 118, ROW * len(rows) + 8
    x = Axis(-reach, reach, left, WIDTH - 12)
    parts = x_axis(x, height, unit, grid_to=4)
    parts.append(line(x.at(0), 4, x.at(0), height, "zero"))
    for place, (name, w) in enumerate(rows):
        y = ROW * place + ROW / 2 + 6
        parts.append(text(left - 10, y + 4, name, anchor="end"))
        if w is None:
            parts.append(text(x.start + 8, y + 4, "—", "dim"))
            continue
        parts.append(line(x.at(w.low), y, x.at(w.high), y, f"whisker {w.kind}"))
        parts.append(
            dot(x.at(w.difference), y, w.kind, f"{name}: {w.difference:+.2f} [{w.low:+.2f}, {w.high:+.2f}]", 4)
        )
    return svg(WIDTH, height + 36, label, parts)


def dumbbells(rows: Sequence[tuple[str, float | None, float | None]], unit: str, label: str) -> Markup:
    """(name, first, second) a row on a scale of 0 to 100: both as dots, joined."""
    left, height = 118, ROW * len(rows) + 8
    x = Axis(0, 100, left, WIDTH - 12)
    parts = x_axis(x, height, unit, grid_to=4)
    for place, (name, first, second) in enumerate(rows):
        y = ROW * place + ROW / 2 + 6
        parts.append(text(left - 10, y + 4, name, anchor="end"))
        if first is None or second is None:
            parts.append(text(x.start + 8, y + 4, "—", "dim"))
            continue
        parts.append(line(x.at(first), y, x.at(second), y, "whisker even"))
        title = f"{name}: {first:.1f} and {second:.1f}"
        parts += [dot(x.at(first), y, "fill-a", title), dot(x.at(second), y, "fill-b", title)]
    return svg(WIDTH, height + 36, label, parts)


def confusion(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str) -> Markup:
    """Shares of the row's true pixels, (R, K) in 0..1, as shaded cells; numbers are per cent, from 1 on."""
    cell, left, top = 27, 96, 84
    parts = []
    for k, name in enumerate(columns):
        parts.append(text(left + cell * k + 17, top - 6, name, anchor="start", turn=-55))
    for r, name in enumerate(rows):
        y = top + cell * r
        parts.append(text(left - 6, y + 17, name, anchor="end"))
        for k, share in enumerate(shares[r]):
            same = name == columns[k]
            title = f"{name} read as {columns[k]}: {100 * share:.2f} % of its pixels"
            strength = f"fill-opacity:{0.06 + 0.94 * math.sqrt(share):.3f}"
            kind = "cell-good" if same else "cell-bad"
            parts.append(rect(left + cell * k, y, cell - 1.5, cell - 1.5, kind, title, strength))
            if share >= 0.01:
                strong = "on-cell" if share > 0.35 else ""
                parts.append(text(left + cell * k + 12.5, y + 17, f"{100 * share:.0f}", f"small {strong}"))
    width = left + cell * len(columns) + 40  # the last turned name leans out
    limits = f"min-width:{0.75 * width:.0f}px;max-width:{1.15 * width:.0f}px"  # of many classes a phone shows a part
    return svg(width, top + cell * len(rows) + 4, label, parts, "matrix", limits)


def heat_map(grid: np.ndarray, aspect: float, label: str) -> Markup:
    """Values (h, w), 0..1, as an image of width / height = aspect: dark where nothing, bright where much."""
    height = WIDTH / aspect
    cell_h, cell_w = height / grid.shape[0], WIDTH / grid.shape[1]
    most = max(float(grid.max()), 1e-9)
    parts = [rect(0, 0, WIDTH, height, "fill-ground")]
    for r, c in zip(*np.nonzero(grid), strict=True):
        strength = f"fill-opacity:{float(grid[r, c]) / most:.2f}"
        title = f"in {100 * grid[r, c]:.0f} % of the frames"
        parts.append(rect(c * cell_w, r * cell_h, cell_w + 0.3, cell_h + 0.3, "fill-heat", title, strength))
    return svg(WIDTH, height, label, parts)


def spark(counts: Sequence[int], label: str) -> Markup:
    """A histogram as small as a word, for a table's cell."""
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
    """Light level (log scale), confidence and lost frames over the same seconds; `starts` are where bags begin."""
    x = Axis(0, max([*seconds, 1.0]), 46, width - 10)
    light, sure, gone = Axis(0.001, 1, 96, 22, log=True), Axis(0, 1, 206, 132), Axis(0, max([*lost, 1]), 282, 242)
    parts = []
    for name, axis, most in (("light level", light, 4), ("mean confidence", sure, 2), ("frames lost", gone, 1)):
        parts += [text(x.start, axis.end - 7, name, "dim", "start"), *y_axis(axis, x.start, x.end, most)]
    for start in starts[1:]:
        parts.append(line(x.at(start), light.end, x.at(start), gone.start, "zero"))
    xs = [x.at(s) for s in seconds]
    for axis, values, kind in ((light, light_level, "line-a"), (sure, confidence, "line-b")):
        ys = [math.nan if v is None else axis.at(v) for v in values]
        drawn = [(xs[i], y) for i, y in enumerate(ys)]
        for start in starts[1:]:  # no line from one drive to the next
            drawn.insert(sum(place < x.at(start) for place, _ in drawn), (x.at(start), math.nan))
        parts.append(path([p[0] for p in drawn], [p[1] for p in drawn], kind))
        alone = [i for i, y in enumerate(ys) if math.isfinite(y) and not _neighbour(ys, i)]
        parts += [dot(xs[i], ys[i], kind.replace("line", "fill"), radius=2) for i in alone]
    for place, count in zip(xs, lost, strict=True):
        if count:
            parts.append(rect(place - 1, gone.at(count), 2, gone.start - gone.at(count), "bad", f"{count} lost"))
    kind = "" if width <= WIDTH else "across"
    return svg(width, 316, label, parts + x_axis(x, gone.start, "seconds", most=width // 80), kind)


def _neighbour(values: Sequence[float], place: int) -> bool:
    return any(math.isfinite(v) for v in (*values[max(place - 1, 0) : place], *values[place + 1 : place + 2]))
