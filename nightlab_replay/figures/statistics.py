# SPDX-License-Identifier: Apache-2.0
"""Accuracy of two methods on the same labelled frames, with 95 % intervals of their difference.

Consecutive frames are alike, so resampling single frames makes an interval too narrow. The block bootstrap (Künsch,
1989) resamples blocks of a few seconds, which are nearly independent. Intervals describe drives like those in the bags
and no others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nightlab_core.metrics import iou, mean_iou, paired_bootstrap, paired_bootstrap_by_class
from nightlab_core.runtime.light import DARK, LIGHT_BINS, LightBin
from nightlab_replay.records import FrameRecord, JsonModel

#: Length of a block in seconds.
BLOCK_S = 5.0
#: Blocks are shortened, down to LEAST_BLOCK_S, in recordings that would have fewer blocks than this. Frames within a
#: second show the same street.
WANTED_BLOCKS = 10
LEAST_BLOCK_S = 1.0
#: With fewer blocks no difference is claimed: the chance that six agree in sign by accident is one in thirty.
LEAST_BLOCKS = 6
SAMPLES = 2000
#: Largest number of frames for the frame-by-frame interval, whose resampling takes 16 kB per frame.
_MOST_SINGLE_FRAMES = 20_000


class Interval(JsonModel):
    """A difference, second minus first, with its 95 % interval and sample size."""

    difference: float
    low_95: float
    high_95: float
    frames: int
    blocks: int

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "no difference shown" and "too few frames", if larger values are better."""
        if self.blocks < LEAST_BLOCKS:
            return "too few frames"
        return "better" if self.low_95 > 0 else "worse" if self.high_95 < 0 else "no difference shown"


class ClassAccuracy(JsonModel):
    """Accuracy of one class. IoU is None if no pixel is labelled with the class."""

    name: str
    pixels: int  #: labelled with the class
    iou: tuple[float | None, float | None]
    gain: Interval | None


class PartAccuracy(JsonModel):
    """Accuracy of a part of the frames, or of a band of all frames."""

    name: str
    span: str
    frames: int
    miou: tuple[float | None, float | None]
    gain: Interval | None


class LightAccuracy(PartAccuracy):
    """Accuracy of the frames of one light level."""

    classes: tuple[ClassAccuracy, ...]


class PairedAccuracy(JsonModel):
    """Accuracy of two methods on the same frames. Shares are 0..1; pairs are (first, second) method.

    The methods are the image level and both levels of one run, or both levels of two runs.
    """

    methods: tuple[str, str]
    classes: str
    frames: int
    miou: tuple[float | None, float | None]
    pixel_accuracy: tuple[float | None, float | None]
    gain: Interval | None
    frame_by_frame: Interval | None  #: `gain` with single frames resampled; None if there are too many frames
    by_class: tuple[ClassAccuracy, ...]
    by_light: tuple[LightAccuracy, ...]
    dark: LightAccuracy
    by_band: tuple[PartAccuracy, ...]
    confusion: tuple[tuple[tuple[int, ...], ...], ...]  #: by method: labelled class by predicted class and unlabelled


def paired_accuracy(
    methods: tuple[str, str],
    classes: str,
    names: Sequence[str],
    records: Sequence[FrameRecord],
    first: np.ndarray,
    second: np.ndarray,
) -> PairedAccuracy | None:
    """Compute the accuracy from N labelled frames and their matrices, int64 (N, B, C, C + 1) for B bands.

    Returns None for no frame.
    """
    if not records:
        return None
    blocks, light = blocks_of(records), [r.light_level for r in records]
    frames = first.sum(axis=1), second.sum(axis=1)
    totals = frames[0].sum(axis=0), frames[1].sum(axis=0)
    num_bands = first.shape[1]

    def at_light(part: LightBin) -> LightAccuracy:
        held = np.array([part.holds(level) for level in light], bool)
        matrices = frames[0][held], frames[1][held]
        by_class = _by_class(names, *matrices, blocks[held])
        return LightAccuracy(**dict(_part(part.name, part.span, *matrices, blocks[held])), classes=by_class)

    single = len(records) <= _MOST_SINGLE_FRAMES
    return PairedAccuracy(
        methods=methods,
        classes=classes,
        frames=len(records),
        miou=(none_if_nan(mean_iou(totals[0])), none_if_nan(mean_iou(totals[1]))),
        pixel_accuracy=(_pixel_accuracy(totals[0]), _pixel_accuracy(totals[1])),
        gain=miou_interval(*frames, blocks),
        frame_by_frame=miou_interval(*frames, np.arange(len(records))) if single else None,
        by_class=_by_class(names, *frames, blocks),
        by_light=tuple(at_light(part) for part in LIGHT_BINS),
        dark=at_light(DARK),
        by_band=tuple(_part(*_band(b, num_bands), first[:, b], second[:, b], blocks) for b in range(num_bands)),
        confusion=tuple(tuple(tuple(map(int, row)) for row in matrix) for matrix in totals),
    )


def _part(name: str, span: str, first: np.ndarray, second: np.ndarray, blocks: np.ndarray) -> PartAccuracy:
    return PartAccuracy(
        name=name,
        span=span,
        frames=int((first.sum(axis=(1, 2)) > 0).sum()),
        miou=(none_if_nan(mean_iou(first.sum(axis=0))), none_if_nan(mean_iou(second.sum(axis=0)))),
        gain=miou_interval(first, second, blocks),
    )


def _by_class(
    names: Sequence[str], first: np.ndarray, second: np.ndarray, blocks: np.ndarray
) -> tuple[ClassAccuracy, ...]:
    totals = first.sum(axis=0), second.sum(axis=0)
    values, gains = (iou(totals[0]), iou(totals[1])), class_intervals(first, second, blocks)
    return tuple(
        ClassAccuracy(
            name=name,
            pixels=int(totals[0][c].sum()),
            iou=(none_if_nan(values[0][c]), none_if_nan(values[1][c])),
            gain=gains[c],
        )
        for c, name in enumerate(names)
    )


def _pixel_accuracy(matrix: np.ndarray) -> float | None:
    total = int(matrix.sum())
    return int(np.trace(matrix)) / total if total else None


def _band(place: int, count: int) -> tuple[str, str]:
    """Return name and span of a band of rows. Distant things are high in the image."""
    name = "top, far" if place == 0 else "bottom, near" if place == count - 1 else f"band {place + 1}"
    return name, f"rows {100 * place / count:.0f} to {100 * (place + 1) / count:.0f} %"


def blocks_of(records: Sequence[FrameRecord]) -> np.ndarray:
    """Return the block number of each frame, int64 (N,), from 0. A block holds consecutive frames of one bag."""
    by_bag: dict[str, list[FrameRecord]] = {}
    for record in records:
        by_bag.setdefault(record.bag, []).append(record)
    wanted = max(1, len(records) // WANTED_BLOCKS)
    numbers: dict[tuple[str, int], int] = {}
    first = 0
    for bag, frames in by_bag.items():
        gaps = np.diff([r.time_ns for r in frames]) / 1e9
        gaps = gaps[gaps > 0]
        gap_s = float(np.median(gaps)) if gaps.size else BLOCK_S / wanted
        per_block = max(min(round(BLOCK_S / gap_s), wanted), round(LEAST_BLOCK_S / gap_s), 1)
        for place, record in enumerate(frames):
            numbers[bag, record.index] = first + place // per_block
        first += math.ceil(len(frames) / per_block)
    return np.array([numbers[r.bag, r.index] for r in records], np.int64)


def sum_by_block(values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Sum the values of the frames, (N, ...), in each of the M blocks that occur: (M, ...)."""
    if not len(blocks):
        return values
    order = np.argsort(blocks, kind="stable")
    starts = np.flatnonzero(np.diff(blocks[order], prepend=blocks[order[0]] - 1))
    return np.add.reduceat(values[order], starts, axis=0)


def miou_interval(first: np.ndarray, second: np.ndarray, blocks: np.ndarray) -> Interval | None:
    """Compute the interval of the mean IoU from matrices (N, C, C + 1) of the same frames. None without labels."""
    if not len(first) or math.isnan(mean_iou(first.sum(axis=0))):
        return None
    sums = [sum_by_block(m, blocks) for m in (first, second)]
    labelled = sums[0].sum(axis=(1, 2)) > 0  # a sample of only empty blocks would have no IoU
    numbers = paired_bootstrap(sums[0][labelled], sums[1][labelled], SAMPLES)
    return _interval(numbers, len(first), int(labelled.sum()))


def class_intervals(first: np.ndarray, second: np.ndarray, blocks: np.ndarray) -> list[Interval | None]:
    """Compute `miou_interval` for each class, on the blocks that contain the class. None for a class without labels."""
    if not len(first):
        return [None] * first.shape[1]
    sums = [sum_by_block(m, blocks) for m in (first, second)]
    holds = sums[0].sum(axis=2) > 0
    frames = (first.sum(axis=2) > 0).sum(axis=0)
    numbers = paired_bootstrap_by_class(sums[0], sums[1], SAMPLES)
    return [
        None if math.isnan(row[0]) else _interval(row, int(frames[c]), int(holds[:, c].sum()))
        for c, row in enumerate(numbers)
    ]


def mean_interval(differences: np.ndarray, blocks: np.ndarray, seed: int = 0) -> Interval | None:
    """Compute the interval of the mean of one number per frame, float (N,). None for no frame."""
    if not len(differences):
        return None
    sums = sum_by_block(np.stack([differences, np.ones(len(differences))], axis=1), blocks)
    count = len(sums)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=SAMPLES) @ sums
    low, high = np.percentile(draws[:, 0] / draws[:, 1], [2.5, 97.5])
    return _interval((float(differences.mean()), low, high), len(differences), count)


def _interval(numbers: Sequence[float] | np.ndarray, frames: int, blocks: int) -> Interval:
    difference, low, high = (float(n) for n in numbers)
    return Interval(difference=difference, low_95=low, high_95=high, frames=frames, blocks=blocks)


def none_if_nan(value: float) -> float | None:
    """Return None for NaN, which JSON cannot represent."""
    return None if math.isnan(value) else float(value)


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None, or None if there are none."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share as per cent, without the sign; a dash for None."""
    return "—" if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None, digits: int = 1) -> str:
    """Format a difference of shares as percentage points with a plus or minus sign; a dash for None."""
    return "—" if value is None else f"{100 * value:+.{digits}f}".replace("-", "−")


def interval_text(gain: Interval | None, digits: int = 1) -> str:
    """Format an interval in percentage points, such as "+1.2 [+0.3, +2.1]"; a dash for None."""
    if gain is None:
        return "—"
    return f"{points(gain.difference, digits)} [{points(gain.low_95, digits)}, {points(gain.high_95, digits)}]"


def sample_text(gain: Interval) -> str:
    """Format the sample size of an interval, such as "62 frames in 12 blocks"."""
    frames = f"{gain.frames} frame{'s' if gain.frames != 1 else ''}"
    return frames if gain.blocks == gain.frames else f"{frames} in {gain.blocks} blocks"


def verdict_text(gain: Interval | None) -> str:
    """Format verdict, interval and sample size, such as "better, +1.2 [+0.3, +2.1] points on 62 frames"."""
    if gain is None:
        return "no labelled frame"
    numbers = f"{interval_text(gain)} points on {sample_text(gain)}"
    if gain.verdict == "too few frames":
        return f"too few frames to tell, {numbers} (at least {LEAST_BLOCKS} blocks are needed)"
    if gain.verdict == "no difference shown":
        return f"no significant difference, {numbers}"
    return f"{gain.verdict}, {numbers}"
