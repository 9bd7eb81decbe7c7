# SPDX-License-Identifier: Apache-2.0
"""Train the segmenter of either level: `python -m training.segmenter config/train/lite_image.yaml --data D --out O`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nightlab_core.config import Settings, load_yaml
from nightlab_core.labels import CITYSCAPES19, IGNORE_ID
from nightlab_core.models.backbone import Backbone
from nightlab_core.models.deform import set_deform_form
from nightlab_core.models.nightlab import NightLabSettings
from nightlab_core.models.pretrained import load_packaged_weights
from training.data import FrameStream, RegionStream, SourceSettings
from training.loop import LoopSettings, Losses, fit


class SegmenterRecipe(Settings):
    """A recipe of this stage, one YAML file."""

    model: NightLabSettings
    level: Literal["image", "region"]
    loop: LoopSettings
    sources: tuple[SourceSettings, ...]
    input_hw: tuple[int, int] = (480, 640)  #: working size of the image network; its area is what counts
    crop_hw: tuple[int, int] = (352, 480)
    scale: tuple[float, float] = (0.6, 1.8)  #: random scale round the working size
    hard_classes: tuple[str, ...] = ()  #: what the region level's windows are cut round
    hard_weight: float = 1.0  #: how much a pixel of a hard class counts in the loss
    frozen_stages: int = 2  #: leading backbone stages that keep their ImageNet weights
    start_from: str = ""  #: checkpoint whose weights are taken; empty: ImageNet's


def freeze(backbone: Backbone, stages: int) -> None:
    """Fix the stem and the leading stages of an EfficientNet backbone, and the statistics of all its normalisations.

    A few images a batch are too few for either, and the leading stages are most of a CPU's backward pass.
    """
    net: Any = backbone.net
    if stages:
        for part in (net.conv_stem, net.bn1, *net.blocks[:stages]):
            part.requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def segmentation_loss(model: nn.Module, batch: tuple[Tensor, Tensor], weight: Tensor | None = None) -> Losses:
    """Pixel-wise cross-entropy on every second pixel of every second row, unlabelled pixels left out.

    Neighbours hold the same answer, and logits of every class at full size are a CPU's largest tensors. `weight`,
    float (C,), is how much a true pixel of each class counts.
    """
    image, labels = batch
    labels = labels[:, ::2, ::2]
    logits = model(image.contiguous(memory_format=torch.channels_last))
    logits = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels, weight, ignore_index=IGNORE_ID, reduction="sum")
    return {"cross_entropy": total / (labels != IGNORE_ID).sum().clamp(min=1)}


def train(recipe: SegmenterRecipe, data: Path, out: Path) -> None:
    """Run the stage, or go on with it where `out` holds its checkpoint."""
    torch.manual_seed(recipe.loop.seed)
    model = recipe.model.build_level()
    if recipe.start_from:
        model.load_state_dict(torch.load(recipe.start_from, map_location="cpu", weights_only=True)["model"])
    else:
        load_packaged_weights(model.segmenter.backbone.net, recipe.model.segmenter.backbone)
    # torchvision's operator is several times slower than grid_sample in a CPU's backward pass.
    set_deform_form(model, "deform_conv" if torch.cuda.is_available() else "grid_sample")
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze(model.segmenter.backbone, recipe.frozen_stages)
    hard = [CITYSCAPES19.id_of(name) for name in recipe.hard_classes]
    weight = torch.ones(recipe.model.num_classes)
    weight[hard] = recipe.hard_weight
    stream: FrameStream | RegionStream
    if recipe.level == "image":
        stream = FrameStream(recipe.sources, data, recipe.loop.seed, recipe.crop_hw, recipe.input_hw, recipe.scale)
    else:
        stream = RegionStream(recipe.sources, data, recipe.loop.seed, recipe.model.region_hw, hard)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
        return segmentation_loss(model, batch, weight.to(batch[0].device))

    fit(model, loss, stream, recipe.loop, out / "checkpoint.pt", recipe.model_dump(mode="json"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="YAML recipe, see config/train")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; an unfinished run goes on")
    arguments = parser.parse_args()
    train(load_yaml(arguments.recipe, SegmenterRecipe), arguments.data, arguments.out)


if __name__ == "__main__":
    main()
