# SPDX-License-Identifier: Apache-2.0
"""The rows of an ablation, and what each makes of one frame: every network runs once a frame, whatever needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from nightlab_core.config import Settings, replace
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.data.hard_regions import predicted_regions
from nightlab_core.labels import ClassSet, to_class_set
from nightlab_core.metrics import confusion_matrix
from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.pipeline import MAX_REGIONS, PipelineSettings
from training.evaluation import levels
from training.evaluation.gains import MERGES, PASTES, changed_counts, either_level, paste_oracle
from training.evaluation.predictor import best_boxes


class Row(Settings):
    """One row: which network stands where. A path is a bundle or a checkpoint."""

    name: str
    image: str
    region: str = ""  #: empty: the image level alone
    #: "prediction": the hard classes in the image level's labels; "detector": the detector's, in its own order;
    #: "objectness": the same boxes as the paper's RDN ranks them, without regard to HDM. This needs a checkpoint.
    boxes: Literal["", "prediction", "detector", "objectness"] = ""
    detector: str = ""
    score_threshold: float = Field(default=0.0, ge=0, le=1)  #: boxes with a lower score are left alone
    max_regions: int | None = Field(default=None, ge=0, le=MAX_REGIONS)  #: null: the recipe's number
    against: str | None = ""  #: the row it is compared with; empty: the last before it that is measured; null: none

    @model_validator(mode="after")
    def _whole(self) -> Row:
        if bool(self.region) != bool(self.boxes) or bool(self.detector) != (self.boxes in ("detector", "objectness")):
            raise ValueError(
                f"row {self.name!r}: a region level goes with boxes, and a detector with boxes: detector or objectness;"
                f" received region {self.region!r}, boxes {self.boxes!r}, detector {self.detector!r}"
            )
        return self

    def paths(self) -> list[str]:
        """What has to be there for the row to be measured."""
        return [p for p in (self.image, self.region, self.detector) if p]


class Ablation(Settings):
    """A recipe of `training.evaluation.ablate`, one YAML file."""

    rows: tuple[Row, ...] = Field(min_length=1)
    hard_classes: tuple[str, ...]
    pipeline: PipelineSettings = PipelineSettings()
    train: dict[str, str] = Field(default_factory=dict)  #: the command that makes a path, for rows that lack it
    note: str = ""  #: what a reader of the page must know of these rows

    def regions_of(self, row: Row) -> int:
        """How many regions of a frame a row reads."""
        return self.pipeline.max_regions if row.max_regions is None else row.max_regions

    @model_validator(mode="after")
    def _names(self) -> Ablation:
        seen: set[str] = set()
        for row in self.rows:
            if row.name in seen:
                raise ValueError(f"two rows are named {row.name!r}; expected each name once")
            if row.against and row.against not in seen:
                raise ValueError(f"row {row.name!r} is compared with {row.against!r}, which is no row before it")
            seen.add(row.name)
        return self


@dataclass(frozen=True)
class Counts:
    """Confusion matrices of one frame, int64 (C, C + 1), or of N frames, (..., N, C, C + 1)."""

    image: np.ndarray  #: of the image level
    sweep: np.ndarray | None  #: (M, MAX_REGIONS + 1, C, C + 1): MERGES, then the number of regions; None without boxes
    oracle: np.ndarray | None  #: with the recipe's merge and number, each region the better level by the truth
    bound: np.ndarray | None  #: with the recipe's merge and number, right where regions land wherever either level is


@dataclass
class Networks:
    """The networks of all rows, each opened once."""

    image: dict[str, levels.ImageLevel] = field(default_factory=dict)
    region: dict[str, levels.RegionLevel] = field(default_factory=dict)
    #: By the path and what ranks: a row's `boxes`.
    detector: dict[tuple[str, str], levels.Detector] = field(default_factory=dict)
    classes: dict[str, ClassSet] = field(default_factory=dict)  #: of each level's labels, by its path

    @classmethod
    def open(cls, rows: list[Row]) -> Networks:
        """Open what the rows name."""
        networks = cls()
        for row in rows:
            for path in filter(None, (row.image, row.region)):
                networks.classes.setdefault(path, levels.class_set_of(Path(path)))
            if row.image not in networks.image:
                networks.image[row.image] = levels.open_image_level(Path(row.image))
            if row.region and row.region not in networks.region:
                networks.region[row.region] = levels.open_region_level(Path(row.region))
            if row.detector and (key := (row.detector, row.boxes)) not in networks.detector:
                networks.detector[key] = levels.open_detector(Path(row.detector), row.boxes == "objectness")
        return networks


class FrameLadder:
    """All rows on one frame. Answers are kept, so that rows which share a network, or a crop, share its work."""

    def __init__(self, networks: Networks, ablation: Ablation, sample: Sample, classes: ClassSet) -> None:
        self.networks, self.ablation, self.classes = networks, ablation, classes
        self.frame_bgr, self.truth = sample.image_bgr, sample.labels
        self.images: dict[str, tuple[np.ndarray, np.ndarray]] = {}  #: labels and confidence
        self.boxes: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        self.crops: dict[tuple[str, tuple[int, ...]], tuple[np.ndarray, np.ndarray]] = {}
        self.counts: dict[tuple[object, ...], Counts] = {}

    def count(self, row: Row) -> Counts:
        """The confusion matrices of a row."""
        key = (row.image, row.region, row.boxes, row.detector, row.score_threshold, row.max_regions)
        if key not in self.counts:
            self.counts[key] = self._count(row)
        return self.counts[key]

    def _count(self, row: Row) -> Counts:
        labels, confidence = self._image_level(row.image)
        labels = to_class_set(labels, self.networks.classes[row.image], self.classes)
        num_classes = len(self.classes)
        image = confusion_matrix(self.truth, labels, num_classes)
        if not row.boxes:
            return Counts(image, None, None, None)
        settings = self.ablation.pipeline
        regions = self._regions(row)
        sweep = np.empty((len(MERGES), MAX_REGIONS + 1, *image.shape), np.int64)
        for m, merge in enumerate(MERGES):
            for number in range(MAX_REGIONS + 1):
                merged = PASTES[merge](labels, confidence, _first(regions, number))[0]
                sweep[m, number] = image + changed_counts(self.truth, labels, merged, num_classes)
        chosen = _first(regions, self.ablation.regions_of(row))
        best, _ = paste_oracle(labels, confidence, chosen, self.truth, settings.merge)
        oracle = image + changed_counts(self.truth, labels, best, num_classes)
        right = either_level(labels, chosen, self.truth, settings.merge)
        return Counts(image, sweep, oracle, image + changed_counts(self.truth, labels, right, num_classes))

    def _image_level(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        if path not in self.images:
            self.images[path] = self.networks.image[path](self.frame_bgr)
        return self.images[path]

    def _boxes(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """The ten best boxes; the number that is used is another matter."""
        key = (row.boxes, row.detector or row.image)
        if key not in self.boxes:
            if row.detector:
                found = self.networks.detector[row.detector, row.boxes](self.frame_bgr)
            else:
                hard = self.networks.classes[row.image].ids_of(self.ablation.hard_classes)
                found = predicted_regions(*self._image_level(row.image), hard)
            ten = replace(self.ablation.pipeline, max_regions=MAX_REGIONS)
            self.boxes[key] = best_boxes(*found, ten)
        boxes, scores = self.boxes[key]
        kept = scores >= row.score_threshold
        return boxes[kept], scores[kept]

    def _regions(self, row: Row) -> rg.Regions:
        boxes, scores = self._boxes(row)
        level = self.networks.region[row.region]
        height, width = level.region_hw
        windows = rg.context_boxes(boxes, self.truth.shape, self.ablation.pipeline.region_margin, width / height)
        keys = [(row.region, tuple(window.tolist())) for window in windows]
        if missing := [k for k, key in enumerate(keys) if key not in self.crops]:
            labels, confidence = level.read(rg.crop_and_enlarge(self.frame_bgr, windows[missing], level.region_hw))
            labels = to_class_set(labels, self.networks.classes[row.region], self.classes)
            self.crops |= {keys[k]: (labels[i], confidence[i]) for i, k in enumerate(missing)}
        read = [self.crops[key] for key in keys]
        stacks = [np.stack(maps) for maps in zip(*read, strict=True)] or [np.zeros((0, height, width), np.uint8)] * 2
        return rg.Regions(boxes, scores, windows, *stacks)


def missing_paths(row: Row) -> list[str]:
    """Paths of a row that do not exist."""
    return [path for path in row.paths() if not Path(path).exists()]


def _first(regions: rg.Regions, number: int) -> rg.Regions:
    r, kept = regions, np.s_[:number]
    return rg.Regions(r.boxes_xyxy[kept], r.scores[kept], r.windows[kept], r.labels[kept], r.confidence[kept])
