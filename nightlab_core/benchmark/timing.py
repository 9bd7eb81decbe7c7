# SPDX-License-Identifier: Apache-2.0
"""Time calls: warm up, run in rounds, summarise with percentiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import numpy as np

#: Returns seconds from any fixed moment. Tests give a clock of their own.
Clock = Callable[[], float]
Key = TypeVar("Key")
#: Rounds that are run even if they take longer than the limit.
LEAST_RUNS = 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds of `runs` calls."""

    median_ms: float
    p95_ms: float
    p99_ms: float
    runs: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Timing:
        """Summarise times in milliseconds. Raises ValueError if there are none."""
        if not times_ms:
            raise ValueError("received no times, expected at least one")
        median, p95, p99 = (float(mark) for mark in np.percentile(times_ms, (50, 95, 99)))
        return cls(median, p95, p99, len(times_ms))


def time_in_turns(
    calls: Mapping[Key, Callable[[], object]],
    runs: int,
    warm_up: int,
    clock: Clock = perf_counter,
    limit_s: float | None = None,
) -> dict[Key, list[float]]:
    """Return the milliseconds of `runs` calls of each, after `warm_up` calls that are not counted.

    Every round runs each call once. Other work on the machine then slows all of them alike, and their ratios hold. No
    round starts after `limit_s` seconds, once `LEAST_RUNS` are done.
    """
    times_ms: dict[Key, list[float]] = {key: [] for key in calls}
    begin = clock()
    for turn in range(-warm_up, runs):
        if limit_s is not None and turn >= LEAST_RUNS and clock() - begin > limit_s:
            break
        for key, call in calls.items():
            start = clock()
            call()
            if turn >= 0:
                times_ms[key].append(1e3 * (clock() - start))
    return times_ms
