# SPDX-License-Identifier: Apache-2.0
"""Extract features with any timm backbone from images in 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn

from nightlab_core.models.pretrained import free_size, load_pretrained_weights


class Backbone(nn.Module):
    """Image (B, 3, H, W) RGB float in 0..1 -> features [(B, Ci, H / si, W / si)] at the given strides, in their order.

    Args:
        name: a timm model that supports `features_only`, for example "tf_efficientnet_lite0" or
            "swin_base_patch4_window7_224".
        strides: which features are returned.
        stages: keep only this many stages of an EfficientNet; the last ones hold most of its weights. The feature of a
            stride is then that of the last stage kept. 0 keeps all.
        output_stride: 8 or 16: later stages are dilated instead of reduced, and the feature of that stride is the last
            one's. 0 leaves the backbone as it is.
        drop_path: fraction of the residual branches that training drops at the deepest block (Huang et al., 2016).
        pretrained: start from ImageNet weights, see `load_pretrained_weights`.

    The image is normalised with the mean and deviation of the backbone's own training.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        strides: Sequence[int],
        *,
        stages: int = 0,
        output_stride: int = 0,
        drop_path: float = 0.0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        options: dict[str, Any] = free_size(name)
        if output_stride:
            options["output_stride"] = output_stride
        if drop_path:
            options["drop_path_rate"] = drop_path
        self.net = timm.create_model(name, features_only=True, **options)
        info: Any = self.net.feature_info
        reductions: list[int] = info.reduction()
        channels: dict[int, int] = dict(zip(reductions, info.channels(), strict=True))
        if stages:
            channels = self._keep_stages(name, stages)
        if missing := [s for s in strides if s not in channels]:
            raise ValueError(f"{name} has no features at strides {missing}; it has {list(channels)}")
        # Dilated stages share a stride, and the last of them counts. Dropped stages leave one feature per stride.
        ends = list(channels) if stages else reductions
        self.indices = [len(ends) - 1 - ends[::-1].index(s) for s in strides]
        self.channels = [channels[s] for s in strides]
        self.multiple = max(channels)
        self.features_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        statistics = getattr(self.net, "pretrained_cfg", None) or {}
        for key, default in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            value = torch.tensor(statistics.get(key, default)).reshape(1, 3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        if pretrained:
            self.load_pretrained()

    def _keep_stages(self, name: str, stages: int) -> dict[int, int]:
        """Drop later stages; return stride -> channels of what is left, each stride with its last stage kept."""
        net: Any = self.net
        if not isinstance(self.net, EfficientNetFeatures) or not 1 <= stages <= len(net.blocks):
            raise ValueError(f"stages is {stages} for {name}; expected 0, or 1 to the stages of an EfficientNet")
        del net.blocks[stages:]
        ends: dict[int, int] = {}  # stride -> its last stage, counted from 1
        for feature in net.feature_info.get_dicts():
            if max(ends.values(), default=0) < stages:
                ends[feature["reduction"]] = min(feature["stage"], stages)
        net._stage_out_idx = {stage: index for index, stage in enumerate(ends.values())}
        last = {stride: net.blocks[stage - 1][-1] for stride, stage in ends.items()}
        return {s: (b.conv_pwl if hasattr(b, "conv_pwl") else b.conv_pw).out_channels for s, b in last.items()}

    def load_pretrained(self) -> None:
        """Load ImageNet weights: see `load_pretrained_weights`."""
        load_pretrained_weights(self.net, self.name)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.net((image - self.mean) / self.std)
        features = [features[i] for i in self.indices]
        return [f.permute(0, 3, 1, 2).contiguous() for f in features] if self.features_last else features
