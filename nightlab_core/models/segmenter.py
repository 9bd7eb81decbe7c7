# SPDX-License-Identifier: Apache-2.0
"""The segmenter of either level: any timm backbone, then UPerNet with deformable convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nightlab_core.models.backbone import Backbone
from nightlab_core.models.uper import Place, UPerHead


class Segmenter(nn.Module):
    """Image (B, 3, H, W) RGB float in 0..1 -> logits (B, num_classes, H / s, W / s), s the finest stride used.

    Args:
        backbone, stages, pretrained: see `Backbone`.
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
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, strides, stages=stages, pretrained=pretrained)
        self.multiple = self.backbone.multiple
        self.head = UPerHead(self.backbone.channels, channels, num_classes, deformable, detail_channels=detail_channels)

    def forward(self, image: Tensor) -> Tensor:
        if not torch.jit.is_tracing():
            height, width = image.shape[-2:]
            if height % self.multiple or width % self.multiple:
                padded = tuple(-(-side // self.multiple) * self.multiple for side in (height, width))
                raise ValueError(
                    f"image is {height}x{width}; expected multiples of {self.multiple}: pad or resize it to "
                    f"{padded[0]}x{padded[1]}"
                )
        return self.head(self.backbone(image))
