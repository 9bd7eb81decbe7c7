# SPDX-License-Identifier: Apache-2.0
"""Read a frame at several scales, mirrored or window by window, when accuracy counts more than time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from nightlab_core.config import Settings
from nightlab_core.models.nightlab import to_image
from nightlab_core.runtime import regions as rg


class TestTime(Settings):
    """Readings of a frame, whose probabilities are averaged. By default it is read once and whole."""

    __test__ = False  # not a test, whatever pytest makes of the name

    scales: tuple[PositiveFloat, ...] = Field(default=(1.0,), min_length=1)  #: of the network's working size
    flip: bool = False  #: read the mirror image too
    window_hw: tuple[PositiveInt, PositiveInt] | None = None  #: read windows of this size, not the whole
    stride: float = Field(default=2 / 3, gt=0, le=1)  #: from one window to the next, as a part of its sides

    def check_bundle(self, path: Path) -> float:
        """Return the scale at which a bundle's image level reads a frame. Raises ValueError for anything else."""
        if len(self.scales) > 1 or self != TestTime(scales=self.scales):
            raise ValueError(f"{path} is a bundle, which reads a frame once and whole; the rest needs a checkpoint")
        return self.scales[0]

    @model_validator(mode="after")
    def _no_scale_twice(self) -> TestTime:
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales are {self.scales}; expected each once")
        return self


@torch.inference_mode()
def probabilities(
    model: nn.Module, frame_bgr: np.ndarray, input_hw: tuple[int, int], multiple: int, test_time: TestTime
) -> Tensor:
    """Compute class probabilities (C, H, W), at the frame's own size, of a frame uint8 (H, W, 3) BGR.

    model: image (1, 3, H, W) RGB in 0..1 -> logits (1, C, h, w). `input_hw` is its working size, of which the area
    counts; both sides of what it is given are multiples of `multiple`. Logits are enlarged, not labels.
    """
    device = next(model.parameters()).device
    total: Tensor | None = None
    for scale in test_time.scales:
        area_hw = (round(input_hw[0] * scale), round(input_hw[1] * scale))
        size_hw = rg.network_size_hw(frame_bgr.shape[:2], area_hw, multiple)
        image = to_image(torch.from_numpy(rg.resize_image(frame_bgr, size_hw))[None]).to(device)
        for flipped in (False, True) if test_time.flip else (False,):
            seen = image.flip(-1) if flipped else image
            if test_time.window_hw is None:
                logits = model(seen).float()
            else:
                logits = slide(model, seen, test_time.window_hw, test_time.stride, multiple)
            logits = logits.flip(-1) if flipped else logits
            logits = F.interpolate(logits, size=frame_bgr.shape[:2], mode="bilinear", align_corners=False)
            odds = logits[0].softmax(0)
            total = odds if total is None else total + odds
    assert total is not None  # there is at least one scale
    return total / total.sum(0)


def slide(model: nn.Module, image: Tensor, window_hw: tuple[int, int], stride: float, multiple: int) -> Tensor:
    """Compute logits (1, C, H, W) of an image (1, 3, H, W), the mean over all windows that hold a pixel.

    Windows are rounded up to `multiple` and never larger than the image; the last of a row ends at the image's edge.
    """
    image_hw = image.shape[-2:]
    sides = [min(side, -(-window // multiple) * multiple) for side, window in zip(image_hw, window_hw, strict=True)]

    tops, lefts = (_starts(side, window, stride) for side, window in zip(image_hw, sides, strict=True))
    total: Tensor | None = None
    count = image.new_zeros(image_hw)
    for top in tops:
        for left in lefts:
            place = np.s_[..., top : top + sides[0], left : left + sides[1]]
            logits = F.interpolate(model(image[place]).float(), size=tuple(sides), mode="bilinear", align_corners=False)
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], *image_hw)
            total[place] += logits
            count[place] += 1
    assert total is not None  # there is at least one window
    return total / count


def _starts(side: int, window: int, stride: float) -> list[int]:
    step = max(1, int(window * stride))
    return sorted({*range(0, side - window, step), side - window})
