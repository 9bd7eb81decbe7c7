# SPDX-License-Identifier: Apache-2.0
"""Train the light adaptation of a level on unpaired day and night images (NightLab's first stage).

python -m training.stages.relam config/train/relam_image.yaml --data DATA --out runs/relam_image

The image level learns on whole frames, which need no labels, the region level on enlarged windows around hard classes,
which need them. An SSIM loss keeps the structure of the night image, and an adversarial loss (least squares; Mao et
al., 2017) moves its light towards day, as in NightLab (CVPR 2022). Beyond the paper, an identity loss (CycleGAN's)
keeps day images unchanged, since one network serves both times of day.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from pytorch_msssim import ssim
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import Dataset

from nightlab_core.config import Settings
from nightlab_core.models.discriminator import PatchDiscriminator
from nightlab_core.models.nightlab import Level, NightLabSettings
from nightlab_core.models.relam import ReLAM
from training.command import TrainingStage
from training.data import FrameStream, RegionStream
from training.loop import LoopSettings, Losses, fit, load_weights
from training.sources import SourceSettings


class DiscriminatorSettings(Settings):
    """See `PatchDiscriminator`."""

    channels: int = Field(default=64, ge=1)
    layers: int = Field(default=3, ge=1)
    reduction: int = Field(default=1, ge=1)


class ReLAMRecipe(Settings):
    """A recipe of this stage, one YAML file."""

    model: NightLabSettings
    level: Literal["image", "region"]
    loop: LoopSettings
    night: tuple[SourceSettings, ...]
    day: tuple[SourceSettings, ...]
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    structure_weight: float = Field(default=1.0, ge=0)  #: of the SSIM loss, beside the adversarial one's 1
    identity_weight: float = Field(default=1.0, ge=0)  #: of the change that day images undergo
    structure_reduction: int = Field(default=1, ge=1)  #: SSIM is taken at this part of the size
    input_hw: tuple[int, int] = (480, 640)  #: working size of the image network; its area is what counts
    crop_hw: tuple[int, int] = (352, 480)  #: of the image level
    scale: tuple[float, float] = (0.8, 1.25)  #: random scale around the working size
    hard_classes: tuple[str, ...] = ()  #: what the region level's windows are cut round
    check_night: tuple[SourceSettings, ...] = ()  #: not trained on; `training.evaluation.relam_report` uses them
    check_day: tuple[SourceSettings, ...] = ()


class Unpaired(Dataset[tuple[Tensor, Tensor]]):
    """Unrelated night and day images, (3, H, W) float RGB in 0..1 each."""

    def __init__(self, night: FrameStream | RegionStream, day: FrameStream | RegionStream) -> None:
        self.night, self.day = night, day

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.night[index][0], self.day[index][0]


class LightAdaptation(nn.Module):
    """Generator and discriminator, whose forward pass on night and day images (B, 3, H, W) gives both their losses.

    One optimiser takes one step of each: the generator's loss reads a copy of the discriminator's weights that takes
    no gradient, and the discriminator's reads adapted images that carry none.
    """

    def __init__(self, recipe: ReLAMRecipe) -> None:
        super().__init__()
        if recipe.model.relam is None:
            raise ValueError("the recipe's model.relam is null: there is no light adaptation to train")
        r, d = recipe.model.relam, recipe.discriminator
        self.generator = ReLAM(r.channels, r.blocks, r.reduction)
        self.discriminator = PatchDiscriminator(d.channels, d.layers, d.reduction)
        self.structure_weight, self.identity_weight = recipe.structure_weight, recipe.identity_weight
        self.structure_reduction = recipe.structure_reduction

    def forward(self, night: Tensor, day: Tensor) -> Losses:
        adapted = self.generator(night)
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        rated: Tensor = functional_call(self.discriminator, fixed, (adapted,))
        of_night, of_day = self.discriminator(adapted.detach()), self.discriminator(day)
        return {
            "adversarial": (rated - 1).square().mean(),
            "structure": self.structure_weight * (1 - self.similarity(adapted, night)),
            "identity": self.identity_weight * (self.generator(day) - day).abs().mean(),
            "discriminator": (of_night.square().mean() + (of_day - 1).square().mean()) / 2,
        }

    def similarity(self, adapted: Tensor, night: Tensor) -> Tensor:
        """Mean SSIM of two batches of images (Wang et al., 2004), at `structure_reduction` of their size."""
        if self.structure_reduction > 1:
            adapted, night = (F.avg_pool2d(x, self.structure_reduction) for x in (adapted, night))
        # SSIM subtracts the square of a mean from a mean of squares: half precision leaves only noise.
        with torch.autocast(adapted.device.type, enabled=False):
            return ssim(adapted.float(), night.float(), data_range=1.0)


def adaptation_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
    """See `LightAdaptation`."""
    return model(*batch)


def streams(recipe: ReLAMRecipe, data: Path) -> Unpaired:
    """Open the recipe's training images: crops of frames, or windows around hard classes."""
    sides: list[FrameStream | RegionStream] = []
    classes = recipe.model.classes
    hard = classes.ids_of(recipe.hard_classes)
    for offset, sources in enumerate((recipe.night, recipe.day)):
        seed = 2 * recipe.loop.seed + offset
        if recipe.level == "image":
            sides.append(FrameStream(sources, data, seed, classes, recipe.crop_hw, recipe.input_hw, recipe.scale))
        else:
            sides.append(RegionStream(sources, data, seed, classes, recipe.model.region_hw, hard))
    return Unpaired(*sides)


def load_relam(level: Level, checkpoint: Path) -> None:
    """Load the light adaptation in a checkpoint of this stage into a level.

    Raises FileNotFoundError, and ValueError for a checkpoint without one or with one of another size.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint; train that stage first, see docs/training.md")
    weights = load_weights(checkpoint)
    found = {k.removeprefix("generator."): v for k, v in weights.items() if k.startswith("generator.")}
    if not found:
        raise ValueError(f"{checkpoint} holds no light adaptation; expected a checkpoint of the stage relam")
    if {k: v.shape for k, v in level.relam.state_dict().items()} != {k: v.shape for k, v in found.items()}:
        raise ValueError(f"relam_from: {checkpoint} does not fit model.relam of the recipe; expected the same settings")
    level.relam.load_state_dict(found)


def train_mode(model: LightAdaptation, recipe: ReLAMRecipe) -> None:
    """Enter training mode."""
    model.train()


def train(recipe: ReLAMRecipe, data: Path, out: Path) -> None:
    """Run the stage, or continue it if `out` holds its checkpoint."""
    torch.manual_seed(recipe.loop.seed)
    model = LightAdaptation(recipe)
    train_mode(model, recipe)
    fit(model, adaptation_loss, streams(recipe, data), recipe.loop, out / "checkpoint.pt", recipe)


STAGE = TrainingStage(ReLAMRecipe, train)

if __name__ == "__main__":
    STAGE.main(__doc__)
