# SPDX-License-Identifier: Apache-2.0
"""Plan which windows of a frame the region network reads, and at which of its input sizes. See docs/bundle.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nightlab_core.runtime.regions import context_boxes

#: A window is read at about this many times the resolution at which the image level reads it.
ENLARGEMENT = 2.2
#: Two windows are read as one if their common area is at least this fraction of the smaller one.
STRONG_OVERLAP = 0.5


@dataclass(frozen=True)
class CropPlan:
    """The C crops in which K boxes are read, C <= K, in descending gain."""

    windows: np.ndarray  #: int64 (C, 4), xyxy in frame pixels, half open
    sizes: np.ndarray  #: int64 (C,): index of the input size at which each is read
    gains: np.ndarray  #: float64 (C,): sum of the gains of a crop's boxes
    crop_of: np.ndarray  #: int64 (K,): the crop that each box is read in


def plan_crops(
    boxes: np.ndarray,
    gains: np.ndarray,
    frame_hw: tuple[int, int],
    margin: float,
    sizes_hw: Sequence[tuple[int, int]],
    scale: float,
    *,
    share: bool,
) -> CropPlan:
    """Plan the crops of boxes.

    Args:
        boxes: float32 (K, 4), xyxy in frame pixels.
        gains: (K,), in descending order.
        frame_hw: size of the frame.
        margin: context around a box, see `context_boxes`.
        sizes_hw: input sizes of the region network in ascending order, all of one aspect.
        scale: wanted pixels of a crop for each of the frame, along a side; see `wanted_scale`.
        share: read windows that overlap strongly as one, if that takes fewer pixels and a crop holds them.
    """
    aspect = sizes_hw[0][1] / sizes_hw[0][0]
    windows = list(context_boxes(boxes, frame_hw, margin, aspect))
    crops: list[np.ndarray] = []
    crop_of = []
    for window in windows:
        place = len(crops)
        for index, other in enumerate(crops if share else ()):
            if (joined := _joined(window, other, frame_hw, sizes_hw, scale)) is not None:
                place, crops[index] = index, joined
                break
        else:
            crops.append(window)
        crop_of.append(place)
    crop_gains = np.bincount(crop_of, weights=gains, minlength=len(crops)) if crops else np.zeros(0)
    order = np.argsort(-crop_gains, kind="stable")
    return CropPlan(
        np.array(crops, np.int64).reshape(-1, 4)[order],
        np.array([size_of(window, sizes_hw, scale) for window in crops], np.int64)[order],
        crop_gains[order],
        np.argsort(order)[np.array(crop_of, np.int64)],
    )


def wanted_scale(image_hw: tuple[int, int], frame_hw: tuple[int, int]) -> float:
    """Return the crops' wanted scale in frames whose image network reads them at `image_hw`."""
    return ENLARGEMENT * math.sqrt(math.prod(image_hw) / math.prod(frame_hw))


def size_of(window: np.ndarray, sizes_hw: Sequence[tuple[int, int]], scale: float) -> int:
    """Return the index of the smallest size that holds a window, int64 (4,), at this scale, or the last one."""
    return next((index for index, size in enumerate(sizes_hw) if _holds(size, window, scale)), len(sizes_hw) - 1)


def _joined(
    first: np.ndarray, second: np.ndarray, frame_hw: tuple[int, int], sizes_hw: Sequence[tuple[int, int]], scale: float
) -> np.ndarray | None:
    """Return the window around two windows if it is to be read in their place, else None."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    smaller = min((first[2:] - first[:2]).prod(), (second[2:] - second[:2]).prod())
    if (sides <= 0).any() or sides.prod() < STRONG_OVERLAP * smaller:
        return None
    around = np.concatenate([np.minimum(first[:2], second[:2]), np.maximum(first[2:], second[2:])])
    window = context_boxes(around[None], frame_hw, 0.0, sizes_hw[0][1] / sizes_hw[0][0])[0]
    pixels = [sizes_hw[size_of(w, sizes_hw, scale)] for w in (window, first, second)]
    joined, *apart = (height * width for height, width in pixels)
    return window if _holds(sizes_hw[-1], window, scale) and joined < sum(apart) else None


def _holds(size_hw: tuple[int, int], window: np.ndarray, scale: float) -> bool:
    x0, y0, x1, y1 = window.tolist()
    return size_hw[0] >= scale * (y1 - y0) and size_hw[1] >= scale * (x1 - x0)
