# SPDX-License-Identifier: Apache-2.0
"""Measure the effect of regions against the ground truth: equation 6 of the patent, gain by class, the best choice.

Label maps are uint8 (H, W), 255 = unlabelled; pixels whose true label is 255 are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightlab_core.labels import IGNORE_ID
from nightlab_core.metrics import confusion_matrix, iou, mean_iou
from nightlab_core.runtime import regions as rg

MERGES = tuple(rg.MERGES)


@dataclass(frozen=True)
class RegionGains:
    """Changes by each of K regions when it is merged alone over the image level; M = MERGES, C classes."""

    iou: np.ndarray  #: float32 (K, 2): mean IoU inside the box, image level and region level; NaN without truth
    hits: np.ndarray  #: int32 (K, M, C): change of the pixels of each true class that are right
    predicted: np.ndarray  #: int32 (K, M, C): change of the labelled pixels that are called each class


def pasted_areas(regions: rg.Regions, frame_hw: tuple[int, int], merge: rg.Merge) -> np.ndarray:
    """Return the area that each region may change, int64 (K, 4) xyxy half open."""
    return rg.box_pixels(regions.boxes_xyxy, frame_hw) if merge == "replace" else rg.inner_windows(regions, frame_hw)


def changed_counts(truth: np.ndarray, before: np.ndarray, after: np.ndarray, num_classes: int) -> np.ndarray:
    """Compute the confusion matrix of `after` minus that of `before`, int64 (C, C + 1), from pixels that differ."""
    places = np.flatnonzero(before != after)
    t, b, a = (m.ravel()[places] for m in (truth, before, after))
    return confusion_matrix(t, a, num_classes) - confusion_matrix(t, b, num_classes)


def region_gains(
    truth: np.ndarray, labels: np.ndarray, confidence: np.ndarray, regions: rg.Regions, num_classes: int
) -> RegionGains:
    """Measure each region by itself. `labels` and `confidence` are the image level's; all ids are of one class set."""
    found_iou, hits, predicted = [], [], []
    boxes = rg.box_pixels(regions.boxes_xyxy, labels.shape)
    for k, ((x0, y0, x1, y1), (left, top, right, bottom)) in enumerate(zip(boxes, regions.windows, strict=True)):
        box, window, one = np.s_[y0:y1, x0:x1], np.s_[top:bottom, left:right], _only(regions, k)
        pasted = {merge: rg.MERGES[merge](labels, confidence, one)[0] for merge in MERGES}
        levels = (labels, pasted["replace"])
        found_iou.append([mean_iou(confusion_matrix(truth[box], m[box], num_classes)) for m in levels])
        changes = [changed_counts(truth[window], labels[window], m[window], num_classes) for m in pasted.values()]
        hits.append([np.diagonal(change) for change in changes])
        predicted.append([change.sum(axis=0)[:num_classes] for change in changes])
    shape = (-1, len(MERGES), num_classes)
    return RegionGains(
        np.asarray(found_iou, np.float32).reshape(-1, 2),
        np.asarray(hits, np.int32).reshape(shape),
        np.asarray(predicted, np.int32).reshape(shape),
    )


def equation6(gains: RegionGains) -> np.ndarray:
    """The patent's relabelling (WO 2023/146470, equation 6), bool (K,): the region level beats the image level."""
    return gains.iou[:, 1] > gains.iou[:, 0]


def miou_gain(gains: RegionGains, merge: rg.Merge, matrix: np.ndarray, floor: float = 1e-3) -> np.ndarray:
    """Compute the gain of each region in the data set's mean IoU, to first order, float64 (K,), as a fraction.

    matrix: the image level's confusion matrix over the whole set, (C, C + 1). The derivative of IoU = hits / union is
    (d hits - IoU x d union) / union, and a union grows by what is newly called the class less what is newly right.
    Classes with less than the share `floor` of the pixels count as if they had it, so that few pixels have no effect.
    """
    m = MERGES.index(merge)
    present = matrix.sum(axis=1) > 0
    union = matrix.sum(axis=1) + matrix.sum(axis=0)[: len(matrix)] - np.diagonal(matrix)
    union = np.maximum(union, floor * matrix.sum())[present]
    hits, predicted = gains.hits[:, m, present], gains.predicted[:, m, present]
    return ((hits - iou(matrix)[present] * (predicted - hits)) / union).mean(axis=1)


def paste_oracle(
    labels: np.ndarray, confidence: np.ndarray, regions: rg.Regions, truth: np.ndarray, merge: rg.Merge
) -> tuple[np.ndarray, np.ndarray]:
    """Merge as `merge` does, but keep for each region the level that is better by the ground truth.

    The better one has the higher mean IoU where the region lands, over what lies there by then; a tie keeps what is
    there. Returns new labels and confidence.
    """
    areas = pasted_areas(regions, labels.shape, merge)
    num_classes = 1 + max((int(m[m != IGNORE_ID].max(initial=0)) for m in (truth, labels, regions.labels)), default=0)
    for k in np.argsort(-regions.scores, kind="stable")[::-1]:
        x0, y0, x1, y1 = areas[k]
        area = np.s_[y0:y1, x0:x1]
        pasted, pasted_confidence = rg.MERGES[merge](labels, confidence, _only(regions, k))
        before, after = (mean_iou(confusion_matrix(truth[area], m[area], num_classes)) for m in (labels, pasted))
        if after > before:
            labels, confidence = pasted, pasted_confidence
    return labels, confidence


def either_level(labels: np.ndarray, regions: rg.Regions, truth: np.ndarray, merge: rg.Merge) -> np.ndarray:
    """Labels, uint8 (H, W), that are right where the regions land wherever one level is: the bound of such a merge."""
    labels, no_confidence = labels.copy(), np.zeros_like(labels)
    for k in range(len(regions.scores)):
        found, _ = rg.MERGES[merge](labels, no_confidence, _only(regions, k))
        right = (found == truth) & (truth != IGNORE_ID)
        labels[right] = truth[right]
    return labels


def _only(regions: rg.Regions, k: int) -> rg.Regions:
    r, one = regions, np.s_[k : k + 1]
    return rg.Regions(r.boxes_xyxy[one], r.scores[one], r.windows[one], r.labels[one], r.confidence[one])
