# SPDX-License-Identifier: Apache-2.0
"""Write small labelled bags for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nightlab_core.data.bags.write import BagWriter, Packing, StorageName
from nightlab_core.labels import IGNORE_ID

IMAGES, LABELS = "/camera/image_raw", "/camera/labels"
FRAME_ID = "front"
START_NS, STEP_NS = 5_000_000_000, 100_000_000


def make_frames(count: int, size_hw: tuple[int, int] = (48, 64), seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return `count` noise images, uint8 (H, W, 3) BGR, with label maps, uint8 (H, W).

    Labels are Cityscapes ids, most of which the tiny bundle predicts correctly; the first column is 255.
    """
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        image = random.integers(0, 256, (*size_hw, 3), np.uint8)
        labels = np.where(random.random(size_hw) < 0.7, image[..., 1] // 14, random.integers(0, 19, size_hw, np.uint8))
        labels[:, 0] = IGNORE_ID
        frames.append((image, labels.astype(np.uint8)))
    return frames


def write_tiny_bag(
    path: Path,
    frames: list[tuple[np.ndarray, np.ndarray]],
    *,
    storage: StorageName = "mcap",
    packing: Packing = "none",
    labelled: bool = True,
    classes: str | None = "cityscapes19",
    step_ns: int = STEP_NS,
) -> Path:
    """Write the frames, `step_ns` apart, and return `path`."""
    with BagWriter(path, storage, classes) as bag:
        for index, (image, labels) in enumerate(frames):
            stamp_ns = START_NS + index * step_ns
            # images are recorded 1 ms after their stamp, label maps 2 ms after it
            bag.image(IMAGES, image, stamp_ns, FRAME_ID, time_ns=stamp_ns + 1_000_000, packing=packing)
            if labelled:
                label_packing: Packing = "none" if packing == "none" else "png"
                bag.image(LABELS, labels, stamp_ns, FRAME_ID, time_ns=stamp_ns + 2_000_000, packing=label_packing)
    return path
