# SPDX-License-Identifier: Apache-2.0
"""Fit the temperature of a level's logits (Guo et al., ICML 2017), which makes its confidence calibrated.

Softmax of logits / T is less confident than that of the logits if T > 1, and more confident if T < 1. Labels stay the
same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nightlab_core.data.hard_regions import hard_regions
from nightlab_core.data.transforms import resize_pair
from nightlab_core.labels import IGNORE_ID
from nightlab_core.models.checkpoint import ModelCard, manifest_of
from nightlab_core.models.nightlab import Level, NightLab, NightLabSettings, to_image
from nightlab_core.runtime import regions as rg

LevelName = Literal["image", "region"]
LEVELS: tuple[LevelName, ...] = ("image", "region")
#: Limits of the search, and the number of its steps: each leaves 0.62 of the range of log T.
_LEAST, _MOST, _STEPS = 0.1, 10.0, 24


@dataclass(frozen=True)
class Temperature:
    """The temperature of a level, and its mean negative log likelihood per pixel in nats, without and with it."""

    value: float
    nll_before: float
    nll_after: float


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """Fit the temperature, between 0.1 and 10, that minimises the negative log likelihood.

    Takes logits float (N, C) and labels int64 (N,), 0 to C - 1. Raises ValueError for no pixel.
    """
    if not len(labels):
        raise ValueError("received no labelled pixel, expected some to fit a temperature to")
    logits = logits.double()

    def nll(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), labels))

    # The likelihood is convex in 1 / T, so that a golden section search finds the only minimum.
    low, high, golden = float(np.log(_LEAST)), float(np.log(_MOST)), (5**0.5 - 1) / 2
    for _ in range(_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if nll(left) < nll(right) else (left, high)
    best = (low + high) / 2
    return Temperature(float(np.exp(best)), nll(0.0), nll(best))


def fit_temperatures(
    model: NightLab,
    settings: NightLabSettings,
    card: ModelCard,
    frames: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    margin: float = 0.2,
    pixels_per_image: int = 2000,
    seed: int = 0,
) -> dict[LevelName, Temperature]:
    """Fit a temperature to each level on labelled frames that it was not trained on.

    Args:
        model, settings, card: as `load_checkpoint` returns them.
        frames: images uint8 (H, W, 3) BGR and labels uint8 (H, W), ids of the model's classes or 255.
        margin: context around the regions of the hard classes, as the pipeline's `region_margin`.
        pixels_per_image: number of random labelled pixels of each frame and each region.
        seed: of the random pixels.

    A level is left out if no pixel is labelled for it.
    """
    rng = np.random.default_rng(seed)
    file = manifest_of(model, settings, card).engines.image
    hard_ids = settings.classes.ids_of(card.hard_classes)
    channels = {level: np.asarray(settings.outputs(level).targets, np.uint8) for level in LEVELS}
    found: dict[LevelName, list[tuple[Tensor, Tensor]]] = {level: [] for level in LEVELS}
    model.eval()
    for image, labels in frames:
        resized = rg.resize_image(image, file.network_hw(labels.shape))
        found["image"].append(_draw(model.image, resized, channels["image"][labels], pixels_per_image, rng))
        for crop, crop_labels in _regions(image, labels, hard_ids, settings.region_hw, margin):
            drawn = _draw(model.region, crop, channels["region"][crop_labels], pixels_per_image, rng)
            found["region"].append(drawn)
    fitted: dict[LevelName, Temperature] = {}
    for level in LEVELS:
        if sum(len(labels) for _, labels in found[level]):
            logits, drawn_labels = (torch.cat(parts) for parts in zip(*found[level], strict=True))
            fitted[level] = fit_temperature(logits, drawn_labels)
    return fitted


def _regions(
    image: np.ndarray, labels: np.ndarray, hard_ids: Sequence[int], region_hw: tuple[int, int], margin: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut and resize the regions around the hard classes, and their labels."""
    boxes = hard_regions(labels, hard_ids)
    height, width = region_hw
    for left, top, right, bottom in rg.context_boxes(boxes, labels.shape, margin, width / height):
        yield resize_pair(image[top:bottom, left:right], labels[top:bottom, left:right], region_hw)


@torch.inference_mode()
def _draw(
    level: Level, image: np.ndarray, channels: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return the logits, (n, C), and labels, (n,), of at most `count` random labelled pixels of an image."""
    places = np.flatnonzero(channels != IGNORE_ID)
    places = rng.choice(places, min(count, len(places)), replace=False)
    logits = level(to_image(torch.from_numpy(np.ascontiguousarray(image))[None])).float()
    size = (channels.shape[0], channels.shape[1])
    enlarged = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].flatten(1)
    return enlarged[:, places].T, torch.from_numpy(channels.ravel()[places].astype(np.int64))
