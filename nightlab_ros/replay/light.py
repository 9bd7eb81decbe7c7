# SPDX-License-Identifier: Apache-2.0
"""Bins of light level, the same in every report, so that two runs can be laid side by side."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LightBin:
    """Frames whose mean linear luminance (`runtime.light.light_level`, 0..1) is in [low, high)."""

    name: str
    low: float
    high: float

    def holds(self, light_level: float | None) -> bool:
        """False for a frame whose light is not known."""
        return light_level is not None and self.low <= light_level < self.high

    @property
    def span(self) -> str:
        """In words, with the limits that matter."""
        if self.low <= 0:
            return f"below {self.high:g}"
        return f"{self.low:g} and above" if self.high > 1 else f"{self.low:g} to {self.high:g}"


#: Of the dash-camera frames that these limits were chosen on, 95 % by night lie below 0.06 and all by day above 0.1.
LIGHT_BINS = (
    LightBin("very dark", 0.0, 0.015),
    LightBin("dark", 0.015, 0.03),
    LightBin("lit street", 0.03, 0.06),
    LightBin("dusk", 0.06, 0.12),
    LightBin("daylight", 0.12, 1.01),
)
#: The first three together.
DARK = LightBin("in the dark", 0.0, 0.06)
