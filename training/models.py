# SPDX-License-Identifier: Apache-2.0
"""Open the networks of bundles and checkpoints as engines, and run any three of them with the pipeline.

A network of a bundle runs on the vehicle's engines in float32. A network of a checkpoint, of one stage or of a whole
NightLab, runs in torch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nightlab_core.data.hard_regions import predicted_regions
from nightlab_core.labels import MAX_CLASSES, ClassSet
from nightlab_core.models.detector import RegionDetector
from nightlab_core.models.engine import TorchEngine
from nightlab_core.models.nightlab import Level, NightLabSettings, read_region, to_image
from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.bundle import (
    MAX_SIDE,
    Bundle,
    Classes,
    EngineFile,
    EngineFiles,
    EngineKind,
    Manifest,
    RegionFile,
    load_bundle,
)
from nightlab_core.runtime.engines.engine import Engine, EngineOptions
from nightlab_core.runtime.engines.open import Engines, open_network
from nightlab_core.runtime.pipeline import Pipeline, Result
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings
from training import checkpoint as checkpoints
from training.sliding import TestTime, probabilities

INPUT_HW = (480, 640)  #: working size of a stage whose checkpoint does not name one


@dataclass(frozen=True)
class Network:
    """One engine, and the size at which it reads a frame."""

    engine: Engine
    #: Working size (height, width), of which the area counts, or a region network's size of crops. None: the network
    #: reads frames in their own size.
    input_hw: tuple[int, int] | None = None
    multiple: int = 1  #: both sides of the engine's input are multiples of this

    def size_for(self, frame_hw: tuple[int, int]) -> dict[str, Any]:
        """Return the keys `input_hw` and `multiple` of the manifest's entry for frames of this size."""
        if self.input_hw is None:
            return {"input_hw": frame_hw, "multiple": 1}
        if any(side % self.multiple for side in self.input_hw):  # a manifest takes multiples alone: keep the area
            cells = max(1, round(self.input_hw[0] * self.input_hw[1] / self.multiple**2))
            longest = MAX_SIDE // self.multiple
            rows, columns = next(
                (rows, n // rows) for n in count(cells) for rows in range(isqrt(n), 0, -1)
                if n % rows == 0 and n // rows <= longest
            )  # fmt: skip
            return {"input_hw": (rows * self.multiple, columns * self.multiple), "multiple": self.multiple}
        return {"input_hw": self.input_hw, "multiple": self.multiple}


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


def class_set_of(path: Path) -> ClassSet:
    """Return the class set of the labels that a bundle's or a checkpoint's levels give. Raises FileNotFoundError."""
    return load_bundle(path).class_set if path.is_dir() else _settings_of(_read(path)).classes


def open_image(path: Path, test_time: TestTime = TestTime()) -> Network:  # noqa: B008 - frozen
    """Open the image network of a bundle or a checkpoint.

    Raises ValueError if `test_time` asks a bundle for more than one reading of the whole frame, and for the checkpoint
    of another stage; FileNotFoundError.
    """
    if path.is_dir():
        return _open_in_bundle(path, "image", test_time.check_bundle(path))
    model, input_hw = _load_level(path, "image")

    def read(frame: Tensor) -> tuple[Tensor, ...]:
        # Logits are enlarged to the frame's size, so the network reads the frame in its own size and resizes it itself.
        frame_bgr = frame[0].cpu().numpy()
        found = probabilities(model, frame_bgr, input_hw, model.segmenter.multiple, test_time)
        top, labels = found.max(0)
        every = (found.permute(1, 2, 0) * 255 + 0.5).to(torch.uint8)
        return labels.to(torch.uint8)[None], (top * 255 + 0.5).to(torch.uint8)[None], every[None]

    return Network(TorchEngine("image", read, device=device(), context=True))


def open_region(path: Path) -> Network:
    """Open the region network of a bundle or a checkpoint. Raises as `open_image`."""
    if path.is_dir():
        return _open_in_bundle(path, "region")
    model, _ = _load_level(path, "region")
    settings = _settings_of(checkpoints.read(path))
    ids = torch.tensor(settings.outputs("region").ids, device=device())

    engine = TorchEngine(
        "region",
        lambda *inputs: read_region(model, *inputs, ids=ids),
        device=device(),
        crop_hw=settings.region_hw,
        context=settings.region_context,
    )
    return Network(engine, settings.region_hw)


def open_hardness(path: Path, by_objectness: bool = False) -> Network:
    """Open the hardness network of a bundle or a checkpoint: RDN or HDM. Raises as `open_image`.

    by_objectness: rank the boxes by objectness, as RDN does, even if there is an HDM. Raises ValueError for a bundle,
    whose engine has one ranking.
    """
    if path.is_dir():
        if by_objectness:
            raise ValueError(f"{path} is a bundle, whose engine has one ranking; objectness needs its checkpoint")
        return _open_in_bundle(path, "hardness")
    detector, input_hw = load_detector(path)
    if by_objectness:
        detector.hdm = None
    detector.to(device())
    engine = TorchEngine("hardness", lambda frame: detector(to_image(frame)), device=device())
    return Network(engine, input_hw, detector_multiple(detector))


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


def load_detector(path: Path) -> tuple[RegionDetector, tuple[int, int]]:
    """Read the detector of a stage's checkpoint or a whole NightLab's: in evaluation mode, with its working size."""
    state = _read(path)
    detector = _settings_of(state).build_detector()
    weights = _part(checkpoints.load_weights(path), "detector")
    if not weights:
        raise ValueError(f"{path} holds no region detector; expected a checkpoint of the stage detector or hdm")
    detector.load_state_dict(weights)
    own_hw = state.get("card", {}).get("hardness_hw")
    return detector.eval(), tuple(own_hw) if own_hw else _input_hw(state)


def detector_multiple(detector: RegionDetector) -> int:
    """Return the number that both sides of a detector's input are multiples of.

    It is also a multiple of 32, which serves the segmenters of all backbones in use, so that a frame is resized once.
    """
    return int(np.lcm(detector.multiple, 32))


def detector_input(frame_bgr: np.ndarray, input_hw: tuple[int, int], detector: RegionDetector) -> Tensor:
    """Resize a frame for the detector: (1, 3, H, W) RGB in 0..1 at about the area of `input_hw`."""
    size_hw = rg.network_size_hw(frame_bgr.shape[:2], input_hw, detector_multiple(detector))
    return to_image(torch.from_numpy(rg.resize_image(frame_bgr, size_hw))[None])


def device() -> torch.device:
    """Return the device that checkpoints run on: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def _open_in_bundle(path: Path, kind: EngineKind, scale: float = 1.0) -> Network:
    bundle = load_bundle(path)
    file: EngineFile = getattr(bundle.manifest.engines, kind)
    # Float32, so that figures do not depend on the machine's half precision.
    engine = open_network(bundle.path(kind), EngineOptions(precision="float32"))
    return Network(engine, file.scaled(scale).input_hw, file.multiple)


def _load_level(path: Path, level: Literal["image", "region"]) -> tuple[Level, tuple[int, int]]:
    state = _read(path)
    weights = checkpoints.load_weights(path)
    trained = state["recipe"].get("level", "") if "recipe" in state else ""
    if "weights" in state:
        weights = _part(weights, level)
    elif trained != level:
        raise ValueError(f"{path} is of another stage ({trained or 'not a segmenter'}); expected the {level} level")
    model = _settings_of(state).build_level(level)
    model.load_state_dict(weights)
    return model.eval().to(device()), _input_hw(state)


def _part(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Select the weights of one part of a model."""
    return {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint or bundle; train it first, see docs/training.md")
    return checkpoints.read(path)


def _settings_of(state: dict[str, Any]) -> NightLabSettings:
    settings = state["settings"] if "settings" in state else state["recipe"]["model"]
    return NightLabSettings.model_validate(settings, strict=False)


def _input_hw(state: dict[str, Any]) -> tuple[int, int]:
    height, width = state["card" if "card" in state else "recipe"].get("input_hw", INPUT_HW)
    return height, width
