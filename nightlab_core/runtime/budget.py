# SPDX-License-Identifier: Apache-2.0
"""Decide how many regions can be read before a frame's deadline, with costs that are learned while running."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

#: Measurements from which a cost is estimated: a few slow calls change nothing, a slower machine is known soon.
REMEMBERED = 9
#: Quantile of the measurements that is the cost of merging: a merge that takes longer makes the mask late, while a
#: region that takes longer is dropped.
MERGING_QUANTILE = 0.9
#: Refusals in a row after which one region is read all the same, since its cost may have fallen meanwhile.
RETRY_AFTER = 30


class LearnedCosts:
    """Milliseconds of a call for 1 to `largest` regions: for each number a quantile of the last measurements.

    One thread records the costs of a number at a time; any thread may estimate.
    """

    def __init__(self, largest: int, quantile: float = 0.5) -> None:
        self._quantile = quantile
        self._measured: list[deque[float]] = [deque(maxlen=REMEMBERED) for _ in range(largest)]
        self._cost_ms = [math.nan] * largest

    def record(self, number: int, ms: float) -> None:
        """Add the measured time of one call for `number` regions."""
        measured = self._measured[number - 1]
        measured.append(ms)
        self._cost_ms[number - 1] = sorted(measured)[int(self._quantile * (len(measured) - 1))]

    def estimate_ms(self, number: int) -> float:
        """Return the expected time of a call for `number` regions; 0 if nothing was measured.

        A number that was not measured lies on the line between its neighbours; the cost of none is 0.
        """
        known = [(0, 0.0), *((n, ms) for n, ms in enumerate(self._cost_ms, start=1) if not math.isnan(ms))]
        numbers, costs_ms = zip(*known, strict=True)
        if 0 < numbers[-1] < number:
            return costs_ms[-1] * number / numbers[-1]
        return float(np.interp(number, numbers, costs_ms))


class RegionBudget:
    """Select the regions that pay most for their time. Each pipeline has one, since it learns its camera's costs."""

    def __init__(self, reading: Sequence[LearnedCosts], largest: int) -> None:
        """Use the costs of reading, one for each size of a crop. A frame has at most `largest` regions."""
        self.reading = reading
        self.merging = LearnedCosts(largest, MERGING_QUANTILE)  #: of merging, by number of regions
        self._refusals = 0

    def select(
        self,
        gains: Sequence[float] | np.ndarray,
        left_ms: float,
        num_read: int = 0,
        sizes: Sequence[int] | np.ndarray | None = None,
    ) -> int:
        """Return how many of the remaining regions to read in the next call; 0 to read no more of them.

        Without a deadline that is all of them. Otherwise it is the number with the largest gain per millisecond of
        those that can be read and merged in time; one region, if no cost is known.

        Args:
            gains: predicted gain of each remaining region, in descending order. The pipeline gives hardness scores:
                only the ratios of gains count.
            left_ms: time left until the deadline; infinite without a deadline.
            num_read: regions of the frame that were read before, which must be merged as well.
            sizes: index of the size at which each remaining region is read; None if there is one size.
        """
        if math.isinf(left_ms) or not len(gains):
            return len(gains)
        best, best_rate = 0, -1.0
        at_size = np.eye(len(self.reading), dtype=int)[np.zeros(len(gains), int) if sizes is None else sizes]
        numbers = np.cumsum(at_size, axis=0).tolist()  # of regions of each size among the first 1, 2, ...
        for number, gain in enumerate(np.cumsum(gains).tolist(), start=1):
            cost_ms = sum(map(LearnedCosts.estimate_ms, self.reading, numbers[number - 1]))
            if cost_ms + self.merging.estimate_ms(num_read + number) > left_ms:
                continue
            rate = gain / cost_ms if cost_ms > 0 else math.inf
            if rate > best_rate:
                best, best_rate = number, rate
        self._refusals = 0 if best else self._refusals + 1
        if self._refusals > RETRY_AFTER and left_ms > 0:
            self._refusals = 0
            return 1
        return best

    def num_mergeable(self, num_read: int, left_ms: float) -> int:
        """Return how many of `num_read` regions can be merged in the time left."""
        if math.isinf(left_ms):
            return num_read
        fitting = (n for n in range(num_read, 0, -1) if self.merging.estimate_ms(n) <= left_ms)
        return next(fitting, 0) if left_ms >= 0 else 0
