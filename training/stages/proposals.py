# SPDX-License-Identifier: Apache-2.0
"""Measure how both levels read the detector's proposals on training frames, and store the result.

The segmenters were trained on these frames, so the region level looks better here than it is. Recipes reduce this bias
with darkened and distorted images, or with frames that were held out from the levels' training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from nightlab_core.files import atomic_path
from nightlab_core.labels import ClassSet, to_class_set
from nightlab_core.metrics import confusion_matrix
from nightlab_core.models.detector import RegionDetector
from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.bundle import ENGINE_KINDS, load_bundle, sha256_of
from nightlab_core.runtime.pipeline import Result
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings
from training import models, networks
from training.data import Samples
from training.gains import RegionGains, equation6, miou_gain, region_gains
from training.sources import SourceSettings, source_classes

CHUNK = 50  #: frames between two savings


@dataclass(frozen=True)
class Proposals:
    """N proposals on F frames."""

    frame: np.ndarray  #: int64 (N,): index of the frame in the stream, rising
    anchor: np.ndarray  #: int64 (N,): which of the detector's anchors it came from
    score: np.ndarray  #: float32 (N,): objectness
    iou: np.ndarray  #: float32 (N, 2), see `RegionGains`
    hits: np.ndarray  #: int32 (N, M, C), see `RegionGains`
    predicted: np.ndarray  #: int32 (N, M, C)
    source: np.ndarray  #: int64 (F,): source of each frame, from 0 on
    matrix: np.ndarray  #: int32 (F, C, C + 1): confusion matrix of the image level

    def of(self, chosen: np.ndarray) -> RegionGains:
        """Select the gains of some proposals, bool (N,)."""
        return RegionGains(self.iou[chosen], self.hits[chosen], self.predicted[chosen])


class FrameReader(Samples):
    """Whole frames, darkened and distorted at random, half of them mirrored; frame i is always the same."""

    def frame(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Source, image uint8 (H, W, 3) BGR, labels uint8 (H, W) in the class set that the source is evaluated in."""
        source, sample, image, rng = self.draw(index)
        labels = to_class_set(self.class_ids(sample.labels), self.classes, self.evaluated_classes(source))
        if rng.random() < 0.5:
            return source, np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])
        return source, image, labels

    def evaluated_classes(self, source: int) -> ClassSet:
        """Return the class set that a source is evaluated in."""
        return source_classes(self.sources[source], self.classes)[1]

    @property
    def num_classes(self) -> int:
        """Return the number of classes that counts in smaller class sets are padded to."""
        return max(len(self.classes), *(len(self.evaluated_classes(i)) for i in range(len(self.sources))))


class Measurer:
    """Measure the proposals of single frames. Use it as a context manager."""

    def __init__(
        self,
        detector: RegionDetector,
        image: networks.Network,
        region: networks.Network,
        input_hw: tuple[int, int],
        per_frame: int,
        nms_iou: float,
        margin: float,
        predicted: ClassSet,
        num_classes: int,
    ) -> None:
        """Use a detector's `per_frame` best proposals after suppression with `nms_iou`.

        input_hw: working size of the detector. margin: the pipeline's `region_margin`. predicted: class set of both
        levels. num_classes: counts in smaller class sets are padded to it.
        """
        self.detector, self.input_hw, self.per_frame, self.nms_iou = detector, input_hw, per_frame, nms_iou
        self.predicted, self.num_classes = predicted, num_classes
        assert region.input_hw is not None
        self._region_hw, self._boxes = region.input_hw, models.GivenBoxes()
        self._image, self._region = models.CachedEngine(image.engine), models.CachedEngine(region.engine)
        # The boxes are suppressed already, and those of equal place are kept.
        self._settings = PipelineSettings(region_margin=margin, nms_iou=1.0, max_regions=MAX_REGIONS)
        self._model = models.Model(
            replace(image, engine=self._image),
            networks.Network(self._boxes),
            replace(region, engine=self._region),
            self._settings,
        )

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close()

    def _read(self, image_bgr: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> tuple[Result, rg.Regions]:
        """Read boxes, relative (K, 4), with the pipeline, which reads ten at a time."""
        self._image.clear()
        self._region.clear()
        found = []
        for first in range(0, max(1, len(boxes)), MAX_REGIONS):
            self._boxes.boxes, self._boxes.scores = (a[first : first + MAX_REGIONS] for a in (boxes, scores))
            result = self._model(image_bgr)
            output = self._region.last_output
            found.append(models.regions_of(result, output, self._region_hw, self._settings.region_margin))
        return result, rg.Regions(*(np.concatenate([getattr(r, f.name) for r in found]) for f in fields(rg.Regions)))

    def __call__(self, image_bgr: np.ndarray, labels: np.ndarray, classes: ClassSet) -> dict[str, np.ndarray]:
        """Measure one frame: columns of `Proposals` without `frame` and `source`. Boxes without labels are left out.

        labels: uint8 (H, W) in `classes`, in which the frame is evaluated.
        """
        with torch.inference_mode():
            device = next(self.detector.parameters()).device
            image = networks.detector_input(image_bgr, self.input_hw, self.detector).to(device)
            boxes, scores, anchors = (t[0].cpu().numpy() for t in self.detector.propose(image)[:3])
        height, width = image_bgr.shape[:2]
        pixels = boxes.clip(0, 1) * np.array([width, height, width, height], np.float32)
        kept = rg.non_maximum_suppression(pixels, scores, self.nms_iou, self.per_frame)
        result, regions = self._read(image_bgr, boxes[kept], scores[kept])
        image_labels = to_class_set(result.image_labels, self.predicted, classes)
        regions = replace(regions, labels=to_class_set(regions.labels, self.predicted, classes))
        gains = region_gains(labels, image_labels, result.image_confidence, regions, len(classes))
        known = ~np.isnan(gains.iou[:, 0])
        padding = self.num_classes - len(classes)
        counted = confusion_matrix(labels, image_labels, len(classes))
        matrix = np.zeros((self.num_classes, self.num_classes + 1), np.int32)
        matrix[: len(classes), : len(classes)], matrix[: len(classes), -1] = counted[:, :-1], counted[:, -1]
        return {
            "anchor": anchors[kept][known],
            "score": scores[kept][known],
            "iou": gains.iou[known],
            "hits": np.pad(gains.hits[known], ((0, 0), (0, 0), (0, padding))),
            "predicted": np.pad(gains.predicted[known], ((0, 0), (0, 0), (0, padding))),
            "matrix": matrix[None],
        }


def measure(measurer: Measurer, reader: FrameReader, frames: int, path: Path, made_by: dict[str, object]) -> Proposals:
    """Measure the proposals of frames 0 to `frames` - 1, read from `path` as far as it goes, and store them there.

    made_by: everything that decides the figures. Raises ValueError if something else made the file.
    """
    parts = [load(path, made_by)] if path.is_file() else []
    first = len(parts[0].source) if parts else 0
    for index in track(range(first, frames), f"proposals of {frames - first} frames"):
        source, image, labels = reader.frame(index)
        columns = measurer(image, labels, reader.evaluated_classes(source))
        frame = np.full(len(columns["anchor"]), index, np.int64)
        parts.append(Proposals(**columns, frame=frame, source=np.array([source], np.int64)))
        if (index + 1) % CHUNK == 0 or index + 1 == frames:
            parts = [_joined(parts)]
            _save(path, parts[0], made_by)
    return parts[0]


def load(path: Path, made_by: dict[str, object]) -> Proposals:
    """Read the file that `measure` stored. Raises ValueError if something else made it."""
    with np.load(path, allow_pickle=False) as stored:
        before = json.loads(str(stored["made_by"]))
        if changed := [key for key in made_by if before.get(key) != json.loads(json.dumps(made_by[key]))]:
            raise ValueError(f"{path} was measured with another {', '.join(changed)}; remove it, or name another file")
        return Proposals(**{f.name: stored[f.name] for f in fields(Proposals)})


def targets(
    proposals: Proposals, target: str, merge: rg.Merge, classes: Sequence[ClassSet], clip_at: float = 90
) -> np.ndarray:
    """Compute the training targets, float32 (N,) in 0..1; `classes` has the class set of every source.

    "equation6": 1 where the region level's mean IoU in the box beats the image level's, else 0 (the patent's).
    "helps": 1 where the region, merged by `merge`, raises the data set's mean IoU, else 0.
    "gain": 0.5 + half of the gain in the data set's mean IoU (`gains.miou_gain`), which is 1 where the gain is that of
    the `clip_at`-th percentile or more, and 0 where it is as large a loss: the trained score is the expected gain,
    and 0.5 means none. All regions take the same time, so this is also the order of gain per millisecond.
    Each class set is measured by itself, per frame, so that the size of a data set has no effect.
    """
    if target == "equation6":
        return equation6(proposals.of(np.ones(len(proposals.frame), bool))).astype(np.float32)
    gains = np.zeros(len(proposals.frame))
    of_source = proposals.source[proposals.frame]
    for key in {c.key for c in classes}:
        sources = [i for i, c in enumerate(classes) if c.key == key]
        frames, chosen = np.isin(proposals.source, sources), np.isin(of_source, sources)
        if chosen.any():
            matrix = proposals.matrix[frames].sum(axis=0, dtype=np.int64)
            gains[chosen] = frames.sum() * miou_gain(proposals.of(chosen), merge, matrix)
    if target == "helps":
        return (gains > 0).astype(np.float32)
    large = np.percentile(np.abs(gains[gains != 0]), clip_at) if gains.any() else 1.0
    return (0.5 + 0.5 * np.clip(gains / large, -1, 1)).astype(np.float32)


def fingerprint(path: Path) -> str:
    """Compute the SHA-256 of a checkpoint, or of a bundle's networks without its manifest. Raises FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint or bundle; make it first, see docs/training.md")
    if not path.is_dir():
        return sha256_of(path)
    bundle = load_bundle(path)
    return hashlib.sha256("".join(sha256_of(bundle.path(kind)) for kind in ENGINE_KINDS).encode()).hexdigest()


def open_reader(sources: Sequence[SourceSettings], data: Path, seed: int, classes: ClassSet) -> FrameReader:
    """Open the frames of a recipe's sources."""
    return FrameReader(sources, data, seed, classes)


def _joined(parts: list[Proposals]) -> Proposals:
    return Proposals(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Proposals)})


def _save(path: Path, proposals: Proposals, made_by: dict[str, object]) -> None:
    columns = {f.name: getattr(proposals, f.name) for f in fields(Proposals)}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, made_by=np.array(json.dumps(made_by)), **columns)
