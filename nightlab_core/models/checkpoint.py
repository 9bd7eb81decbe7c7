# SPDX-License-Identifier: Apache-2.0
"""Write and read the checkpoint of a whole NightLab, and describe it as the manifest of a bundle.

The checkpoint of one training stage is another file: see `training.checkpoint`.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from nightlab_core.config import Settings
from nightlab_core.files import atomic_path
from nightlab_core.models.deform import DeformForm
from nightlab_core.models.nightlab import NightLab, NightLabSettings
from nightlab_core.runtime.bundle import Classes, EngineFile, EngineFiles, Manifest, RegionFile

WeightStorage = Literal["float16", "float32"]


class ModelCard(Settings):
    """Description of a checkpoint that goes into the bundle."""

    name: str
    hard_classes: tuple[str, ...]  #: names of the classes that the hardness network was trained to find
    trained_on: tuple[str, ...]
    licence: str
    input_hw: tuple[int, int] = (480, 640)  #: working size of the image level
    hardness_hw: tuple[int, int] | None = None  #: working size of the detector; null: the image level's
    further_hw: tuple[tuple[int, int], ...] = ()  #: sizes of a crop beside the model's `region_hw`, of its aspect
    #: What `training.combine_checkpoints` added to the region level's logits; further training removes it.
    region_offsets: dict[str, float] = Field(default_factory=dict)


def save_checkpoint(path: Path, model: NightLab, settings: NightLabSettings, card: ModelCard) -> None:
    """Write a NightLab with its settings and card. Weights of convolutions and matrix products are stored as float16.

    Biases and the parameters of normalisations stay float32: they are small, and float16 turns a variance above 65504
    into infinity and one below 3e-8 into 0. Raises ValueError if a number is not finite.
    """
    weights = {k: v.half() if v.is_floating_point() and v.dim() > 1 else v for k, v in model.state_dict().items()}
    if broken := [k for k, v in weights.items() if not torch.isfinite(v).all()]:
        raise ValueError(
            f"{broken[0]} and {len(broken) - 1} other tensors hold numbers that are not finite in float16, so that a"
            " part of the network would give no result. Continue the stage's training from its checkpoint, which"
            " starts new statistics"
        )
    state = {"settings": settings.model_dump(mode="json"), "card": card.model_dump(mode="json"), "weights": weights}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_checkpoint(path: Path) -> tuple[NightLab, NightLabSettings, ModelCard]:
    """Read a checkpoint that `save_checkpoint` wrote. The model is in evaluation mode, in float32, on the CPU.

    Raises ValueError for another file.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or set(state) != {"settings", "card", "weights"}:
        raise ValueError(f"{path} is not a NightLab checkpoint; expected one that training.combine_checkpoints wrote")
    settings = _validated(NightLabSettings, state["settings"])
    model = settings.build()
    model.load_state_dict(state["weights"])
    return model.eval(), settings, _validated(ModelCard, state["card"])


def _validated(cls: type[Any], data: dict[str, Any]) -> Any:
    return cls.model_validate(data, strict=False)


def manifest_of(
    model: NightLab,
    settings: NightLabSettings,
    card: ModelCard,
    *,
    deform: DeformForm = "deform_conv",
    weights: WeightStorage = "float32",
) -> Manifest:
    """Return the manifest of the bundle that export makes of this model; the SHA-256 of its files are still empty."""
    multiple = model.image.segmenter.multiple
    hardness_hw = card.hardness_hw or card.input_hw
    hardness_multiple = int(np.lcm(model.detector.multiple, multiple))
    return Manifest(
        name=card.name,
        created=datetime.date.today().isoformat(),
        classes=Classes(
            names=settings.classes.names,
            colors_rgb=settings.classes.colors_rgb,
            key=settings.classes.key,
            mappings_to=settings.classes.mappings_to,
        ),
        hard_classes=card.hard_classes,
        engines=EngineFiles(
            image=EngineFile(file="image.onnx", input_hw=card.input_hw, multiple=multiple),
            hardness=EngineFile(file="hardness.onnx", input_hw=hardness_hw, multiple=hardness_multiple),
            region=RegionFile(
                file="region.onnx",
                input_hw=settings.region_hw,
                multiple=model.region.segmenter.multiple,
                max_batch=10,
                further_hw=card.further_hw,
                context=settings.region_context,
            ),
        ),
        preprocessing="inside the graphs: bytes to 0..1, BGR to RGB, light adaptation, mean and deviation",
        deform=deform,
        weights=weights,
        trained_on=card.trained_on,
        accuracy={},  # `nightlab evaluate --record` measures the bundle
        licence=card.licence,
    )
