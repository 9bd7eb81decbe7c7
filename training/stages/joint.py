# SPDX-License-Identifier: Apache-2.0
"""Train both levels, the detector and the light adaptation together, starting from the stages' checkpoints.

python -m training.stages.joint config/train/lite_joint.yaml --data DATA --out runs/lite_joint

Equation 8 of the patent application (WO 2023/146470) adds three losses up, each with a weight of its own:

    L = lambda_1 L_segmentation + lambda_2 L_detection + lambda_3 L_ReLAM

Its three weights are not published. Here L_segmentation is the cross-entropy of the image level plus that of the
region level; L_detection is the proposals' (RDN) plus, for a detector with one, the hardness detection module's, on
labels that equation 6 gives for both levels' readings in the same step; L_ReLAM is the light adaptation's, SSIM and
adversarial, summed over the levels. A discriminator's own loss is no part of L and has no weight.

The result, OUT/nightlab.pt, is a whole NightLab as `training.combine_checkpoints` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from nightlab_core.config import Settings
from nightlab_core.data.hard_regions import hard_regions
from nightlab_core.labels import IGNORE_ID, first_ids, to_class_set
from nightlab_core.models.deform import set_deform_form
from nightlab_core.models.engine import TorchEngine
from nightlab_core.models.nightlab import NightLab
from nightlab_core.runtime.settings import PipelineSettings
from training import networks
from training.checkpoint import load_weights
from training.combine_checkpoints import CombineRecipe, load_stages, write_checkpoint
from training.command import TrainingStage
from training.data import FrameStream, RegionStream, to_tensors
from training.distributed import is_first_process
from training.loop import LoopSettings, Losses, Mean, fit
from training.sources import SourceSettings, label_groups, source_classes
from training.stages.detector import detection_loss
from training.stages.proposals import Measurer
from training.stages.relam import DiscriminatorSettings, LightAdaptation, ReLAMRecipe, Unpaired, streams
from training.stages.segmenter import backbone_of, freeze, loss_weights, segmentation_loss

LevelName = Literal["image", "region"]
LEVELS: tuple[LevelName, ...] = ("image", "region")


class LossWeights(Settings):
    """The three weights of equation 8."""

    segmentation: float = Field(default=1.0, ge=0)
    detection: float = Field(default=1.0, ge=0)
    light: float = Field(default=0.1, ge=0)


class LightSettings(Settings):
    """Data and weights of one level's light adaptation, see `ReLAMRecipe`."""

    night: tuple[SourceSettings, ...]
    day: tuple[SourceSettings, ...]
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    structure_weight: float = Field(default=1.0, ge=0)
    identity_weight: float = Field(default=1.0, ge=0)
    structure_reduction: int = Field(default=1, ge=1)


class JointRecipe(CombineRecipe):
    """A recipe of this stage, one YAML file: the stages' checkpoints, and how training continues from them."""

    loop: LoopSettings
    weights: LossWeights = LossWeights()
    sources: tuple[SourceSettings, ...]
    image_light: LightSettings
    region_light: LightSettings
    hard_classes: tuple[str, ...]
    class_weights: dict[str, float] = Field(default_factory=dict)  #: see `SegmenterRecipe`
    region_class_weights: dict[str, float] | None = None  #: of the region level; null: as of the image level
    input_hw: tuple[int, int] = (480, 640)  #: working size of the image network; its area is what counts
    crop_hw: tuple[int, int] = (352, 480)  #: multiples of 32
    scale: tuple[float, float] = (0.8, 1.25)
    frozen_stages: int = 2
    frozen_statistics: bool = True  #: of the levels' backbones; the detector's stay as they are
    per_frame: int = Field(default=4, ge=1)  #: proposals of a frame that both levels read for the detection module
    nms_iou: float = Field(default=0.7, gt=0, le=1)
    region_margin: float = Field(default=PipelineSettings().region_margin, ge=0, le=1)

    def light_recipe(self, level: LevelName) -> ReLAMRecipe:
        """Return the recipe of one level's light adaptation."""
        light = self.image_light if level == "image" else self.region_light
        return ReLAMRecipe(
            model=self.model, level=level, loop=self.loop, **{k: getattr(light, k) for k in LightSettings.model_fields},
            input_hw=self.input_hw, crop_hw=self.crop_hw, scale=self.scale, hard_classes=self.hard_classes,
        )  # fmt: skip


class JointBatch(NamedTuple):
    """B samples; images are float RGB in 0..1, labels int64 training labels (`labels.training_ids`)."""

    frames: Tensor  #: (B, 3, H, W)
    labels: Tensor  #: (B, H, W)
    boxes: list[Tensor]  #: B times float32 (n, 4) xyxy: hard regions of the frame
    sources: list[int]  #: index of each frame's source, which decides the class set that it is evaluated in
    windows: Tensor  #: (B, 3, h, w), of other frames
    window_labels: Tensor  #: (B, h, w)
    light: tuple[tuple[Tensor, ...], ...]  #: night and day images (B, 3, ., .) of image and region level


class JointStream(Dataset[JointBatch]):
    """One sample of every stage; sample i is decided by the seed and i alone."""

    def __init__(self, recipe: JointRecipe, data: Path) -> None:
        classes = recipe.model.classes
        hard = classes.ids_of(recipe.hard_classes)
        seed, sources = recipe.loop.seed, recipe.sources
        self.hard = hard
        self.frames = FrameStream(
            sources, data, seed, classes, recipe.crop_hw, recipe.input_hw, recipe.scale, hard, 0.5
        )
        # With one seed both levels would see the same frames in the same light.
        self.windows = RegionStream(sources, data, seed + 1, classes, recipe.model.region_hw, hard)
        self.light: list[Unpaired] = [streams(recipe.light_recipe(level), data) for level in LEVELS]

    def __getitem__(self, index: int) -> JointBatch:
        source, image, labels, _ = self.frames.crop(index)
        frame, target = to_tensors(image, labels)
        boxes = torch.from_numpy(hard_regions(self.frames.class_ids(labels), self.hard))
        window, window_labels = self.windows[index]
        light = self.light[0][index], self.light[1][index]
        return JointBatch(frame, target, [boxes], [int(source)], window, window_labels, light)


def collate(samples: list[JointBatch]) -> JointBatch:
    """Join B samples of `JointStream` to one batch."""
    frames, labels, boxes, sources, windows, window_labels, light = zip(*samples, strict=True)
    pairs = [tuple(torch.stack(side) for side in zip(*level, strict=True)) for level in zip(*light, strict=True)]
    return JointBatch(
        torch.stack(frames), torch.stack(labels), [b for each in boxes for b in each],
        [s for each in sources for s in each], torch.stack(windows), torch.stack(window_labels), tuple(pairs),
    )  # fmt: skip


class Joint(nn.Module):
    """A NightLab and the discriminators of its light adaptations; the forward pass returns equation 8's losses."""

    def __init__(self, nightlab: NightLab, recipe: JointRecipe) -> None:
        super().__init__()
        self.nightlab, self.recipe = nightlab, recipe
        self.light = nn.ModuleDict()
        for name, level in zip(LEVELS, (nightlab.image, nightlab.region), strict=True):
            adaptation: Any = LightAdaptation(recipe.light_recipe(name))
            adaptation.generator = level.relam  # the level's own
            self.light[name] = adaptation
        self.classes = recipe.model.classes
        groups = label_groups(recipe.sources, self.classes)
        self.first_ids = first_ids(self.classes, groups)
        self.evaluated = [source_classes(source, self.classes)[1] for source in recipe.sources]
        self.outputs = [recipe.model.outputs(level, groups) for level in LEVELS]
        for name, outputs in zip(LEVELS, self.outputs, strict=True):
            weights = recipe.class_weights
            if name == "region":
                shared = {k: v for k, v in weights.items() if k in outputs.names}
                weights = shared if recipe.region_class_weights is None else recipe.region_class_weights
            self.register_buffer(f"{name}_weight", loss_weights(weights, outputs), persistent=False)

    def forward(self, batch: JointBatch) -> Losses:
        nightlab, weights = self.nightlab, self.recipe.weights
        losses: dict[str, Tensor | Mean] = {}
        seen = (nightlab.image, batch.frames, batch.labels), (nightlab.region, batch.windows, batch.window_labels)
        for name, (level, images, labels), outputs in zip(LEVELS, seen, self.outputs, strict=True):
            weight = self.get_buffer(f"{name}_weight")
            loss = segmentation_loss(level, (images, labels), weight, outputs)["cross_entropy"]
            losses[f"{name}_cross_entropy"] = _scaled(loss, weights.segmentation)
        for part, loss in detection_loss(
            nightlab.detector.loss, (batch.frames, batch.boxes, batch.labels != IGNORE_ID)
        ).items():
            losses[part] = _scaled(loss, weights.detection)
        if nightlab.detector.hdm is not None:
            losses["hardness"] = _scaled(self.hardness(batch), weights.detection)
        for (adapted, adaptation), (night, day) in zip(self.light.items(), batch.light, strict=True):
            for part, loss in adaptation(night, day).items():
                losses[f"{adapted}_{part}"] = loss if part == "discriminator" else _scaled(loss, weights.light)
        return losses

    def hardness(self, batch: JointBatch) -> Mean:
        """Compute the hardness detection module's cross-entropy on each frame's best proposals.

        Equation 6 gives the targets: 1 where the region level's current mean IoU in the box is higher.
        """
        anchors, targets = [], []
        with _evaluating(self.nightlab):
            for image, labels, source in zip(batch.frames, batch.labels, batch.sources, strict=True):
                found = self._read(image, labels, source)
                anchors.append(torch.from_numpy(found["anchor"]).to(image.device))
                targets.append(torch.from_numpy(found["iou"][:, 1] > found["iou"][:, 0]).to(image))
        # The number of proposals on labelled pixels differs between frames: one by one.
        features = self.nightlab.detector.features(batch.frames)
        picked = [
            self.nightlab.detector.hardness_logits([f[i : i + 1] for f in features], index[None])[0].float()
            for i, index in enumerate(anchors)
        ]
        target = torch.cat(targets)
        total = F.binary_cross_entropy_with_logits(torch.cat(picked), target, reduction="sum")
        return Mean(total, torch.tensor(float(len(target)), device=total.device))

    def _read(self, image: Tensor, labels: Tensor, source: int) -> dict[str, np.ndarray]:
        """Measure a frame's proposals, see `proposals.Measurer`."""
        recipe, nightlab = self.recipe, self.nightlab
        frame_bgr = (image * 255).round().to(torch.uint8).flip(0).permute(1, 2, 0).contiguous().cpu().numpy()
        class_ids = self.first_ids[labels.to(torch.uint8).cpu().numpy()]
        evaluated = self.evaluated[source]
        image_network = networks.Network(TorchEngine("image", nightlab.image_level, device=image.device))
        region_engine = TorchEngine("region", nightlab.region_level, device=image.device, crop_hw=nightlab.region_hw)
        with Measurer(
            nightlab.detector, image_network, networks.Network(region_engine, nightlab.region_hw),
            recipe.crop_hw, recipe.per_frame, recipe.nms_iou, recipe.region_margin, self.classes, len(self.classes),
        ) as measurer:  # fmt: skip
            return measurer(frame_bgr, to_class_set(class_ids, self.classes, evaluated), evaluated)


def _scaled(loss: Tensor | Mean, weight: float) -> Tensor | Mean:
    return Mean(weight * loss.total, loss.number) if isinstance(loss, Mean) else weight * loss


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Enter evaluation mode, without gradients and in full precision; then give each module its mode back."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    # The pipeline runs one level on another thread, where this thread's autocast has no effect.
    with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
        yield
    for module in learning:
        module.training = True


def joint_loss(model: nn.Module, batch: JointBatch) -> Losses:
    """See `Joint`."""
    return model(batch)


def train_mode(model: Joint, recipe: JointRecipe) -> None:
    """Enter training mode, except for the parts that the recipe keeps fixed."""
    nightlab = model.nightlab
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.frozen_stages or recipe.frozen_statistics:
        for level in (nightlab.image, nightlab.region):
            freeze(backbone_of(level), recipe.frozen_stages, recipe.frozen_statistics)
    freeze(nightlab.detector.backbone, recipe.frozen_stages)


def train(recipe: JointRecipe, data: Path, out: Path) -> None:
    """Run the stage, or continue it if `out` holds its checkpoint, and write out/nightlab.pt."""
    torch.manual_seed(recipe.loop.seed)
    nightlab = load_stages(recipe)
    set_deform_form(nightlab, "deform_conv" if torch.cuda.is_available() else "grid_sample")
    model = Joint(nightlab, recipe)
    train_mode(model, recipe)
    fit(model, joint_loss, JointStream(recipe, data), recipe.loop, out / "checkpoint.pt", recipe, collate)
    if is_first_process():
        weights = load_weights(out / "checkpoint.pt")
        whole = {k.removeprefix("nightlab."): v for k, v in weights.items() if k.startswith("nightlab.")}
        nightlab.load_state_dict(whole)
        write_checkpoint(nightlab, recipe, out / "nightlab.pt")


STAGE = TrainingStage(JointRecipe, train, result="nightlab.pt")

if __name__ == "__main__":
    STAGE.main(__doc__)
