# SPDX-License-Identifier: Apache-2.0
"""Compute a deformable convolution in one of two exact forms, with the same weights.

`deform_conv` is torchvision's operator (ONNX `DeformConv`, opset 19 and later): fast in a GPU's training, in ONNX
Runtime and in OpenVINO. `grid_sample` samples the taps with `GridSample` and mixes them with a 1x1
convolution, the only form that TensorRT parses. Both read zero outside the image, as a zero-padded convolution does.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

DeformForm = Literal["deform_conv", "grid_sample"]


def sample_conv2d(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Deformable convolution of stride 1 and same padding by `grid_sample` and a 1x1 convolution.

    x (B, Cin, H, W), offset (B, 2 * k * k, H, W) as (dy, dx) a tap in pixels, weight (Cout, Cin, k, k),
    bias (Cout,) or None -> (B, Cout, H, W). Sampling always runs in float32: half precision is too coarse.
    """
    batch, channels, height, width = x.shape
    kernel = weight.shape[-1]
    device = x.device
    tap = torch.arange(kernel * kernel, device=device)
    tap_y = (torch.div(tap, kernel, rounding_mode="floor") - kernel // 2).float()
    tap_x = (tap % kernel - kernel // 2).float()
    rows = torch.arange(height, device=device).float()
    columns = torch.arange(width, device=device).float()
    shift = offset.float().reshape(batch, kernel * kernel, 2, height, width)
    y = shift[:, :, 0] + tap_y[:, None, None] + rows[:, None]
    x_ = shift[:, :, 1] + tap_x[:, None, None] + columns
    # Pixel centres in grid_sample's coordinates with align_corners=False, which also works for a side of one pixel.
    grid = torch.stack(((2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    grid = grid.reshape(batch, kernel * kernel * height, width, 2)
    taps = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    taps = taps.to(x.dtype).reshape(batch, channels * kernel * kernel, height, width)
    return F.conv2d(taps, weight.flatten(1)[:, :, None, None], bias)


class DeformConv2d(nn.Module):
    """A k x k deformable convolution of stride 1 whose offsets come from a plain convolution of the same input.

    Offsets start at zero, so that training starts from a plain convolution (Dai et al., 2017). Input and output are
    (B, C, H, W). `form` selects the computation; the weights are the same.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = False) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; expected an odd number, so that the output keeps its size")
        self.form: DeformForm = "deform_conv"
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.offset = nn.Conv2d(in_channels, 2 * kernel_size**2, kernel_size, padding=kernel_size // 2)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        offset = self.offset(x)
        if self.form == "grid_sample":
            return sample_conv2d(x, offset, self.weight, self.bias)
        # torchvision's CPU operator has no bfloat16 kernel, and sampling needs float32 anyway.
        with torch.autocast(x.device.type, enabled=False):
            out = deform_conv2d(
                x.float(), offset.float(), self.weight.float(), self.bias, padding=self.kernel_size // 2
            )
        return out.to(x.dtype)


def set_deform_form(model: nn.Module, form: DeformForm) -> None:
    """Put every deformable convolution of a model into one form, in place."""
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            module.form = form
