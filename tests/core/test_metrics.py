# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from nightlab_core.metrics import (
    CONFIDENCE_BINS,
    calibration_error,
    confidence_counts,
    confusion_matrix,
    iou,
    mean_iou,
    paired_bootstrap,
    paired_bootstrap_by_class,
    uiou_by_threshold,
    uncertainty_aware_iou,
)

NAN = math.nan


def u8(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint8)


def test_confusion_matrix_of_a_table_worked_by_hand() -> None:
    truth = u8([0, 0, 0, 1], [1, 1, 2, 255], [0, 1, 2, 255])
    guess = u8([0, 0, 1, 1], [1, 255, 2, 0], [2, 0, 255, 255])
    matrix = confusion_matrix(truth, guess, 3)
    # columns: predicted 0, 1, 2, unlabelled; the two pixels without truth are nowhere
    assert matrix.tolist() == [[2, 1, 1, 0], [1, 2, 0, 1], [0, 0, 1, 1]]
    assert matrix.dtype == np.int64


def test_iou_of_a_table_worked_by_hand() -> None:
    matrix = np.array([[2, 1, 1, 0], [1, 2, 0, 1], [0, 0, 1, 1]])
    # class 0: 2 hits, 4 true, 3 predicted; class 1: 2, 4, 3; class 2: 1, 2, 2
    assert iou(matrix).tolist() == pytest.approx([2 / 5, 2 / 5, 1 / 3])
    assert mean_iou(matrix) == pytest.approx((2 / 5 + 2 / 5 + 1 / 3) / 3)


def test_unlabelled_predictions_are_wrong() -> None:
    truth = u8([0, 0, 0, 0])
    assert mean_iou(confusion_matrix(truth, u8([0, 0, 0, 0]), 1)) == 1.0
    assert mean_iou(confusion_matrix(truth, u8([0, 255, 255, 255]), 1)) == 0.25


def test_a_class_without_truth_is_nan_and_leaves_the_mean() -> None:
    matrix = np.array([[3, 0, 1], [0, 0, 0], [0, 0, 4]])  # class 1 is nowhere, square matrix
    np.testing.assert_array_equal(iou(matrix), [3 / 4, NAN, 4 / 5])
    assert mean_iou(matrix) == pytest.approx((3 / 4 + 4 / 5) / 2)
    predicted_only = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]])
    np.testing.assert_array_equal(iou(predicted_only), [3 / 4, NAN, 1.0])


def test_nothing_labelled_gives_nan() -> None:
    matrix = confusion_matrix(u8([255, 255]), u8([0, 1]), 2)
    assert matrix.sum() == 0
    assert math.isnan(mean_iou(matrix))


def test_another_ignore_id() -> None:
    assert confusion_matrix(u8([0, 1, 9]), u8([0, 9, 0]), 2, ignore_id=9).tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("truth", "guess", "message"),
    [
        ([0, 19], [0, 0], r"labels: received ids \[19\], expected 0 to 18 or 255"),
        ([0, 0, 0], [0, 33, 19], r"prediction: received ids \[19, 33\], expected 0 to 18 or 255"),
        ([0, 0, 0], [0, 0], r"labels are \(1, 3\), the prediction is \(1, 2\)"),
    ],
)
def test_wrong_shapes_and_ids_are_refused(truth: list[int], guess: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(u8(truth), u8(guess), 19)


def test_ignored_truth_may_have_any_prediction() -> None:
    assert confusion_matrix(u8([255]), u8([77]), 19).sum() == 0


def test_uiou_of_a_table_worked_by_hand() -> None:
    # 10 pixels of class 0 in a valid area, 4 in an area that annotators marked as invalid; 8 of class 1.
    # Class 0: 6 hits (TP), 1 confused (FN), 3 declared invalid in the valid area (FI) and 4 in the invalid one (TI).
    # Class 1: 5 hits, 1 confused, 2 FI. The confused pixel of each class is a false positive of the other.
    labelled, predicted, correct = np.array([14, 8, 0]), np.array([6 + 1, 5 + 1, 0]), np.array([6, 5, 0])
    found = uncertainty_aware_iou(labelled, predicted, correct, np.array([4, 0, 0]))
    np.testing.assert_allclose(found, [(6 + 4) / (6 + 4 + 1 + 1 + 3), 5 / (5 + 1 + 1 + 2), NAN])
    # Without annotated invalid areas the 4 are false invalid, too.
    without = uncertainty_aware_iou(labelled, predicted, correct)
    np.testing.assert_allclose(without, [6 / (6 + 1 + 1 + 3 + 4), 5 / 9, NAN])


def uncertain_frame() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, prediction and confidence: of class 0 a confident hit, a hit and an error; of class 1 two hits."""
    return u8([0, 0, 0, 1, 1, 255]), u8([0, 0, 1, 1, 1, 1]), u8([255, 128, 26, 255, 200, 9])


def test_uiou_over_thresholds_worked_by_hand() -> None:
    labels, prediction, confidence = uncertain_frame()
    counts = confidence_counts(labels, prediction, confidence, 2)
    assert counts.shape == (CONFIDENCE_BINS, 3, 3) and counts.dtype == np.int64
    labelled = confusion_matrix(labels, prediction, 2).sum(axis=1)
    found = uiou_by_threshold(labelled, counts[:, :2, 0], counts[:, :2, 1])
    # At 0, the mean IoU: class 0 has 2 of 3, class 1 has 2 of 3. The error, of confidence 0.1, becomes invalid at 0.15:
    # FI for class 0, and no FP of class 1 any more. At 0.55 the second hit of class 0 follows.
    assert found.by_threshold[0] == pytest.approx(mean_iou(confusion_matrix(labels, prediction, 2)))
    expected = [2 / 3] * 3 + [(2 / 3 + 1) / 2] * 8 + [(1 / 3 + 1) / 2] * 5 + [(1 / 3 + 1 / 2) / 2] * 4
    assert found.by_threshold == pytest.approx(expected)
    assert (found.best, found.threshold) == (pytest.approx(5 / 6), pytest.approx(0.15))
    assert found.average == pytest.approx(np.mean(expected))


def test_uiou_at_a_threshold_is_the_iou_of_the_mask_that_the_threshold_leaves() -> None:
    """Without annotated invalid areas, as the node publishes it: invalid pixels are 255."""
    rng = np.random.default_rng(0)
    labels, prediction = rng.integers(0, 4, (2, 40, 50), np.uint8)
    prediction = np.where(rng.random(labels.shape) < 0.7, labels, prediction)
    confidence = rng.integers(0, 256, labels.shape, np.uint8)
    counts = confidence_counts(labels, prediction, confidence, 4)
    found = uiou_by_threshold(np.bincount(labels.ravel()), counts[:, :4, 0], counts[:, :4, 1])
    for place, value in enumerate(found.by_threshold):
        left = np.where(confidence >= 256 * place / CONFIDENCE_BINS, prediction, np.uint8(255))
        assert value == pytest.approx(mean_iou(confusion_matrix(labels, left, 4)))


def test_uiou_without_labels_is_nan() -> None:
    nothing = np.zeros((CONFIDENCE_BINS, 2), np.int64)
    found = uiou_by_threshold(np.zeros(2), nothing, nothing)
    assert math.isnan(found.best) and math.isnan(found.threshold) and math.isnan(found.average)


def test_confidence_counts_of_frames_add_up() -> None:
    labels, prediction, confidence = uncertain_frame()
    both = confidence_counts(*(np.stack([a, np.roll(a, 1)]) for a in (labels, prediction, confidence)), 2)
    assert np.array_equal(both, 2 * confidence_counts(labels, prediction, confidence, 2))
    unlabelled = confidence_counts(u8([0, 1]), u8([255, 1]), u8([100, 100]), 2)
    assert unlabelled[:, 2].sum(axis=0).tolist() == [1, 0, 100]  # a prediction of 255 is never correct


def test_calibration_error_worked_by_hand() -> None:
    counts = confidence_counts(*uncertain_frame(), 2).sum(axis=1)
    # Confidences 255, 255, 200 and 128 are right, each 1 - p too low; 26 is wrong, p too high.
    gaps = [0, 0, 1 - 200 / 255, 1 - 128 / 255, 26 / 255]
    assert calibration_error(*counts.T) == pytest.approx(np.mean(gaps))
    assert math.isnan(calibration_error(*np.zeros((3, CONFIDENCE_BINS))))


def frames(hits: list[int], size: int = 100) -> np.ndarray:
    """One class pair: class 0 is found on `hits` of `size` pixels, class 1 always."""
    return np.array([[[h, size - h, 0], [0, size, 0]] for h in hits])


def test_bootstrap_of_equal_frames_has_no_width() -> None:
    a, b = frames([50] * 6), frames([80] * 6)
    expected = mean_iou(frames([80])[0]) - mean_iou(frames([50])[0])
    # class 0: 80/100 - 50/100; class 1: 100/120 - 100/150
    assert expected == pytest.approx((0.3 + (100 / 120 - 100 / 150)) / 2)
    assert paired_bootstrap(a, b, samples=50) == pytest.approx((expected, expected, expected))


def test_bootstrap_pairs_the_frames() -> None:
    rng = np.random.default_rng(1)
    hits = rng.integers(5, 90, 40)
    difference, low, high = paired_bootstrap(frames(hits.tolist()), frames((hits + 5).tolist()))
    # Frames vary by 85 points, the two methods by 5 in every frame: only a paired interval is this narrow.
    assert 0 < low < difference < high
    assert high - low < 0.02
    swapped = paired_bootstrap(frames((hits + 5).tolist()), frames(hits.tolist()))
    assert swapped == pytest.approx((-difference, -high, -low))


def test_bootstrap_interval_of_a_random_difference_contains_zero() -> None:
    rng = np.random.default_rng(2)
    hits = rng.integers(30, 70, (2, 60)).tolist()
    _, low, high = paired_bootstrap(frames(hits[0]), frames(hits[1]))
    assert low < 0 < high


def test_bootstrap_is_repeatable_and_follows_its_seed() -> None:
    hits = np.random.default_rng(3).integers(30, 70, (2, 30)).tolist()
    a, b = frames(hits[0]), frames(hits[1])
    assert paired_bootstrap(a, b, samples=200) == paired_bootstrap(a, b, samples=200)
    assert paired_bootstrap(a, b, samples=200) != paired_bootstrap(a, b, samples=200, seed=1)


def test_bootstrap_with_a_class_that_few_frames_hold() -> None:
    rare = frames([50] * 30)
    rare[1:, 0] = 0  # class 0 is in the first frame only: a third of the draws lack it
    difference, low, high = paired_bootstrap(rare, rare)
    assert (difference, low, high) == (0.0, 0.0, 0.0)


def test_bootstrap_refuses_different_frames() -> None:
    with pytest.raises(ValueError, match="same frames"):
        paired_bootstrap(frames([10, 20]), frames([10, 20], size=90))
    with pytest.raises(ValueError, match=r"\(2, 2, 3\) and \(1, 2, 3\)"):
        paired_bootstrap(frames([10, 20]), frames([10]))
    with pytest.raises(ValueError, match="N > 0"):
        paired_bootstrap(np.zeros((0, 2, 3)), np.zeros((0, 2, 3)))


def test_bootstrap_by_class_sees_which_class_changed() -> None:
    rng = np.random.default_rng(3)
    hits, gains = rng.integers(20, 80, 30), rng.integers(5, 15, 30)
    a = np.array([[[h, 100 - h, 0, 0], [0, 50, 0, 0], [0, 0, 0, 0]] for h in hits])
    b = np.array([[[h + g, 100 - h - g, 0, 0], [0, 50, 0, 0], [0, 0, 0, 0]] for h, g in zip(hits, gains, strict=True)])
    classes = paired_bootstrap_by_class(a, b, samples=300)
    assert classes.shape == (3, 3)
    np.testing.assert_allclose(classes[:2, 0], (iou(b.sum(axis=0)) - iou(a.sum(axis=0)))[:2])
    assert 0 < classes[0, 1] < classes[0, 0] < classes[0, 2]
    assert np.isnan(classes[2]).all()  # no true pixel: nothing to compare
    difference, low, high = paired_bootstrap(a, b, samples=300)
    assert difference == pytest.approx(classes[:2, 0].mean())
    assert low <= difference <= high
