# SPDX-License-Identifier: Apache-2.0
"""Segment an image with a timm backbone and a decoder: UPerNet with deformable convolution, or DeepLabV3+."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nightlab_core.models.backbone import Backbone
from nightlab_core.models.deeplab import DeepLabHead
from nightlab_core.models.uper import Place, UPerHead


def check_size(image: Tensor, multiple: int) -> None:
    """Raise ValueError unless the sides of an image (B, 3, H, W) are multiples; it names the size to pad to."""
    if torch.jit.is_tracing():
        return
    height, width = image.shape[-2:]
    if height % multiple or width % multiple:
        padded = tuple(-(-side // multiple) * multiple for side in (height, width))
        raise ValueError(
            f"image is {height}x{width}; expected multiples of {multiple}: pad or resize it to {padded[0]}x{padded[1]}"
        )


class Segmenter(nn.Module):
    """Image (B, 3, H, W) RGB float in 0..1 -> logits (B, num_classes, H / s, W / s), s the finest stride used.

    Args:
        backbone, stages, drop_path, pretrained: see `Backbone`.
        num_classes: channels of the logits.
        channels: width of the decoder; 64 for the lite form, 512 in the paper.
        strides: feature strides the decoder reads, finest first.
        deformable, detail_channels: see `UPerHead`.

    H and W must be multiples of the backbone's coarsest stride; else ValueError names the size to pad to.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        channels: int = 64,
        strides: Sequence[int] = (8, 16, 32),
        deformable: Sequence[Place] = ("fpn", "head"),
        detail_channels: int = 0,
        *,
        stages: int = 0,
        drop_path: float = 0.0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, strides, stages=stages, drop_path=drop_path, pretrained=pretrained)
        self.multiple = self.backbone.multiple
        self.head = UPerHead(self.backbone.channels, channels, num_classes, deformable, detail_channels=detail_channels)

    def load_pretrained(self) -> None:
        """Load ImageNet weights into the backbone: see `load_pretrained_weights`."""
        self.backbone.load_pretrained()

    def forward(self, image: Tensor) -> Tensor:
        check_size(image, self.multiple)
        return self.head(self.backbone(image))


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al., 2018): as `Segmenter`, with logits at a quarter of the image's size.

    Args:
        backbone, pretrained: see `Backbone`; it must be able to dilate its last stages, as timm's ResNets are.
        num_classes: channels of the logits.
        channels: width of the decoder, 256 in the paper.
        output_stride: of the coarse features, 8 or 16.
    """

    def __init__(
        self, backbone: str, num_classes: int, channels: int = 256, output_stride: int = 16, *, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, (4, output_stride), output_stride=output_stride, pretrained=pretrained)
        self.multiple = self.backbone.multiple
        self.head = DeepLabHead(self.backbone.channels, channels, num_classes, output_stride)

    def load_pretrained(self) -> None:
        """Load ImageNet weights into the backbone: see `load_pretrained_weights`."""
        self.backbone.load_pretrained()

    def forward(self, image: Tensor) -> Tensor:
        check_size(image, self.multiple)
        return self.head(self.backbone(image))
