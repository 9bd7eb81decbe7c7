# SPDX-License-Identifier: Apache-2.0
"""Everything the host does with regions, as pure functions: suppress, crop, enlarge, paste.

A box is float xyxy in frame pixels. A window is integer xyxy, half open: the pixels [y0:y1, x0:x1] of the frame that
the region network sees, which is the box with some context round it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from nightlab_core.labels import IGNORE_ID

MIN_WINDOW = 8  #: pixels a side: less holds nothing to enlarge
RIM = 0.06  #: of a window's side: the network knows least at the edge of what it sees


@dataclass(frozen=True)
class Regions:
    """K regions and what the region network read in them."""

    boxes_xyxy: np.ndarray  #: float32 (K, 4), frame pixels: what was found hard
    scores: np.ndarray  #: float32 (K,), 0..1
    windows: np.ndarray  #: int64 (K, 4): what was cropped
    labels: np.ndarray  #: uint8 (K, h, w) on the windows; 255 leaves the image level's
    confidence: np.ndarray  #: uint8 (K, h, w), 255 x probability


def network_size_hw(frame_hw: tuple[int, int], input_hw: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The size at which a network reads a frame: the frame's aspect, about the area of `input_hw` (so that the cost is
    the same for every camera; small frames are enlarged), both sides rounded to `multiple`."""
    aspect = frame_hw[1] / frame_hw[0]
    height = math.sqrt(input_hw[0] * input_hw[1] / aspect)
    rounded = (max(multiple, round(side / multiple) * multiple) for side in (height, height * aspect))
    return tuple(rounded)  # type: ignore[return-value]  # two sides in, two sides out


def resize_image(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a picture, uint8 (H, W, 3), or a confidence map, uint8 (H, W): by area down, linear up."""
    if image.shape[:2] == size_hw:
        return image
    shrinks = image.shape[0] * image.shape[1] > size_hw[0] * size_hw[1]
    return cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a label map, uint8 (H, W), to its nearest neighbours."""
    if labels.shape == size_hw:
        return labels
    # Plain INTER_NEAREST takes the corner of a pixel for its centre, which shifts the map against the confidence.
    return cv2.resize(labels, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def non_maximum_suppression(boxes_xyxy: np.ndarray, scores: np.ndarray, iou: float, limit: int) -> np.ndarray:
    """Indices, int64 (M,), of at most `limit` boxes (N, 4) in descending score (N,), no two overlapping by more than
    `iou`. Equal scores keep their order. Boxes that are empty or not finite are left out."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    areas = sides[:, 0] * sides[:, 1]
    usable = np.isfinite(boxes_xyxy).all(axis=1) & np.isfinite(scores) & (sides > 0).all(axis=1)
    remaining = np.argsort(-scores, kind="stable")
    remaining = remaining[usable[remaining]]
    kept: list[int] = []
    while remaining.size and len(kept) < limit:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        top_left = np.maximum(boxes_xyxy[best, :2], boxes_xyxy[remaining, :2])
        bottom_right = np.minimum(boxes_xyxy[best, 2:], boxes_xyxy[remaining, 2:])
        common = np.clip(bottom_right - top_left, 0, None).prod(axis=1)
        remaining = remaining[common <= iou * (areas[best] + areas[remaining] - common)]
    return np.array(kept, np.int64)


def box_pixels(boxes_xyxy: np.ndarray, frame_hw: tuple[int, int]) -> np.ndarray:
    """The pixels that boxes (K, 4) touch, int64 (K, 4) xyxy half open, clipped to the frame."""
    height, width = frame_hw
    # A thousandth of a pixel is rounding, not a touch: without it engines would differ by whole pixels.
    pixels = np.concatenate([np.floor(boxes_xyxy[:, :2] + 1e-3), np.ceil(boxes_xyxy[:, 2:] - 1e-3)], axis=1)
    return np.clip(pixels, 0, [width, height, width, height]).astype(np.int64)


def context_boxes(boxes_xyxy: np.ndarray, frame_hw: tuple[int, int], margin: float, aspect: float) -> np.ndarray:
    """Windows, int64 (K, 4), for boxes (K, 4): each side of a box is moved out by `margin` times its length, then the
    shorter direction is widened until width / height is `aspect`, and the whole is shifted inside the frame.

    A window always holds its box; it is narrower than `aspect` asks only where the frame is too small.
    """
    height, width = frame_hw
    pixels = box_pixels(boxes_xyxy, frame_hw)
    sides = np.maximum((pixels[:, 2:] - pixels[:, :2]) * (1 + 2 * margin), MIN_WINDOW)
    sides = np.maximum(sides, sides[:, ::-1] * [aspect, 1 / aspect])
    sides = np.minimum(np.ceil(sides - 1e-6), [width, height])
    top_left = np.floor((pixels[:, :2] + pixels[:, 2:] - sides) / 2)
    top_left = np.clip(top_left, 0, [width, height] - sides)
    return np.concatenate([top_left, top_left + sides], axis=1).astype(np.int64)


def crop_and_enlarge(frame_bgr: np.ndarray, windows: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The windows (K, 4) of a frame uint8 (H, W, 3), resized to one size: uint8 (K, h, w, 3), contiguous."""
    crops = np.empty((len(windows), *size_hw, 3), np.uint8)
    for crop, (x0, y0, x1, y1) in zip(crops, windows, strict=True):
        crop[:] = resize_image(frame_bgr[y0:y1, x0:x1], size_hw)
    return crops


def inner_windows(regions: Regions, frame_hw: tuple[int, int]) -> np.ndarray:
    """The windows less their rims, int64 (K, 4). Where a window ends with the frame it has no rim, and the pixels of
    the box always belong."""
    edge, windows = np.array(frame_hw[::-1]), regions.windows
    rim = ((windows[:, 2:] - windows[:, :2]) * RIM).astype(np.int64)
    boxes = box_pixels(regions.boxes_xyxy, frame_hw)
    top_left = np.where(windows[:, :2] > 0, windows[:, :2] + rim, 0)
    bottom_right = np.where(windows[:, 2:] < edge, windows[:, 2:] - rim, edge)
    return np.concatenate([np.minimum(top_left, boxes[:, :2]), np.maximum(bottom_right, boxes[:, 2:])], axis=1)


def paste_replace(labels: np.ndarray, confidence: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Merge as the patent does (WO 2023/146470): every region replaces what is under it, in ascending score, so that
    the best region ends on top. Region label 255 leaves what is there.

    Takes the image level's labels and confidence, uint8 (H, W), and returns new ones. Only the inside of a box is
    pasted: the rest of its window was cropped for context, and nobody found it hard.
    """
    areas = box_pixels(regions.boxes_xyxy, labels.shape)
    return _paste(labels, confidence, regions, areas, only_more_confident=False)


def paste_confident(labels: np.ndarray, confidence: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Merge pixel by pixel, in the same order: a region's pixel wins where it is strictly more confident than what is
    there by then. All of a window but its rim takes part: it has been read, and may be right beside the box too."""
    return _paste(labels, confidence, regions, inner_windows(regions, labels.shape), only_more_confident=True)


def _paste(
    labels: np.ndarray, confidence: np.ndarray, regions: Regions, areas: np.ndarray, *, only_more_confident: bool
) -> tuple[np.ndarray, np.ndarray]:
    labels, confidence = labels.copy(), confidence.copy()
    # Of equal scores the first is pasted last, and so on top: it is the one that suppression ranked higher.
    for k in np.argsort(-regions.scores, kind="stable")[::-1]:
        (left, top, right, bottom), (x0, y0, x1, y1) = regions.windows[k], areas[k]
        size_hw = (int(bottom - top), int(right - left))
        inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        new_labels = resize_labels(regions.labels[k], size_hw)[inside]
        new_confidence = resize_image(regions.confidence[k], size_hw)[inside]
        wins = new_labels != IGNORE_ID
        if only_more_confident:
            wins &= new_confidence > confidence[y0:y1, x0:x1]
        # cv2.copyTo writes through the view; it is several times faster than numpy's where on a ragged mask.
        cv2.copyTo(new_labels, wins.view(np.uint8), labels[y0:y1, x0:x1])
        cv2.copyTo(new_confidence, wins.view(np.uint8), confidence[y0:y1, x0:x1])
    return labels, confidence
