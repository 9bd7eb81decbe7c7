# SPDX-License-Identifier: Apache-2.0
"""Properties of suppression, windows, crops and merging."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nightlab_core.runtime import regions as rg

FRAMES_HW = st.tuples(st.integers(1, 200), st.integers(1, 200))
SIZES_HW = st.tuples(st.integers(4, 40), st.integers(4, 40))
ANY_FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def boxes_in(draw: st.DrawFn, frame_hw: tuple[int, int], number: int) -> np.ndarray:
    """Boxes that lie in a frame, float32 (number, 4), each with an area."""
    fractions = draw(hnp.arrays(np.float32, (number, 4), elements=st.floats(0, 1, width=32)))
    edge = np.array(frame_hw[::-1], np.float32)
    corners = np.sort(fractions.reshape(number, 2, 2), axis=1) * edge
    corners[:, 1] = np.maximum(corners[:, 1], corners[:, 0] + 0.01).clip(0, edge)
    return np.minimum(corners, np.stack([edge - 0.01, edge])).reshape(number, 4)


@given(st.data(), st.integers(0, 12), st.floats(0, 1), st.integers(0, 12))
def test_suppression_takes_any_numbers(data: st.DataObject, number: int, iou: float, limit: int) -> None:
    boxes = data.draw(hnp.arrays(np.float32, (number, 4), elements=ANY_FLOATS))
    scores = data.draw(hnp.arrays(np.float32, number, elements=ANY_FLOATS))
    with np.errstate(all="ignore"):
        kept = rg.non_maximum_suppression(boxes, scores, iou, limit)
    assert len(kept) <= limit and len(set(kept.tolist())) == len(kept)
    assert np.isfinite(boxes[kept]).all() and np.isfinite(scores[kept]).all()
    assert (np.diff(scores[kept]) <= 0).all()


@given(FRAMES_HW, st.data(), st.floats(0, 1), SIZES_HW)
def test_a_window_lies_in_the_frame_and_holds_its_box(
    frame_hw: tuple[int, int], data: st.DataObject, margin: float, size_hw: tuple[int, int]
) -> None:
    boxes = data.draw(boxes_in(frame_hw, 3))
    windows = rg.context_boxes(boxes, frame_hw, margin, size_hw[1] / size_hw[0])
    pixels = rg.box_pixels(boxes, frame_hw)
    edge = np.array(frame_hw[::-1])
    assert (windows[:, :2] >= 0).all() and (windows[:, 2:] <= edge).all()
    assert (windows[:, 2:] > windows[:, :2]).all()
    assert (windows[:, :2] <= pixels[:, :2]).all() and (windows[:, 2:] >= pixels[:, 2:]).all()
    if not hasattr(cv2, "imdecodemulti") and (windows[:, 2:] - windows[:, :2]).prod(axis=1).min() == 1:
        return  # OpenCV 4.5 refuses a single pixel
    crops = rg.crop_and_enlarge(np.zeros((*frame_hw, 3), np.uint8), windows, size_hw)
    assert crops.shape == (3, *size_hw, 3)


@st.composite
def merges(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, rg.Regions]:
    """Labels and confidence of a frame, and regions in it."""
    frame_hw, size_hw = draw(FRAMES_HW), draw(SIZES_HW)
    number = draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    boxes = draw(boxes_in(frame_hw, number))
    scores = np.sort(rng.random(number).astype(np.float32))[::-1]
    windows = rg.context_boxes(boxes, frame_hw, draw(st.floats(0, 1)), size_hw[1] / size_hw[0])
    labels = rng.choice(np.array([0, 1, 18, 255], np.uint8), (number, *size_hw))
    regions = rg.Regions(boxes, scores, windows, labels, rng.integers(0, 256, (number, *size_hw), np.uint8))
    frame_labels, confidence = rng.integers(0, 19, frame_hw, np.uint8), rng.integers(0, 256, frame_hw, np.uint8)
    return frame_labels, confidence, regions


@given(merges())
def test_a_merge_changes_pixels_of_windows_only_and_invents_no_label(
    merge: tuple[np.ndarray, np.ndarray, rg.Regions],
) -> None:
    labels, confidence, regions = merge
    before = labels.copy(), confidence.copy()
    inside = np.zeros(labels.shape, bool)
    for x0, y0, x1, y1 in regions.windows:
        inside[y0:y1, x0:x1] = True
    for paste in (rg.paste_replace, rg.paste_confident):
        merged, merged_confidence = paste(labels, confidence, regions)
        assert np.array_equal(labels, before[0]) and np.array_equal(confidence, before[1])
        assert np.array_equal(merged[~inside], labels[~inside])
        assert np.array_equal(merged_confidence[~inside], confidence[~inside])
        changed = merged != labels
        assert np.isin(merged[changed], regions.labels).all() and not (merged[changed] == 255).any()


@given(merges())
def test_the_confident_merge_never_lowers_the_confidence(merge: tuple[np.ndarray, np.ndarray, rg.Regions]) -> None:
    labels, confidence, regions = merge
    merged, merged_confidence = rg.paste_confident(labels, confidence, regions)
    assert (merged_confidence >= confidence).all()
    assert (merged_confidence > confidence)[merged != labels].all()


@given(SIZES_HW, st.integers(0, 2**32 - 1))
def test_a_region_of_the_frame_s_size_is_pasted_as_it_is(size_hw: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    box = np.array([[0, 0, size_hw[1], size_hw[0]]], np.float32)
    labels = rng.integers(0, 19, (1, *size_hw), np.uint8)
    regions = rg.Regions(box, np.ones(1, np.float32), box.astype(np.int64), labels, np.full_like(labels, 255))
    for paste in (rg.paste_replace, rg.paste_confident):
        merged, _ = paste(np.full(size_hw, 7, np.uint8), np.zeros(size_hw, np.uint8), regions)
        assert np.array_equal(merged, labels[0])
