# SPDX-License-Identifier: Apache-2.0
"""The counts of a frame equal the reference; the other figures follow their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from class_sets import CAMVID11, CITYSCAPES19

from nightlab_core.data.bags.reader import BagFrame
from nightlab_core.labels import IGNORE_ID, ClassSet, to_class_set
from nightlab_core.metrics import confidence_counts, confusion_matrix
from nightlab_replay.evaluation import FrameEvaluator, FramePrediction, band_rows, count_pixels, id_mapping
from nightlab_replay.records import NUM_BINS


def make_prediction(random: np.random.Generator, size_hw: tuple[int, int], hidden: bool) -> FramePrediction:
    def ids() -> np.ndarray:
        labels = random.integers(0, 19, size_hw, np.uint8)
        return np.where(random.random(size_hw) < 0.1 * hidden, np.uint8(IGNORE_ID), labels)

    def confidence() -> np.ndarray:
        return random.integers(0, 256, size_hw, np.uint8)

    return FramePrediction(ids(), ids(), confidence(), confidence())


@pytest.mark.parametrize("size_hw", [(37, 50), (3, 5), (64, 64)])
@pytest.mark.parametrize("label_classes", [CITYSCAPES19, CAMVID11])
@pytest.mark.parametrize("hidden", [False, True])
def test_counts_equal_the_reference(size_hw: tuple[int, int], label_classes: ClassSet, hidden: bool) -> None:
    random = np.random.default_rng(len(label_classes) + size_hw[0])
    truth = random.integers(0, len(label_classes), size_hw, np.uint8)
    truth[random.random(size_hw) < 0.2] = IGNORE_ID
    prediction = make_prediction(random, size_hw, hidden)
    counts = count_pixels(truth, prediction, id_mapping(CITYSCAPES19, label_classes), len(label_classes))
    rows = band_rows(size_hw[0])
    methods = ((prediction.image_labels, prediction.image_confidence), (prediction.labels, prediction.confidence))
    for method, (predicted, confidence) in enumerate(methods):
        mapped = predicted if label_classes is CITYSCAPES19 else to_class_set(predicted, CITYSCAPES19, CAMVID11)
        for band in range(len(rows) - 1):
            part = slice(rows[band], rows[band + 1])
            np.testing.assert_array_equal(
                counts.confusion[0, method, band], confusion_matrix(truth[part], mapped[part], len(label_classes))
            )
        np.testing.assert_array_equal(
            counts.confusion[0, method].sum(0), confusion_matrix(truth, mapped, len(label_classes))
        )
        assert confidence is not None
        counted = (truth != IGNORE_ID) & (predicted != IGNORE_ID)
        kept = np.where(counted, truth, np.uint8(IGNORE_ID))
        by_confidence = confidence_counts(kept, mapped, confidence, len(label_classes))
        np.testing.assert_array_equal(counts.by_confidence[0, method], by_confidence[:, :-1, :2])
        np.testing.assert_array_equal(counts.confidence_sum[0, method], by_confidence[..., 2].sum(axis=1))
        for b in range(NUM_BINS):
            inside = counted & (confidence.astype(int) * NUM_BINS // 256 == b)
            assert counts.reliability[0, method, b].tolist() == [inside.sum(), (inside & (mapped == truth)).sum()]
            assert counts.confidence_sum[0, method, b] == confidence[inside].sum(dtype=np.int64)


def frame(image: np.ndarray, index: int = 0, labels: np.ndarray | None = None) -> BagFrame:
    return BagFrame(index, 1, 2, "front", image, labels)


def plain(labels: np.ndarray) -> FramePrediction:
    return FramePrediction(labels, labels, np.full_like(labels, 100), np.full_like(labels, 100))


def test_flicker_counts_only_still_pixels() -> None:
    image = np.full((40, 40, 3), 60, np.uint8)
    labels = np.zeros((40, 40), np.uint8)
    moved, changed = image.copy(), labels.copy()
    moved[:10] = 200  # a quarter of the image moved, and its labels with it
    changed[:10] = 1
    changed[10:13] = 2  # 3 of the 30 still rows flicker
    evaluator = FrameEvaluator("bag", CITYSCAPES19, CITYSCAPES19)
    first, _ = evaluator.prediction(frame(image), plain(labels))
    second, counts = evaluator.prediction(frame(moved, 1), plain(changed))
    assert first.flicker is None and second.flicker == pytest.approx(0.1)
    assert not len(counts) and not second.labelled
    assert (second.mean_confidence, second.agreement) == (100.0, 1.0)
    third, _ = evaluator.prediction(frame(np.full((40, 40, 3), 9, np.uint8), 2), plain(changed))
    assert third.flicker is None  # no pixel is still
    assert evaluator.missing(frame(image, 3)).status == "unreadable"
    after, _ = evaluator.prediction(frame(np.full((40, 40, 3), 9, np.uint8), 4), plain(changed))
    assert after.flicker is None  # nothing to compare with after an unreadable frame


def test_agreement_is_the_share_of_equal_pixels() -> None:
    labels, other = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    other[:3] = 4
    record, _ = FrameEvaluator("bag", CITYSCAPES19, CITYSCAPES19).prediction(
        frame(np.zeros((10, 10, 3), np.uint8)), FramePrediction(labels, other, None, None)
    )
    assert record.agreement == pytest.approx(0.7)
    assert record.mean_confidence is None and record.light_level == 0


def test_an_id_outside_the_class_set_is_an_error() -> None:
    labels = np.full((4, 4), 30, np.uint8)
    with pytest.raises(ValueError, match="expected 0 to 18"):
        count_pixels(np.zeros((4, 4), np.uint8), plain(labels), id_mapping(CITYSCAPES19, CITYSCAPES19), 19)
