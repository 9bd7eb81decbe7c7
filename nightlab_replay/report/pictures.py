# SPDX-License-Identifier: Apache-2.0
"""Select the frames worth viewing, read and segment them again, and draw them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag, BagFrame
from nightlab_core.labels import IGNORE_ID, ClassSet, overlay, to_class_set
from nightlab_core.metrics import iou
from nightlab_core.runtime.bundle import MANIFEST_NAME, sha256_of
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline, Result
from nightlab_replay.execute import warm_up
from nightlab_replay.figures.statistics import BLOCK_S
from nightlab_replay.records import FrameRecord, Run, RunData, first_frame_hw
from nightlab_replay.report.page import jpeg_uri

PANEL_WIDTH = 480
NUM_SHEETS = 6
#: Colours of an error picture, RGB: wrong in both methods, wrong in the first only, wrong in the second only.
WRONG, FIXED, REGRESSED = (226, 60, 50), (60, 140, 255), (255, 205, 40)
_JPEG_QUALITY = 78


class PicturesError(Exception):
    """Why a frame cannot be drawn. The report is written without the picture and says why."""


def frame_miou(matrices: np.ndarray) -> np.ndarray:
    """Compute each frame's mean IoU over its labelled classes, (N,), NaN if none, from matrices (N, B, C, C + 1)."""
    values = iou(matrices.sum(axis=1))
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0).sum(axis=1) / present.sum(axis=1)


def lowest_apart(records: Sequence[FrameRecord], scores: np.ndarray, count: int = NUM_SHEETS) -> list[int]:
    """Return the positions of the frames with the lowest scores, lowest first.

    No two of them lie within BLOCK_S of each other in one bag, because neighbours show the same street. NaN is skipped.
    """
    chosen: list[int] = []
    for place in np.argsort(scores, kind="stable"):
        if np.isnan(scores[place]) or len(chosen) == count:
            break
        near = (
            records[c].bag == records[place].bag and abs(records[c].time_ns - records[place].time_ns) < BLOCK_S * 1e9
            for c in chosen
        )
        if not any(near):
            chosen.append(int(place))
    return chosen


class Resegmenter:
    """Read frames of a run again and segment them with the run's bundle and settings. A context manager.

    Raises PicturesError if the bundle or a bag is missing or has changed.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        bundle = Path(run.bundle.path)
        manifest = bundle / MANIFEST_NAME
        if not manifest.is_file() or sha256_of(manifest) != run.bundle.sha256.get(MANIFEST_NAME):
            raise PicturesError(f"the bundle {bundle} is missing or was replaced by another one")
        self._bags: dict[str, Bag] = {}
        self._stack = ExitStack()
        try:
            options = run.settings.engines(first_frame_hw(run.bags))
            engines = self._stack.enter_context(Engines.open(bundle, options))
        except Exception as error:  # of any engine: the figures are written already, and pictures are optional
            raise PicturesError(f"the bundle {bundle} cannot be opened: {error}") from error
        self._pipeline = self._stack.enter_context(Pipeline(engines, run.settings.pipeline))

    def __enter__(self) -> Resegmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def predicted(self) -> ClassSet:
        """The bundle's class set."""
        return self._pipeline.bundle.class_set

    def __call__(self, record: FrameRecord) -> tuple[BagFrame, Result]:
        """Return the frame of a record, with its labels, and the pipeline's result for it."""
        frame = self._bag(record.bag).frame(record.index, self.run.settings.class_set)
        if frame.image_bgr is None:
            raise PicturesError(f"frame {record.index} of {record.bag}: {frame.reason}")
        if frame.time_ns != record.time_ns:
            raise PicturesError(f"the bag {record.bag} is not the one that was replayed")
        try:
            return frame, self._segment(record, frame)
        except Exception as error:  # of any engine, as above
            raise PicturesError(f"frame {record.index} of {record.bag} cannot be segmented: {error}") from error

    def _segment(self, record: FrameRecord, frame: BagFrame) -> Result:
        """Segment a frame after those before it that its result depends on."""
        assert frame.image_bgr is not None
        bag = self._bag(record.bag)
        first, is_night = warm_up(bag, record.index, self.run.settings.pipeline)
        self._pipeline.restart(is_night=is_night)
        for earlier in map(bag.frame, range(first, record.index)):
            if earlier.image_bgr is not None:
                self._pipeline(earlier.image_bgr, 1e-9 * earlier.stamp_ns, earlier.index)
        return self._pipeline(frame.image_bgr, 1e-9 * frame.stamp_ns, frame.index)

    def _bag(self, name: str) -> Bag:
        if name not in self._bags:
            info = next(bag for bag in self.run.bags if bag.name == name)
            try:
                bag = Bag(Path(info.path), info.image_topic, info.label_topic, self.run.settings.pixel_bits)
            except (OSError, BagError, ValueError) as error:
                raise PicturesError(f"the bag {info.path} cannot be read: {error}") from error
            self._bags[name] = self._stack.enter_context(bag)
        return self._bags[name]


def worst_frames(data: RunData) -> list[tuple[FrameRecord, str]]:
    """Select frames with a reason: labelled ones by lowest mIoU, else those on which the levels agree least."""
    if data.labelled:
        records, scores = data.labelled, frame_miou(data.counts.confusion[:, 1])
        return [(records[p], f"mIoU of this frame {100 * scores[p]:.1f} %") for p in lowest_apart(records, scores)]
    records = [r for r in data.records if r.agreement is not None]
    scores = np.array([r.agreement for r in records], np.float64)
    reason = "the levels agree on {:.1f} % of the pixels"
    if len(scores) and scores.min() == 1:  # a run of the image level alone
        records = [r for r in data.records if r.mean_confidence is not None]
        scores = np.array([r.mean_confidence for r in records], np.float64) / 255
        reason = "mean confidence {:.1f} %"
    return [(records[p], reason.format(100 * scores[p])) for p in lowest_apart(records, scores)]


def sheet(record: FrameRecord, reason: str, panels: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the values that the template needs for a frame, with its panels as JPEG."""
    return {
        "name": f"{record.bag}, frame {record.index}",
        "reason": reason,
        "light_level": record.light_level,
        "panels": {caption: jpeg_uri(picture, _JPEG_QUALITY) for caption, picture in panels.items()},
    }


def run_panels(frame: BagFrame, result: Result, predicted: ClassSet, evaluated: ClassSet) -> dict[str, np.ndarray]:
    """Draw caption -> picture, uint8 (h, PANEL_WIDTH or less, 3) BGR, of one frame.

    With labels: camera, ground truth, prediction with regions, errors. Without: camera, image level, prediction with
    regions, and where the levels differ.
    """
    assert frame.image_bgr is not None
    image = frame.image_bgr
    first, second = (to_class_set(x, predicted, evaluated) for x in (result.image_labels, result.labels))
    prediction = overlay(image, second, evaluated)
    thickness = max(1, round(image.shape[1] / 320))
    for x1, y1, x2, y2 in result.boxes_xyxy[result.refined].round().astype(int).tolist():
        cv2.rectangle(prediction, (x1, y1), (x2, y2), (255, 255, 255), thickness)
    panels: dict[str, np.ndarray] = {"camera": image}
    if frame.labels is None:
        panels["image level"] = overlay(image, first, evaluated)
    else:
        panels["ground truth"] = overlay(image, frame.labels, evaluated)
    panels["both levels, regions outlined"] = prediction
    if frame.labels is None:
        panels["where the levels differ"] = difference_picture(image, first, second)
    else:
        panels["errors"] = error_picture(image, frame.labels, first, second)
    return shrink(panels)


def compared_panels(
    frame: BagFrame, first: tuple[Result, ClassSet], second: tuple[Result, ClassSet], evaluated: ClassSet
) -> dict[str, np.ndarray]:
    """Draw one frame for two bundles, as `run_panels` does: camera, ground truth, A, B, and errors."""
    assert frame.image_bgr is not None
    image = frame.image_bgr
    a, b = (to_class_set(result.labels, predicted, evaluated) for result, predicted in (first, second))
    panels = {"camera": image}
    if frame.labels is not None:
        panels["ground truth"] = overlay(image, frame.labels, evaluated)
    panels |= {"A": overlay(image, a, evaluated), "B": overlay(image, b, evaluated)}
    if frame.labels is None:
        panels["where A and B differ"] = difference_picture(image, a, b)
    else:
        panels["errors"] = error_picture(image, frame.labels, a, b)
    return shrink(panels)


def error_picture(image_bgr: np.ndarray, truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Colour wrong pixels WRONG, FIXED or REGRESSED, correct ones grey, unlabelled ones dark; uint8 (H, W, 3) BGR."""
    known = truth != IGNORE_ID
    wrong = [known & (labels != truth) for labels in (first, second)]
    picture = _faint(image_bgr)
    picture[~known] //= 3
    for mask, rgb in (
        (wrong[0] & wrong[1], WRONG),
        (wrong[0] & ~wrong[1], FIXED),
        (~wrong[0] & wrong[1], REGRESSED),
    ):
        picture[mask] = rgb[::-1]
    return picture


def difference_picture(image_bgr: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Colour the pixels whose two labels differ, over the faint frame; uint8 (H, W, 3) BGR."""
    picture = _faint(image_bgr)
    picture[first != second] = REGRESSED[::-1]
    return picture


def shrink(panels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shrink all panels to PANEL_WIDTH. Smaller ones stay as they are."""

    def smaller(picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        if width <= PANEL_WIDTH:
            return picture
        size_wh = (PANEL_WIDTH, max(1, round(height * PANEL_WIDTH / width)))
        return cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA)

    return {caption: smaller(picture) for caption, picture in panels.items()}


def _faint(image_bgr: np.ndarray) -> np.ndarray:
    """Return the frame in faint grey, equally bright by day and by night, so that colours stand out on it."""
    grey = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    grey = np.minimum(grey / max(float(np.percentile(grey, 99)), 1.0), 1.0) ** 0.7
    return cv2.cvtColor((grey * 130 + 45).astype(np.uint8), cv2.COLOR_GRAY2BGR)
