# SPDX-License-Identifier: Apache-2.0
"""Parts of a chart as inline SVG. Colours come from the page's CSS classes; a chart loads nothing and has no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

#: Width of a chart in CSS pixels at which its 11 px text can be read. The page lets a chart grow with its column.
WIDTH = 360
#: The classes that charts use outside a page; in one, templates/base.html.j2 has them.
_FILE_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#1b1d22} .dim{fill:#5d6470} .small{font-size:10px} .axis{stroke:#5d6470}"
    " .grid{stroke:#dfe2e8} .fill-a{fill:#c2570c} .fill-b{fill:#2757d6} .fill-c{fill:#0f7b46}"
    " .line-a,.line-b,.line-c{fill:none;stroke-width:1.6} .line-a{stroke:#c2570c} .line-b{stroke:#2757d6}"
    " .line-c{stroke:#0f7b46}"
)


@dataclass(frozen=True)
class Axis:
    """A range of numbers and its place on the page: `start` and `end` in pixels (end is above start for y)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value. A value beyond an end is drawn at the end."""
        low, high, value = (math.log10(max(v, 1e-12)) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.0
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Return about `most` round values, or fewer, between the ends."""
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
    """Wrap the parts of a chart. `label` is for screen readers, `kind` is a CSS class."""
    style = f' style="{style}"' if style else ""
    return Markup(
        f'<svg class="chart {kind}"{style} viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        + "".join(body)
        + "</svg>"
    )


def standalone(chart: Markup) -> str:
    """Return a chart as the content of an SVG file, with its colours."""
    return (
        str(chart)
        .replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        .replace(">", f"><style>{_FILE_STYLE}</style><rect width='100%' height='100%' fill='#fff'/>", 1)
    )


def text(x: float, y: float, content: object, kind: str = "", anchor: str = "middle", turn: float = 0) -> str:
    """Draw text with its baseline at y."""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{turned}>{escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, title: str = "", style: str = "") -> str:
    """Draw a filled rectangle. The title appears under the pointer."""
    shown = f"><title>{escape(title)}</title></rect>" if title else "/>"
    style = f' style="{style}"' if style else ""
    width, height = max(width, 0), max(height, 0)
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"{style}{shown}'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Draw a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def dot(x: float, y: float, kind: str, title: str = "", radius: float = 3.5) -> str:
    """Draw a point. The title appears under the pointer."""
    shown = f"><title>{escape(title)}</title></circle>" if title else "/>"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"{shown}'


def path(xs: Sequence[float], ys: Sequence[float], kind: str) -> str:
    """Draw a line through the points. NaN in y interrupts it."""
    moves, pen_down = [], False
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            moves.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = math.isfinite(y)
    return f'<path d="{"".join(moves)}" class="{kind}"/>'


def x_axis(axis: Axis, y: float, title: str = "", most: int = 5, grid_to: float | None = None) -> list[str]:
    """Draw the axis at y with ticks, the title below, and grid lines up to `grid_to`."""
    parts = [line(axis.start, y, axis.end, y, "axis")]
    for tick in axis.ticks(most):
        x = axis.at(tick)
        parts.append(line(x, y, x, y + 3 if grid_to is None else grid_to, "axis" if grid_to is None else "grid"))
        parts.append(text(x, y + 14, _tick_text(tick)))
    if title:
        parts.append(text((axis.start + axis.end) / 2, y + 29, title, "dim"))
    return parts


def y_axis(axis: Axis, x: float, x_end: float, most: int = 4, form: str = "") -> list[str]:
    """Draw ticks left of x and grid lines to `x_end`."""
    parts = []
    for tick in axis.ticks(most):
        y = axis.at(tick)
        parts.append(line(x, y, x_end, y, "grid"))
        parts.append(text(x - 5, y + 4, format(tick, form) if form else _tick_text(tick), anchor="end"))
    return parts


def _tick_text(value: float) -> str:
    """Format a number without trailing zeros, thousands as k."""
    shown = f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:.6g}"
    return shown.replace("-", "−")
