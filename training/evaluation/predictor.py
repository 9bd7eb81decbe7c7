# SPDX-License-Identifier: Apache-2.0
"""What evaluation asks of a model: a frame goes in, the label maps of the image level and of both levels come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.pipeline import PipelineSettings
from training import checkpoint as checkpoints
from training.evaluation import levels
from training.evaluation.gains import PASTES
from training.evaluation.sliding import TestTime


class Prediction(Protocol):
    """Label maps uint8 (H, W) of train ids, at the frame's size; the pipeline's result is one."""

    @property
    def image_labels(self) -> np.ndarray:
        """The image level's alone."""

    @property
    def labels(self) -> np.ndarray | None:
        """After the merge; None of a model that has an image level alone."""


Predictor = Callable[[np.ndarray], Prediction]  #: of a frame uint8 (H, W, 3) BGR


@dataclass(frozen=True)
class _LabelMaps:
    image_labels: np.ndarray
    labels: np.ndarray | None


def open_checkpoint(path: Path, settings: PipelineSettings, test_time: TestTime) -> Predictor:
    """A whole NightLab's checkpoint, or that of an image-level stage, in torch. `test_time` is the image level's.

    Raises ValueError for the checkpoint of another stage; FileNotFoundError.
    """
    image_level = levels.open_image_level(path, test_time)
    if "weights" not in checkpoints.read(path):
        return lambda frame_bgr: _LabelMaps(image_level(frame_bgr)[0], None)
    detector, region_level = levels.open_detector(path), levels.open_region_level(path)

    def predict(frame_bgr: np.ndarray) -> Prediction:
        labels, confidence = image_level(frame_bgr)
        boxes, scores = best_boxes(*detector(frame_bgr), settings)
        regions = levels.read_regions(frame_bgr, boxes, scores, region_level, settings.region_margin)
        return _LabelMaps(labels, PASTES[settings.merge](labels, confidence, regions)[0])

    return predict


def best_boxes(boxes: np.ndarray, scores: np.ndarray, settings: PipelineSettings) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (K, 4) and scores (K,) that the pipeline would read again, in descending score."""
    kept = rg.non_maximum_suppression(boxes, scores, settings.nms_iou, settings.max_regions)
    kept = kept[scores[kept] >= settings.score_threshold]
    return boxes[kept], scores[kept]
