# SPDX-License-Identifier: Apache-2.0
"""Segmentation accuracy: confusion matrices, IoU, uncertainty-aware IoU, calibration, and intervals of differences.

Sum the matrices of all frames and compute the IoU once, as Cityscapes' evaluation does. The mean of the frames' IoUs is
a different figure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightlab_core.labels import IGNORE_ID

#: Bins of equal width over the confidences 0..255, in which pixels are counted.
CONFIDENCE_BINS = 20
#: Bin of each confidence 0..255, int64 (256,).
BIN_OF_CONFIDENCE = np.arange(256) * CONFIDENCE_BINS // 256


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


@dataclass(frozen=True)
class UncertaintyAwareIoU:
    """Mean UIoU at the thresholds k / CONFIDENCE_BINS, 0..1; NaN without a labelled pixel."""

    by_threshold: tuple[float, ...]  #: in ascending order of the threshold, which is 0 for the first: the mean IoU

    @property
    def best(self) -> float:
        """The largest UIoU of all thresholds: never below the mean IoU, and chosen on the labels it is measured on."""
        return max(self.by_threshold)

    @property
    def threshold(self) -> float:
        """The lowest threshold that reaches `best`, 0..1."""
        return self.by_threshold.index(self.best) / len(self.by_threshold) if self.by_threshold[0] >= 0 else np.nan

    @property
    def average(self) -> float:
        """The mean over all thresholds."""
        return float(np.mean(self.by_threshold))


def confidence_counts(
    labels: np.ndarray, prediction: np.ndarray, confidence: np.ndarray, num_classes: int, ignore_id: int = IGNORE_ID
) -> np.ndarray:
    """Count labelled pixels by confidence and predicted class: int64 (CONFIDENCE_BINS, C + 1, 3).

    The last axis is pixels, the correct ones among them, and the sum of their confidences; the last class counts
    predictions of `ignore_id`. Takes maps of the same shape: labels and prediction as `confusion_matrix` checks them,
    confidence uint8. Counts of several frames may be added.
    """
    known = labels != ignore_id
    true, predicted, level = labels[known], prediction[known].astype(np.int64), confidence[known].astype(np.int64)
    correct = true == predicted
    predicted[predicted == ignore_id] = num_classes
    cells = BIN_OF_CONFIDENCE[level] * (num_classes + 1) + predicted
    size = CONFIDENCE_BINS * (num_classes + 1)
    # As float64 weights the sums are exact up to 2**53.
    parts = [np.bincount(cells, weight, size) for weight in (None, correct, level)]
    return np.stack(parts, axis=-1).astype(np.int64).reshape(CONFIDENCE_BINS, num_classes + 1, 3)


def uncertainty_aware_iou(
    labelled: np.ndarray, predicted: np.ndarray, correct: np.ndarray, true_invalid: np.ndarray | int = 0
) -> np.ndarray:
    """Compute the uncertainty-aware IoU by class (Sakaridis et al., ICCV 2019), float64 (..., C); NaN as in `iou`.

    A prediction is invalid if its confidence is below a threshold. Of the pixels labelled with a class, those with an
    invalid prediction are true invalid (TI) where annotators marked the content as not recognisable, else false invalid
    (FI). UIoU = (TP + TI) / (TP + TI + FP + FN + FI), where TP, FP and FN count valid predictions: a wrong prediction
    costs its own class nothing once it is invalid.

    Args:
        labelled: pixels labelled with each class, (..., C): TP + FN + TI + FI.
        predicted: valid predictions of each class among labelled pixels: TP + FP.
        correct: the correct ones among them: TP.
        true_invalid: TI. Without annotated invalid areas it is 0, as in all sets of this project: an invalid prediction
            is never rewarded, and 255 remains "not labelled", which is not counted.
    """
    labelled, predicted, correct = (np.asarray(a, np.float64) for a in (labelled, predicted, correct))
    return _iou(correct, labelled, predicted, true_invalid)


def uiou_by_threshold(labelled: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> UncertaintyAwareIoU:
    """Compute the mean UIoU at each threshold, without annotated invalid areas.

    The paper draws this curve over the thresholds from 1 / C to 1; below 1 / C no prediction is invalid. Takes pixels
    labelled with each class, (C,), and valid predictions and the correct ones by confidence, (CONFIDENCE_BINS, C).
    """
    valid, right = (np.cumsum(np.asarray(a)[::-1], axis=0)[::-1] for a in (predicted, correct))
    means = _mean_over_present(uncertainty_aware_iou(labelled, valid, right))
    return UncertaintyAwareIoU(tuple(means.tolist()))


def calibration_error(pixels: np.ndarray, correct: np.ndarray, confidence_sum: np.ndarray) -> float:
    """Compute the expected calibration error, 0..1: the mean of |confidence - correct| over bins, by pixels.

    Takes pixels, correct ones and the sum of the confidences 0..255 of each bin, (CONFIDENCE_BINS,). NaN for no pixel
    (Naeini et al., AAAI 2015).
    """
    total = int(np.sum(pixels))
    return float(np.abs(np.asarray(confidence_sum) / 255 - correct).sum()) / total if total else float("nan")


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


def _iou(
    correct: np.ndarray, labelled: np.ndarray, predicted: np.ndarray, true_invalid: np.ndarray | int = 0
) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(labelled > 0, (correct + true_invalid) / (labelled + predicted - correct), np.nan)


def _mean_over_present(values: np.ndarray) -> np.ndarray:
    """Compute the mean over the last axis without its NaNs."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0).sum(axis=-1) / present.sum(axis=-1)
