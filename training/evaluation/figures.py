# SPDX-License-Identifier: Apache-2.0
"""Compute differences of accuracy with intervals, and the figures of parts of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from nightlab_core.data.datasets.catalogue import DATASETS
from nightlab_core.labels import ClassSet
from nightlab_core.metrics import iou, mean_iou, paired_bootstrap, paired_bootstrap_by_class
from nightlab_core.runtime.light import DARK, LIGHT_BINS

#: With fewer frames there is no interval: six that point the same way by chance are one case in thirty.
LEAST_FRAMES = 6


@dataclass(frozen=True)
class Difference:
    """Points of IoU in percent, with the 95 % interval of the paired bootstrap; None for too few frames."""

    points: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "too few frames" if self.low is None else f"{self.low:+.2f}, {self.high:+.2f}"
        return f"{self.points:+.2f} [{interval}]"


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compute the gain of the second method over the first; matrices (N, C, C + 1) of the same frames."""
    return _difference([100 * value for value in paired_bootstrap(first, second)], len(first))


def percent(matrices: np.ndarray) -> float:
    """Compute the mean IoU of matrices (N, C, C + 1) in percent, from their sum."""
    return 100 * mean_iou(matrices.sum(axis=0))


def by_class(classes: ClassSet, first: np.ndarray, second: np.ndarray) -> list[dict[str, Any]]:
    """Return an entry for each class: name, IoU of both methods in percent, difference; None for an absent class."""
    pairs = zip(classes.names, iou(first.sum(axis=0)), iou(second.sum(axis=0)), strict=True)
    intervals = 100 * paired_bootstrap_by_class(first, second)
    return [
        {"name": name, "first": None, "second": None, "difference": None}
        if np.isnan(a)
        else {
            "name": name,
            "first": 100 * a,
            "second": 100 * b,
            "difference": asdict(_difference(interval.tolist(), len(first))),
        }
        for (name, a, b), interval in zip(pairs, intervals, strict=True)
    ]


def _difference(interval: list[float], frames: int) -> Difference:
    points, low, high = interval
    return Difference(points, low, high) if frames >= LEAST_FRAMES else Difference(points, None, None)


def by_part(
    name: str, frames: Sequence[str], light: np.ndarray, first: np.ndarray, second: np.ndarray
) -> list[dict[str, Any]]:
    """Return an entry for each part that holds frames, with the mean IoU: named parts, then light levels."""
    return [
        {
            "name": part,
            "span": span,
            "frames": int(held.sum()),
            "first": percent(first[held]),
            "second": percent(second[held]),
            "difference": asdict(difference(first[held], second[held])),
        }
        for part, span, held in parts(name, frames, light)
    ]


def parts(name: str, frames: Sequence[str], light: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, description of the span and frames, bool (N,), of the parts of a set that hold any frame.

    name: such as "camvid/test". light: of each frame, see `runtime.light`.
    """
    known = DATASETS.get(name.partition("/")[0])
    for part, pattern in (known.parts if known else {}).items():
        held = np.array([fnmatchcase(frame, pattern) for frame in frames], bool)
        if held.any():
            yield part, pattern, held
    for light_bin in (*LIGHT_BINS, DARK):
        held = np.array([light_bin.holds(level) for level in light], bool)
        if held.any():
            yield light_bin.name, f"light {light_bin.span}", held
