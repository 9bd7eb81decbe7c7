# SPDX-License-Identifier: Apache-2.0
"""Turn a frame into a mask. Read `Pipeline.__call__` first: it is the whole method.

    frame -+- image engine ------------------------------------ labels, confidence -+
           |                                                                        +- merge - mask
           +- hardness engine - suppress - crop, enlarge - region engine -----------+

Both paths start with the frame and run at the same time. The latency is that of the slower path plus the merge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from nightlab_core.config import Settings
from nightlab_core.labels import IGNORE_ID
from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.bundle import Bundle
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.light import light_level

MAX_REGIONS = 10
STAGES = ("resize", "image", "hardness", "crop", "region", "merge", "total")
_MERGES = {"replace": rg.paste_replace, "confident": rg.paste_confident}


Fraction = Annotated[float, Field(ge=0, le=1)]


class PipelineSettings(Settings):
    """Settings that may change between two frames."""

    mode: Annotated[
        Literal["image_level", "dual_level"],
        Field(description="image_level runs the image network alone, dual_level also refines the hard regions"),
    ] = "dual_level"
    merge: Annotated[
        Literal["replace", "confident"],
        Field(
            description="replace pastes the regions; confident keeps, per pixel, the label of the more confident level"
        ),
    ] = "confident"
    max_regions: Annotated[
        int, Field(ge=0, le=MAX_REGIONS, description="largest number of regions of a frame that are refined")
    ] = MAX_REGIONS
    score_threshold: Annotated[Fraction, Field(description="regions with a lower hardness score are not refined")] = 0.0
    confidence_threshold: Annotated[
        Fraction, Field(description="pixels with a lower class probability are published as 255, unlabelled")
    ] = 0.0
    nms_iou: Annotated[
        Fraction, Field(description="of boxes that overlap by more than this IoU, only the best is kept")
    ] = 0.3
    region_margin: Annotated[
        Fraction, Field(description="context around a box on each side, as a fraction of the box's side")
    ] = 0.2


@dataclass(frozen=True)
class Result:
    """The result of one frame of H x W pixels. Do not write into the arrays: two of them may share their memory."""

    labels: np.ndarray  #: uint8 (H, W): class ids after the merge; 255: unlabelled or below the confidence threshold
    confidence: np.ndarray  #: uint8 (H, W): 255 x probability of the label, also where the threshold removed it
    image_labels: np.ndarray  #: uint8 (H, W): `labels` of the image level alone
    image_confidence: np.ndarray  #: uint8 (H, W): `confidence` of the image level alone
    boxes_xyxy: np.ndarray  #: float32 (N, 4), N <= 10: hard regions in frame pixels, in descending score
    scores: np.ndarray  #: float32 (N,): hardness, 0..1
    refined: np.ndarray  #: bool (N,): True if the region engine read the box
    #: Milliseconds of each stage in STAGES, 0 if it did not run. The paths overlap, so that `total` is less than the
    #: sum. `image` includes resizing the labels to the frame, `hardness` the suppression.
    stages_ms: dict[str, float]
    light_level: float  #: mean linear-light luminance of the frame, 0..1


class Pipeline:
    """Segment the frames of one camera with both levels. Call it from one thread: one frame at a time."""

    def __init__(
        self,
        engines: Engines,
        settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
    ) -> None:
        """Use engines that other pipelines may use as well. `close` leaves them open."""
        self.engines = engines
        self.settings = settings  #: assign a new object to change settings; it is read once per frame
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="nightlab-regions")

    @property
    def bundle(self) -> Bundle:
        """The bundle of the engines."""
        return self.engines.bundle

    def __call__(self, frame_bgr: np.ndarray) -> Result:
        """Segment a frame, uint8 (H, W, 3) BGR. Raises ValueError for any other array."""
        settings, frame_hw, stages_ms = self.settings, _checked_size_hw(frame_bgr), dict.fromkeys(STAGES, 0.0)
        with _timed(stages_ms, "total"):
            with _timed(stages_ms, "resize"):
                files = self.bundle.manifest.engines
                image_hw, hardness_hw = files.image.network_hw(frame_hw), files.hardness.network_hw(frame_hw)
                image_input = rg.resize_image(frame_bgr, image_hw)[None]

            future = None
            if settings.mode == "dual_level":
                hardness_input = (
                    image_input if hardness_hw == image_hw else rg.resize_image(frame_bgr, hardness_hw)[None]
                )
                future = self._worker.submit(self._refine, frame_bgr, hardness_input, settings, stages_ms)

            with _timed(stages_ms, "image"):
                output = self.engines.image(frame=image_input)
                image_labels = rg.resize_labels(output["labels"][0], frame_hw)
                image_confidence = rg.resize_image(output["confidence"][0], frame_hw)
            light = light_level(frame_bgr)
            found = future.result() if future else _NOTHING_FOUND  # raises an error of the worker

            with _timed(stages_ms, "merge"):
                labels, confidence = image_labels, image_confidence
                if found.regions is not None:
                    labels, confidence = _MERGES[settings.merge](labels, confidence, found.regions)
                labels = _apply_threshold(labels, confidence, settings.confidence_threshold)
                image_labels = _apply_threshold(image_labels, image_confidence, settings.confidence_threshold)
        return Result(
            labels=labels,
            confidence=confidence,
            image_labels=image_labels,
            image_confidence=image_confidence,
            boxes_xyxy=found.boxes_xyxy,
            scores=found.scores,
            refined=found.refined,
            stages_ms=stages_ms,
            light_level=light,
        )

    def _refine(
        self, frame_bgr: np.ndarray, hardness_input: np.ndarray, settings: PipelineSettings, stages_ms: dict[str, float]
    ) -> _Found:
        """Run the lower path: find the hard regions, crop and enlarge the best of them, and segment these."""
        height, width = frame_bgr.shape[:2]
        region_file = self.bundle.manifest.engines.region
        with _timed(stages_ms, "hardness"):
            output = self.engines.hardness(frame=hardness_input)
            boxes = output["boxes"][0].clip(0, 1) * np.array([width, height, width, height], np.float32)
            kept = rg.non_maximum_suppression(boxes, output["scores"][0], settings.nms_iou, MAX_REGIONS)
            boxes, scores = boxes[kept], output["scores"][0][kept]

        refined = scores >= settings.score_threshold
        refined[min(settings.max_regions, region_file.max_batch) :] = False
        if not refined.any():
            return _Found(boxes, scores, refined, None)

        with _timed(stages_ms, "crop"):
            region_hw = region_file.input_hw
            windows = rg.context_boxes(
                boxes[refined], (height, width), settings.region_margin, region_hw[1] / region_hw[0]
            )
            crops = rg.crop_and_enlarge(frame_bgr, windows, region_hw)
        with _timed(stages_ms, "region"):
            output = self.engines.region(crops=crops)
        regions = rg.Regions(boxes[refined], scores[refined], windows, output["labels"], output["confidence"])
        return _Found(boxes, scores, refined, regions)

    def prepare(self, frame_hw: tuple[int, int]) -> float:
        """Prepare the engines for frames of this size and run one frame. Return the seconds that this took.

        Afterwards the first real frame takes no longer than the others.
        """
        start = perf_counter()
        self.engines.prepare(frame_hw)
        self(np.zeros((*frame_hw, 3), np.uint8))
        return perf_counter() - start

    def close(self) -> None:
        """Wait for the worker and end it. The engines stay open. Closing twice is harmless."""
        self._worker.shutdown()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Found:
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    refined: np.ndarray
    regions: rg.Regions | None  #: of the refined boxes


_NOTHING_FOUND = _Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, bool), None)


def _checked_size_hw(frame: np.ndarray) -> tuple[int, int]:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        received = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"frame: received {received}, expected uint8 (H, W, 3) in BGR order; convert it first")
    if 0 in frame.shape:
        raise ValueError(f"frame: received an empty image {frame.shape}, expected at least one pixel")
    return frame.shape[0], frame.shape[1]


def _apply_threshold(labels: np.ndarray, confidence: np.ndarray, threshold: float) -> np.ndarray:
    """Return the labels with 255 where confidence / 255 is below the threshold."""
    lowest = math.ceil(threshold * 255)
    return np.where(confidence < lowest, np.uint8(IGNORE_ID), labels) if lowest else labels


@contextmanager
def _timed(stages_ms: dict[str, float], stage: str) -> Iterator[None]:
    start = perf_counter()
    yield
    stages_ms[stage] = (perf_counter() - start) * 1e3
