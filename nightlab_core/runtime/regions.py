# SPDX-License-Identifier: Apache-2.0
"""Do on the host what concerns regions, as pure functions: suppress, crop, enlarge, paste. See docs/bundle.md.

A box is float xyxy in frame pixels. A window is integer xyxy, half open: the pixels [y0:y1, x0:x1] of the frame that
the region network reads, which are the box and some context around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from nightlab_core.data.image_header import ImageError, check_size
from nightlab_core.labels import IGNORE_ID

MIN_WINDOW = 8  #: smallest side of a window in pixels
CONTEXT_STRIDE = 4  #: pixels of a crop for each pixel of the probabilities that the region network reads with it
MAX_INPUT_PIXELS = 1 << 23  #: most pixels that a network reads in one call
RIM = 0.06  #: fraction of a window's side; at the edge of its input a network is least accurate


#: How regions are merged: see `MERGES`.
Merge = Literal["replace", "confident", "window"]


@dataclass(frozen=True)
class Regions:
    """K regions and the region network's labels in them."""

    boxes_xyxy: np.ndarray  #: float32 (K, 4), frame pixels: the hard regions
    scores: np.ndarray  #: float32 (K,), 0..1
    windows: np.ndarray  #: int64 (K, 4): the pixels that were cropped
    #: uint8 (K, h, w) on the windows; 255 leaves the image level's. If sizes differ: object (K,), of uint8 (h, w).
    labels: np.ndarray
    confidence: np.ndarray  #: 255 x probability, in the same form


def network_size_hw(frame_hw: tuple[int, int], input_hw: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the size (height, width) at which a network reads a frame.

    It has the frame's aspect and about the area of `input_hw`, so that the cost is the same for every camera, and both
    sides are multiples of `multiple`. Small frames are enlarged. Raises ImageError for a frame beyond the limits of an
    image, of which a thin one would give a side of any length, and if the size has more than MAX_INPUT_PIXELS, as for a
    thin frame and a large `multiple`.
    """
    check_size(frame_hw[1], frame_hw[0])
    aspect = frame_hw[1] / frame_hw[0]
    height = math.sqrt(input_hw[0] * input_hw[1] / aspect)
    rows, columns = (max(multiple, round(side / multiple) * multiple) for side in (height, height * aspect))
    if rows * columns > MAX_INPUT_PIXELS:
        raise ImageError(
            f"received a frame of {frame_hw[1]}x{frame_hw[0]} pixels, for which the network's input would have "
            f"{columns}x{rows}; expected at most {MAX_INPUT_PIXELS} pixels: take a bundle with a smaller `multiple`"
        )
    return rows, columns


def resize_image(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize an image, uint8 (H, W, 3), or a confidence map, uint8 (H, W): by area to a smaller area, else linearly."""
    if image.shape[:2] == size_hw:
        return image
    shrinks = image.shape[0] * image.shape[1] > size_hw[0] * size_hw[1]
    return cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a label map, uint8 (H, W): each pixel takes the label of the nearest pixel centre."""
    if labels.shape == size_hw:
        return labels
    # INTER_NEAREST takes a pixel's corner as its centre, which shifts the labels against the confidence.
    return cv2.resize(labels, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def non_maximum_suppression(boxes_xyxy: np.ndarray, scores: np.ndarray, iou: float, limit: int) -> np.ndarray:
    """Return the indices, int64 (M,), of at most `limit` boxes in descending score whose IoU is at most `iou`.

    boxes_xyxy: float32 (N, 4); scores: float32 (N,). Equal scores keep their order. Boxes that are empty or not finite
    are left out.
    """
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
    """Return the pixels that boxes (K, 4) touch: int64 (K, 4) xyxy, half open, clipped to the frame."""
    height, width = frame_hw
    # Libraries differ by less than a thousandth of a pixel; that must not add a whole pixel.
    pixels = np.concatenate([np.floor(boxes_xyxy[:, :2] + 1e-3), np.ceil(boxes_xyxy[:, 2:] - 1e-3)], axis=1)
    return np.clip(pixels, 0, [width, height, width, height]).astype(np.int64)


def context_boxes(boxes_xyxy: np.ndarray, frame_hw: tuple[int, int], margin: float, aspect: float) -> np.ndarray:
    """Return the windows, int64 (K, 4), of boxes (K, 4).

    Each side of a box is moved outwards by `margin` times its length, then the shorter direction is widened until width
    / height is `aspect`, and the window is shifted inside the frame. It always contains its box, and has another aspect
    only if the frame is too small.
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
    """Crop windows (K, 4) from a frame uint8 (H, W, 3) and resize them to one size: uint8 (K, h, w, 3), contiguous."""
    crops = np.empty((len(windows), *size_hw, 3), np.uint8)
    for crop, (x0, y0, x1, y1) in zip(crops, windows, strict=True):
        crop[:] = resize_image(frame_bgr[y0:y1, x0:x1], size_hw)
    return crops


def crop_probabilities(
    probabilities: np.ndarray, windows: np.ndarray, frame_hw: tuple[int, int], size_hw: tuple[int, int]
) -> np.ndarray:
    """Sample the image level's probabilities in windows: uint8 (K, h, w, C), contiguous.

    probabilities: uint8 (h', w', C), 255 x probability, of a frame of size `frame_hw`; windows: (K, 4) in frame pixels.
    """
    rows, columns, classes = probabilities.shape
    crops = np.empty((len(windows), *size_hw, classes), np.uint8)
    step_y, step_x = rows / frame_hw[0], columns / frame_hw[1]
    for crop, (x0, y0, x1, y1) in zip(crops, windows, strict=True):
        pixel_y, pixel_x = (y1 - y0) / size_hw[0], (x1 - x0) / size_hw[1]
        to_source = np.array(  # from pixel centre to pixel centre
            [
                [pixel_x * step_x, 0, (pixel_x / 2 + x0) * step_x - 0.5],
                [0, pixel_y * step_y, (pixel_y / 2 + y0) * step_y - 0.5],
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crop[:] = cv2.warpAffine(probabilities, to_source, size_hw[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return crops


def inner_windows(regions: Regions, frame_hw: tuple[int, int]) -> np.ndarray:
    """Return the windows without their rims, int64 (K, 4).

    A window has no rim at the frame's edge, and the pixels of its box always belong to the result.
    """
    edge, windows = np.array(frame_hw[::-1]), regions.windows
    rim = ((windows[:, 2:] - windows[:, :2]) * RIM).astype(np.int64)
    boxes = box_pixels(regions.boxes_xyxy, frame_hw)
    top_left = np.where(windows[:, :2] > 0, windows[:, :2] + rim, 0)
    bottom_right = np.where(windows[:, 2:] < edge, windows[:, 2:] - rim, edge)
    return np.concatenate([np.minimum(top_left, boxes[:, :2]), np.maximum(bottom_right, boxes[:, 2:])], axis=1)


def paste_replace(labels: np.ndarray, confidence: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Merge as the patent does (WO 2023/146470): each region replaces the pixels of its box.

    labels, confidence: the image level's, uint8 (H, W); new ones are returned. Regions are pasted in ascending score,
    so that the best one ends on top. Region label 255 keeps the label below. The rest of a window is not used.
    """
    areas = box_pixels(regions.boxes_xyxy, labels.shape)
    return _paste(labels, confidence, regions, areas, only_more_confident=False)


def paste_confident(labels: np.ndarray, confidence: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Merge per pixel: a region's pixel replaces one that is less confident, in the order of `paste_replace`.

    The whole window without its rim takes part, since the region level may be more confident beside the box as well.
    """
    return _paste(labels, confidence, regions, inner_windows(regions, labels.shape), only_more_confident=True)


def paste_window(labels: np.ndarray, confidence: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Merge the whole window without its rim, in the order of `paste_replace`.

    For a region network that has weighed the image level's probabilities against its own.
    """
    return _paste(labels, confidence, regions, inner_windows(regions, labels.shape), only_more_confident=False)


def _paste(
    labels: np.ndarray, confidence: np.ndarray, regions: Regions, areas: np.ndarray, *, only_more_confident: bool
) -> tuple[np.ndarray, np.ndarray]:
    labels, confidence = labels.copy(), confidence.copy()
    # Of equal scores the first is pasted last, since suppression ranked it higher.
    for k in np.argsort(-regions.scores, kind="stable")[::-1]:
        (left, top, right, bottom), (x0, y0, x1, y1) = regions.windows[k], areas[k]
        size_hw = (int(bottom - top), int(right - left))
        inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        new_labels = resize_labels(regions.labels[k], size_hw)[inside]
        new_confidence = resize_image(regions.confidence[k], size_hw)[inside]
        wins = new_labels != IGNORE_ID
        if only_more_confident:
            wins &= new_confidence > confidence[y0:y1, x0:x1]
        # cv2.copyTo writes into the view, several times faster than numpy's where.
        cv2.copyTo(new_labels, wins.view(np.uint8), labels[y0:y1, x0:x1])
        cv2.copyTo(new_confidence, wins.view(np.uint8), confidence[y0:y1, x0:x1])
    return labels, confidence


MERGES: dict[Merge, Callable[[np.ndarray, np.ndarray, Regions], tuple[np.ndarray, np.ndarray]]] = {
    "replace": paste_replace,
    "confident": paste_confident,
    "window": paste_window,
}


def checked_size_hw(frame: np.ndarray) -> tuple[int, int]:
    """Return the size of a frame. Raises ValueError unless it is uint8 (H, W, 3) with at least one pixel."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        received = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"frame: received {received}, expected uint8 (H, W, 3) in BGR order; convert it first")
    if 0 in frame.shape:
        raise ValueError(f"frame: received an empty image {frame.shape}, expected at least one pixel")
    return frame.shape[0], frame.shape[1]


def apply_threshold(labels: np.ndarray, confidence: np.ndarray, threshold: float) -> np.ndarray:
    """Return the labels with 255 where confidence / 255 is below the threshold."""
    lowest = math.ceil(threshold * 255)
    return np.where(confidence < lowest, np.uint8(IGNORE_ID), labels) if lowest else labels
