# SPDX-License-Identifier: Apache-2.0
"""Train the region detector on boxes of the hard classes (the paper's RDN).

python -m training.stages.detector config/train/lite_detector.yaml --data DATA --out OUT
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nightlab_core.config import Settings
from nightlab_core.models.detector import RegionDetector
from nightlab_core.models.nightlab import NightLabSettings
from training.command import TrainingStage
from training.data import BoxStream
from training.loop import LoopSettings, Losses, fit
from training.sources import SourceSettings
from training.stages.segmenter import freeze


class DetectorRecipe(Settings):
    """A recipe of this stage, one YAML file."""

    model: NightLabSettings
    loop: LoopSettings
    sources: tuple[SourceSettings, ...]
    hard_classes: tuple[str, ...]
    input_hw: tuple[int, int] = (480, 640)
    crop_hw: tuple[int, int] = (384, 512)
    scale: tuple[float, float] = (0.8, 1.25)
    frozen_stages: int = 1


class ProposalLosses(nn.Module):
    """Forward pass that returns the detector's losses, so that a wrapper sees every call."""

    def __init__(self, detector: RegionDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor, boxes: list[Tensor], known: Tensor) -> Losses:
        detector: RegionDetector = self.detector
        return detector.loss(image, boxes, known)


def collate(samples: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, list[Tensor], Tensor]:
    """Stack images and labelled areas; boxes stay a list, since their number differs."""
    images, boxes, known = zip(*samples, strict=True)
    return torch.stack(images), list(boxes), torch.stack(known)


def detection_loss(model: Callable[..., dict[str, Tensor]], batch: tuple[Tensor, list[Tensor], Tensor]) -> Losses:
    """Compute torchvision's losses of proposals, with the box loss weighted up to the size of the objectness."""
    losses = model(*batch)
    return {"objectness": losses["objectness"], "box": 5 * losses["box"]}


def train_mode(losses: ProposalLosses, recipe: DetectorRecipe) -> None:
    """Enter training mode, except for the parts that the recipe keeps fixed."""
    losses.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze(losses.detector.backbone, recipe.frozen_stages)


def train(recipe: DetectorRecipe, data: Path, out: Path) -> None:
    """Run the stage, or continue it if `out` holds its checkpoint."""
    torch.manual_seed(recipe.loop.seed)
    detector = recipe.model.build_detector()
    detector.backbone.load_pretrained()
    classes = recipe.model.classes
    stream = BoxStream(
        recipe.sources, data, recipe.loop.seed, classes, recipe.crop_hw, recipe.input_hw, recipe.scale,
        hard_ids=classes.ids_of(recipe.hard_classes),
    )  # fmt: skip
    model = ProposalLosses(detector)
    train_mode(model, recipe)
    fit(model, detection_loss, stream, recipe.loop, out / "checkpoint.pt", recipe, collate)


STAGE = TrainingStage(DetectorRecipe, train)

if __name__ == "__main__":
    STAGE.main(__doc__)
