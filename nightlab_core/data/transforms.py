# SPDX-License-Identifier: Apache-2.0
"""Training augmentation on numpy images. Every function takes a random generator, so that one seed decides all.

Images are uint8 (H, W, 3) BGR, labels uint8 (H, W) with 255 = unlabelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from nightlab_core.labels import IGNORE_ID

Pair = tuple[np.ndarray, np.ndarray]


def resize_pair(image: np.ndarray, labels: np.ndarray, size_hw: tuple[int, int]) -> Pair:
    """Resize both to (H, W): the image by area or bilinear, the labels by nearest neighbour."""
    size = (size_hw[1], size_hw[0])
    shrinks = size_hw[0] < image.shape[0]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image, cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)


def crop_pair(
    image: np.ndarray,
    labels: np.ndarray,
    size_hw: tuple[int, int],
    rng: np.random.Generator,
    wanted_ids: Sequence[int] = (),
) -> Pair:
    """Cut a random crop of (H, W); pixels outside the image are black and unlabelled.

    With `wanted_ids` the crop holds a random pixel of one of these labels, if there is one (rare class sampling: Hoyer
    et al., CVPR 2022).
    """
    height, width = size_hw
    bottom, right = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if bottom or right:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        labels = cv2.copyMakeBorder(labels, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IGNORE_ID)
    last_y, last_x = image.shape[0] - height, image.shape[1] - width
    y, x = int(rng.integers(last_y + 1)), int(rng.integers(last_x + 1))
    # Comparing for each id is ten times as fast as np.isin.
    wanted = np.flatnonzero(np.logical_or.reduce([labels == i for i in wanted_ids])) if len(wanted_ids) else ()
    if len(wanted):
        row, column = divmod(int(rng.choice(wanted)), labels.shape[1])
        y = int(np.clip(row - rng.integers(height), 0, last_y))
        x = int(np.clip(column - rng.integers(width), 0, last_x))
    return image[y : y + height, x : x + width], labels[y : y + height, x : x + width]


def scale_crop_flip(
    image: np.ndarray,
    labels: np.ndarray,
    size_hw: tuple[int, int],
    scale: float,
    rng: np.random.Generator,
    wanted_ids: Sequence[int] = (),
) -> Pair:
    """Resize by `scale`, crop to (H, W) at random, mirror half of the time, as in the paper; see `crop_pair`."""
    target = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    image, labels = crop_pair(*resize_pair(image, labels, target), size_hw, rng, wanted_ids)
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue at random, as in SSD and the paper's recipe."""
    x = image.astype(np.float32)
    x = x * rng.uniform(0.6, 1.4) + rng.uniform(-24, 24)
    hsv = cv2.cvtColor(np.clip(x, 0, 255).astype(np.uint8), cv2.COLOR_BGR2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-9, 9)) % 180
    hsv[..., 1] *= rng.uniform(0.6, 1.4)
    return cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2BGR)


def darken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darken a daylight image to that of a camera in little light.

    Linearise, lower the exposure by 1 to 5 stops, tint as lamps do, add shot and read noise, and quantise again.
    """
    linear = (image.astype(np.float32) / 255) ** 2.2
    linear *= 2.0 ** -rng.uniform(1, 5)
    linear *= np.asarray([rng.uniform(0.6, 1.1), rng.uniform(0.85, 1.05), rng.uniform(0.95, 1.3)], np.float32)
    electrons = rng.uniform(1500, 6000)
    noise = rng.standard_normal(linear.shape, np.float32)
    linear += noise * np.sqrt(linear / electrons + (rng.uniform(1, 5) / electrons) ** 2)
    gain = 2.0 ** rng.uniform(0, 2)
    return (np.clip(linear * gain, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)
