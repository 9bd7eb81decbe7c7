# SPDX-License-Identifier: Apache-2.0
"""Segmentation accuracy: confusion matrices, intersection over union, and confidence intervals of differences.

Sum the matrices of all frames and compute the IoU once, as Cityscapes' evaluation does. The mean of the frames' IoUs is
a different figure.
"""

from __future__ import annotations

import numpy as np

from nightlab_core.labels import IGNORE_ID


def confusion_matrix(
    labels: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_id: int = IGNORE_ID
) -> np.ndarray:
    """Count pixels by true class (row) and predicted class (column): int64 (C, C + 1).

    The last column counts predictions of `ignore_id`, which are wrong for every labelled pixel. Pixels with the label
    `ignore_id` are not counted. Takes two label maps of the same shape. Raises ValueError for different shapes, and for
    ids that are neither below `num_classes` nor `ignore_id`.
    """
    if labels.shape != prediction.shape:
        raise ValueError(f"labels are {labels.shape}, the prediction is {prediction.shape}: expected the same shape")
    known = labels != ignore_id
    true, predicted = labels[known].astype(np.int64), prediction[known].astype(np.int64)
    for name, ids in (("labels", true), ("prediction", predicted)):
        unknown = ids[((ids < 0) | (ids >= num_classes)) & (ids != ignore_id)]
        if unknown.size:
            raise ValueError(
                f"{name}: received ids {np.unique(unknown).tolist()}, "
                f"expected 0 to {num_classes - 1} or {ignore_id}; "
                "map both to one class set"
            )
    predicted[predicted == ignore_id] = num_classes
    columns = num_classes + 1
    return np.bincount(true * columns + predicted, minlength=num_classes * columns).reshape(num_classes, columns)


def iou(matrix: np.ndarray) -> np.ndarray:
    """Compute intersection over union by class, float64 (..., C), of confusion matrices (..., C, C) or (..., C, C + 1).

    NaN for a class without a labelled pixel.
    """
    return _iou(*_correct_labelled_predicted(np.asarray(matrix, np.float64)))


def mean_iou(matrix: np.ndarray) -> float:
    """Compute the mean IoU over the classes that have labelled pixels; NaN if there are none."""
    return float(_mean_over_present(iou(matrix)))


def paired_bootstrap(
    matrices_a: np.ndarray, matrices_b: np.ndarray, samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Compute by how much b is better than a: (difference, low, high) of mean IoU, with the 95 % interval of the
    percentile bootstrap (Efron, 1979).

    Takes the matrices of N frames, (N, C, C) or (N, C, C + 1), by two methods on the same frames. Frames are drawn in
    pairs, so that a frame's difficulty for both cancels out. The interval covers only the choice of frames: consecutive
    frames of one drive are alike, which makes it too narrow. Raises ValueError if the labels differ or there is no
    frame.
    """
    drawn_a, drawn_b = _resampled_iou(matrices_a, matrices_b, samples, seed)
    low, high = np.nanpercentile(_mean_over_present(drawn_b) - _mean_over_present(drawn_a), [2.5, 97.5])
    difference = mean_iou(np.sum(matrices_b, axis=0)) - mean_iou(np.sum(matrices_a, axis=0))
    return difference, float(low), float(high)


def paired_bootstrap_by_class(
    matrices_a: np.ndarray, matrices_b: np.ndarray, samples: int = 2000, seed: int = 0
) -> np.ndarray:
    """Compute `paired_bootstrap` for the IoU of each class: float64 (C, 3) of difference, low and high.

    NaN for a class without a labelled pixel. Of many intervals, one in twenty excludes zero by chance.
    """
    drawn_a, drawn_b = _resampled_iou(matrices_a, matrices_b, samples, seed)
    difference = iou(np.sum(matrices_b, axis=0)) - iou(np.sum(matrices_a, axis=0))
    limits = np.full((len(difference), 2), np.nan)
    present = ~np.isnan(difference)
    limits[present] = np.nanpercentile((drawn_b - drawn_a)[:, present], [2.5, 97.5], axis=0).T
    return np.column_stack([difference, limits])


def _resampled_iou(
    matrices_a: np.ndarray, matrices_b: np.ndarray, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute IoU by class, (samples, C), of frames drawn with replacement: the same draws for both."""
    matrices_a, matrices_b = np.asarray(matrices_a, np.float64), np.asarray(matrices_b, np.float64)
    if matrices_a.shape != matrices_b.shape or matrices_a.ndim != 3 or not len(matrices_a):
        raise ValueError(f"received {matrices_a.shape} and {matrices_b.shape}, expected the same (N, C, C) with N > 0")
    if not np.array_equal(matrices_a.sum(axis=2), matrices_b.sum(axis=2)):
        raise ValueError("the two lists count different labels; expected the same frames in the same order")
    count = len(matrices_a)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)
    # The IoU needs only these three sums for each class, far fewer than the matrices' cells.
    drawn_a, drawn_b = ([draws @ v for v in _correct_labelled_predicted(m)] for m in (matrices_a, matrices_b))
    return _iou(*drawn_a), _iou(*drawn_b)


def _correct_labelled_predicted(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels by class, (..., C): correctly predicted, labelled, and predicted."""
    correct = np.diagonal(matrix, axis1=-2, axis2=-1)
    return correct, matrix.sum(axis=-1), matrix.sum(axis=-2)[..., : matrix.shape[-2]]


def _iou(correct: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(labelled > 0, correct / (labelled + predicted - correct), np.nan)


def _mean_over_present(values: np.ndarray) -> np.ndarray:
    """Compute the mean over the last axis without its NaNs."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0).sum(axis=-1) / present.sum(axis=-1)
