# SPDX-License-Identifier: Apache-2.0
"""The three networks one by one, each a function of numpy arrays, from a bundle or a checkpoint.

What measures accuracy builds on these alone, so that a row of a table may take each network from elsewhere. A bundle
runs on the vehicle's engines; a checkpoint, of one stage or of a whole NightLab, runs in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nightlab_core.labels import ClassSet
from nightlab_core.models.detector import RegionDetector
from nightlab_core.models.nightlab import Level, NightLabSettings, to_image, to_labels
from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.bundle import EngineKind, load_bundle
from nightlab_core.runtime.engines.engine import EngineOptions
from nightlab_core.runtime.engines.open import open_network
from training import checkpoint as checkpoints
from training.evaluation.sliding import TestTime, probabilities

Labels = tuple[np.ndarray, np.ndarray]  #: labels and confidence, uint8 (H, W) or (K, h, w) each
ImageLevel = Callable[[np.ndarray], Labels]  #: of a frame uint8 (H, W, 3) BGR
Detector = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  #: frame -> boxes (N, 4) in its pixels, scores (N,)

#: Regions that a checkpoint reads at once: a deformable convolution at the paper's size holds 1.2 GB for each.
REGIONS_AT_ONCE = 4
INPUT_HW = (480, 640)  #: working size of a stage that does not say its own


@dataclass(frozen=True)
class RegionLevel:
    """Reads enlarged crops uint8 (K, h, w, 3) BGR; label 255 leaves the image level's."""

    read: Callable[[np.ndarray], Labels]
    region_hw: tuple[int, int]


def class_set_of(path: Path) -> ClassSet:
    """Return the class set of the labels that a bundle's or a checkpoint's levels give. Raises FileNotFoundError."""
    return load_bundle(path).class_set if path.is_dir() else _settings_of(_read(path)).classes


def open_image_level(path: Path, test_time: TestTime = TestTime()) -> ImageLevel:  # noqa: B008 - frozen
    """The image level of a bundle or checkpoint. Raises ValueError where `test_time` asks a bundle for more than it
    can do, and for a checkpoint of another stage; FileNotFoundError."""
    if path.is_dir():
        if test_time != TestTime():
            raise ValueError(f"{path} is a bundle, which reads a frame once and whole; the rest needs a checkpoint")
        return _bundle_image_level(path)
    model, input_hw = _open_level(path, "image")

    def read(frame_bgr: np.ndarray) -> Labels:
        odds = probabilities(model, frame_bgr, input_hw, model.segmenter.multiple, test_time)
        top, labels = odds.max(0)
        return labels.to(torch.uint8).cpu().numpy(), (top * 255 + 0.5).to(torch.uint8).cpu().numpy()

    return read


def open_region_level(path: Path) -> RegionLevel:
    """The region level of a bundle or checkpoint. Errors as `open_image_level`."""
    if path.is_dir():
        bundle = load_bundle(path)
        file, engine = (
            bundle.manifest.engines.region,
            open_network(bundle.path("region"), EngineOptions(precision="float32")),
        )

        def read(crops: np.ndarray) -> Labels:
            parts = [engine(crops=crops[i : i + file.max_batch]) for i in range(0, len(crops), file.max_batch)]
            return _joined(parts, file.input_hw)

        return RegionLevel(read, file.input_hw)
    model, _ = _open_level(path, "region")
    settings = _settings_of(checkpoints.read(path))
    region_hw = settings.region_hw
    ids = torch.tensor(settings.outputs("region").ids, device=device())

    @torch.inference_mode()
    def read_in_torch(crops: np.ndarray) -> Labels:
        parts = []
        for some in torch.from_numpy(crops).split(REGIONS_AT_ONCE):
            found = to_labels(model(to_image(some.to(device()))), region_hw, ids)
            parts.append({name: part.cpu().numpy() for name, part in zip(("labels", "confidence"), found, strict=True)})
        return _joined(parts, region_hw)

    return RegionLevel(read_in_torch, region_hw)


def open_detector(path: Path, by_objectness: bool = False) -> Detector:
    """The region detector of a bundle or checkpoint, RDN or HDM. Errors as `open_image_level`.

    by_objectness: leave its HDM aside, so that it ranks as the RDN that it was; a bundle's engine cannot (ValueError).
    """
    if path.is_dir():
        if by_objectness:
            raise ValueError(f"{path} is a bundle, whose engine ranks in one way; objectness needs its checkpoint")
        return _bundle_detector(path)
    model, input_hw = load_detector(path)
    model = model.to(device())
    if by_objectness:
        model.hdm = None

    @torch.inference_mode()
    def find(frame_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes, scores = model(detector_input(frame_bgr, input_hw, model.multiple).to(device()))
        return in_pixels(boxes[0].cpu().numpy(), frame_bgr), scores[0].cpu().numpy()

    return find


def detector_input(frame_bgr: np.ndarray, input_hw: tuple[int, int], multiple: int) -> Tensor:
    """A frame as the detector is given it: (1, 3, H, W) RGB in 0..1 at about the area of `input_hw`."""
    # The engine's multiple is also the segmenters', so that a frame is resized once: 32 serves all backbones in use.
    size_hw = rg.network_size_hw(frame_bgr.shape[:2], input_hw, int(np.lcm(multiple, 32)))
    return to_image(torch.from_numpy(rg.resize_image(frame_bgr, size_hw))[None])


def in_pixels(boxes: np.ndarray, frame_bgr: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) in 0..1 to pixels of a frame, float32."""
    height, width = frame_bgr.shape[:2]
    return (boxes.clip(0, 1) * [width, height, width, height]).astype(np.float32)


def load_detector(path: Path) -> tuple[RegionDetector, tuple[int, int]]:
    """The detector of a stage's checkpoint or a whole NightLab's, in evaluation mode, and the size it works at."""
    state = _read(path)
    detector = _settings_of(state).build_detector()
    weights = _part(checkpoints.load_weights(path), "detector")
    if not weights:
        raise ValueError(f"{path} holds no region detector; expected a checkpoint of the stage detector or hdm")
    detector.load_state_dict(weights)
    return detector.eval(), _input_hw(state)


def read_regions(
    frame_bgr: np.ndarray, boxes_xyxy: np.ndarray, scores: np.ndarray, region_level: RegionLevel, margin: float
) -> rg.Regions:
    """What the region level reads in K boxes of a frame."""
    height, width = region_level.region_hw
    windows = rg.context_boxes(boxes_xyxy, frame_bgr.shape[:2], margin, width / height)
    if not len(windows):
        nothing = np.zeros((0, height, width), np.uint8)
        return rg.Regions(boxes_xyxy, scores, windows, nothing, nothing)
    labels, confidence = region_level.read(rg.crop_and_enlarge(frame_bgr, windows, region_level.region_hw))
    return rg.Regions(boxes_xyxy, scores, windows, labels, confidence)


def _bundle_image_level(path: Path) -> ImageLevel:
    file, engine = _open_engine(path, "image")

    def read(frame_bgr: np.ndarray) -> Labels:
        size_hw = frame_bgr.shape[:2]
        network_hw = rg.network_size_hw(size_hw, file.input_hw, file.multiple)
        output = engine(frame=rg.resize_image(frame_bgr, network_hw)[None])
        return rg.resize_labels(output["labels"][0], size_hw), rg.resize_image(output["confidence"][0], size_hw)

    return read


def _bundle_detector(path: Path) -> Detector:
    file, engine = _open_engine(path, "hardness")

    def find(frame_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size_hw = rg.network_size_hw(frame_bgr.shape[:2], file.input_hw, file.multiple)
        output = engine(frame=rg.resize_image(frame_bgr, size_hw)[None])
        return in_pixels(output["boxes"][0], frame_bgr), output["scores"][0]

    return find


def _open_engine(path: Path, kind: EngineKind) -> tuple[Any, Any]:
    bundle = load_bundle(path)
    # Float32, so that a table does not depend on what the machine can do in half precision.
    return getattr(bundle.manifest.engines, kind), open_network(bundle.path(kind), EngineOptions(precision="float32"))


def _joined(parts: list[dict[str, np.ndarray]], size_hw: tuple[int, int]) -> Labels:
    nothing = np.zeros((0, *size_hw), np.uint8)
    labels, confidence = ([nothing, *(part[name] for part in parts)] for name in ("labels", "confidence"))
    return np.concatenate(labels), np.concatenate(confidence)


def _open_level(path: Path, level: Literal["image", "region"]) -> tuple[Level, tuple[int, int]]:
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
    """The weights of one part of a model."""
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


def device() -> torch.device:
    """Where checkpoints run: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
