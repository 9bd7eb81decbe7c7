# SPDX-License-Identifier: Apache-2.0
"""Train the segmenter of the image level or the region level.

python -m training.stages.segmenter config/train/lite_image.yaml --data DATA --out OUT
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor, nn
from torch.nn import functional as F

from nightlab_core.config import Settings
from nightlab_core.labels import IGNORE_ID
from nightlab_core.models.backbone import Backbone
from nightlab_core.models.deform import set_deform_form
from nightlab_core.models.library import LibrarySegmenter
from nightlab_core.models.nightlab import Level, NightLabSettings
from nightlab_core.models.output_labels import OutputLabels
from training.checkpoint import read
from training.combine_checkpoints import load_part, shift_logits
from training.command import TrainingStage
from training.data import FrameStream, RegionStream, Stream
from training.distributed import is_first_process
from training.loop import LoopSettings, Losses, Mean, fit, load_weights
from training.sources import SourceSettings, label_groups
from training.stages.relam import load_relam


class SegmenterRecipe(Settings):
    """A recipe of this stage, one YAML file."""

    model: NightLabSettings
    level: Literal["image", "region"]
    loop: LoopSettings
    sources: tuple[SourceSettings, ...]
    input_hw: tuple[int, int] = (480, 640)  #: working size of the image network; its area is what counts
    crop_hw: tuple[int, int] = (352, 480)
    scale: tuple[float, float] = (0.6, 1.8)  #: random scale, relative to the working size
    hard_classes: tuple[str, ...] = ()  #: classes that crops and the region level's windows are cut around
    hard_share: float = 0.0  #: share of the image level's crops that are cut around a hard class
    paste_classes: tuple[str, ...] = ()  #: classes pasted from one crop, or window, into another
    paste_share: float = 0.0  #: share of the crops, or windows, that get pasted pixels
    window_margin: tuple[float, float] = (0.05, 0.6)  #: least and largest context around a window, as `region_margin`
    instance_share: float = Field(default=0.25, ge=0, le=1)  #: share of the windows that hold a single instance
    #: Weight of a pixel of a class in the loss; 1 for classes that are not named.
    class_weights: dict[str, float] = Field(default_factory=dict)
    lovasz_weight: float = Field(default=0.0, ge=0)  #: of the Lovasz softmax loss beside the cross-entropy
    loss_stride: int = Field(default=2, ge=1)  #: the loss uses every n-th pixel of every n-th row
    frozen_stages: int = 2  #: leading backbone stages that keep their ImageNet weights
    frozen_statistics: bool = (
        True  #: the backbone's normalisation keeps its statistics; use it for batches of 8 or less
    )
    #: Checkpoint with the first weights, or several whose weights are averaged; empty: ImageNet's.
    start_from: str | tuple[str, ...] = ""
    relam_from: str = ""  #: checkpoint of `training.stages.relam` for the light adaptation; empty: it starts as it is
    compile: bool = False  #: compile the network first: on a CPU two minutes, then a sixth less time a step


def backbone_of(level: Level) -> Backbone:
    """Return the backbone of a level, to freeze it. Raises ValueError for a library's network."""
    if isinstance(level.segmenter, LibrarySegmenter):
        raise ValueError("a library's network cannot be frozen; set frozen_stages: 0 and frozen_statistics: false")
    return level.segmenter.backbone


def freeze(backbone: Backbone, stages: int, statistics: bool = True) -> None:
    """Fix the stem and the leading stages of an EfficientNet backbone, and the statistics of its normalisations.

    statistics: of all normalisations, or only of those in the fixed stages.

    A few images a batch are too few to train either, and the leading stages are most of a CPU's backward pass.
    """
    net: Any = backbone.net
    if stages and not hasattr(net, "conv_stem"):
        raise ValueError(
            f"frozen_stages is {stages}; only the leading stages of an EfficientNet can be kept: set it to 0"
        )
    fixed = (net.conv_stem, net.bn1, *net.blocks[:stages]) if stages else ()
    for part in fixed:
        part.requires_grad_(False)
    for part in (net,) if statistics else fixed:
        for module in part.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def resolve_ambiguous(logits: Tensor, labels: Tensor, outputs: OutputLabels) -> Tensor:
    """Resolve ambiguous targets (B, H, W) to labels below C, or 255; see `OutputLabels.ambiguous`.

    Such a label becomes the likeliest of its classes by the logits (B, C, H, W). The mask shows the one likeliest
    class of all: a cyclist whose probability is split among rider, motorcycle and bicycle would lose to the person.
    """
    for k, members in enumerate(outputs.ambiguous, start=len(outputs)):
        likeliest = torch.tensor(members, device=labels.device)[logits[:, members].argmax(1)]
        labels = torch.where(labels == k, likeliest, labels)
    return labels


def loss_weights(classes: dict[str, float], outputs: OutputLabels) -> Tensor:
    """Return the weight of every target, (C + ambiguous,): 1 by default, an ambiguous one its classes' least."""
    weight = torch.ones(len(outputs))
    for name, value in classes.items():
        if name not in outputs.names:
            raise KeyError(f"class_weights names {name!r}; the network distinguishes {', '.join(outputs.names)}")
        weight[outputs.names.index(name)] = value
    return torch.cat([weight, *(weight[list(members)].min()[None] for members in outputs.ambiguous)])


def at_pixels(logits: Tensor, size_hw: tuple[int, int], stride: int) -> Tensor:
    """Sample logits (B, C, h, w) of an image of size (H, W) at every `stride`-th pixel of every `stride`-th row.

    Equal to logits enlarged to (H, W) and subsampled, without the large tensor. Enlarged to half the size, they would
    belong to the corners between four pixels, and every mask would be shifted by half a pixel.
    """
    rows, columns = ((2 * torch.arange(0, n, stride, device=logits.device) + 1) / n - 1 for n in size_hw)
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    grid = places.to(logits).expand(len(logits), -1, -1, -1)
    return F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)


def segmentation_loss(
    model: nn.Module,
    batch: tuple[Tensor, ...],
    weight: Tensor,
    outputs: OutputLabels,
    lovasz_weight: float = 0.0,
    stride: int = 2,
) -> Losses:
    """Pixel-wise cross-entropy on every `stride`-th pixel of every `stride`-th row, unlabelled pixels left out; and the
    Lovasz softmax loss (Berman et al., CVPR 2018), which stands for the IoU itself, on a quarter of these.

    Neighbours have the same result, and logits of every class at full size are a CPU's largest tensors. `weight` is
    that of `loss_weights`; the mean is over pixels, so that a heavy class adds to the loss and takes nothing away.
    """
    image, labels = batch
    logits = model(image.contiguous(memory_format=torch.channels_last))
    logits = at_pixels(logits.float(), (labels.shape[1], labels.shape[2]), stride)
    labels = torch.tensor(outputs.targets, device=labels.device)[labels[:, ::stride, ::stride]]
    settled = resolve_ambiguous(logits.detach(), labels, outputs)
    known = labels != IGNORE_ID
    costs = F.cross_entropy(logits, settled, ignore_index=IGNORE_ID, reduction="none")
    total = (costs * weight[labels.where(known, 0)]).sum()
    losses: dict[str, Tensor | Mean] = {"cross_entropy": Mean(total, known.sum())}
    if lovasz_weight:
        lovasz = LovaszLoss("multiclass", ignore_index=IGNORE_ID)(logits[..., ::2, ::2], settled[:, ::2, ::2])
        losses["lovasz"] = lovasz_weight * lovasz.sum()  # a batch without labels gives an empty tensor
    return losses


def start(model: nn.Module, checkpoint: Path, level: str) -> None:
    """Load the weights of a stage's checkpoint, or of one level of a whole NightLab's.

    A part that the checkpoint lacks, or has in another shape, keeps its fresh weights and is named. The offsets that a
    bundle added to a region level's logits are removed, since they were chosen for weights without them. A
    normalisation's statistics that are not finite, which give a channel without output, are reset. Raises
    FileNotFoundError, and ValueError for a checkpoint that does not fit or whose weights are not finite.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint; train that stage first, see docs/training.md")
    state, weights = read(checkpoint), load_weights(checkpoint)
    added: dict[str, float] = {}
    if any(key.startswith(f"{level}.") for key in weights):
        weights = {k.removeprefix(f"{level}."): v for k, v in weights.items() if k.startswith(f"{level}.")}
        added = state.get("card", {}).get("region_offsets", {}) if level == "region" else {}
    own = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise ValueError(f"{checkpoint} holds no weight that fits this model; was it trained with another recipe?")
    fresh = sorted({k.rsplit(".", 1)[0] for k in own.keys() - fitting.keys()})
    if fresh:
        _print_once(f"{checkpoint} lacks {', '.join(fresh)}: fresh weights")
    for key in (k for k, v in fitting.items() if not torch.isfinite(v).all()):
        if not key.endswith(("running_mean", "running_var")):
            raise ValueError(f"{checkpoint}: {key} holds numbers that are not finite; start from another checkpoint")
        _print_once(f"{checkpoint}: {key} holds numbers that are not finite, which are reset")
        fitting[key] = torch.where(torch.isfinite(fitting[key]), fitting[key], own[key])
    model.load_state_dict({**own, **fitting})
    if added and not any(name.startswith("segmenter.") for name in fresh):
        names = NightLabSettings.model_validate(state["settings"], strict=False).outputs("region").names
        shift_logits(model.get_submodule("segmenter"), names, {name: -value for name, value in added.items()})


def _print_once(text: str) -> None:
    if is_first_process():
        print(text)


def train_mode(level: Level, recipe: SegmenterRecipe) -> None:
    """Enter training mode, except for the parts that the recipe keeps fixed."""
    level.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.frozen_stages or recipe.frozen_statistics:
        freeze(backbone_of(level), recipe.frozen_stages, recipe.frozen_statistics)


def _stream(recipe: SegmenterRecipe, data: Path) -> Stream:
    """Return the samples that a level is trained on."""
    classes, seed = recipe.model.classes, recipe.loop.seed
    hard, paste = classes.ids_of(recipe.hard_classes), classes.ids_of(recipe.paste_classes)
    if recipe.level == "image":
        return FrameStream(
            recipe.sources, data, seed, classes, recipe.crop_hw, recipe.input_hw, recipe.scale,
            hard, recipe.hard_share, paste, recipe.paste_share,
        )  # fmt: skip
    return RegionStream(
        recipe.sources, data, seed, classes, recipe.model.region_hw, hard,
        paste_ids=paste, paste_share=recipe.paste_share, margin=recipe.window_margin,
        instance_share=recipe.instance_share,
    )  # fmt: skip


def load_first_weights(model: Level, recipe: SegmenterRecipe) -> None:
    """Load the weights that training starts from. Raises as `start`, or as `load_part` for the mean of several."""
    if isinstance(recipe.start_from, tuple):
        load_part(model, recipe.start_from, recipe.level, recipe.model)
    elif recipe.start_from:
        start(model, Path(recipe.start_from), recipe.level)
    else:
        model.segmenter.load_pretrained()
    if recipe.relam_from:
        load_relam(model, Path(recipe.relam_from))


def train(recipe: SegmenterRecipe, data: Path, out: Path) -> None:
    """Run the stage, or continue it if `out` holds its checkpoint."""
    torch.manual_seed(recipe.loop.seed)
    model = recipe.model.build_level(recipe.level)
    classes = recipe.model.classes
    outputs = recipe.model.outputs(recipe.level, label_groups(recipe.sources, classes))
    load_first_weights(model, recipe)
    # torchvision's operator is several times slower than grid_sample in a CPU's backward pass.
    set_deform_form(model, "deform_conv" if torch.cuda.is_available() else "grid_sample")
    train_mode(model, recipe)
    if recipe.compile:
        model.compile()
    weight = loss_weights(recipe.class_weights, outputs)
    stream = _stream(recipe, data)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
        on_device = weight.to(batch[0].device)
        return segmentation_loss(model, batch, on_device, outputs, recipe.lovasz_weight, recipe.loss_stride)

    fit(model, loss, stream, recipe.loop, out / "checkpoint.pt", recipe)


STAGE = TrainingStage(SegmenterRecipe, train)

if __name__ == "__main__":
    STAGE.main(__doc__)
