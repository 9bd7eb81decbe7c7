# SPDX-License-Identifier: Apache-2.0
"""What is written down of one frame: its record, and integer counts where the truth is known.

`training/evaluate.py` counts the same pixels; the tests hold the two against each other. Histograms by OpenCV take a
tenth of the time of numpy's, so that judging does not hold up the networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from nightlab_core.data.bags.reader import BagFrame
from nightlab_core.labels import IGNORE_ID, ClassSet, to_class_set
from nightlab_core.runtime.light import light_level
from nightlab_core.runtime.pipeline import Result
from nightlab_replay.records import NUM_BANDS, NUM_BINS, Counts, FrameRecord

#: Flicker is looked at on a grid of about so many columns, each the mean of its pixels, so that noise does not count.
_FLICKER_COLUMNS = 320
#: Two grey values, 0..255, that differ by no more than this are the same.
_STILL = 4.0
#: Below this share of still pixels the camera moved, and flicker says nothing.
_LEAST_STILL = 0.05
#: Stands for an id that has no class; no class set is that large.
_STRANGE = 254


@dataclass(frozen=True)
class Answer:
    """Both levels' masks of a frame, from the pipeline or from the live node; uint8 (H, W)."""

    labels: np.ndarray
    image_labels: np.ndarray
    confidence: np.ndarray | None
    image_confidence: np.ndarray | None


class Judge:
    """Judges the frames of one bag in their order: flicker needs the frame before."""

    def __init__(self, bag: str, predicted: ClassSet, judged: ClassSet) -> None:
        """`predicted` is the bundle's class set, `judged` that of the labels and of the counts."""
        self._bag, self._judged, self._mapping = bag, judged, id_mapping(predicted, judged)
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def missing(self, frame: BagFrame, status: str = "unreadable", reason: str = "") -> FrameRecord:
        """The record of a frame without a mask; what comes after an unreadable one has nothing to be compared with."""
        if status == "unreadable":
            self._before = None
        return FrameRecord(
            bag=self._bag,
            index=frame.index,
            time_ns=frame.time_ns,
            stamp_ns=frame.stamp_ns,
            frame_id=frame.frame_id,
            status=status,  # type: ignore[arg-type]
            reason=reason or frame.reason,
            size_hw=None if frame.image_bgr is None else _size_hw(frame.image_bgr),
        )

    def result(self, frame: BagFrame, result: Result, latency_ms: float | None = None) -> tuple[FrameRecord, Counts]:
        """Judge what the pipeline made of a frame; the counts are of no frame where it has no labels."""
        assert frame.image_bgr is not None
        height, width = frame.image_bgr.shape[:2]
        boxes = result.boxes_xyxy.astype(np.float64) / [width, height, width, height]
        answer = Answer(result.labels, result.image_labels, result.confidence, result.image_confidence)
        return self.answer(
            frame,
            answer,
            light_level=result.light_level,
            stages_ms=result.stages_ms,
            latency_ms=latency_ms,
            boxes_xyxy=tuple(tuple(box) for box in boxes.tolist()),
            scores=tuple(map(float, result.scores)),
            refined=tuple(map(bool, result.refined)),
        )

    def answer(self, frame: BagFrame, answer: Answer, **known: object) -> tuple[FrameRecord, Counts]:
        """Judge the masks of a frame; `known` are further fields of its record."""
        assert frame.image_bgr is not None
        known.setdefault("light_level", None)
        if known["light_level"] is None:
            known["light_level"] = light_level(frame.image_bgr)
        confidence = answer.confidence
        record = FrameRecord(
            bag=self._bag,
            index=frame.index,
            time_ns=frame.time_ns,
            stamp_ns=frame.stamp_ns,
            frame_id=frame.frame_id,
            reason=frame.reason,
            size_hw=_size_hw(frame.image_bgr),
            mean_confidence=None if confidence is None else int(confidence.sum(dtype=np.int64)) / confidence.size,
            agreement=1 - cv2.countNonZero(cv2.absdiff(answer.labels, answer.image_labels)) / answer.labels.size,
            flicker=self._flicker(frame.image_bgr, answer.labels),
            labelled=frame.labels is not None,
            **known,  # type: ignore[arg-type]
        )
        if frame.labels is None:
            return record, Counts.empty(len(self._judged))
        return record, count(frame.labels, answer, self._mapping, len(self._judged))

    def look(self, frame: BagFrame, labels: np.ndarray) -> None:
        """Take note of a frame that someone else judges: the one before the first."""
        assert frame.image_bgr is not None
        self._flicker(frame.image_bgr, labels)

    def _flicker(self, image_bgr: np.ndarray, labels: np.ndarray) -> float | None:
        height, width = labels.shape
        grid = (min(width, _FLICKER_COLUMNS), max(1, round(height * min(1.0, _FLICKER_COLUMNS / width))))
        small = cv2.resize(image_bgr, grid, interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
        seen = cv2.resize(labels, grid, interpolation=cv2.INTER_NEAREST)
        before, self._before = self._before, (grey, seen)
        if before is None or before[0].shape != grey.shape:
            return None
        still = np.abs(grey - before[0]) <= _STILL
        if (num_still := int(np.count_nonzero(still))) < _LEAST_STILL * still.size:
            return None
        return int(np.count_nonzero(still & (seen != before[1]))) / num_still


def id_mapping(predicted: ClassSet, judged: ClassSet) -> np.ndarray:
    """Table from ids of one class set to the other's, uint8 (256,); 254 for an id that `predicted` does not have."""
    table = np.full(256, _STRANGE, np.uint8)
    known = np.array([*range(len(predicted)), IGNORE_ID], np.uint8)
    table[known] = to_class_set(known, predicted, judged)
    return table


def count(labels: np.ndarray, answer: Answer, mapping: np.ndarray, num_classes: int) -> Counts:
    """The counts of one frame; `mapping` takes the answer's ids to those of the labels, as `id_mapping` makes it.

    Reliability leaves out pixels that the confidence threshold hid: nothing is claimed of them. Raises ValueError for
    ids that have no class.
    """
    counts = Counts.empty(num_classes)
    confusion = np.zeros((1, *counts.confusion.shape[1:]), np.int64)
    reliability = np.zeros((1, *counts.reliability.shape[1:]), np.int64)
    confidence_sum = np.zeros((1, *counts.confidence_sum.shape[1:]), np.int64)
    rows = band_rows(labels.shape[0])
    known = labels != IGNORE_ID
    methods = ((answer.image_labels, answer.image_confidence), (answer.labels, answer.confidence))
    for method, (guess, confidence) in enumerate(methods):
        mapped = cv2.LUT(guess, mapping)
        for band, (top, bottom) in enumerate(pairwise(rows)):
            pairs = _histogram(labels[top:bottom], mapped[top:bottom])
            confusion[0, method, band] = _confusion(pairs, num_classes)
        if confidence is not None:
            claimed = (known & (guess != IGNORE_ID)).view(np.uint8)
            pairs = _histogram(confidence, (mapped == labels).view(np.uint8), claimed)
            bins = np.arange(256) * NUM_BINS // 256
            for right in (0, 1):
                np.add.at(reliability[0, method, :, 0], bins, pairs[:, right])
            np.add.at(reliability[0, method, :, 1], bins, pairs[:, 1])
            np.add.at(confidence_sum[0, method], bins, (pairs[:, 0] + pairs[:, 1]) * np.arange(256))
    return Counts(confusion, reliability, confidence_sum)


def band_rows(height: int) -> list[int]:
    """Where the bands of an image begin and the last one ends, from the top row on: NUM_BANDS + 1 rows."""
    return [height * band // NUM_BANDS for band in range(NUM_BANDS + 1)]


def _histogram(first: np.ndarray, second: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """How often each pair of bytes occurs, int64 (256, 256)."""
    if not first.size:
        return np.zeros((256, 256), np.int64)
    maps = [np.ascontiguousarray(first), np.ascontiguousarray(second)]
    return cv2.calcHist(maps, [0, 1], mask, [256, 256], [0, 256, 0, 256]).astype(np.int64)


def _confusion(pairs: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C + 1) as `metrics.confusion_matrix`; a ValueError for ids that have no class."""
    strange = pairs[:IGNORE_ID, num_classes:IGNORE_ID].sum() + pairs[num_classes:IGNORE_ID].sum()
    if strange:
        raise ValueError(f"{strange} pixels have ids from {num_classes} to 254; expected 0 to {num_classes - 1} or 255")
    return np.concatenate([pairs[:num_classes, :num_classes], pairs[:num_classes, IGNORE_ID:]], axis=1)


def _size_hw(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
