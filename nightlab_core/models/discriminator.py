# SPDX-License-Identifier: Apache-2.0
"""Classify patches of an image as day or night: the discriminator in ReLAM's adversarial training."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Image (B, 3, H, W) RGB float in 0..1 -> a score for every patch, (B, 1, h, w): 1 for day, 0 for night.

    The layers are CycleGAN's (Isola et al., 2017; Zhu et al., 2017): 4x4 convolutions, `layers` of them of stride 2.
    64 channels and 3 layers at a reduction of 1 are its size and see patches of 70x70 pixels. Spectral normalisation
    (Miyato et al., 2018) replaces instance normalisation, which would remove the brightness of a patch.
    Parameters: `channels` of the first layer; `reduction` by which the image is made smaller first.
    """

    def __init__(self, channels: int = 64, layers: int = 3, reduction: int = 1) -> None:
        super().__init__()
        if min(channels, layers, reduction) < 1:
            raise ValueError(f"channels, layers and reduction must be positive, got {channels}, {layers}, {reduction}")
        self.reduction = reduction
        widths = [3, *(channels * min(2**i, 8) for i in range(layers + 1))]
        strides = [2] * layers + [1]
        body: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], strides, strict=False):
            body += [spectral_norm(nn.Conv2d(before, after, 4, stride, 1)), nn.LeakyReLU(0.2, inplace=True)]
        self.body = nn.Sequential(*body, spectral_norm(nn.Conv2d(widths[-1], 1, 4, 1, 1)))

    def forward(self, image: Tensor) -> Tensor:
        small = F.avg_pool2d(image, self.reduction) if self.reduction > 1 else image
        return self.body(small * 2 - 1)
