# SPDX-License-Identifier: Apache-2.0
"""Boxes of the regions that the second level reads, from labels or from a prediction."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def label_instances(labels: np.ndarray, class_ids: Sequence[int], min_area: int = 16) -> np.ndarray:
    """Return boxes of the connected regions of some classes, float32 (N, 4) xyxy in pixels (NightLab, CVPR 2022).

    labels uint8 (H, W). Regions smaller than `min_area` pixels are left out as noise.
    """
    boxes = []
    for class_id in class_ids:
        mask = (labels == class_id).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        for x, y, width, height, area in stats[1:count]:
            if area >= min_area:
                boxes.append((x, y, x + width, y + height))
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def hard_regions(labels: np.ndarray, class_ids: Sequence[int], reach: int = 8, min_side: int = 48) -> np.ndarray:
    """Return boxes round instances of hard classes and their surroundings, float32 (N, 4) xyxy in pixels.

    labels uint8 (H, W). Ten regions serve a whole frame, so instances closer than twice `reach` pixels share a box, and
    a box is at least `min_side` pixels a side where the frame allows.
    """
    height, width = labels.shape
    mask = np.isin(labels, np.asarray(class_ids)).astype(np.uint8)
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    boxes = label_instances(cv2.dilate(mask, kernel), [1])
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    sides = np.minimum(np.maximum(sides, min_side), [width, height])
    top_left = np.clip(centre - sides / 2, 0, [width, height] - sides)
    return np.concatenate([top_left, top_left + sides], axis=1).astype(np.float32)


def predicted_regions(
    labels: np.ndarray, confidence: np.ndarray, class_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of `hard_regions` in a predicted label map, and their scores, float32 (N,) in 0..1.

    labels and confidence uint8 (H, W). A score is 1 minus the mean confidence in the box. The paper names no order for
    these boxes; this one needs no further network.
    """
    boxes = hard_regions(labels, class_ids)
    means = [confidence[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in boxes.round().astype(int)]
    return boxes, (1 - np.asarray(means, np.float32) / 255).reshape(-1)
