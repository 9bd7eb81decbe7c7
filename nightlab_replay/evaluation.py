# SPDX-License-Identifier: Apache-2.0
"""Evaluate single frames: the record of a frame, and integer counts if it has labels.

The counts equal those of `training.evaluation`, which a test checks. OpenCV's histograms take a tenth of the time of
NumPy's, so evaluation does not slow down inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import cv2
import numpy as np

from nightlab_core.data.bags.reader import BagFrame
from nightlab_core.labels import IGNORE_ID, ClassSet, to_class_set
from nightlab_core.metrics import BIN_OF_CONFIDENCE
from nightlab_core.runtime.light import light_level
from nightlab_core.runtime.pipeline import Result
from nightlab_replay.records import NUM_BANDS, NUM_BINS, FrameCounts, FrameRecord

#: Width of the grid on which flicker is measured. A cell is the mean of its pixels, which removes noise.
_FLICKER_COLUMNS = 320
#: A cell is still if its grey value, 0..255, changes by at most this much.
_STILL = 4.0
#: With a smaller share of still cells the camera moved, and flicker is not measured.
_LEAST_STILL = 0.05
#: Replaces ids outside the class set; no class set has that many classes.
_INVALID_ID = 254
_TWICE_THE_BIN = (2 * BIN_OF_CONFIDENCE).astype(np.uint8)


@dataclass(frozen=True)
class FramePrediction:
    """Masks and confidences of both levels for one frame, uint8 (H, W)."""

    labels: np.ndarray
    image_labels: np.ndarray
    confidence: np.ndarray | None
    image_confidence: np.ndarray | None


class FrameEvaluator:
    """Evaluate the frames of one bag in their order, because flicker compares a frame with the previous one."""

    def __init__(self, bag: str, predicted: ClassSet, evaluated: ClassSet) -> None:
        """Map predictions from the class set `predicted` (the bundle's) to `evaluated` (of labels and counts)."""
        self._bag, self._evaluated, self._mapping = bag, evaluated, id_mapping(predicted, evaluated)
        self._previous: tuple[np.ndarray, np.ndarray] | None = None

    def missing(
        self, frame: BagFrame, status: Literal["dropped", "unreadable"] = "unreadable", reason: str = ""
    ) -> FrameRecord:
        """Return the record of a frame without a mask. The frame after an unreadable one has no flicker."""
        if status == "unreadable":
            self._previous = None
        return self._record(
            frame,
            status=status,
            reason=reason or frame.reason,
            size_hw=None if frame.image_bgr is None else _size_hw(frame.image_bgr),
        )

    def result(
        self, frame: BagFrame, result: Result, latency_ms: float | None = None
    ) -> tuple[FrameRecord, FrameCounts]:
        """Evaluate the pipeline's result for a frame. The counts are empty if the frame has no labels."""
        assert frame.image_bgr is not None
        height, width = frame.image_bgr.shape[:2]
        boxes = result.boxes_xyxy.astype(np.float64) / [width, height, width, height]
        prediction = FramePrediction(result.labels, result.image_labels, result.confidence, result.image_confidence)
        return self.prediction(
            frame,
            prediction,
            light_level=result.light_level,
            refine_reason=result.refine_reason,
            stages_ms=result.stages_ms,
            latency_ms=latency_ms,
            boxes_xyxy=tuple(tuple(box) for box in boxes.tolist()),
            scores=tuple(map(float, result.scores)),
            refined=tuple(map(bool, result.refined)),
            ages=tuple(map(int, result.ages)),
        )

    def prediction(
        self, frame: BagFrame, prediction: FramePrediction, **fields: object
    ) -> tuple[FrameRecord, FrameCounts]:
        """Evaluate the masks of a frame. `fields` are further fields of its record."""
        assert frame.image_bgr is not None
        if fields.get("light_level") is None:
            fields["light_level"] = light_level(frame.image_bgr)
        labels, confidence = prediction.labels, prediction.confidence
        record = self._record(
            frame,
            reason=frame.reason,
            size_hw=_size_hw(frame.image_bgr),
            mean_confidence=None if confidence is None else int(confidence.sum(dtype=np.int64)) / confidence.size,
            agreement=1 - cv2.countNonZero(cv2.absdiff(labels, prediction.image_labels)) / labels.size,
            flicker=self._flicker(frame.image_bgr, labels),
            labelled=frame.labels is not None,
            **fields,
        )
        if frame.labels is None:
            return record, FrameCounts.empty(len(self._evaluated))
        return record, count_pixels(frame.labels, prediction, self._mapping, len(self._evaluated))

    def set_previous(self, frame: BagFrame, labels: np.ndarray) -> None:
        """Set the previous frame and its mask, uint8 (H, W), without evaluating it."""
        assert frame.image_bgr is not None
        self._flicker(frame.image_bgr, labels)

    def _record(self, frame: BagFrame, **fields: Any) -> FrameRecord:
        return FrameRecord(
            bag=self._bag,
            index=frame.index,
            time_ns=frame.time_ns,
            stamp_ns=frame.stamp_ns,
            frame_id=frame.frame_id,
            **fields,
        )

    def _flicker(self, image_bgr: np.ndarray, labels: np.ndarray) -> float | None:
        height, width = labels.shape
        grid = (min(width, _FLICKER_COLUMNS), max(1, round(height * min(1.0, _FLICKER_COLUMNS / width))))
        small = cv2.resize(image_bgr, grid, interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
        small_labels = cv2.resize(labels, grid, interpolation=cv2.INTER_NEAREST)
        previous, self._previous = self._previous, (grey, small_labels)
        if previous is None or previous[0].shape != grey.shape:
            return None
        still = np.abs(grey - previous[0]) <= _STILL
        if (num_still := int(np.count_nonzero(still))) < _LEAST_STILL * still.size:
            return None
        return int(np.count_nonzero(still & (small_labels != previous[1]))) / num_still


def id_mapping(predicted: ClassSet, evaluated: ClassSet) -> np.ndarray:
    """Return the table from ids of one class set to the other, uint8 (256,); 254 for an id outside `predicted`."""
    table = np.full(256, _INVALID_ID, np.uint8)
    known = np.array([*range(len(predicted)), IGNORE_ID], np.uint8)
    table[known] = to_class_set(known, predicted, evaluated)
    return table


def count_pixels(labels: np.ndarray, prediction: FramePrediction, mapping: np.ndarray, num_classes: int) -> FrameCounts:
    """Count the pixels of one frame. `mapping` is the table of `id_mapping` from predicted ids to label ids.

    Counts by confidence exclude pixels that the confidence threshold set to 255. Raises ValueError for ids outside the
    class set.
    """
    empty = FrameCounts.empty(num_classes)
    fields = (getattr(empty, name) for name in FrameCounts.__dataclass_fields__)
    counts = FrameCounts(*(np.zeros((1, *field.shape[1:]), np.int64) for field in fields))
    rows = band_rows(labels.shape[0])
    known = labels != IGNORE_ID
    methods = (
        (prediction.image_labels, prediction.image_confidence),
        (prediction.labels, prediction.confidence),
    )
    for method, (predicted, confidence) in enumerate(methods):
        mapped = cv2.LUT(predicted, mapping)
        for band, (top, bottom) in enumerate(pairwise(rows)):
            pairs = _histogram(labels[top:bottom], mapped[top:bottom])
            counts.confusion[0, method, band] = _confusion(pairs, num_classes)
        if confidence is not None:
            counted = (known & (predicted != IGNORE_ID)).view(np.uint8)
            # One histogram over 2 x bin + correct and the predicted class holds both numbers of pixels.
            code = cv2.add(cv2.LUT(confidence, _TWICE_THE_BIN), (mapped == labels).view(np.uint8))
            pairs = _histogram(code, mapped, counted)[: 2 * NUM_BINS].reshape(NUM_BINS, 2, 256)
            pixels = np.stack([pairs.sum(axis=1), pairs[:, 1]], axis=-1)
            counts.reliability[0, method] = pixels.sum(axis=1)
            counts.by_confidence[0, method] = pixels[:, :num_classes]
            levels = cv2.calcHist([confidence], [0], counted, [256], [0, 256]).ravel().astype(np.int64)
            np.add.at(counts.confidence_sum[0, method], BIN_OF_CONFIDENCE, levels * np.arange(256))
    return counts


def band_rows(height: int) -> list[int]:
    """Return the NUM_BANDS + 1 rows at which the bands of an image begin and end, from 0 to `height`."""
    return [height * band // NUM_BANDS for band in range(NUM_BANDS + 1)]


def _histogram(first: np.ndarray, second: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Count each pair of bytes, int64 (256, 256)."""
    if not first.size:
        return np.zeros((256, 256), np.int64)
    maps = [np.ascontiguousarray(first), np.ascontiguousarray(second)]
    return cv2.calcHist(maps, [0, 1], mask, [256, 256], [0, 256, 0, 256]).astype(np.int64)


def _confusion(pairs: np.ndarray, num_classes: int) -> np.ndarray:
    """Convert pair counts to (C, C + 1) as `metrics.confusion_matrix`. ValueError for ids outside the class set."""
    invalid = pairs[:IGNORE_ID, num_classes:IGNORE_ID].sum() + pairs[num_classes:IGNORE_ID].sum()
    if invalid:
        raise ValueError(f"{invalid} pixels have ids from {num_classes} to 254; expected 0 to {num_classes - 1} or 255")
    return np.concatenate([pairs[:num_classes, :num_classes], pairs[:num_classes, IGNORE_ID:]], axis=1)


def _size_hw(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
