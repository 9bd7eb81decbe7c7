# SPDX-License-Identifier: Apache-2.0
"""Define NightLab in torch: two segmentation levels and the detector between them.

The three methods `image_level`, `hardness` and `region_level` are the three networks of a bundle: export writes them to
ONNX, and `nightlab_core.models.engine` runs them in torch. `nightlab_core.runtime.pipeline` combines them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from nightlab_core.classes import DEFAULT, ClassSetField, load_class_set
from nightlab_core.config import Settings
from nightlab_core.models.deform import DeformForm, set_deform_form
from nightlab_core.models.detector import RegionDetector
from nightlab_core.models.library import LibrarySegmenter
from nightlab_core.models.output_labels import OutputLabels
from nightlab_core.models.relam import ReLAM
from nightlab_core.models.segmenter import DeepLabV3Plus, Segmenter
from nightlab_core.models.uper import Place

#: A probability below it counts as this one, so that its logarithm is finite: half of the least byte of `context`.
LEAST_PROBABILITY = 1 / 512


class ReLAMSettings(Settings):
    """See `ReLAM`."""

    channels: int = Field(default=8, ge=1)
    blocks: int = Field(default=2, ge=1)
    reduction: int = Field(default=4, ge=1)


class SegmenterSettings(Settings):
    """The segmenter of a level. For the fields see `Segmenter`, `DeepLabV3Plus` and `LibrarySegmenter`."""

    architecture: Literal["upernet", "deeplabv3plus", "library"] = "upernet"
    backbone: str = "tf_efficientnet_lite0"
    stages: int = Field(default=6, ge=0)
    channels: int = Field(default=64, ge=8)
    strides: tuple[int, ...] = (8, 16, 32)
    deformable: tuple[Place, ...] = ("fpn", "head")
    detail_channels: int = Field(default=0, ge=0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    output_stride: Literal[8, 16] = 16  #: of deeplabv3plus
    library_model: str = "Unet"  #: of "library": its name in segmentation-models-pytorch

    def build(self, num_classes: int) -> Segmenter | DeepLabV3Plus | LibrarySegmenter:
        """Build a segmenter with new weights: image (B, 3, H, W) RGB in 0..1 -> logits (B, num_classes, h, w)."""
        if self.architecture == "deeplabv3plus":
            return DeepLabV3Plus(self.backbone, num_classes, self.channels, self.output_stride)
        if self.architecture == "library":
            return LibrarySegmenter(self.library_model, self.backbone, num_classes)
        return Segmenter(
            self.backbone, num_classes, self.channels, self.strides, self.deformable, self.detail_channels,
            stages=self.stages, drop_path=self.drop_path,
        )  # fmt: skip


class DetectorSettings(Settings):
    """See `RegionDetector`."""

    backbone: str = "tf_efficientnet_lite0"
    stages: int = Field(default=5, ge=0)
    channels: int = Field(default=64, ge=8)
    strides: tuple[int, ...] = (8, 16)
    anchor_sizes: tuple[tuple[int, ...], ...] = ((16, 32), (64, 128))
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    reduction: int = Field(default=2, ge=1)
    max_boxes: int = Field(default=100, ge=1, le=300)
    hdm_channels: int = Field(default=0, ge=0)


class Level(nn.Module):
    """One level: light adaptation, then segmentation. Image (B, 3, H, W) RGB float in 0..1 -> logits (B, C, h, w)."""

    def __init__(self, num_classes: int, segmenter: SegmenterSettings, relam: ReLAMSettings | None) -> None:
        super().__init__()
        self.relam: nn.Module = ReLAM(relam.channels, relam.blocks, relam.reduction) if relam else nn.Identity()
        self.segmenter = segmenter.build(num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.segmenter(self.relam(image))


def read_region(
    level: nn.Module, crops: Tensor, *context: Tensor, ids: Tensor | None, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Run a region level on bytes, see `NightLab.region_level`; `to_labels` for `ids`, `mix` for `share`."""
    logits = level(to_image(crops))
    for probabilities in context:
        logits = mix(logits, probabilities.permute(0, 3, 1, 2).float() / 255, share)
    return to_labels(logits, (crops.shape[1], crops.shape[2]), ids)


def mix(logits: Tensor, context: Tensor, share: float) -> Tensor:
    """Mix a region level's probabilities with the image level's. Return logits (B, C, h, w).

    They are the weighted mean of both levels' log-probabilities, so that the level that is more certain counts for more
    (logarithmic opinion pool; Genest and Zidek, Statistical Science 1986).
    logits: (B, C, h, w); context: (B, C, h', w'), the image level's probabilities in the windows; share: of the region
    level's own, 0..1.
    """
    size_hw = (logits.shape[2], logits.shape[3])
    if context.shape[2:] != size_hw:
        context = F.interpolate(context, size_hw, mode="bilinear", align_corners=False)
    own, other = (one.clamp_min(LEAST_PROBABILITY).log() for one in (logits.float().softmax(1), context))
    return share * own + (1 - share) * other


def to_image(frames: Tensor) -> Tensor:
    """Convert camera bytes (B, H, W, 3) uint8 BGR to an image (B, 3, H, W) RGB float32 in 0..1."""
    return frames.permute(0, 3, 1, 2).float().flip(1) / 255


def to_labels(logits: Tensor, size_hw: tuple[int, int], ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Convert logits (B, C, h, w) to labels and confidence, uint8 (B, H, W) each, where H is a multiple of h.

    They are those of the bilinearly enlarged logits. Confidence is 255 x the top probability. A label is the channel's
    number, or its entry in int64 ids (C,). Raises ValueError if H is no multiple of h.
    """
    logits = logits.float()
    # The same shift of all logits of a pixel leaves the softmax unchanged and keeps exp() from overflowing.
    logits = logits - logits.amax(1, keepdim=True)
    # Rows are enlarged after columns, in parts: OpenVINO takes 0.6 of the time of enlarging both at once.
    wide = F.interpolate(logits, size=(logits.shape[2], size_hw[1]), mode="bilinear", align_corners=False)
    factor = int(size_hw[0] // logits.shape[2])
    if factor * logits.shape[2] != size_hw[0]:
        raise ValueError(
            f"received {size_hw[0]} rows of labels, expected a multiple of the {logits.shape[2]} of logits"
        )
    rows = [_top(x) for x in _enlarged_rows(wide, factor)]
    labels, confidence = (torch.stack(maps, 2).flatten(1, 2) for maps in zip(*rows, strict=True))
    if ids is not None:
        labels = ids[labels]
    # Bytes come last: TensorRT can only cast to them.
    return labels.to(torch.uint8), (confidence * 255 + 0.5).to(torch.uint8)


def _enlarged_rows(x: Tensor, factor: int) -> Iterator[Tensor]:
    """Yield every `factor`-th row of the bilinear enlargement of x (B, C, h, w) to (B, C, factor * h, w).

    The k-th tensor, (B, C, h, w), has the rows k, k + factor and so on.
    """
    above, below = torch.cat([x[:, :, :1], x[:, :, :-1]], 2), torch.cat([x[:, :, 1:], x[:, :, -1:]], 2)
    for k in range(factor):
        offset = (k + 0.5) / factor - 0.5
        yield (1 - abs(offset)) * x + abs(offset) * (above if offset < 0 else below)


def _top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the top channel, int64, and its probability, (B, h, w) each, of logits (B, C, h, w) of at most 0."""
    odds = logits.exp()
    top, channel = odds.topk(1, dim=1)  # one operator in the export; max() would export two
    return channel[:, 0], top[:, 0] / odds.sum(1)


def probabilities_of(logits: Tensor) -> Tensor:
    """Convert logits (B, C, h, w) to 255 x probability, uint8 (B, h, w, C)."""
    return (logits.float().softmax(1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)


class NightLab(nn.Module):
    """The two levels and the detector (NightLab, CVPR 2022).

    Args:
        image, region: the two levels; the region level is started from the image level's weights.
        detector: proposes where the region level should look.
        region_hw: (h, w) of the enlarged crops.
        region_ids: class id of each of the region level's channels, 255 for "other"; None: channel k is class k.
        region_share: see `NightLabSettings`.
    """

    region_ids: Tensor | None

    def __init__(
        self,
        image: Level,
        detector: RegionDetector,
        region: Level,
        region_hw: tuple[int, int],
        region_ids: Sequence[int] | None = None,
        region_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.image, self.detector, self.region, self.region_hw = image, detector, region, region_hw
        self.region_share = region_share
        ids = None if region_ids is None else torch.tensor(region_ids)
        self.register_buffer("region_ids", ids, persistent=False)

    def image_level(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Segment a frame (1, H, W, 3) uint8 BGR. Return labels and confidence, uint8 (1, H, W) each.

        If the region level's result is a mixture of both, return the probabilities as well, see `probabilities_of`.
        """
        logits = self.image(to_image(frame))
        labels = to_labels(logits, (frame.shape[1], frame.shape[2]))
        return (*labels, probabilities_of(logits)) if self.region_share < 1 else labels

    def hardness(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Find hard regions of a frame (1, H, W, 3) uint8 BGR: boxes (1, N, 4) xyxy in 0..1 and scores (1, N)."""
        return self.detector(to_image(frame))

    def region_level(self, crops: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """Segment crops (K, h, w, 3) uint8 BGR. Return labels and confidence, uint8 (K, h, w) each.

        For a mixture of both levels it takes the image level's probabilities in the windows, uint8 (K, h', w', C).
        Label 255 keeps the image level's label.
        """
        return read_region(self.region, crops, *context, ids=self.region_ids, share=self.region_share)

    def set_deform_form(self, form: DeformForm) -> None:
        """Put every deformable convolution into one of its two exact forms."""
        set_deform_form(self, form)


class NightLabSettings(Settings):
    """The architecture of a NightLab. A checkpoint contains it."""

    num_classes: int | None = Field(default=None, exclude=True)  #: in checkpoints of earlier versions
    classes: ClassSetField = Field(default_factory=lambda: load_class_set(DEFAULT))  #: key or path of a class set
    segmenter: SegmenterSettings = SegmenterSettings()
    region_segmenter: SegmenterSettings | None = None  #: null: the image level's
    region_classes: tuple[str, ...] = ()  #: classes of the region level beside "other"; empty: all classes
    relam: ReLAMSettings | None = ReLAMSettings()
    detector: DetectorSettings = DetectorSettings()
    region_hw: tuple[int, int] = (256, 256)
    #: Weight of the region level's own log-probabilities in its result, beside the image level's; 1: its own alone.
    region_share: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _classes_agree(self) -> NightLabSettings:
        if self.num_classes not in (None, len(self.classes)):
            raise ValueError(f"num_classes is {self.num_classes}, but {self.classes.key} has {len(self.classes)}")
        try:
            self.outputs("region")
        except KeyError as error:
            raise ValueError(f"region_classes: {error.args[0]}") from None
        if self.region_context and self.region_classes:
            raise ValueError("a region_share below 1 needs a region level of all classes; leave region_classes out")
        return self

    @property
    def region_context(self) -> bool:
        """Whether the region level reads the image level's probabilities."""
        return self.region_share < 1

    def outputs(self, level: Literal["image", "region"], groups: Sequence[tuple[int, ...]] = ()) -> OutputLabels:
        """Return the meaning of a level's channels; for `groups` see `OutputLabels`."""
        return OutputLabels.of(self.classes, self.region_classes if level == "region" else (), groups)

    def build_level(self, level: Literal["image", "region"] = "image") -> Level:
        """Build a level with new weights."""
        segmenter = self.segmenter if level == "image" else self.region_segmenter or self.segmenter
        return Level(len(self.outputs(level)), segmenter, self.relam)

    def build_detector(self) -> RegionDetector:
        """Build a detector with new weights."""
        d = self.detector
        return RegionDetector(
            d.backbone, d.channels, d.strides, d.anchor_sizes, d.aspect_ratios,
            stages=d.stages, reduction=d.reduction, max_boxes=d.max_boxes, hdm_channels=d.hdm_channels,
        )  # fmt: skip

    def build(self) -> NightLab:
        """Build a NightLab with new weights."""
        image, region = self.build_level("image"), self.build_level("region")
        region_ids = self.outputs("region").ids if self.region_classes else None
        return NightLab(image, self.build_detector(), region, self.region_hw, region_ids, self.region_share)
