# SPDX-License-Identifier: Apache-2.0
"""A small training in a process of its own, for tests that start several of them or kill one.

    python small_stage.py OUT BATCH_SIZE STEPS

The network is a convolution, batch normalisation and a convolution; the samples have between none and all of their
pixels labelled, so that a mean of the processes' means would be wrong. Every step is saved.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from nightlab_core.config import Settings
from training.loop import LoopSettings, Losses, Mean, fit


class Recipe(Settings):
    """What a stage's recipe has at least."""

    loop: LoopSettings


class Halves(Dataset[tuple[Tensor, Tensor]]):
    """Which half of a picture is brighter: noise (3, 8, 8), labels (8, 8) of 0 and 1, unlabelled rows of 255."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 8, 8, generator=generator)
        labels = (image.mean(0) > 0.5).long()
        labels[index % 9 :] = 255
        return image, labels


def network() -> nn.Module:
    """The network with the weights it starts from."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
    """Cross-entropy over the labelled pixels."""
    image, labels = batch
    total = F.cross_entropy(model(image), labels, ignore_index=255, reduction="sum")
    return {"cross_entropy": Mean(total, (labels != 255).sum())}


def train(out: Path, batch_size: int, steps: int) -> None:
    """Train in this process, and save every step to out/checkpoint.pt."""
    torch.set_num_threads(1)
    recipe = Recipe(
        loop=LoopSettings(
            steps=steps, batch_size=batch_size, learning_rate=0.02, warmup_steps=0, ema_decay=0.9,
            checkpoint_every=1, log_every=1, workers=0,
        )
    )  # fmt: skip
    fit(network(), loss_of, Halves(), recipe.loop, out / "checkpoint.pt", recipe)


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
