# SPDX-License-Identifier: Apache-2.0
"""Lines of the log that repeat. Imports no ROS."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable


class DistinctLines:
    """Pass each distinct line at once, then at most once a minute with the number of repetitions.

    Beyond `limit` lines in a minute, lines that differ only in their numbers count as one, and beyond twice as many all
    further ones do.
    """

    def __init__(self, limit: int = 10, period_s: float = 60.0, steady_s: Callable[[], float] = time.monotonic) -> None:
        """`steady_s` returns the seconds of a clock that never jumps."""
        self._limit, self._period_s, self._steady_s = limit, period_s, steady_s
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, int]] = {}  # when a line was passed, and its repetitions since

    def line(self, text: str) -> str | None:
        """Return the line to log, or None if it was passed less than a minute ago."""
        now_s = self._steady_s()
        with self._lock:
            key = self._key(text)
            passed_s, repetitions = self._seen.get(key, (-math.inf, 0))
            if now_s - passed_s < self._period_s:
                self._seen[key] = (passed_s, repetitions + 1)
                return None
            self._seen = {key: seen for key, seen in self._seen.items() if now_s - seen[0] < self._period_s}
            self._seen[key] = (now_s, 0)
        return f"{text} ({repetitions} more such lines in {now_s - passed_s:.0f} s)" if repetitions else text

    def _key(self, text: str) -> str:
        if text in self._seen or len(self._seen) < self._limit:
            return text
        without_numbers = re.sub(r"\d+", "#", text)
        if without_numbers in self._seen or len(self._seen) < 2 * self._limit:
            return without_numbers
        return ""
