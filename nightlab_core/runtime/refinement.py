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
from nightlab_core.runtime.temporal import Choice

log = logging.getLogger(__name__)

STAGES = ("hardness", "crop", "region")


class Outcome(IntEnum):
    """What happened to a hard region."""

    NOT_CHOSEN = 0  #: not due: beyond `max_regions`, or below the score threshold
    READ = 1  #: read by the region engine and merged
    LEFT_OUT = 2  #: not started, because it could not have been in time or the region engine had failed
    LATE = 3  #: started, but not ready to be merged by the deadline, or the region engine does not answer
    FAILED = 4  #: started, but the region engine failed
    UNCHANGED = 5  #: not due, because its pixels did not change since it was read


@dataclass(frozen=True)
class Findings:
    """Everything that the lower path contributes to a frame."""

    boxes_xyxy: np.ndarray  #: float32 (N, 4), frame pixels, in descending score
    scores: np.ndarray  #: float32 (N,)
    outcomes: np.ndarray  #: uint8 (N,): `Outcome` of each box
    ages: np.ndarray  #: int16 (N,): frames since the merged labels of each box were read; -1: none were merged
    regions: Regions | None  #: those to merge; None if there are none
    hardness_late: bool  #: True if the boxes were not known in time, so that there are none
    error: str = ""  #: why the lower path, or a part of it, failed or hangs


NOTHING_FOUND = Findings(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.uint8), np.zeros(0, np.int16), None, False
)


class Refinement:
    """Progress of the lower path in one frame."""

    def __init__(self, clock: Clock, deadline_ms: float, patience_s: float = math.inf) -> None:
        """Start the frame's budget now. `deadline_ms` 0: no deadline.

        A worker whose next step takes longer than `patience_s` hangs, and `close` no longer waits for it.
        """
        self.stages = StageTimes(clock, STAGES)
        self._clock, self._patience_s = clock, patience_s
        self._step_s = clock.now_s()  # when the worker began the step that it is at
        self._due_s = clock.now_s() + deadline_ms / 1e3 if deadline_ms else math.inf
        self._changed = threading.Condition()
        self._boxes, self._scores = NOTHING_FOUND.boxes_xyxy, NOTHING_FOUND.scores
        self._outcomes = NOTHING_FOUND.outcomes
        self._choice = Choice(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
        self._parts: list[tuple[np.ndarray, Regions]] = []  # indices of boxes, and their regions
        self._proposed = self._image_level_done = self._ended = self._closed = self._hangs = False
        self._probabilities: np.ndarray | None = None
        self._error: BaseException | None = None

    def left_ms(self) -> float:
        """Return the time left until the deadline; infinite without one."""
        return 1e3 * (self._due_s - self._clock.now_s())

    def is_over(self) -> bool:
        """Return True if nothing that starts now can be in time."""
        with self._changed:
            return self._closed or self.left_ms() <= 0

    def propose(self, boxes_xyxy: np.ndarray, scores: np.ndarray, choice: Choice) -> None:
        """Set the boxes. Those that are due are to be read if there is time."""
        with self._changed:
            self._boxes, self._scores, self._choice = boxes_xyxy, scores, choice
            self._outcomes = np.full(len(scores), Outcome.NOT_CHOSEN, np.uint8)
            self._outcomes[choice.unchanged] = Outcome.UNCHANGED
            self._outcomes[choice.due] = Outcome.LEFT_OUT
            self._proposed, self._step_s = True, self._clock.now_s()

    def finish_image_level(self, probabilities: np.ndarray | None = None) -> None:
        """Tell that the image level is done, also if it failed, and hand over its probabilities, uint8 (h, w, C)."""
        with self._changed:
            self._image_level_done, self._probabilities = True, probabilities
            self._step_s = self._clock.now_s()  # the worker may have waited for this
            self._changed.notify()

    def wait_for_image_level(self, *, needed: bool) -> np.ndarray | None:
        """Wait until the image level is done or the deadline has passed, and return what it handed over.

        Without a deadline, wait only if its probabilities are `needed`. With one, both levels at once would slow down
        the image level, whose mask must not be late because of the regions.
        """
        with self._changed:
            while not self._image_level_done and (left_ms := self.left_ms()) > 0 and (needed or left_ms < math.inf):
                self._clock.wait(self._changed, left_ms / 1e3)
            return self._probabilities

    def start(self, indices: np.ndarray) -> bool:
        """Tell that these boxes are being read. Return False if the frame is over, so that nobody needs them."""
        with self._changed:
            if not self._closed:
                self._outcomes[indices], self._step_s = Outcome.LATE, self._clock.now_s()  # until they are finished
                self._changed.notify()
            return not self._closed

    def finish(self, indices: np.ndarray, regions: Regions) -> None:
        """Hand over the boxes that were started last. They are discarded if the frame is over."""
        with self._changed:
            if not self._closed:
                self._outcomes[indices], self._step_s = Outcome.READ, self._clock.now_s()
                self._parts.append((indices, regions))
                self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """Tell that nothing more will come, because all is done or because of an error."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()
            if self._closed and error is not None:
                log.warning("a refinement that was late for its frame failed", exc_info=error)
            elif error is not None:
                self._outcomes[self._outcomes == Outcome.LATE] = Outcome.FAILED

    def hanging(self) -> str:
        """Return the sentence that the worker hangs, or "" if it has ended or its step began a short time ago."""
        with self._changed:
            return self._hanging()

    def close(self, budget: RegionBudget, *, strict: bool = False) -> Findings:
        """Wait until all is done or must be merged to meet the deadline, and return what is there by then.

        Call it when the image level is done. An exception of the worker is described in the result; `strict` raises it,
        and KeyboardInterrupt is always raised. Whatever the worker finishes afterwards is discarded.
        """
        with self._changed:
            left_ms = self._wait(budget)
            self._closed = True
            if self._error is not None and (strict or isinstance(self._error, KeyboardInterrupt)):
                raise self._error
            ages, regions = self._merged(budget, left_ms)
            error = self._hanging()
            if self._error is not None:
                error = f"{self._stage()}: {type(self._error).__name__}: {self._error}"
            late = not self._proposed and not error
            return Findings(self._boxes, self._scores, self._outcomes, ages, regions, late, error)

    def _merged(self, budget: RegionBudget, left_ms: float) -> tuple[np.ndarray, Regions | None]:
        """Return the ages of the labels to merge, int16 (N,), and the regions: first those of this frame."""
        read = np.concatenate([np.zeros(0, np.int64), *(indices for indices, _ in self._parts)])
        earlier = [index for index in self._choice.earlier if index not in read]
        kept = budget.num_mergeable(len(read) + len(earlier), left_ms)
        self._outcomes[read[kept:]] = Outcome.LATE
        merged = np.concatenate([read, np.array(earlier, np.int64)])[:kept]
        ages = np.full(len(self._boxes), -1, np.int16)
        ages[merged] = [0 if place < len(read) else self._choice.ages[i] for place, i in enumerate(merged.tolist())]
        parts = [part for _, part in self._parts] + [self._choice.earlier[index] for index in earlier]
        return ages, _join(parts, merged) if kept else None

    def _wait(self, budget: RegionBudget) -> float:
        """Wait until all is done or must be merged, and return the milliseconds that are left to merge."""
        while True:
            left_ms = self.left_ms()
            started = int(np.isin(self._outcomes, (Outcome.READ, Outcome.LATE)).sum())
            wait_ms = left_ms - budget.merging.estimate_ms(max(started, len(self._choice.earlier)))
            step_s = self._step_s
            patience_ms = 1e3 * (step_s + self._patience_s - self._clock.now_s())
            if self._ended or wait_ms <= 0 or patience_ms <= 0:
                return left_ms
            if self._clock.wait(self._changed, min(wait_ms, patience_ms) / 1e3):
                continue
            if wait_ms <= patience_ms:
                return left_ms - wait_ms  # not by the clock: to wake up a little late must not cost a region
            if self._step_s == step_s:
                self._hangs = True
                return left_ms - patience_ms

    def _hanging(self) -> str:
        hangs = self._hangs or self._clock.now_s() >= self._step_s + self._patience_s
        if self._ended or not hangs:
            return ""
        return f"{self._stage()}: the {'region' if self._proposed else 'hardness'} network does not answer"

    def _stage(self) -> str:
        return "regions could not be read" if self._proposed else "hard regions could not be found"


def _join(parts: list[Regions], indices: np.ndarray) -> Regions:
    """Return the regions of all parts that have an index, as many as there are indices, in ascending index."""
    order = np.argsort(indices, kind="stable")
    arrays = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Regions)}
    return Regions(**{name: _concatenated(arrays[name])[order] for name in arrays})


def _concatenated(maps: list[np.ndarray]) -> np.ndarray:
    """Concatenate arrays along the first axis; maps of several sizes become an array of arrays."""
    if len({m.shape[1:] for m in maps}) == 1:
        return np.concatenate(maps)
    found = np.empty(sum(map(len, maps)), object)
    for index, one in enumerate(m for part in maps for m in part):
        found[index] = one
    return found
