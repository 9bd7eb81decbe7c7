# SPDX-License-Identifier: Apache-2.0
"""Run any three networks with the pipeline, and the engines that stand in for one of them in measurements."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nightlab_core.data.hard_regions import predicted_regions
from nightlab_core.labels import MAX_CLASSES
from nightlab_core.models.engine import TorchEngine
from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.bundle import (
    Bundle,
    Classes,
    EngineFile,
    EngineFiles,
    EngineKind,
    Manifest,
    RegionFile,
)
from nightlab_core.runtime.engines.engine import Engine
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline, Result
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings
from training import checkpoint as checkpoints
from training.networks import Network, open_hardness, open_image, open_region
from training.sliding import TestTime


class Model:
    """Three networks of any origin, run by the pipeline on frames of any size. Use it as a context manager.

    Without a hardness and a region network the image level runs alone.
    """

    def __init__(
        self,
        image: Network,
        hardness: Network | None = None,
        region: Network | None = None,
        settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.both_levels = hardness is not None and region is not None
        if not self.both_levels:
            settings = settings.model_copy(update={"refine": "never"})
        self.settings = settings
        self.image = image
        self.hardness = hardness or Network(_NotRun("hardness"), (1, 1))
        self.region = region or Network(_NotRun("region"), (1, 1))
        self._pipeline: Pipeline | None = None
        self._frame_hw = (0, 0)

    def __call__(self, frame_bgr: np.ndarray) -> Result:
        """Segment a frame, uint8 (H, W, 3) BGR."""
        if self._pipeline is None or self._frame_hw != frame_bgr.shape[:2]:
            self.close()
            self._frame_hw = (frame_bgr.shape[0], frame_bgr.shape[1])
            self._pipeline = Pipeline(self._engines(), self.settings)
        return self._pipeline(frame_bgr)

    def _engines(self) -> Engines:
        assert self.region.input_hw is not None
        files = EngineFiles(
            image=EngineFile(file="image", **self.image.size_for(self._frame_hw)),
            hardness=EngineFile(file="hardness", **self.hardness.size_for(self._frame_hw)),
            region=RegionFile(
                file="region",
                input_hw=self.region.input_hw,
                multiple=1,
                max_batch=MAX_REGIONS,
                context="context" in self.region.engine.inputs,
            ),
        )
        bundle = Bundle(Path(), _MANIFEST.model_copy(update={"engines": files}))
        return Engines(bundle, self.image.engine, self.hardness.engine, self.region.engine)

    def close(self) -> None:
        """End the pipeline's worker. The engines stay open, since several models may share them."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_model(
    path: Path,
    settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
    test_time: TestTime = TestTime(),  # noqa: B008 - frozen
) -> Model:
    """Open the checkpoint of a whole NightLab, or of an image-level stage, whose image level then runs alone.

    test_time: how the image level reads a frame. Raises ValueError for the checkpoint of another stage,
    FileNotFoundError.
    """
    image = open_image(path, test_time)
    if "weights" not in checkpoints.read(path):
        return Model(image, settings=settings)
    return Model(image, open_hardness(path), open_region(path), settings)


class PredictedBoxes:
    """Hardness engine that finds the hard classes in the labels of an image network, least confident boxes first.

    It reads frames in their own size: use it in a `Network` without `input_hw`.
    """

    name = "prediction"

    def __init__(self, image: Network, hard_ids: Sequence[int]) -> None:
        specs = TorchEngine("hardness", _no_boxes)
        self.inputs, self.outputs = specs.inputs, specs.outputs
        self._model, self._hard_ids = Model(image), hard_ids

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Do nothing."""

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        frame_bgr = arrays["frame"][0]
        result = self._model(frame_bgr)
        boxes, scores = predicted_regions(result.image_labels, result.image_confidence, self._hard_ids)
        height, width = frame_bgr.shape[:2]
        relative = boxes / np.array([width, height, width, height], np.float32)
        return {"boxes": relative[None].astype(np.float32), "scores": scores[None].astype(np.float32)}

    def close(self) -> None:
        """End the worker of the image network's pipeline."""
        self._model.close()


class GivenBoxes:
    """Hardness engine that answers with the boxes and scores that were set."""

    name = "given"

    def __init__(self) -> None:
        specs = TorchEngine("hardness", _no_boxes)
        self.inputs, self.outputs = specs.inputs, specs.outputs
        self.boxes, self.scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)  #: relative xyxy; scores

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Do nothing."""

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        return {"boxes": self.boxes[None], "scores": self.scores[None]}

    def close(self) -> None:
        """Do nothing."""


class CachedEngine:
    """Engine that runs the network it wraps once for each frame, or each crop, until `clear`.

    Models that share it share its work.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name = engine, engine.name
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.last_output: dict[str, np.ndarray] = {}  #: what the last call returned
        self._outputs: dict[bytes, dict[str, np.ndarray]] = {}
        self._lock = threading.Lock()  # both paths of a pipeline may want the same output at the same time

    def clear(self) -> None:
        """Forget all outputs. Call it before the next frame."""
        self._outputs.clear()
        self.last_output = {}

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """See `Engine`."""
        self.engine.prepare(**shapes)

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`. The arrays belong to the cache: do not write to them."""
        items = zip(*arrays.values(), strict=True)
        keys = [blake2b(b"".join(str(a.shape).encode() + a.tobytes() for a in item)).digest() for item in items]
        with self._lock:
            if missing := [i for i, key in enumerate(keys) if key not in self._outputs]:
                found = self.engine(**{name: batch[missing] for name, batch in arrays.items()})
                for k, i in enumerate(missing):
                    self._outputs[keys[i]] = {output: array[k : k + 1] for output, array in found.items()}
            parts = [self._outputs[key] for key in keys]
            self.last_output = {output: np.concatenate([part[output] for part in parts]) for output in self.outputs}
            return self.last_output

    def close(self) -> None:
        """See `Engine`."""
        self.clear()
        self.engine.close()


class _NotRun:
    """Engine of a level that a model does not have; raises RuntimeError if it is run."""

    name = "none"

    def __init__(self, kind: EngineKind) -> None:
        specs = TorchEngine(kind, _no_boxes)
        self.inputs, self.outputs, self._kind = specs.inputs, specs.outputs, kind

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Do nothing."""

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        raise RuntimeError(f"the model has no {self._kind} network")

    def close(self) -> None:
        """Do nothing."""


def regions_of(
    result: Result, region_output: Mapping[str, np.ndarray], region_hw: tuple[int, int], margin: float
) -> rg.Regions:
    """Return the regions that a pipeline read in a frame.

    Args:
        result: of the pipeline.
        region_output: output of the region engine in the same call.
        region_hw: size of the region network's crops.
        margin: the pipeline's `region_margin`.
    """
    boxes, scores = result.boxes_xyxy[result.refined], result.scores[result.refined]
    windows = rg.context_boxes(boxes, result.labels.shape, margin, region_hw[1] / region_hw[0])
    if not len(boxes):  # the region engine was not called
        nothing = np.zeros((0, *region_hw), np.uint8)
        return rg.Regions(boxes, scores, windows, nothing, nothing)
    return rg.Regions(boxes, scores, windows, region_output["labels"], region_output["confidence"])


#: What the pipeline does not read of a manifest.
_MANIFEST = Manifest(
    name="in memory",
    created="",
    # The levels may have different class sets: any label is one of these.
    classes=Classes(names=tuple(map(str, range(MAX_CLASSES))), colors_rgb=((0, 0, 0),) * MAX_CLASSES),
    hard_classes=(),
    engines=EngineFiles(
        image=EngineFile(file="image", input_hw=(1, 1), multiple=1),
        hardness=EngineFile(file="hardness", input_hw=(1, 1), multiple=1),
        region=RegionFile(file="region", input_hw=(1, 1), multiple=1, max_batch=MAX_REGIONS),
    ),
    preprocessing="",
    deform="deform_conv",
    weights="float32",
    trained_on=(),
    accuracy={},
    licence="",
)


def _no_boxes(frame: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 0, 4), torch.zeros(1, 0)
