# SPDX-License-Identifier: Apache-2.0
"""Train the detector to rank its proposals by the effect of the region level (the paper's HDM).

python -m training.stages.hdm config/train/lite_hdm_helps.yaml --data DATA --out OUT

First both levels read the trained detector's proposals on training frames, once, and the effect of each region is
stored (`training.stages.proposals`). Then a second head of the detector learns it; boxes and objectness stay unchanged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from nightlab_core.config import Settings
from nightlab_core.models.detector import RegionDetector
from nightlab_core.models.nightlab import NightLabSettings
from nightlab_core.runtime.regions import Merge
from nightlab_core.runtime.settings import PipelineSettings
from training import networks
from training.command import TrainingStage
from training.loop import LoopSettings, Losses, Mean, fit
from training.sources import SourceSettings
from training.stages import proposals

#: The backbone's features [(1, Ci, H / si, W / si)], anchors int64 (n,), targets float32 (n,).
Sample = tuple[list[Tensor], Tensor, Tensor]
#: Limit of the features kept in memory: the backbone is fixed, and each frame is drawn many times.
CACHE_BYTES = 2 * 2**30


class HdmRecipe(Settings):
    """A recipe of this stage, one YAML file."""

    model: NightLabSettings  #: its detector has hdm_channels above 0, and is else that of `detector`
    detector: str  #: checkpoint of the trained detector
    levels: str  #: bundle, or NightLab checkpoint, with the image and the region level
    proposals: str  #: file that stores the measurement; recipes that differ in `target` share it
    frames: int = Field(default=800, ge=1)  #: number of frames to draw and measure
    per_frame: int = Field(default=24, ge=1)  #: proposals of a frame, the best after suppression
    nms_iou: float = Field(default=0.7, gt=0, le=1)
    region_margin: float = Field(default=PipelineSettings().region_margin, ge=0, le=1)
    target: Literal["equation6", "helps", "gain"]  #: see `proposals.targets`
    merge: Merge = "confident"  #: by which a region helps or gains
    sources: tuple[SourceSettings, ...]
    input_hw: tuple[int, int] = (480, 640)
    loop: LoopSettings


class ProposalSet(Dataset[Sample]):
    """Measured frames with the target of each proposal, in a new order each time round."""

    def __init__(
        self, detector: RegionDetector, reader: proposals.FrameReader, measured: proposals.Proposals,
        targets: np.ndarray, recipe: HdmRecipe,
    ) -> None:  # fmt: skip
        self.detector, self.reader, self.measured, self.targets = detector, reader, measured, targets
        self.seed, self.input_hw = recipe.loop.seed, recipe.input_hw
        self.frames = np.unique(measured.frame)  # frames with a proposal on labelled pixels
        self.kept: dict[int, list[Tensor]] = {}
        self.room = CACHE_BYTES

    def __getitem__(self, index: int) -> Sample:
        turn, place = divmod(index, len(self.frames))
        frame = int(np.random.default_rng((self.seed, turn)).permutation(self.frames)[place])
        own = self.measured.frame == frame
        anchors, targets = (torch.from_numpy(a[own]) for a in (self.measured.anchor, self.targets))
        return [f.float() for f in self._features(frame)], anchors, targets

    @torch.no_grad()
    def _features(self, frame: int) -> list[Tensor]:
        if frame in self.kept:
            return self.kept[frame]
        _, image, _ = self.reader.frame(frame)
        ready = networks.detector_input(image, self.input_hw, self.detector)
        device = next(self.detector.parameters()).device
        # Half precision, kept or not, so that a frame gives the same sample every time.
        features = [f.half().cpu() for f in self.detector.features(ready.to(device))]
        size = sum(f.nbytes for f in features)
        if size <= self.room:
            self.kept[frame], self.room = features, self.room - size
        return features


class _Hardness(nn.Module):
    """Forward pass that returns the hardness logits of proposals, so that a wrapper sees every call."""

    def __init__(self, detector: RegionDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, features: list[list[Tensor]], anchors: list[Tensor]) -> Tensor:
        # Frames differ in size, and only a small head is trained: one by one costs little.
        found = [self.detector.hardness_logits(f, a[None])[0] for f, a in zip(features, anchors, strict=True)]
        return torch.cat(found)


def collate(samples: list[Sample]) -> tuple[list[list[Tensor]], list[Tensor], Tensor]:
    """Collect features and anchors in lists, and targets in one row."""
    features, anchors, targets = zip(*samples, strict=True)
    return list(features), list(anchors), torch.cat(targets)


def hardness_loss(model: nn.Module, batch: tuple[list[list[Tensor]], list[Tensor], Tensor]) -> Losses:
    """Compute the binary cross-entropy. With targets between 0 and 1, the trained score is their expected value."""
    features, anchors, targets = batch
    loss = F.binary_cross_entropy_with_logits(model(features, anchors).float(), targets, reduction="sum")
    return {"hardness": Mean(loss, torch.tensor(float(len(targets)), device=loss.device))}


def build(recipe: HdmRecipe) -> RegionDetector:
    """Build the trained detector with a fresh second head; everything else is fixed."""
    rdn, _ = networks.load_detector(Path(recipe.detector))
    detector = recipe.model.build_detector()
    if detector.hdm is None:
        raise ValueError("model.detector.hdm_channels is 0; expected the width of the module that is to be trained")
    own, trained = detector.state_dict(), rdn.state_dict()
    misfits = sorted(
        k for k in own if not k.startswith("hdm.") and (k not in trained or trained[k].shape != own[k].shape)
    )
    if misfits:
        raise ValueError(f"{recipe.detector} does not fit the recipe's model: {misfits[0]} and {len(misfits) - 1} more")
    detector.load_state_dict({k: own[k] if k.startswith("hdm.") else trained[k] for k in own})
    detector.requires_grad_(False).eval().to(networks.device())
    detector.hdm.requires_grad_(True).train()
    detector.hdm.classifies.fill_(recipe.target != "gain")
    return detector


def train(recipe: HdmRecipe, data: Path, out: Path) -> None:
    """Run the stage, or continue it if `out` holds its checkpoint.

    Raises ValueError for more than one process, those of `workers` included.
    """
    if torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise ValueError("this stage runs in one process, which measures the proposals; start it without torchrun")
    if recipe.loop.workers:
        raise ValueError(
            f"loop.workers is {recipe.loop.workers}; expected 0: the samples are read by the detector, in this process"
        )
    torch.manual_seed(recipe.loop.seed)
    detector = build(recipe)
    reader = proposals.open_reader(recipe.sources, data, recipe.loop.seed, recipe.model.classes)
    measured = measure(recipe, detector, reader)
    class_sets = [reader.evaluated_classes(i) for i in range(len(recipe.sources))]
    targets = proposals.targets(measured, recipe.target, recipe.merge, class_sets)
    better = proposals.targets(measured, "equation6", recipe.merge, class_sets).mean()
    print(
        f"{len(targets)} proposals on {len(measured.source)} frames: the region level is better in {100 * better:.0f} %"
        f" of them; mean target {targets.mean():.2f}"
    )
    samples = ProposalSet(detector, reader, measured, targets, recipe)
    checkpoint = out / "checkpoint.pt"
    fit(_Hardness(detector), hardness_loss, samples, recipe.loop, checkpoint, recipe, collate, made_from(recipe))


def made_from(recipe: HdmRecipe) -> dict[str, str]:
    """Compute the SHA-256 of the detector and of the levels that the stage learns from. Raises FileNotFoundError."""
    return {key: proposals.fingerprint(Path(getattr(recipe, key))) for key in ("detector", "levels")}


def measure(recipe: HdmRecipe, detector: RegionDetector, reader: proposals.FrameReader) -> proposals.Proposals:
    """Measure the proposals, or read them from the recipe's file as far as it goes."""
    source = Path(recipe.levels)
    made_by = recipe.model_dump(mode="json", include={"sources", "per_frame", "nms_iou", "region_margin", "input_hw"})
    made_by |= {"seed": recipe.loop.seed, "frames": recipe.frames, **made_from(recipe)}
    with proposals.Measurer(
        detector, networks.open_image(source), networks.open_region(source),
        recipe.input_hw, recipe.per_frame, recipe.nms_iou, recipe.region_margin,
        networks.class_set_of(source), reader.num_classes,
    ) as measurer:  # fmt: skip
        return proposals.measure(measurer, reader, recipe.frames, Path(recipe.proposals), made_by)


STAGE = TrainingStage(HdmRecipe, train, made_from=made_from)

if __name__ == "__main__":
    STAGE.main(__doc__)
