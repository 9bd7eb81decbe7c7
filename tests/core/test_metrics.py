# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from nightlab_core.metrics import confusion_matrix, iou, mean_iou, paired_bootstrap, paired_bootstrap_by_class

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
