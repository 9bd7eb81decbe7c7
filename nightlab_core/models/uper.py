# SPDX-License-Identifier: Apache-2.0
"""Decode features with UPerNet (Xiao et al., 2018), deformable in FPN and head (NightLab, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nightlab_core.models.deform import DeformConv2d

Place = Literal["fpn", "head"]


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, *, deformable: bool = False, dilation: int = 1
) -> nn.Sequential:
    """Convolution of stride 1 and same padding, batch normalisation, ReLU; `dilation` is of the plain convolution."""
    conv: nn.Module
    if deformable:
        conv = DeformConv2d(in_channels, out_channels, kernel_size)
    else:
        padding = dilation * (kernel_size // 2)
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _grid_pool(x: Tensor, bins: int) -> Tensor:
    """Average over a bins x bins grid.

    adaptive_avg_pool2d cannot be exported for a free size unless it is 1x1. A strided average of the enlarged map is
    equal where the size is divisible, and close to it elsewhere.
    """
    if bins == 1:
        return x.mean((2, 3), keepdim=True)
    enlarged = F.interpolate(x, size=(bins * 4, bins * 4), mode="bilinear", align_corners=False)
    return F.avg_pool2d(enlarged, 4)


class PyramidPooling(nn.Module):
    """Context at four scales of the coarsest feature map (Zhao et al., 2017): (B, Cin, h, w) -> (B, channels, h, w)."""

    def __init__(self, in_channels: int, channels: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.bins = tuple(bins)
        # No normalisation: batch statistics of one pixel per image are noise.
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True)) for _ in self.bins
        )
        self.bottleneck = conv_bn_relu(in_channels + len(self.bins) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        context = [_resize(branch(_grid_pool(x, b)), x) for b, branch in zip(self.bins, self.branches, strict=True)]
        return self.bottleneck(torch.cat([x, *context], 1))


class UPerHead(nn.Module):
    """Features, finest first, (B, Ci, Hi, Wi) each -> logits (B, num_classes, H0, W0) at the finest one's size.

    `deformable` names the places whose 3x3 convolutions are deformable: "fpn", "head", both or none (the ablation).
    With `detail_channels` the finest features stay out of the pyramid: they refine its enlarged output in one layer of
    that width, as DeepLabV3+'s decoder does. Thin objects such as poles keep their pixels, and the
    pyramid stays on the coarser grid.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        deformable: Sequence[Place] = ("fpn", "head"),
        dropout: float = 0.1,
        detail_channels: int = 0,
    ) -> None:
        super().__init__()
        if unknown := set(deformable) - {"fpn", "head"}:
            raise ValueError(f"deformable names {sorted(unknown)}; expected any of 'fpn', 'head'")
        self.detail_channels = detail_channels
        if detail_channels:
            self.refine = conv_bn_relu(in_channels[0] + channels, detail_channels, 3)
            in_channels = in_channels[1:]
        self.pyramid = PyramidPooling(in_channels[-1], channels)
        self.laterals = nn.ModuleList(conv_bn_relu(c, channels, 1) for c in in_channels[:-1])
        self.fpn = nn.ModuleList(
            conv_bn_relu(channels, channels, 3, deformable="fpn" in deformable) for _ in self.laterals
        )
        self.fuse = conv_bn_relu(channels * len(in_channels), channels, 3, deformable="head" in deformable)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(detail_channels or channels, num_classes, 1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        if not self.detail_channels:
            return self.classifier(self._fused(features))
        detail, *coarser = features
        return self.classifier(self.refine(torch.cat([detail, _resize(self._fused(coarser), detail)], 1)))

    def _fused(self, features: Sequence[Tensor]) -> Tensor:
        top = self.pyramid(features[-1])
        merged = [top]
        for lateral, feature in zip(reversed(self.laterals), reversed(features[:-1]), strict=True):
            side = lateral(feature)
            merged.insert(0, side + _resize(merged[0], side))
        smooth = [conv(m) for conv, m in zip(self.fpn, merged[:-1], strict=True)]
        levels = [*smooth, top]
        return self.fuse(torch.cat([_resize(level, levels[0]) for level in levels], 1))
