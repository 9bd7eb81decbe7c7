# SPDX-License-Identifier: Apache-2.0
"""Lines of the log that repeat. Imports no ROS."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Line:
    """A line that was logged."""

    text: str  #: as it came last
    logged_s: float
    repetitions: int = 0  #: since then


class DistinctLines:
    """Log each distinct line at once, and once a minute the number of its repetitions.

    Beyond `limit` lines in a minute, lines that differ only in their numbers count as one. Beyond twice as many all
    further ones count as one: the first of them is logged, and then their number with the last of them.
    """

    def __init__(
        self,
        log: Callable[[str], object],
        limit: int = 30,
        period_s: float = 60.0,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`log` receives the lines; `steady_s` returns the seconds of a clock that never jumps."""
        self._log, self._limit, self._period_s, self._steady_s = log, limit, period_s, steady_s
        self._lock = threading.Lock()
        self._seen: dict[str, _Line] = {}  # by key; "" holds those beyond the limits

    def add(self, text: str) -> bool:
        """Log a line, or count it if it was logged before. Return True if it was logged."""
        self.flush()
        with self._lock:
            key = self._key(text)
            known = self._seen.get(key)
            if known is None:
                self._seen[key] = _Line(text, self._steady_s())
            else:
                known.text, known.repetitions = text, known.repetitions + 1
        if known is None:
            self._log(text if key else f"{text} (further lines that differ are only counted)")
        return known is None

    def flush(self, everything: bool = False) -> None:
        """Log the repetitions of the lines that were logged a minute ago; `everything`: of all lines, as at an end."""
        now_s, counts = self._steady_s(), []
        with self._lock:
            for key, line in list(self._seen.items()):
                passed_s = now_s - line.logged_s
                if passed_s < self._period_s and not everything:
                    continue
                if line.repetitions:
                    kind = "such" if key else "different"
                    counts.append(f"{line.text} ({line.repetitions} more {kind} lines in {passed_s:.0f} s)")
                    self._seen[key] = _Line(line.text, now_s)
                else:
                    del self._seen[key]
        for count in counts:
            self._log(count)

    def _key(self, text: str) -> str:
        if text in self._seen or len(self._seen) < self._limit:
            return text
        without_numbers = re.sub(r"\d+", "#", text)
        if without_numbers in self._seen or len(self._seen) < 2 * self._limit:
            return without_numbers
        return ""
