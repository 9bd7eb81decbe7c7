# SPDX-License-Identifier: Apache-2.0
"""Remember what a camera's last frames showed, so that a frame need not find and read every hard region again.

The switches are `hardness_every`, `unchanged_below`, `regions_in_turn` and `carry_frames` of the settings. Everything
is forgotten at each key frame, whose number is a multiple of `KEY_FRAMES`: no label is older, and any frame can be
computed again from the key frame before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np

from nightlab_core.runtime.regions import Regions, resize_image
from nightlab_core.runtime.settings import KEY_FRAMES, PipelineSettings

#: A region is the same as one of the previous frame if their boxes have at least this IoU.
SAME_IOU = 0.5
#: Time between two frames, in seconds, beyond which they have nothing in common.
MAX_GAP_S = 2.0
#: Rows and columns of the cells in which a crop is compared.
CELLS = 16


@dataclass(frozen=True)
class Reading:
    """A region as it was read in an earlier frame."""

    number: int  #: of that frame
    region: Regions  #: one region
    cells: np.ndarray | None  #: int16 (CELLS, CELLS, 3): mean colour of each cell of the window; None: not needed


@dataclass(frozen=True)
class Choice:
    """What is to be done with N boxes."""

    due: np.ndarray  #: int64 (R,): boxes to read, in descending gain
    gains: np.ndarray  #: (R,)
    unchanged: np.ndarray  #: bool (N,): boxes that need not be read, since their pixels did not change
    earlier: dict[int, Regions] = field(default_factory=dict)  #: by box: labels of an earlier frame, if they are usable
    ages: dict[int, int] = field(default_factory=dict)  #: of `earlier`, in frames


class Memory:
    """What one camera's frames since the key frame showed. Only the worker's thread uses it."""

    def __init__(self) -> None:
        self._readings: list[Reading | None] = []  # by box of the last frame
        self._found: tuple[int, np.ndarray, np.ndarray] | None = None  # last run of the hardness engine: number, result
        self._last: tuple[int, float | None, tuple[int, int], int] | None = None
        self._number = 0

    def begin(self, number: int, stamp_s: float | None, frame_hw: tuple[int, int], epoch: int) -> None:
        """Begin a frame. Forget everything at a key frame, another size, a jump of time or number, or another epoch."""
        last, self._last, self._number = self._last, (number, stamp_s, frame_hw, epoch), number
        if last is not None and last[2:] == (frame_hw, epoch) and last[0] < number:
            gap_s = 0.0 if stamp_s is None or last[1] is None else stamp_s - last[1]
            if number // KEY_FRAMES == last[0] // KEY_FRAMES and 0 <= gap_s <= MAX_GAP_S:
                return
        self._readings, self._found = [], None

    def boxes(self, every: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return boxes and scores of the last run of the hardness engine; None if it is to run in this frame."""
        if self._found is None or self._found[0] // every != self._number // every:
            return None
        return self._found[1:]

    def keep_boxes(self, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Keep the hardness engine's result for this frame."""
        self._found = (self._number, boxes, scores)

    def choose(
        self, frame_bgr: np.ndarray, boxes: np.ndarray, scores: np.ndarray, settings: PipelineSettings, limit: int
    ) -> Choice:
        """Choose at most `limit` boxes to read, and the labels of earlier frames for the others.

        boxes: float32 (N, 4), frame pixels, in descending score; scores: float32 (N,).
        """
        wanted = scores >= settings.score_threshold
        none = np.zeros(len(boxes), bool)
        if not (settings.unchanged_below or settings.regions_in_turn or settings.carry_frames):
            self._readings = []
            due = np.flatnonzero(wanted[:limit])
            return Choice(due, scores[due], none)
        self._readings = found = [self._match(box) for box in boxes]
        unchanged = (
            np.array([r is not None and _change(frame_bgr, r) < settings.unchanged_below for r in found], bool).reshape(
                -1
            )
            & wanted
        )
        ages = [KEY_FRAMES if r is None else self._number - r.number for r in found]
        gains = scores * ages if settings.regions_in_turn else scores
        candidates = np.flatnonzero(wanted & ~unchanged)
        due = candidates[np.argsort(-gains[candidates], kind="stable")][:limit]
        earlier = {
            index: r.region if unchanged[index] else _moved(r.region, boxes[index], frame_bgr.shape[:2])
            for index, r in enumerate(found)
            if r is not None and wanted[index] and (unchanged[index] or ages[index] <= settings.carry_frames)
        }
        scored = {index: replace(region, scores=scores[index : index + 1]) for index, region in earlier.items()}
        return Choice(due, gains[due], unchanged, scored, {index: ages[index] for index in earlier})

    def keep_regions(
        self, frame_bgr: np.ndarray, indices: np.ndarray, read: Regions, settings: PipelineSettings
    ) -> None:
        """Keep the regions that were read for the boxes with these indices."""
        if not self._readings:
            return
        for place, index in enumerate(indices.tolist()):
            region = Regions(*(getattr(read, f.name)[place : place + 1] for f in fields(Regions)))
            cells = _cells(frame_bgr, region) if settings.unchanged_below else None
            self._readings[index] = Reading(self._number, region, cells)

    def _match(self, box: np.ndarray) -> Reading | None:
        """Return the reading of the previous frame whose box has the largest IoU with this one, if it is the same."""
        known = [r for r in self._readings if r is not None]
        overlaps = [_iou(box, r.region.boxes_xyxy[0]) for r in known]
        return known[int(np.argmax(overlaps))] if overlaps and max(overlaps) >= SAME_IOU else None


def first_needed(number: int, settings: PipelineSettings) -> int:
    """Return the number of the earliest frame that the result of frame `number` depends on, but for the light gate."""
    economical = settings.hardness_every > 1 or settings.unchanged_below or settings.regions_in_turn
    return number - number % KEY_FRAMES if economical or settings.carry_frames else number


def _change(frame_bgr: np.ndarray, reading: Reading) -> float:
    """Return the largest change of a cell's mean colour, in any channel, 0..255; infinite if it is not known."""
    if reading.cells is None:
        return np.inf
    return float(np.abs(_cells(frame_bgr, reading.region) - reading.cells).max())


def _cells(frame_bgr: np.ndarray, region: Regions) -> np.ndarray:
    x0, y0, x1, y1 = region.windows[0]
    return resize_image(frame_bgr[y0:y1, x0:x1], (CELLS, CELLS)).astype(np.int16)


def _moved(region: Regions, box: np.ndarray, frame_hw: tuple[int, int]) -> Regions:
    """Return a region moved by whole pixels so that it is centred as `box`, as far as its window stays in the frame."""
    old, window = region.boxes_xyxy[0], region.windows[0]
    step = np.rint((box[:2] + box[2:] - old[:2] - old[2:]) / 2).astype(np.int64)
    step = np.tile(np.clip(step, -window[:2], np.array(frame_hw[::-1]) - window[2:]), 2)
    return replace(region, boxes_xyxy=region.boxes_xyxy + step.astype(np.float32), windows=region.windows + step)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common))
