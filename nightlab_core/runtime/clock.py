# SPDX-License-Identifier: Apache-2.0
"""The clock of the pipeline, and the times of a frame's stages by it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter


class Clock:
    """A clock that never jumps. A test replaces it."""

    def now_s(self) -> float:
        """Return seconds since an arbitrary moment."""
        return perf_counter()

    def wait(self, condition: threading.Condition, seconds: float) -> bool:
        """Wait for a notification of a condition that the caller holds. Return False after `seconds` without one."""
        return condition.wait(None if math.isinf(seconds) else seconds)


class StageTimes:
    """Milliseconds of each stage of a frame; 0 if it did not run."""

    def __init__(self, clock: Clock, stages: Iterable[str]) -> None:
        self.ms = dict.fromkeys(stages, 0.0)
        self._clock = clock

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start_s = self._clock.now_s()
        yield
        self.ms[stage] += 1e3 * (self._clock.now_s() - start_s)
