# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from nightlab_core.runtime.regions import (
    Regions,
    box_pixels,
    context_boxes,
    crop_and_enlarge,
    inner_windows,
    network_size_hw,
    non_maximum_suppression,
    paste_confident,
    paste_replace,
    resize_image,
    resize_labels,
)


@pytest.mark.parametrize(
    ("frame_hw", "input_hw", "multiple", "expected"),
    [
        ((480, 640), (480, 640), 32, (480, 640)),
        ((360, 480), (480, 640), 32, (480, 640)),  # same aspect, enlarged
        ((720, 1280), (480, 640), 32, (416, 736)),  # sqrt(307200 x 9/16) = 415.7 by 739.0
        ((1024, 2048), (480, 640), 32, (384, 768)),  # 391.9 by 783.8
        ((1280, 720), (480, 640), 32, (736, 416)),
        ((1, 64), (64, 64), 32, (32, 512)),  # never less than one multiple
        ((720, 1280), (100, 100), 1, (75, 133)),
    ],
)
def test_network_size_keeps_aspect_and_area(
    frame_hw: tuple[int, int], input_hw: tuple[int, int], multiple: int, expected: tuple[int, int]
) -> None:
    assert network_size_hw(frame_hw, input_hw, multiple) == expected


@pytest.mark.parametrize("frame_hw", [(1, 1000), (0, 10), (65, 1)])
def test_a_frame_beyond_the_limits_has_no_network_size(frame_hw: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"received an .*image of {frame_hw[1]}x{frame_hw[0]} pixels; expected"):
        network_size_hw(frame_hw, (480, 640), 32)


def test_a_network_size_beyond_the_limit_is_refused() -> None:
    assert network_size_hw((100, 200), (2048, 4096), 2048) == (2048, 4096)
    with pytest.raises(ValueError, match=r"frame of 6400x100 pixels.* would have 22528x2048; expected at most 8388608"):
        network_size_hw((100, 6400), (2048, 4096), 2048)


def test_suppression_equals_a_hand_computed_table() -> None:
    boxes = np.array(
        [
            [0, 0, 10, 10],  # 0
            [0, 0, 10, 5],  # 1: IoU with 0 is 1/2
            [0, 0, 10, 6],  # 2: IoU with 0 is 6/10, with 1 5/6
            [20, 20, 30, 30],  # 3: alone
            [0, 0, 10, 10],  # 4: equals 0
        ],
        np.float32,
    )
    scores = np.array([0.9, 0.3, 0.8, 0.1, 0.9], np.float32)
    # Exactly the limit is no overlap; equal scores keep their order, so 0 suppresses 4.
    assert non_maximum_suppression(boxes, scores, 0.5, 10).tolist() == [0, 1, 3]
    assert non_maximum_suppression(boxes, scores, 0.45, 10).tolist() == [0, 3]
    assert non_maximum_suppression(boxes, scores, 0.6, 10).tolist() == [0, 2, 3]
    assert non_maximum_suppression(boxes, scores, 1.0, 10).tolist() == [0, 4, 2, 1, 3]
    assert non_maximum_suppression(boxes, scores, 0.5, 2).tolist() == [0, 1]
    assert non_maximum_suppression(boxes, scores, 0.5, 0).tolist() == []


def test_suppression_drops_invalid_boxes() -> None:
    nan, inf = np.nan, np.inf
    boxes = np.array(
        [[5, 5, 5, 9], [0, 0, nan, 9], [0, 0, inf, 9], [9, 9, 5, 5], [0, 0, 9, 9], [0, 0, 9, 9]], np.float32
    )
    scores = np.array([0.9, 0.9, 0.9, 0.9, nan, 0.2], np.float32)
    with np.errstate(all="raise", invalid="ignore"):
        assert non_maximum_suppression(boxes, scores, 0.5, 10).tolist() == [5]
    assert non_maximum_suppression(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5, 10).tolist() == []


def test_suppression_equals_a_direct_implementation() -> None:
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 50, (200, 2)), rng.uniform(1, 40, (200, 2))
    boxes, scores = np.hstack([corner, corner + size]).astype(np.float32), rng.permutation(200).astype(np.float32)

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        common = float(sides.prod()) if (sides > 0).all() else 0.0
        return common / (float((a[2:] - a[:2]).prod()) + float((b[2:] - b[:2]).prod()) - common)

    expected: list[int] = []
    for i in np.argsort(-scores):
        if all(iou(boxes[i], boxes[j]) <= 0.4 for j in expected):
            expected.append(int(i))
    assert non_maximum_suppression(boxes, scores, 0.4, 300).tolist() == expected
    assert 10 < len(expected) < 200


def test_box_pixels_are_all_touched_pixels_inside_the_frame() -> None:
    boxes = np.array([[1.2, 2.0, 3.0001, 4.5], [-3, -1, 99, 1], [2.9996, 0, 5, 5]], np.float32)
    assert box_pixels(boxes, (6, 8)).tolist() == [[1, 2, 3, 5], [0, 0, 8, 1], [3, 0, 5, 5]]


@pytest.mark.parametrize(
    ("box", "margin", "aspect", "window"),
    [
        ((40, 40, 60, 60), 0.0, 1.0, (40, 40, 60, 60)),
        ((40, 40, 60, 60), 0.25, 1.0, (35, 35, 65, 65)),  # 20 grows by 5 on each side
        ((40, 40, 60, 50), 0.0, 1.0, (40, 35, 60, 55)),  # as high as wide
        ((40, 40, 50, 60), 0.0, 2.0, (25, 40, 65, 60)),  # 40 wide for 20 high
        ((0, 0, 20, 20), 0.25, 1.0, (0, 0, 30, 30)),  # shifted, not cut
        ((85, 70, 100, 80), 0.0, 1.0, (85, 65, 100, 80)),  # by half up, then off the lower border
        ((0, 10, 100, 20), 0.5, 1.0, (0, 0, 100, 80)),  # the frame is too small for a square of 200
        ((50, 50, 51, 51), 0.0, 1.0, (46, 46, 54, 54)),  # at least 8 pixels
        ((50.5, 50.5, 60.5, 60.5), 0.0, 1.0, (50, 50, 61, 61)),  # the pixels touched
    ],
)
def test_context_windows_equal_hand_computed_values(
    box: tuple[float, ...], margin: float, aspect: float, window: tuple[int, ...]
) -> None:
    assert context_boxes(np.array([box], np.float32), (80, 100), margin, aspect).tolist() == [list(window)]


def test_windows_are_inside_the_frame_and_contain_their_boxes() -> None:
    rng = np.random.default_rng(1)
    for frame_hw in ((5, 7), (61, 97), (97, 61)):
        height, width = frame_hw
        corners = rng.uniform(0, 1, (300, 2, 2)) * [width, height]
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
        windows = context_boxes(boxes, frame_hw, 0.15, 1.5)
        pixels = box_pixels(boxes, frame_hw)
        assert (windows[:, :2] >= 0).all()
        assert (windows[:, 2:] <= [width, height]).all()
        assert (windows[:, :2] <= pixels[:, :2]).all()
        assert (windows[:, 2:] >= pixels[:, 2:]).all()
        assert (windows[:, 2:] - windows[:, :2] >= np.minimum(8, [width, height])).all()


def test_crops_are_cut_and_resized() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    crops = crop_and_enlarge(frame, np.array([[10, 5, 26, 21], [0, 0, 60, 40], [0, 0, 8, 8]]), (16, 16))
    assert crops.shape == (3, 16, 16, 3)
    assert crops.dtype == np.uint8
    assert crops.flags.c_contiguous
    np.testing.assert_array_equal(crops[0], frame[5:21, 10:26])
    np.testing.assert_allclose(crops[1].mean(axis=(0, 1)), frame.mean(axis=(0, 1)), atol=1)  # by area: nothing is lost
    np.testing.assert_allclose(crops[2][::15, ::15], frame[0:8:7, 0:8:7], atol=0)  # corners stay
    assert crop_and_enlarge(frame, np.zeros((0, 4), np.int64), (16, 16)).shape == (0, 16, 16, 3)


def test_labels_and_images_are_resized_around_the_same_pixel_centres() -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[:, 2:] = 7
    larger = resize_labels(labels, (10, 10))
    assert (larger == np.repeat([0, 7], 5)).all()
    assert set(np.unique(resize_labels(labels, (3, 5)))) <= {0, 7}
    assert resize_image(labels * 10, (2, 2)).tolist() == [[0, 70], [0, 70]]
    assert resize_labels(labels, (4, 4)) is labels


# Two levels of 6 x 6 pixels. The image level is 0 everywhere, with confidence 200 on the left and 100 on the right.
IMAGE_LABELS = np.zeros((6, 6), np.uint8)
IMAGE_CONFIDENCE = np.repeat(np.array([[200, 200, 200, 100, 100, 100]], np.uint8), 6, axis=0)
#: the best: rows 1..3, columns 1..4; its window is the whole frame, which its labels are given on
BEST_LABELS = np.array(
    [
        [9, 9, 9, 9, 9, 9],
        [9, 1, 1, 1, 1, 9],
        [9, 1, 255, 255, 1, 9],
        [9, 1, 1, 1, 1, 9],
        [9, 9, 9, 9, 9, 9],
        [9, 9, 9, 9, 9, 9],
    ],
    np.uint8,
)
BEST_CONFIDENCE = np.array(
    [
        [255, 255, 255, 255, 255, 255],
        [255, 150, 150, 150, 150, 255],
        [255, 250, 250, 250, 250, 255],
        [255, 150, 200, 101, 100, 255],
        [255, 255, 255, 255, 255, 255],
        [255, 255, 255, 255, 255, 255],
    ],
    np.uint8,
)
#: the other: rows 3..5, columns 3..5, sure to 150 everywhere
OTHER_LABELS = np.full((6, 6), 2, np.uint8)
OTHER_CONFIDENCE = np.full((6, 6), 150, np.uint8)


def two_regions(scores: tuple[float, float] = (0.9, 0.4)) -> Regions:
    return Regions(
        boxes_xyxy=np.array([[1, 1, 5, 4], [3, 3, 6, 6]], np.float32),
        scores=np.array(scores, np.float32),
        windows=np.array([[0, 0, 6, 6], [0, 0, 6, 6]]),
        labels=np.stack([BEST_LABELS, OTHER_LABELS]),
        confidence=np.stack([BEST_CONFIDENCE, OTHER_CONFIDENCE]),
    )


REPLACED_LABELS = [
    [0, 0, 0, 0, 0, 0],
    [0, 1, 1, 1, 1, 0],
    [0, 1, 0, 0, 1, 0],  # 255 leaves the image level's
    [0, 1, 1, 1, 1, 2],  # the best lies over the other
    [0, 0, 0, 2, 2, 2],
    [0, 0, 0, 2, 2, 2],
]
REPLACED_CONFIDENCE = [
    [200, 200, 200, 100, 100, 100],
    [200, 150, 150, 150, 150, 100],
    [200, 250, 200, 100, 250, 100],
    [200, 150, 200, 101, 100, 150],
    [200, 200, 200, 150, 150, 150],
    [200, 200, 200, 150, 150, 150],
]
# The whole window is merged, also outside its box: the best region is most confident at the frame's border.
CONFIDENT_LABELS = [
    [9, 9, 9, 9, 9, 9],
    [9, 0, 0, 2, 2, 9],  # the other's 150 came first and beats 100, not 200; the best's 150 does not beat it
    [9, 1, 0, 2, 1, 9],  # 250 beats all, but 255 leaves what is there
    [9, 0, 0, 2, 2, 9],  # 200 does not beat 200, nor 101 and 100 the other's 150
    [9, 9, 9, 9, 9, 9],
    [9, 9, 9, 9, 9, 9],
]
CONFIDENT_CONFIDENCE = [
    [255, 255, 255, 255, 255, 255],
    [255, 200, 200, 150, 150, 255],
    [255, 250, 200, 150, 250, 255],
    [255, 200, 200, 150, 150, 255],
    [255, 255, 255, 255, 255, 255],
    [255, 255, 255, 255, 255, 255],
]


@pytest.mark.parametrize(
    ("paste", "expected_labels", "expected_confidence"),
    [
        (paste_replace, REPLACED_LABELS, REPLACED_CONFIDENCE),
        (paste_confident, CONFIDENT_LABELS, CONFIDENT_CONFIDENCE),
    ],
)
def test_merges_equal_hand_computed_tables(paste, expected_labels, expected_confidence) -> None:  # type: ignore[no-untyped-def]
    labels, confidence = paste(IMAGE_LABELS, IMAGE_CONFIDENCE, two_regions())
    assert labels.tolist() == expected_labels
    assert confidence.tolist() == expected_confidence
    assert labels.dtype == confidence.dtype == np.uint8
    assert not IMAGE_LABELS.any()  # the image level is left as it was


def test_the_region_with_the_higher_score_is_on_top() -> None:
    overlap = np.s_[3, 3:5]
    assert paste_replace(IMAGE_LABELS, IMAGE_CONFIDENCE, two_regions((0.9, 0.4)))[0][overlap].tolist() == [1, 1]
    assert paste_replace(IMAGE_LABELS, IMAGE_CONFIDENCE, two_regions((0.4, 0.9)))[0][overlap].tolist() == [2, 2]


def test_the_first_of_two_regions_with_equal_scores_is_on_top() -> None:
    overlap = np.s_[3, 3:5]
    assert paste_replace(IMAGE_LABELS, IMAGE_CONFIDENCE, two_regions((0.5, 0.5)))[0][overlap].tolist() == [1, 1]
    # Where both are equally confident, the one that was pasted before stays: here the second.
    equal = two_regions((0.5, 0.5))
    equal.confidence[:] = 150
    assert paste_confident(IMAGE_LABELS, IMAGE_CONFIDENCE, equal)[0][overlap].tolist() == [2, 2]


def test_inner_windows_drop_a_margin_except_at_the_frames_edge_and_in_the_box() -> None:
    boxes = np.array([[120, 120, 150, 140], [0, 10, 30, 60], [101, 20, 120, 90], [0, 0, 300, 200]], np.float32)
    windows = np.array([[100, 100, 200, 150], [0, 0, 100, 100], [100, 0, 200, 100], [0, 0, 300, 200]])
    regions = Regions(boxes, np.ones(4, np.float32), windows, *np.zeros((2, 4, 2, 2), np.uint8))
    assert inner_windows(regions, (200, 300)).tolist() == [
        [106, 103, 194, 147],  # 6 of 100, 3 of 50
        [0, 0, 94, 94],  # the frame's left and upper edge
        [101, 0, 194, 94],  # the box reaches into the rim
        [0, 0, 300, 200],
    ]


@pytest.mark.parametrize("paste", [paste_replace, paste_confident])
def test_results_are_pasted_at_their_window(paste) -> None:  # type: ignore[no-untyped-def]
    """A region that answers with the frame's own content must change nothing but its place, at any scale."""
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 19, (9, 12)), np.ones((8, 8))).astype(np.uint8)  # blocks of 8 pixels
    boxes = np.array([[10.5, 9, 50, 40], [60, 50, 96, 72]], np.float32)
    windows = context_boxes(boxes, truth.shape, 0.2, 1.0)
    sizes = windows[:, 2:] - windows[:, :2]
    region_hw = (64, 64)
    views = np.stack([resize_labels(truth[y0:y1, x0:x1], region_hw) for x0, y0, x1, y1 in windows])
    regions = Regions(boxes, np.array([0.8, 0.7], np.float32), windows, views, np.full_like(views, 9))
    blank = np.full(truth.shape, 255, np.uint8)
    labels, confidence = paste(blank, np.zeros_like(blank), regions)
    inside = np.zeros(truth.shape, bool)
    areas = {paste_replace: box_pixels(boxes, truth.shape), paste_confident: inner_windows(regions, truth.shape)}
    for x0, y0, x1, y1 in areas[paste]:
        inside[y0:y1, x0:x1] = True
    assert (sizes < 64).all()  # enlarged, so that every pixel is seen
    np.testing.assert_array_equal(labels[inside], truth[inside])
    assert (labels[~inside] == 255).all()
    assert (confidence == np.where(inside, 9, 0)).all()


def test_a_merge_without_regions_keeps_the_image_level() -> None:
    none = Regions(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.float32),
        np.zeros((0, 4), np.int64),
        *np.zeros((2, 0, 6, 6), np.uint8),
    )
    labels, confidence = paste_confident(IMAGE_LABELS, IMAGE_CONFIDENCE, none)
    np.testing.assert_array_equal(labels, IMAGE_LABELS)
    np.testing.assert_array_equal(confidence, IMAGE_CONFIDENCE)


@pytest.mark.parametrize(
    ("box", "pasted"),
    [((2, 3, 3, 6), 3), ((1, 4, 5, 5), 4), ((5, 5, 6, 6), 1), ((2, 2, 2.0005, 4), 0), ((6, 6, 9, 9), 0)],
    ids=["one wide", "one high", "one pixel", "none wide", "outside"],
)
def test_boxes_thinner_than_a_pixel_are_pasted(box: tuple[float, ...], pasted: int) -> None:
    boxes = np.array([box], np.float32)
    windows = context_boxes(boxes, (6, 6), 0.15, 1.0)
    maps = np.full((2, 1, 16, 16), 255, np.uint8)
    regions = Regions(boxes, np.ones(1, np.float32), windows, maps[0] - 250, maps[1])
    labels, confidence = paste_replace(IMAGE_LABELS, IMAGE_CONFIDENCE, regions)
    assert (labels == 5).sum() == (confidence == 255).sum() == pasted
    labels, confidence = paste_confident(IMAGE_LABELS, IMAGE_CONFIDENCE, regions)
    assert (labels == 5).all() and (confidence == 255).all()  # no window is smaller than this frame
