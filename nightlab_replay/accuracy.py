# SPDX-License-Identifier: Apache-2.0
"""Accuracy of two methods on the same labelled frames: in all, by class, by light level and by band of the image.

The two methods are the image level and both levels of one run, or both levels of two runs: the figures are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nightlab_core.metrics import iou, mean_iou
from nightlab_core.runtime.light import DARK, LIGHT_BINS, LightBin
from nightlab_replay.intervals import Figures, Interval, blocks_of, class_intervals, miou_interval
from nightlab_replay.records import FrameRecord

#: Drawing single frames takes 16 kB a frame: of more frames than this only stretches are drawn.
_MOST_SINGLE = 20_000


class ClassFigures(Figures):
    """One class. IoU is None where the truth holds no pixel of it."""

    name: str
    pixels: int  #: of the truth
    iou: tuple[float | None, float | None]
    gain: Interval | None


class PartFigures(Figures):
    """Some of the frames, or a band of all of them."""

    name: str
    span: str
    frames: int
    miou: tuple[float | None, float | None]
    gain: Interval | None


class LightFigures(PartFigures):
    """The frames of one light level."""

    classes: tuple[ClassFigures, ...]


class Accuracy(Figures):
    """0..1 throughout; pairs are (first, second) method."""

    methods: tuple[str, str]
    classes: str
    frames: int
    miou: tuple[float | None, float | None]
    pixel_accuracy: tuple[float | None, float | None]
    gain: Interval | None
    frame_by_frame: Interval | None  #: as `gain`, with frames drawn one by one: too narrow for frames of one drive;
    #: None where they are too many to draw
    by_class: tuple[ClassFigures, ...]
    by_light: tuple[LightFigures, ...]
    dark: LightFigures
    by_band: tuple[PartFigures, ...]
    confusion: tuple[tuple[tuple[int, ...], ...], ...]  #: by method: true class by predicted class and unlabelled


def accuracy_of(
    methods: tuple[str, str],
    classes: str,
    names: Sequence[str],
    records: Sequence[FrameRecord],
    first: np.ndarray,
    second: np.ndarray,
) -> Accuracy | None:
    """From the records of N labelled frames and matrices (N, B, C, C + 1) of their B bands. None for no frame."""
    if not records:
        return None
    blocks, light = blocks_of(records), [r.light_level for r in records]
    whole = first.sum(axis=1), second.sum(axis=1)
    sums = whole[0].sum(axis=0), whole[1].sum(axis=0)
    num_bands = first.shape[1]

    def at_light(part: LightBin) -> LightFigures:
        held = np.array([part.holds(level) for level in light], bool)
        matrices = whole[0][held], whole[1][held]
        by_class = _by_class(names, *matrices, blocks[held])
        return LightFigures(**dict(_part(part.name, part.span, *matrices, blocks[held])), classes=by_class)

    return Accuracy(
        methods=methods,
        classes=classes,
        frames=len(records),
        miou=(number(mean_iou(sums[0])), number(mean_iou(sums[1]))),
        pixel_accuracy=(_pixel_accuracy(sums[0]), _pixel_accuracy(sums[1])),
        gain=miou_interval(*whole, blocks),
        frame_by_frame=miou_interval(*whole, np.arange(len(records))) if len(records) <= _MOST_SINGLE else None,
        by_class=_by_class(names, *whole, blocks),
        by_light=tuple(at_light(part) for part in LIGHT_BINS),
        dark=at_light(DARK),
        by_band=tuple(_part(*_band(b, num_bands), first[:, b], second[:, b], blocks) for b in range(num_bands)),
        confusion=tuple(tuple(tuple(map(int, row)) for row in matrix) for matrix in sums),
    )


def number(value: float) -> float | None:
    """None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value)


def _part(name: str, span: str, first: np.ndarray, second: np.ndarray, blocks: np.ndarray) -> PartFigures:
    return PartFigures(
        name=name,
        span=span,
        frames=int((first.sum(axis=(1, 2)) > 0).sum()),
        miou=(number(mean_iou(first.sum(axis=0))), number(mean_iou(second.sum(axis=0)))),
        gain=miou_interval(first, second, blocks),
    )


def _by_class(
    names: Sequence[str], first: np.ndarray, second: np.ndarray, blocks: np.ndarray
) -> tuple[ClassFigures, ...]:
    sums = first.sum(axis=0), second.sum(axis=0)
    values, gains = (iou(sums[0]), iou(sums[1])), class_intervals(first, second, blocks)
    return tuple(
        ClassFigures(
            name=name,
            pixels=int(sums[0][c].sum()),
            iou=(number(values[0][c]), number(values[1][c])),
            gain=gains[c],
        )
        for c, name in enumerate(names)
    )


def _pixel_accuracy(matrix: np.ndarray) -> float | None:
    total = int(matrix.sum())
    return int(np.trace(matrix)) / total if total else None


def _band(place: int, count: int) -> tuple[str, str]:
    """Name and span of a band of rows: what is far away is high up in the picture."""
    name = "top, far" if place == 0 else "bottom, near" if place == count - 1 else f"band {place + 1}"
    return name, f"rows {100 * place / count:.0f} to {100 * (place + 1) / count:.0f} %"
