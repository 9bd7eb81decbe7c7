# SPDX-License-Identifier: Apache-2.0
"""Train a region level that sees the image level's probabilities: read frames once, then draw windows from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from rich.progress import track
from torch import Tensor

from nightlab_core.config import Settings
from nightlab_core.files import atomic_path
from nightlab_core.models.nightlab import NightLabSettings, probabilities_of, to_image
from nightlab_core.runtime import regions
from nightlab_core.runtime.bundle import sha256_of
from training.combine_checkpoints import load_part
from training.data import RegionStream, Samples, to_tensors

#: Windows that are drawn from a frame one after another; to draw and darken a frame takes longer than to cut windows.
WINDOWS_A_FRAME = 4


class ContextSettings(Settings):
    """Where the image level's probabilities come from."""

    image_level: str | tuple[str, ...]  #: its checkpoint, or several whose weights are averaged
    frames: int = Field(default=1200, ge=1)  #: draws of the sources that it reads


def read_contexts(
    settings: ContextSettings,
    model: NightLabSettings,
    samples: Samples,
    input_hw: tuple[int, int],
    out: Path,
) -> list[np.ndarray]:
    """Return the image level's probabilities in the first draws of `samples`: uint8 (h, w, C) each.

    They are kept in the folder `out` for the next run with the same draws and weights.
    """
    paths = (settings.image_level,) if isinstance(settings.image_level, str) else settings.image_level
    made_from = samples.sources, samples.seed, samples.classes.key, input_hw, [sha256_of(each) for each in paths]
    path = out / f"contexts_{sha256(repr(made_from).encode()).hexdigest()[:16]}_{settings.frames}.npz"
    if path.is_file():
        with np.load(path) as file:
            return [file[f"arr_{index}"] for index in range(settings.frames)]
    level = model.build_level("image").eval()
    load_part(level, settings.image_level, "image", model)
    found = []
    for index in track(range(settings.frames), "image level"):
        _, _, image, _ = samples.draw(index)
        size_hw = regions.network_size_hw(image.shape[:2], input_hw, level.segmenter.multiple)
        frame = torch.from_numpy(regions.resize_image(image, size_hw))[None]
        with torch.inference_mode():
            found.append(probabilities_of(level(to_image(frame)))[0].numpy())
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, *found)
    return found


class ContextStream(RegionStream):
    """Enlarged windows of the first draws of the sources, with the image level's probabilities in them."""

    def __init__(self, *args: Any, contexts: Sequence[np.ndarray], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.paste_share:
            raise ValueError("paste_share: pixels cannot be pasted where the image level's probabilities are read too")
        self.contexts = contexts
        self._frame = lru_cache(maxsize=2)(self.draw)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return image (3, h, w), labels (h, w) and probabilities (C, h', w') of a window."""
        number = int(np.random.default_rng((self.seed, index // WINDOWS_A_FRAME, 1)).integers(len(self.contexts)))
        _, sample, image, _ = self._frame(number)
        rng = np.random.default_rng((self.seed, index, 2))
        frame_hw = sample.labels.shape[0], sample.labels.shape[1]
        box = self.window(sample.labels, rng)
        crop, labels = self.cut(image, sample.labels, box)
        height, width = (side // regions.CONTEXT_STRIDE for side in self.region_hw)
        context = regions.crop_probabilities(self.contexts[number], box[None], frame_hw, (height, width))[0]
        if rng.random() < 0.5:
            crop, labels, context = crop[:, ::-1], labels[:, ::-1], context[:, ::-1]
        probabilities = torch.from_numpy(np.ascontiguousarray(context.transpose(2, 0, 1))).float() / 255
        return *to_tensors(crop, labels), probabilities
