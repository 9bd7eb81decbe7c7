# SPDX-License-Identifier: Apache-2.0
"""Gains of regions, computed by hand: a frame of 4 x 8 pixels with two boxes of 4 x 4."""

from __future__ import annotations

import numpy as np
import pytest

from nightlab_core.metrics import confusion_matrix, mean_iou
from nightlab_core.runtime import regions
from nightlab_core.runtime.regions import Merge, Regions
from training.gains import (
    MERGES,
    changed_counts,
    either_level,
    equation6,
    miou_gain,
    paste_oracle,
    region_gains,
)

TRUTH = np.array([[0, 0, 1, 1, 0, 0, 0, 0]] * 4, np.uint8)
IMAGE = np.zeros((4, 8), np.uint8)  # misses class 1
CONFIDENCE = np.full((4, 8), 100, np.uint8)


def _regions(left: np.ndarray, right: np.ndarray, confidence: int = 200) -> Regions:
    boxes = np.array([[0, 0, 4, 4], [4, 0, 8, 4]], np.float32)
    labels = np.stack([left, right]).astype(np.uint8)
    sure = np.full(labels.shape, confidence, np.uint8)
    return Regions(boxes, np.array([0.9, 0.8], np.float32), boxes.astype(np.int64), labels, sure)


def test_changed_counts_are_the_difference_of_two_confusion_matrices() -> None:
    rng = np.random.default_rng(0)
    truth, before, after = rng.integers(0, 3, (3, 20, 20), np.uint8)
    truth[rng.random((20, 20)) < 0.2] = 255
    after[rng.random((20, 20)) < 0.1] = 255
    wanted = confusion_matrix(truth, after, 3) - confusion_matrix(truth, before, 3)
    np.testing.assert_array_equal(changed_counts(truth, before, after, 3), wanted)
    assert not changed_counts(truth, before, before, 3).any()


def test_gains_equal_hand_computed_values() -> None:
    # The left region finds class 1 but for its last column; the right one invents it.
    left = np.array([[0, 0, 1, 0]] * 4)
    gains = region_gains(TRUTH, IMAGE, CONFIDENCE, _regions(left, np.ones((4, 4))), 2)
    # Left box: image level 8/16 and 0; region level 8/12 and 4/8. Right box: 1 without class 1; then 0.
    np.testing.assert_allclose(gains.iou, [[1 / 4, 7 / 12], [1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(equation6(gains), [True, False])
    np.testing.assert_array_equal(gains.hits[:, 0], [[0, 4], [-16, 0]])
    np.testing.assert_array_equal(gains.predicted[:, 0], [[-4, 4], [-16, 16]])
    low_confidence = region_gains(TRUTH, IMAGE, CONFIDENCE, _regions(left, np.ones((4, 4)), confidence=50), 2)
    np.testing.assert_array_equal(low_confidence.hits[:, 0], gains.hits[:, 0])
    assert not low_confidence.hits[:, MERGES.index("confident")].any()


def test_gains_include_pasted_pixels_outside_the_box() -> None:
    found = Regions(
        np.array([[0, 0, 2, 4]], np.float32), np.ones(1, np.float32), np.array([[0, 0, 4, 4]]), TRUTH[None, :, :4],
        np.full((1, 4, 4), 200, np.uint8),
    )  # fmt: skip
    gains = region_gains(TRUTH, IMAGE, CONFIDENCE, found, 2)
    np.testing.assert_array_equal(gains.iou, [[1, 1]])  # in the box both are right
    np.testing.assert_array_equal(gains.hits, [[[0, 0], [0, 8], [0, 8]]])  # replace, confident, window
    for merge, right in (("replace", 24), ("confident", 32)):
        for best in (either_level(IMAGE, found, TRUTH, merge), paste_oracle(IMAGE, CONFIDENCE, found, TRUTH, merge)[0]):
            assert (best == TRUTH).sum() == right


def test_the_gain_of_a_box_without_labels_is_nan() -> None:
    gains = region_gains(
        np.full((4, 8), 255, np.uint8), IMAGE, CONFIDENCE, _regions(np.ones((4, 4)), np.ones((4, 4))), 2
    )
    assert np.isnan(gains.iou).all() and not gains.hits.any() and not gains.predicted.any()
    assert not equation6(gains).any()


def test_the_gain_is_the_derivative_of_mean_iou() -> None:
    """On a set so large that one box changes little, the first order is all there is."""
    rng = np.random.default_rng(1)
    truth, labels, other = rng.integers(0, 3, (3, 400, 400), np.uint8)
    boxes = np.array([[10, 10, 30, 26], [200, 50, 212, 90], [0, 300, 16, 320]], np.float32)
    windows = boxes.astype(np.int64)
    before = confusion_matrix(truth, labels, 3)
    for box, window in zip(boxes, windows, strict=True):
        x0, y0, x1, y1 = window
        crop = np.where(rng.random((y1 - y0, x1 - x0)) < 0.7, truth[y0:y1, x0:x1], other[y0:y1, x0:x1])[None]
        one = Regions(box[None], np.ones(1, np.float32), window[None], crop, np.full(crop.shape, 255, np.uint8))
        sure = np.zeros_like(labels)
        gains = region_gains(truth, labels, sure, one, 3)
        for merge in MERGES:
            after = confusion_matrix(truth, regions.MERGES[merge](labels, sure, one)[0], 3)
            wanted = mean_iou(after) - mean_iou(before)
            assert wanted > 0 and miou_gain(gains, merge, before)[0] == pytest.approx(wanted, rel=0.02)


def test_a_floor_limits_the_gain_of_small_classes() -> None:
    truth = np.zeros((100, 100), np.uint8)
    truth[0, :2] = 1
    labels = np.zeros_like(truth)
    found = Regions(
        np.array([[0, 0, 10, 10]], np.float32), np.ones(1, np.float32), np.array([[0, 0, 10, 10]]),
        truth[None, :10, :10], np.full((1, 10, 10), 255, np.uint8),
    )  # fmt: skip
    gains = region_gains(truth, labels, labels, found, 2)
    matrix = confusion_matrix(truth, labels, 2)
    assert miou_gain(gains, "replace", matrix, floor=0)[0] == pytest.approx(0.5, abs=0.01)
    assert miou_gain(gains, "replace", matrix, floor=0.01)[0] == pytest.approx(0.01, abs=0.001)


def test_the_oracle_keeps_the_better_level_of_each_box() -> None:
    left = np.array([[0, 0, 1, 0]] * 4)
    regions = _regions(left, np.ones((4, 4)))
    labels, sure = paste_oracle(IMAGE, CONFIDENCE, regions, TRUTH, "replace")
    np.testing.assert_array_equal(labels, np.hstack([left, np.zeros((4, 4))]))
    assert (sure[:, :4] == 200).all() and (sure[:, 4:] == 100).all()
    assert not IMAGE.any()  # what came in is as it was
    unlabelled = np.full_like(TRUTH, 255)
    np.testing.assert_array_equal(paste_oracle(IMAGE, CONFIDENCE, regions, unlabelled, "replace")[0], IMAGE)


@pytest.mark.parametrize("merge", MERGES)
def test_no_merge_beats_the_pixels_on_which_either_level_is_right(merge: Merge) -> None:
    left = np.array([[0, 0, 1, 0]] * 4)
    regions = _regions(left, np.ones((4, 4)))
    labels = either_level(IMAGE, regions, TRUTH, merge)
    np.testing.assert_array_equal(labels, np.hstack([left, np.zeros((4, 4))]))  # class 1's last column: neither is
    wrong = np.ones((4, 4))
    wrong[:, 2] = 0
    np.testing.assert_array_equal(either_level(TRUTH, _regions(wrong, wrong), TRUTH, merge), TRUTH)
