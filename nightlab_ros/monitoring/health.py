# SPDX-License-Identifier: Apache-2.0
"""Counts, rate, frame age and percentiles of every stage, for /diagnostics. Imports no ROS.

Everything is judged by a clock that never jumps, because a simulated one may stop or go back. Only the age of a frame
is in seconds of the node's clock. A lock protects the state, because the subscription's thread counts while the
worker's thread records.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nightlab_ros.monitoring.degradation import MODES, Finding
from nightlab_ros.monitoring.health_rules import (
    ERROR,
    JUDGED_S,
    OK,
    PREPARING_S,
    REPORTED_S,
    WARN,
    Facts,
    HealthLimits,
    judge,
)
from nightlab_ros.monitoring.recent import Recent

#: Publishers of a topic whose images are counted apart.
MAX_PUBLISHERS = 16
__all__ = ["ERROR", "OK", "WARN", "Health", "HealthLimits", "HealthReport"]


@dataclass(frozen=True)
class HealthReport:
    """One diagnostic status: level (0 OK, 1 warning, 2 error), a sentence, and values in the order of display."""

    level: int
    message: str
    values: dict[str, str] = field(default_factory=dict)

    def with_finding(self, finding: Finding) -> HealthReport:
        """Return the report with one more fault."""
        message = finding.sentence if self.level == OK else f"{self.message}; {finding.sentence}"
        mode = max(self.values.get("mode", "full"), finding.mode, key=MODES.index)
        return HealthReport(max(self.level, finding.level), message, {**self.values, "mode": mode})


class Health:
    """Keep statistics over the last `window` processed frames, and counts since the node was configured."""

    def __init__(
        self,
        window: int = 100,
        steady_s: Callable[[], float] = time.monotonic,
        limits: HealthLimits = HealthLimits(),  # noqa: B008 - frozen
    ) -> None:
        """`steady_s` returns the seconds of a clock that never jumps and that no simulation stops."""
        self.limits = limits  #: assign a new object to change limits
        self._lock = threading.Lock()
        self._steady_s = steady_s
        self._unanswered_s: float | None = None  # arrival of the first image without a mask or a failure since
        self._delay_reason, self._delay_s = "", 0.0
        self._counts = dict.fromkeys(("received", "processed", "failed", "overwritten", "skipped", "lost"), 0)
        self._regions = dict.fromkeys(("regions_left_out", "regions_late", "hardness_late", "refinement_failed"), 0)
        self._refinement_lost: tuple[float, float, str] | None = None  # first mask without it, last one, last reason
        self._sequences: dict[object, int] = {}
        self._source: tuple[str, Sequence[str], str] = ("", (), "")
        self._published_s: deque[float] = deque(maxlen=window)
        self._ages_ms: deque[float] = deque(maxlen=window)
        self._last_stamp_s: float | None = None
        self._stages: dict[str, deque[float]] = {}
        self._window = window
        self._light_level, self._refine_reason = math.nan, ""
        self._sizes: set[tuple[int, int]] = set()
        self._last_received_s: float | None = None
        self._clock: tuple[float, float] | None = None  # the node's clock when it last changed, and when that was
        counted = ("received", "overwritten", "skipped", "lost")
        self._recent: dict[str, Recent[int]] = {name: Recent(JUDGED_S) for name in counted}
        self._failures: Recent[str] = Recent(REPORTED_S)
        self._lost_s: float | None = None
        self._preparations: Recent[int] = Recent(60.0)

    def set_source(self, reliability: str, publishers: Sequence[str], loss_advice: str) -> None:
        """Set how the node subscribes, the full names of the nodes that publish, and what to do about losses."""
        with self._lock:
            self._source = (reliability, tuple(publishers), loss_advice)

    def record_received(self, publisher: object = None, number: int | None = None) -> None:
        """Count an image that reached the node: the `number`-th of its publisher, if the middleware numbers them.

        A gap in the numbers counts images that were lost in the transport or overwritten in the reader's queue. A lower
        number means that the publisher was restarted.
        """
        now_s = self._steady_s()
        with self._lock:
            self._count("received", 1, now_s)
            self._last_received_s = now_s
            if self._unanswered_s is None:
                self._unanswered_s = now_s
            last = self._sequences.pop(publisher, None)
            if number is None:
                return
            if last is not None and number > last + 1:
                self._count("skipped", number - last - 1, now_s)
            self._sequences[publisher] = number
            if len(self._sequences) > MAX_PUBLISHERS:
                del self._sequences[next(iter(self._sequences))]  # the one that has been silent for longest

    def start_stream(self) -> None:
        """Judge from now on: images published while the node did not subscribe are no gap and no silence."""
        with self._lock:
            self._sequences.clear()
            self._published_s.clear()
            self._unanswered_s = self._last_received_s = self._clock = None

    def set_delay_reason(self, reason: str, seconds: float = PREPARING_S) -> None:
        """Tell why the next mask takes longer, and for how long this is no error; "" when that is over."""
        with self._lock:
            self._delay_reason, self._delay_s = reason, seconds

    def record_overwritten(self) -> None:
        """Count an image that a newer one replaced before it was processed."""
        with self._lock:
            self._count("overwritten", 1, self._steady_s())

    def record_lost(self, number: int) -> None:
        """Count `number` images that the middleware reports as lost in the transport."""
        with self._lock:
            self._lost_s = self._steady_s()
            self._count("lost", number, self._lost_s)

    def record_failed(self, reason: str) -> None:
        """Count an image without a mask, with the reason for /diagnostics."""
        with self._lock:
            self._counts["failed"] += 1
            self._failures.add(self._steady_s(), reason)
            self._unanswered_s, self._delay_reason = None, ""

    def record_prepared(self, frame_hw: tuple[int, int]) -> None:
        """Count a preparation of the engines for images of a size."""
        with self._lock:
            self._sizes.add(frame_hw)
            self._preparations.add(self._steady_s(), 1)

    def record_processed(
        self,
        published_s: float,
        stamp_s: float,
        stages_ms: Mapping[str, float],
        light_level: float,
        refine_reason: str,
    ) -> None:
        """Count a mask; both times are in seconds of the node's clock.

        `light_level`, 0 to 1, and `refine_reason` are those of the pipeline's result.
        """
        with self._lock:
            self._counts["processed"] += 1
            self._published_s.append(self._steady_s())
            self._ages_ms.append(1e3 * (published_s - stamp_s))
            self._last_stamp_s = stamp_s
            self._light_level, self._refine_reason = light_level, refine_reason
            self._unanswered_s, self._delay_reason = None, ""
        self.record_stages(stages_ms)

    def record_regions(self, left_out: int, late: int, hardness_late: bool) -> None:
        """Count the regions of a frame that the deadline left out or that were late, and a late hardness network."""
        with self._lock:
            self._regions["regions_left_out"] += left_out
            self._regions["regions_late"] += late
            self._regions["hardness_late"] += hardness_late

    def record_refinement(self, error: str, late: bool = False) -> None:
        """Count a mask without refinement because of an error, or because no region was read in time (`late`).

        Without either, the lower path worked.
        """
        now_s = self._steady_s()
        with self._lock:
            self._regions["refinement_failed"] += bool(error)
            first_s = self._refinement_lost[0] if self._refinement_lost else now_s
            self._refinement_lost = (first_s, now_s, error) if error or late else None

    def record_stages(self, stages_ms: Mapping[str, float]) -> None:
        """Record the milliseconds of stages of one frame."""
        with self._lock:
            for stage, milliseconds in stages_ms.items():
                self._stages.setdefault(stage, deque(maxlen=self._window)).append(milliseconds)

    def counts(self) -> dict[str, int]:
        """Return received, processed, failed, dropped, and lost, which is part of dropped.

        processed + failed + dropped is the number of images published, if the middleware numbers its messages.
        """
        with self._lock:
            counts = dict(self._counts)
        # A loss is reported before the next message shows the gap, and not every middleware numbers messages.
        counts["dropped"] = counts.pop("overwritten") + max(counts.pop("skipped"), counts["lost"])
        return counts

    def rate_hz(self, over_s: float = JUDGED_S) -> float:
        """Return masks per second over the last `over_s` seconds; 0 for fewer than two."""
        now_s = self._steady_s()
        with self._lock:
            times = [t for t in self._published_s if now_s - over_s <= t]
        if len(times) < 2 or times[-1] <= times[0]:
            return 0.0
        # Count up to the last frame only, unless the next one is overdue: then the rate falls with time.
        period_s = (times[-1] - times[0]) / (len(times) - 1)
        end_s = times[-1] if now_s - times[-1] <= 2 * period_s else now_s
        return (len(times) - 1) / (end_s - times[0])

    def report(self, now_s: float, active: bool) -> HealthReport:
        """Return the report for /diagnostics; `now_s` is in seconds of the node's clock.

        Images without a mask are a warning after `REPORTED_S` or five times the median latency, whichever is longer,
        and an error after five times as long. The other rules are in health_rules.py.
        """
        values = {name: str(number) for name, number in self.counts().items()}
        rate_hz = self.rate_hz()
        values["rate_hz"] = f"{rate_hz:.2f}"
        with self._lock:
            values.update({name: str(number) for name, number in self._regions.items()})
            values["light_level"] = "" if math.isnan(self._light_level) else f"{self._light_level:.4f}"
            values["refine_reason"] = self._refine_reason
            values["image_sizes"] = str(len(self._sizes))
            values["reliability"], publishers, _ = self._source
            values["publishers"] = ", ".join(publishers)
            values["last_mask_stamp"] = "" if self._last_stamp_s is None else f"{self._last_stamp_s:.9f}"
            values.update(_percentiles("frame_age", self._ages_ms))
            for stage, times in self._stages.items():
                values.update(_percentiles(stage, times))
            facts = self._facts(now_s, rate_hz)
        level, message, values["mode"] = judge(facts, self.limits) if active else (OK, "inactive", "no masks")
        return HealthReport(level, message, values)

    def _facts(self, clock_s: float, rate_hz: float) -> Facts:
        """Return the facts to judge by. The caller holds the lock."""
        now_s = self._steady_s()
        if self._clock is None or self._clock[0] != clock_s:
            self._clock = (clock_s, now_s)
        recent = {name: sum(counted.values(now_s)) for name, counted in self._recent.items()}
        skipped = max(recent["skipped"], recent["lost"])
        offered = recent["received"] + skipped
        latencies = self._stages.get("latency")
        lost_s, last_lost_s, error = self._refinement_lost or (now_s, now_s, "")
        return Facts(
            failures=self._failures.values(now_s),
            waited_s=0.0 if self._unanswered_s is None else now_s - self._unanswered_s,
            patience_s=max(REPORTED_S, 5e-3 * float(np.median(latencies))) if latencies else REPORTED_S,
            delay_reason=self._delay_reason,
            delay_s=self._delay_s,
            silence_s=None if self._last_received_s is None else now_s - self._last_received_s,
            lost=self._lost_s is not None and now_s - self._lost_s < REPORTED_S,
            loss_advice=self._source[2],
            publishers=self._source[1],
            clock_stopped_s=now_s - self._clock[1],
            age_ms=float(np.median(list(self._ages_ms)[-5:])) if self._ages_ms else None,
            drop_percent=100 * (recent["overwritten"] + skipped) / offered if offered else 0.0,
            received_hz=recent["received"] / JUDGED_S,
            rate_hz=rate_hz if len(self._published_s) > 1 else None,
            sizes=len(self._sizes),
            refinement_error=error,
            refinement_late=last_lost_s - lost_s >= REPORTED_S,
            refinement_lost_s=now_s - lost_s,
            preparations=len(self._preparations.values(now_s)),
        )

    def _count(self, name: str, number: int, now_s: float) -> None:
        self._counts[name] += number
        self._recent[name].add(now_s, number)


def _percentiles(name: str, milliseconds: deque[float]) -> dict[str, str]:
    if not milliseconds:
        return {}
    marks = np.percentile(np.fromiter(milliseconds, float), (50, 95, 99))
    return {f"{name}_ms_p{p}": f"{mark:.2f}" for p, mark in zip((50, 95, 99), marks, strict=True)}
