# SPDX-License-Identifier: Apache-2.0
"""How sure a difference is, on frames of a drive: intervals by drawing blocks of neighbours instead of single frames.

Consecutive frames are alike, so that drawing them one by one makes an interval too narrow. The block bootstrap
(Künsch, 1989) draws stretches of a few seconds, which are nearly independent of each other. It still speaks only of
drives like those in the bags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from nightlab_core.metrics import mean_iou, paired_bootstrap, paired_bootstrap_by_class
from nightlab_replay.records import FrameRecord

#: Seconds of driving in a block.
BLOCK_S = 5.0
#: Blocks are shorter where there would be fewer than this many, but never shorter than a second: frames within one show
#: the same street.
WANTED_BLOCKS = 10
LEAST_BLOCK_S = 1.0
#: With fewer blocks nothing is claimed: six that point the same way by chance alone are one case in thirty.
LEAST_BLOCKS = 6
SAMPLES = 2000


class Figures(BaseModel):
    """A part of a report: plain numbers that JSON can hold, None for what does not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Figures):
    """A difference, second minus first, with its 95 % interval, and what it rests on."""

    difference: float
    low_95: float
    high_95: float
    frames: int
    blocks: int

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "no difference shown" and "too few frames", where more is better."""
        if self.blocks < LEAST_BLOCKS:
            return "too few frames"
        return "better" if self.low_95 > 0 else "worse" if self.high_95 < 0 else "no difference shown"


def blocks_of(records: Sequence[FrameRecord]) -> np.ndarray:
    """The number of each frame's block, int64 (N,), rising from 0. Blocks hold consecutive frames of one bag."""
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
    """Sums (M, ...) over the frames of each of the M blocks that occur."""
    if not len(blocks):
        return values
    order = np.argsort(blocks, kind="stable")
    starts = np.flatnonzero(np.diff(blocks[order], prepend=blocks[order[0]] - 1))
    return np.add.reduceat(values[order], starts, axis=0)


def miou_interval(first: np.ndarray, second: np.ndarray, blocks: np.ndarray) -> Interval | None:
    """Of the mean IoU, from matrices (N, C, C + 1) of the same frames. None where nothing is labelled."""
    if not len(first) or math.isnan(mean_iou(first.sum(axis=0))):
        return None
    sums = [sum_by_block(m, blocks) for m in (first, second)]
    labelled = sums[0].sum(axis=(1, 2)) > 0  # a draw of nothing but empty blocks would have no IoU
    numbers = paired_bootstrap(sums[0][labelled], sums[1][labelled], SAMPLES)
    return _interval(numbers, len(first), int(labelled.sum()))


def class_intervals(first: np.ndarray, second: np.ndarray, blocks: np.ndarray) -> list[Interval | None]:
    """As `miou_interval`, for each class; its blocks are those that hold it. None for a class that the truth lacks."""
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
    """Of the mean of a number that every frame has, (N,) float. None for no frame."""
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
