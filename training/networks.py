# SPDX-License-Identifier: Apache-2.0
"""Open the networks of bundles and checkpoints as engines.

A network of a bundle runs on the vehicle's engines in float32. A network of a checkpoint, of one stage or of a whole
NightLab, runs in torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nightlab_core.labels import ClassSet
from nightlab_core.models.detector import RegionDetector
from nightlab_core.models.engine import TorchEngine
from nightlab_core.models.nightlab import Level, NightLabSettings, read_region, to_image
from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.bundle import MAX_SIDE, EngineFile, EngineKind, load_bundle
from nightlab_core.runtime.engines.engine import Engine, EngineOptions
from nightlab_core.runtime.engines.open import open_network
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
        lambda *inputs: read_region(model, *inputs, ids=ids, share=settings.region_share),
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
