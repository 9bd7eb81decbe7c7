# SPDX-License-Identifier: Apache-2.0
"""Decode features with DeepLabV3+ (Chen et al., 2018): atrous pooling of coarse features, refined by fine ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nightlab_core.models.uper import conv_bn_relu

DETAIL_CHANNELS = 48  #: width of the fine features, small so that the coarse ones weigh more


class AtrousPooling(nn.Module):
    """Context at several dilations and of the whole image: (B, Cin, h, w) -> (B, channels, h, w)."""

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.point = conv_bn_relu(in_channels, channels, 1)
        self.atrous = nn.ModuleList(conv_bn_relu(in_channels, channels, 3, dilation=d) for d in dilations)
        # No normalisation: batch statistics of one pixel per image are noise.
        self.whole = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True))
        self.project = nn.Sequential(conv_bn_relu((2 + len(dilations)) * channels, channels, 1), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand(-1, -1, x.shape[2], x.shape[3])
        return self.project(torch.cat([self.point(x), *(branch(x) for branch in self.atrous), whole], 1))


class DeepLabHead(nn.Module):
    """Fine and coarse features, (B, C0, H0, W0) and (B, C1, H1, W1) -> logits (B, num_classes, H0, W0).

    `output_stride` is that of the coarse features; the dilations are the paper's, 6, 12 and 18 at 16 and twice those
    at 8.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, num_classes: int, output_stride: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        fine, coarse = in_channels
        self.pooling = AtrousPooling(coarse, channels, [d * 16 // output_stride for d in (6, 12, 18)], dropout)
        self.detail = conv_bn_relu(fine, DETAIL_CHANNELS, 1)
        self.refine = nn.Sequential(
            conv_bn_relu(DETAIL_CHANNELS + channels, channels, 3), conv_bn_relu(channels, channels, 3)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        fine, coarse = features
        context = F.interpolate(self.pooling(coarse), size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(self.refine(torch.cat([self.detail(fine), context], 1)))
