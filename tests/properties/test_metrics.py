# SPDX-License-Identifier: Apache-2.0
"""Properties of the accuracy figures, compared with their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nightlab_core.metrics import confidence_counts, confusion_matrix, iou, mean_iou

CLASSES = 4
MAPS = hnp.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, 255]))


@given(MAPS, MAPS)
def test_iou_is_that_of_its_definition(labels: np.ndarray, prediction: np.ndarray) -> None:
    found = iou(confusion_matrix(labels, prediction, CLASSES))
    known = labels != 255
    for index in range(CLASSES):
        true, predicted = known & (labels == index), known & (prediction == index)
        if true.any():
            assert found[index] == pytest.approx((true & predicted).sum() / (true | predicted).sum())
        else:
            assert math.isnan(found[index])


@given(MAPS, MAPS)
def test_matrices_of_parts_add_up(labels: np.ndarray, prediction: np.ndarray) -> None:
    whole = confusion_matrix(labels, prediction, CLASSES)
    parts = [confusion_matrix(labels[rows], prediction[rows], CLASSES) for rows in (np.s_[:2], np.s_[2:])]
    assert np.array_equal(whole, sum(parts)) and whole.sum() == (labels != 255).sum()


@given(MAPS)
def test_the_labels_themselves_score_one(labels: np.ndarray) -> None:
    value = mean_iou(confusion_matrix(labels, labels, CLASSES))
    assert value == 1.0 or (math.isnan(value) and (labels == 255).all())


@given(MAPS, MAPS, hnp.arrays(np.uint8, (6, 7)))
def test_confidence_counts_hold_the_confusion_matrix_s_sums(
    labels: np.ndarray, prediction: np.ndarray, confidence: np.ndarray
) -> None:
    matrix, counts = (
        confusion_matrix(labels, prediction, CLASSES),
        confidence_counts(labels, prediction, confidence, CLASSES),
    )
    assert np.array_equal(counts[..., 0].sum(axis=0), matrix.sum(axis=0))
    assert counts[..., 1].sum() == np.trace(matrix)
    assert counts[..., 2].sum() == confidence[labels != 255].astype(int).sum()
