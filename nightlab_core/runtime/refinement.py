# SPDX-License-Identifier: Apache-2.0
"""The lower path of one frame, as the pipeline's two threads share it: the worker fills it, the caller closes it."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np

from nightlab_core.runtime.budget import RegionBudget
from nightlab_core.runtime.clock import Clock, StageTimes
from nightlab_core.runtime.regions import Regions

log = logging.getLogger(__name__)

STAGES = ("hardness", "crop", "region")


class Outcome(IntEnum):
    """What happened to a hard region."""

    NOT_CHOSEN = 0  #: beyond `max_regions`, or below the score threshold
    READ = 1  #: read by the region engine and merged
    LEFT_OUT = 2  #: not started, because it could not have been in time
    LATE = 3  #: started, but not ready to be merged by the deadline


@dataclass(frozen=True)
class Findings:
    """Everything that the lower path contributes to a frame."""

    boxes_xyxy: np.ndarray  #: float32 (N, 4), frame pixels, in descending score
    scores: np.ndarray  #: float32 (N,)
    outcomes: np.ndarray  #: uint8 (N,): `Outcome` of each box
    regions: Regions | None  #: those to merge; None if there are none
    hardness_late: bool  #: True if the boxes were not known in time, so that there are none


NOTHING_FOUND = Findings(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.uint8), None, False)


class Refinement:
    """Progress of the lower path in one frame."""

    def __init__(self, clock: Clock, deadline_ms: float) -> None:
        """Start the frame's budget now. `deadline_ms` 0: no deadline."""
        self.stages = StageTimes(clock, STAGES)
        self._clock = clock
        self._due_s = clock.now_s() + deadline_ms / 1e3 if deadline_ms else math.inf
        self._changed = threading.Condition()
        self._boxes, self._scores = NOTHING_FOUND.boxes_xyxy, NOTHING_FOUND.scores
        self._outcomes = NOTHING_FOUND.outcomes
        self._parts: list[Regions] = []
        self._proposed = self._image_level_done = self._ended = self._closed = False
        self._error: BaseException | None = None

    def left_ms(self) -> float:
        """Return the time left until the deadline; infinite without one."""
        return 1e3 * (self._due_s - self._clock.now_s())

    def is_over(self) -> bool:
        """Return True if nothing that starts now can be in time."""
        with self._changed:
            return self._closed or self.left_ms() <= 0

    def propose(self, boxes_xyxy: np.ndarray, scores: np.ndarray, num_chosen: int) -> None:
        """Set the boxes, of which the first `num_chosen` are to be read if there is time."""
        with self._changed:
            self._boxes, self._scores = boxes_xyxy, scores
            self._outcomes = np.full(len(scores), Outcome.NOT_CHOSEN, np.uint8)
            self._outcomes[:num_chosen] = Outcome.LEFT_OUT
            self._proposed = True

    def wait_for_image_level(self) -> None:
        """Wait until the image level is done or the deadline has passed; without a deadline, do not wait.

        Both levels at once would slow down the image level, whose mask must not be late because of the regions.
        """
        with self._changed:
            while not self._image_level_done and 0 < (left_ms := self.left_ms()) < math.inf:
                self._clock.wait(self._changed, left_ms / 1e3)

    def start(self, batch: slice) -> bool:
        """Tell that these boxes are being read. Return False if the frame is over, so that nobody needs them."""
        with self._changed:
            if not self._closed:
                self._outcomes[batch] = Outcome.LATE  # until they are finished
                self._changed.notify()
            return not self._closed

    def finish(self, batch: slice, regions: Regions) -> None:
        """Hand over the boxes that were started last. They are discarded if the frame is over."""
        with self._changed:
            if not self._closed:
                self._outcomes[batch] = Outcome.READ
                self._parts.append(regions)
                self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """Tell that nothing more will come, because all is done or because of an error."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()
            if self._closed and error is not None:
                log.warning("a refinement that was late for its frame failed", exc_info=error)

    def close(self, budget: RegionBudget) -> Findings:
        """Wait until all is done or must be merged to meet the deadline, and return what is there by then.

        Call it when the image level is done. Raises the error of the worker. Whatever the worker finishes afterwards is
        discarded.
        """
        with self._changed:
            self._image_level_done = True
            self._changed.notify()
            while True:
                left_ms = self.left_ms()
                started = int(np.isin(self._outcomes, (Outcome.READ, Outcome.LATE)).sum())
                wait_ms = left_ms - budget.merging.estimate_ms(started)
                if self._ended or wait_ms <= 0:
                    break
                if not self._clock.wait(self._changed, wait_ms / 1e3):
                    left_ms -= wait_ms  # not by the clock: to wake up a little late must not cost a region
                    break
            self._closed = True
            if self._error is not None:
                raise self._error
            read = np.flatnonzero(self._outcomes == Outcome.READ)
            kept = budget.num_mergeable(len(read), left_ms)
            self._outcomes[read[kept:]] = Outcome.LATE
            regions = _join(self._parts, kept) if kept else None
            return Findings(self._boxes, self._scores, self._outcomes, regions, not self._proposed)


def _join(parts: list[Regions], number: int) -> Regions:
    """Return the first `number` regions of all parts."""
    arrays = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Regions)}
    return Regions(**{n: (a[0] if len(a) == 1 else np.concatenate(a))[:number] for n, a in arrays.items()})
