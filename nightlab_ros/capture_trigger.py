# SPDX-License-Identifier: Apache-2.0
"""Decide which frames are captured without a request. Imports no ROS."""

from __future__ import annotations

import time

from nightlab_core.runtime.pipeline import Result


class CaptureTrigger:
    """Tell when a frame is captured by itself: at night, with a low mean confidence, at most once in a period."""

    def __init__(self) -> None:
        self._last_s: float | None = None

    def is_due(self, result: Result, below_confidence: float, night_below: float, period_s: float) -> bool:
        """Return True if the result is to be captured now. `below_confidence` and `night_below` are 0..1."""
        if not below_confidence or result.light_level >= night_below:
            return False
        now_s = time.monotonic()
        if self._last_s is not None and now_s - self._last_s < period_s:
            return False
        if float(result.confidence.mean()) >= 255 * below_confidence:
            return False
        self._last_s = now_s
        return True
