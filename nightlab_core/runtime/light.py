# SPDX-License-Identifier: Apache-2.0
"""How much light a frame holds: the number by which accuracy curves and day/night gates are drawn."""

from __future__ import annotations

import numpy as np

_codes = np.arange(256) / 255.0
#: sRGB code 0..255 -> linear light 0..1 (IEC 61966-2-1).
SRGB_TO_LINEAR = np.where(_codes <= 0.04045, _codes / 12.92, ((_codes + 0.055) / 1.055) ** 2.4).astype(np.float32)
#: Rec. 709 luminance weights in BGR order.
LUMINANCE_BGR = np.array([0.0722, 0.7152, 0.2126])

_SAMPLES = 64  #: rows and columns of the grid that is looked at


def light_level(frame_bgr: np.ndarray) -> float:
    """Mean linear-light luminance, 0 (black) to 1 (white), of a frame uint8 (H, W, 3) BGR.

    It looks at a grid of at most 64 x 64 pixels at their cells' centres, which takes 0.1 ms at any size of frame.
    """
    rows, columns = (_grid(side) for side in frame_bgr.shape[:2])
    sample = frame_bgr[rows[:, None], columns]
    return float(SRGB_TO_LINEAR[sample].mean(axis=(0, 1), dtype=np.float64) @ LUMINANCE_BGR)


def _grid(side: int) -> np.ndarray:
    count = min(side, _SAMPLES)
    return ((np.arange(count) + 0.5) * side / count).astype(np.intp)
