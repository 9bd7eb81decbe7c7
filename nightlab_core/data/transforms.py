# SPDX-License-Identifier: Apache-2.0
"""Training augmentation on numpy images. Every function takes a random generator, so that one seed decides all.

Images are uint8 (H, W, 3) BGR, labels uint8 (H, W) with 255 = unlabelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import cv2
import numpy as np

from nightlab_core.labels import IGNORE_ID

Pair = tuple[np.ndarray, np.ndarray]

#: A uniformly random byte -> a sample of the standard normal distribution; much faster than the generator's own.
_BYTE_TO_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)


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
    """Change a daylight image into one of a camera at night.

    Linearise, with more contrast than by day; lower the exposure by 1.5 to 4 stops and further towards the top; tint as
    lamps do; add lamps with halos to most images; add shot and read noise; quantise again.
    """
    height, width = image.shape[:2]
    gamma = 2.2 * rng.uniform(1.0, 1.5)  # few lamps light a scene less evenly than the sky
    stops = rng.uniform(1.5, 4)
    gain = 2.0 ** rng.uniform(0, min(2.0, 0.6 * stops))  # below the loss of exposure: only lamps become brighter
    linear: np.ndarray = cv2.LUT(_rows_of(image), ((np.arange(256) / 255) ** gamma).astype(np.float32))
    linear *= np.tile(2.0**-stops * _cast(rng), width)
    # Headlights light the road, and the sky is black.
    towards_top = np.linspace(1, 0, height) ** rng.uniform(0.8, 1.6)
    linear *= (2.0 ** -(rng.uniform(2, 7) * towards_top)).astype(np.float32)[:, None]
    if rng.random() < 0.8:
        _add_lamps(linear.reshape(image.shape), 1 / gain, rng)
    electrons = rng.uniform(1500, 6000)
    # In place, because the pages of a new array take longer than the arithmetic.
    deviation = linear * np.float32(1 / electrons)
    deviation += np.float32((rng.uniform(1, 5) / electrons) ** 2)
    cv2.sqrt(deviation, dst=deviation)
    noise: np.ndarray = cv2.LUT(np.frombuffer(rng.bytes(linear.size), np.uint8).reshape(linear.shape), _BYTE_TO_NORMAL)
    noise *= deviation
    linear += noise
    np.maximum(linear, 0, out=linear)
    cv2.pow(linear, 1 / 2.2, dst=linear)
    codes = cv2.convertScaleAbs(linear, alpha=255 * gain ** (1 / 2.2))
    return codes.reshape(image.shape)


def _rows_of(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) as (H, 3 W), which numpy multiplies by rows several times as fast."""
    return np.ascontiguousarray(image).reshape(len(image), -1)


def _cast(rng: np.random.Generator) -> np.ndarray:
    """Draw the colour of a light, float32 (3,) BGR: from sodium lamps over neutral to bluish LEDs, green or purple."""
    temperature, tint = rng.uniform(-1.2, 0.7), rng.uniform(-0.15, 0.15)
    return np.float32(2.0) ** np.asarray([temperature, tint, -0.5 * temperature], np.float32)


def _add_lamps(linear: np.ndarray, saturation: float, rng: np.random.Generator) -> None:
    """Add up to 14 lamps to a linear image, float32 (H, W, 3) BGR, in place: saturated spots with halos.

    A halo's light falls with the third power of the distance. `saturation`: the least light that is quantised to 255.
    """
    height, width = linear.shape[:2]
    count = int(rng.integers(1, 15))
    x, y = width * rng.random(count), height * rng.beta(5, 8, count)  # most are somewhat above the middle
    radius = height * np.exp(rng.uniform(np.log(0.003), np.log(0.02), count))
    strength = saturation * np.exp(rng.uniform(np.log(0.04), np.log(0.6), count))
    reach = radius * rng.uniform(2, 6, count)
    # No red or green: labels stay as they are, so coloured lamps would train traffic lights away.
    colours = np.stack([_cast(rng) for _ in range(count)])
    # Halos are smooth, so that an eighth of the resolution is enough for them.
    rows, columns = np.arange(4, height + 4, 8), np.arange(4, width + 4, 8)
    squared = (rows[:, None] - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2
    halos = strength[:, None, None] / (1 + squared / reach[:, None, None] ** 2) ** 1.5
    glow = np.tensordot(halos, colours, axes=(0, 0)).astype(np.float32)
    cv2.add(linear, cv2.resize(glow, (width, height)), dst=linear)
    for place in range(count):
        core = tuple((3 * saturation * colours[place]).tolist())
        centre = (round(16 * x[place]), round(16 * y[place]))  # in sixteenths of a pixel, as the radius
        cv2.circle(linear, centre, round(16 * radius[place]), core, -1, cv2.LINE_8, 4)
