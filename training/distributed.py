# SPDX-License-Identifier: Apache-2.0
"""Start several processes that train as one, and compute batch statistics over all of them.

`torchrun --nproc-per-node N -m training.stages.STAGE ...` trains as one process with N times the batch would: the
samples are the same, losses are means over all processes' pixels, and normalisation sees all processes' images.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed.nn.functional as collective
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn


def start_fabric(precision: str) -> Fabric:
    """Start one process on one device, or join those that torchrun started. On a CPU "16-mixed" is "bf16-mixed"."""
    processes = int(os.environ.get("WORLD_SIZE", 1)) if torch.distributed.is_torchelastic_launched() else 1
    fabric = Fabric(
        accelerator="auto",
        strategy="ddp" if processes > 1 else "auto",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if processes > 1 else 1,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)) if processes > 1 else 1,
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    if isinstance(precision_plugin := fabric.strategy.precision, MixedPrecision):
        precision_plugin.__class__ = _AutocastOnly
    return fabric


class _AutocastOnly(MixedPrecision):
    """Mixed precision by autocast alone, which casts the inputs of single operators.

    Lightning's casts every input of a model, also boxes in pixels: beyond 256, bfloat16 has only every second pixel,
    beyond 512 every fourth.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def is_first_process() -> bool:
    """Return whether this process writes: it is the only one, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0 or not torch.distributed.is_torchelastic_launched()


def synchronise_batch_norm(model: nn.Module, fabric: Fabric) -> None:
    """Change every batch normalisation in training mode, in place, to take its statistics over all processes.

    On a GPU it is torch's SyncBatchNorm, which has no CPU form; `ReducedBatchNorm2d` is one. Parameters, keys, modes
    and the activations that timm builds into its normalisations stay. A normalisation in evaluation mode keeps its
    fixed statistics in both.
    """
    if fabric.world_size == 1:
        return
    if fabric.device.type != "cpu":
        convert_sync_batchnorm(model)
        return
    reduced = {nn.BatchNorm2d: ReducedBatchNorm2d, BatchNormAct2d: ReducedBatchNormAct2d}
    for module in model.modules():
        if type(module) in reduced:
            module.__class__ = reduced[type(module)]


class ReducedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of (B, C, H, W) over the images of all processes, on any device."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = collective.all_reduce(values.new_tensor(values.numel() / values.shape[1]))
        # Two passes: a mean of squares less the square of the mean loses digits where the mean is large.
        mean = collective.all_reduce(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = collective.all_reduce(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
                momentum = 1 / float(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)
        out = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)


class ReducedBatchNormAct2d(ReducedBatchNorm2d, BatchNormAct2d):
    """timm's normalisation with its activation, over the images of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return BatchNormAct2d.forward(self, x)
        return self.act(self.drop(super().forward(x)))
