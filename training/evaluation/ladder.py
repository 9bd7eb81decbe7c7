# SPDX-License-Identifier: Apache-2.0
"""Measure the rows of an ablation frame by frame; every network runs once a frame, whatever number of rows uses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from nightlab_core.config import Settings
from nightlab_core.config import replace as settings_with
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.labels import ClassSet, to_class_set
from nightlab_core.metrics import confusion_matrix
from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings
from training import models, networks
from training.gains import MERGES, changed_counts, either_level, paste_oracle
from training.sliding import TestTime


class Row(Settings):
    """One row: the networks of the image level, the region level and the boxes. A path is a bundle or a checkpoint."""

    name: str
    image: str
    input_scale: float = Field(default=1.0, gt=0)  #: side of the image level's input, as a multiple of its own
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
        """List the paths that must exist to measure the row."""
        return [p for p in (self.image, self.region, self.detector) if p]


class Ablation(Settings):
    """A recipe of `training.evaluation.ablate`, one YAML file."""

    rows: tuple[Row, ...] = Field(min_length=1)
    hard_classes: tuple[str, ...]
    pipeline: PipelineSettings = PipelineSettings()
    train: dict[str, str] = Field(default_factory=dict)  #: the command that makes a path, for rows that lack it
    note: str = ""  #: text for the page, about these rows

    @field_validator("pipeline")
    @classmethod
    def _one_merge(cls, pipeline: PipelineSettings) -> PipelineSettings:
        # The same for all rows, whose region networks may differ.
        return settings_with(pipeline, merge="confident") if pipeline.merge == "auto" else pipeline

    @property
    def merge(self) -> rg.Merge:
        """How all rows merge."""
        assert self.pipeline.merge != "auto"
        return self.pipeline.merge

    def regions_of(self, row: Row) -> int:
        """Return the number of regions of a frame that a row reads."""
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


class Networks:
    """The networks of all rows, each opened once, and each run once for a frame, whatever number of rows uses it."""

    def __init__(self, rows: Sequence[Row], hard_classes: Sequence[str]) -> None:
        """Open what the rows name. Raises as `networks.open_image`."""
        self._hard_classes = hard_classes
        self.classes: dict[str, ClassSet] = {}  #: class set of each level's labels, by its path
        self.cached: dict[tuple[str, ...], networks.Network] = {}  #: by kind, path and, for hardness, a row's `boxes`
        for row in rows:
            for path in filter(None, (row.image, row.region)):
                self.classes.setdefault(path, networks.class_set_of(Path(path)))
            test_time = TestTime(scales=(row.input_scale,))
            self._once(self._image_key(row), partial(networks.open_image, Path(row.image), test_time))
            if row.region:
                self._once(("region", row.region), partial(networks.open_region, Path(row.region)))
                self._once(self._hardness_key(row), partial(self._open_hardness, row))

    def model(self, row: Row, settings: PipelineSettings) -> models.Model:
        """Return the model of a row. `settings` decide which boxes it reads."""
        image = self.cached[self._image_key(row)]
        if not row.region:
            return models.Model(image)
        return models.Model(image, self.cached[self._hardness_key(row)], self.cached["region", row.region], settings)

    def clear(self) -> None:
        """Forget the outputs for a frame."""
        for network in self.cached.values():
            self._engine(network).clear()

    def region_output(self, row: Row) -> dict[str, np.ndarray]:
        """Return the last output of a row's region network."""
        return self._engine(self.cached["region", row.region]).last_output

    def region_hw(self, row: Row) -> tuple[int, int]:
        """Return the size of the crops of a row's region network."""
        size_hw = self.cached["region", row.region].input_hw
        assert size_hw is not None
        return size_hw

    @staticmethod
    def _engine(network: networks.Network) -> models.CachedEngine:
        assert isinstance(network.engine, models.CachedEngine)
        return network.engine

    @staticmethod
    def _image_key(row: Row) -> tuple[str, ...]:
        return ("image", row.image, str(row.input_scale))

    @staticmethod
    def _hardness_key(row: Row) -> tuple[str, ...]:
        return ("hardness", row.detector or f"{row.image} {row.input_scale}", row.boxes)

    def _open_hardness(self, row: Row) -> networks.Network:
        if row.detector:
            return networks.open_hardness(Path(row.detector), row.boxes == "objectness")
        hard_ids = self.classes[row.image].ids_of(self._hard_classes)
        return networks.Network(models.PredictedBoxes(self.cached[self._image_key(row)], hard_ids))

    def _once(self, key: tuple[str, ...], open_network: Callable[[], networks.Network]) -> None:
        if key not in self.cached:
            network = open_network()
            self.cached[key] = replace(network, engine=models.CachedEngine(network.engine))


class Ladder:
    """All rows of an ablation on one frame after another. Use it as a context manager."""

    def __init__(self, networks: Networks, ablation: Ablation, classes: ClassSet) -> None:
        self.networks, self.ablation, self.classes = networks, ablation, classes
        self._models: dict[tuple[object, ...], models.Model] = {}

    def __enter__(self) -> Ladder:
        return self

    def __exit__(self, *_: object) -> None:
        for model in self._models.values():
            model.close()

    def count(self, sample: Sample, rows: Sequence[Row]) -> list[Counts]:
        """Compute the confusion matrices of each row on a frame."""
        self.networks.clear()
        counts: dict[tuple[object, ...], Counts] = {}
        found = []
        for row in rows:
            key = (
                row.image, row.input_scale, row.region, row.boxes, row.detector, row.score_threshold, row.max_regions
            )  # fmt: skip
            if key not in counts:
                counts[key] = self._count(row, sample.image_bgr, sample.labels)
            found.append(counts[key])
        return found

    def _count(self, row: Row, frame_bgr: np.ndarray, truth: np.ndarray) -> Counts:
        result = self._model(row)(frame_bgr)
        num_classes = len(self.classes)
        labels = to_class_set(result.image_labels, self.networks.classes[row.image], self.classes)
        confidence = result.image_confidence
        image = confusion_matrix(truth, labels, num_classes)
        if not row.boxes:
            return Counts(image, None, None, None)
        settings, region_hw = self.ablation.pipeline, self.networks.region_hw(row)
        read = models.regions_of(result, self.networks.region_output(row), region_hw, settings.region_margin)
        regions = dataclasses.replace(
            read, labels=to_class_set(read.labels, self.networks.classes[row.region], self.classes)
        )
        sweep = np.empty((len(MERGES), MAX_REGIONS + 1, *image.shape), np.int64)
        for m, merge in enumerate(MERGES):
            for number in range(MAX_REGIONS + 1):
                merged = rg.MERGES[merge](labels, confidence, _first(regions, number))[0]
                sweep[m, number] = image + changed_counts(truth, labels, merged, num_classes)
        chosen = _first(regions, self.ablation.regions_of(row))
        best, _ = paste_oracle(labels, confidence, chosen, truth, self.ablation.merge)
        oracle = image + changed_counts(truth, labels, best, num_classes)
        right = either_level(labels, chosen, truth, self.ablation.merge)
        return Counts(image, sweep, oracle, image + changed_counts(truth, labels, right, num_classes))

    def _model(self, row: Row) -> models.Model:
        """Return the model of a row, which reads the ten best boxes; the sweep over their number needs them all."""
        key = (row.image, row.input_scale, row.region, row.boxes, row.detector, row.score_threshold)
        if key not in self._models:
            changes = {"max_regions": MAX_REGIONS, "score_threshold": row.score_threshold, "refine": "always"}
            self._models[key] = self.networks.model(row, settings_with(self.ablation.pipeline, **changes))
        return self._models[key]


def missing_paths(row: Row) -> list[str]:
    """List the paths of a row that do not exist."""
    return [path for path in row.paths() if not Path(path).exists()]


def _first(regions: rg.Regions, number: int) -> rg.Regions:
    r, kept = regions, np.s_[:number]
    return rg.Regions(r.boxes_xyxy[kept], r.scores[kept], r.windows[kept], r.labels[kept], r.confidence[kept])
