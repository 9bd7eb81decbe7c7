# SPDX-License-Identifier: Apache-2.0
"""The segmenter of either level: any timm backbone, then UPerNet with deformable convolution."""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from nightlab_core.models.uper import Place, UPerHead


class Segmenter(nn.Module):
    """Image (B, 3, H, W) RGB float in 0..1 -> logits (B, num_classes, H / s, W / s), s the finest stride used.

    Args:
        backbone: a timm model name that supports `features_only`, for example "efficientnet_lite0" or
            "swin_base_patch4_window7_224" (NightLab-B).
        num_classes: channels of the logits.
        channels: width of the decoder; 64 for the lite form, 512 in the paper.
        strides: feature strides the decoder reads, finest first.
        deformable: places of deformable convolution, see `UPerHead`.
        pretrained: ask timm for ImageNet weights; needs a reachable hub.
        backbone_options: further keyword arguments of `timm.create_model`.

    H and W must be multiples of the backbone's coarsest stride; else ValueError names the size to pad to.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        channels: int = 64,
        strides: Sequence[int] = (8, 16, 32),
        deformable: Sequence[Place] = ("fpn", "head"),
        *,
        pretrained: bool = False,
        backbone_options: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            backbone, features_only=True, pretrained=pretrained, **(backbone_options or {})
        )
        info = self.backbone.feature_info
        reductions = list(info.reduction())
        if missing := [s for s in strides if s not in reductions]:
            raise ValueError(f"{backbone} has no features at strides {missing}; it has {reductions}")
        self.levels = [reductions.index(s) for s in strides]
        self.multiple = max(reductions)
        self.channels_last_features = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        self.head = UPerHead([info.channels()[i] for i in self.levels], channels, num_classes, deformable)
        config = self.backbone.pretrained_cfg if hasattr(self.backbone, "pretrained_cfg") else {}
        mean, std = config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225))
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if not torch.jit.is_tracing():
            height, width = image.shape[-2:]
            if height % self.multiple or width % self.multiple:
                padded = tuple(-(-side // self.multiple) * self.multiple for side in (height, width))
                raise ValueError(
                    f"image is {height}x{width}; expected multiples of {self.multiple}: pad or resize it to "
                    f"{padded[0]}x{padded[1]}"
                )
        features = self.backbone((image - self.mean) / self.std)
        if self.channels_last_features:
            features = [f.permute(0, 3, 1, 2).contiguous() for f in features]
        return self.head([features[i] for i in self.levels])
