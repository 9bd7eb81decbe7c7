# SPDX-License-Identifier: Apache-2.0
"""Adapt the light of an image with ReLAM, a residual image generator: I' = I + L (NightLab, CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1), nn.GroupNorm(1, out_channels), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ReLAM(nn.Module):
    """Light adaptation: image (B, 3, H, W) RGB float in 0..1 -> adapted image of the same shape and range.

    Light changes slowly over an image, so the light map L is computed at 1/`reduction` of the image's size and
    enlarged, and the image keeps its edges. `channels` and `blocks` set the generator's size; 8 and 2 with
    a reduction of 4 serve a CPU, 64 and 9 with a reduction of 1 are the size of a CycleGAN generator.
    L starts at zero: an untrained module returns the image.
    """

    def __init__(self, channels: int = 8, blocks: int = 2, reduction: int = 4) -> None:
        super().__init__()
        if min(channels, blocks, reduction) < 1:
            raise ValueError(f"channels, blocks and reduction must be positive, got {channels}, {blocks}, {reduction}")
        self.reduction = reduction
        self.encoder = nn.Sequential(
            _block(3, channels), _block(channels, 2 * channels, 2), _block(2 * channels, 4 * channels, 2)
        )
        self.body = nn.Sequential(*(_Residual(4 * channels) for _ in range(blocks)))
        self.light = nn.Conv2d(4 * channels, 3, 3, 1, 1)
        for parameter in self.light.parameters():
            nn.init.zeros_(parameter)

    def light_map(self, image: Tensor) -> Tensor:
        """L, (B, 3, H, W) in -1..1, of an image (B, 3, H, W) RGB in 0..1."""
        small = F.avg_pool2d(image, self.reduction, ceil_mode=True) if self.reduction > 1 else image
        light = torch.tanh(self.light(self.body(self.encoder(small * 2 - 1))))
        return F.interpolate(light, size=image.shape[-2:], mode="bilinear", align_corners=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image + self.light_map(image)).clamp(0, 1)
