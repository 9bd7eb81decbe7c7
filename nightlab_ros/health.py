# SPDX-License-Identifier: Apache-2.0
"""Counts, rate, frame age and percentiles of every stage, for /diagnostics. Imports no ROS.

Times are passed in: stamps and `now_s` in seconds of the node's clock, which may be simulated; stage times in
milliseconds of a clock that never jumps. Such a clock also decides whether masks still come out. A lock protects the
state, because the subscription's thread counts while the worker's thread records.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

OK, WARN, ERROR = 0, 1, 2
LOSS_ADVICE = (
    "images are lost in the transport: with Fast DDS, start camera and node with FASTRTPS_DEFAULT_PROFILES_FILE "
    "(from Kilted on FASTDDS_DEFAULT_PROFILES_FILE) set to share/nightlab_ros/config/fastdds.xml"
)
#: Least number of seconds without a mask or a failure, although images arrive, before that is reported.
STUCK_S = 2.0


@dataclass(frozen=True)
class HealthReport:
    """One diagnostic status: level (0 OK, 1 warning, 2 error), a sentence, and values in the order of display."""

    level: int
    message: str
    values: dict[str, str] = field(default_factory=dict)


class Health:
    """Keep statistics over the last `window` processed frames, and counts since the node was configured."""

    def __init__(self, window: int = 100, steady_s: Callable[[], float] = time.monotonic) -> None:
        """`steady_s` returns the seconds of a clock that never jumps and that no simulation stops."""
        self._lock = threading.Lock()
        self._steady_s = steady_s
        self._unanswered_s: float | None = None  # arrival of the first image without a mask or a failure since
        self._delay_reason = ""
        self._counts = dict.fromkeys(("received", "processed", "failed", "overwritten", "skipped", "lost"), 0)
        self._regions = dict.fromkeys(("regions_left_out", "regions_late", "hardness_late"), 0)
        self._sequence: tuple[object, int] | None = None
        self._published_s: deque[float] = deque(maxlen=window)
        self._ages_ms: deque[float] = deque(maxlen=window)
        self._stages: dict[str, deque[float]] = {}
        self._window = window
        self._light_level, self._refine_reason = math.nan, ""
        self._failure: tuple[float, str] = (-math.inf, "")
        self._last_received_s = self._last_lost_s = -math.inf

    def record_received(self, now_s: float, publisher: object = None, number: int | None = None) -> None:
        """Count an image that reached the node: the `number`-th of its publisher, if the middleware numbers them.

        A gap in the numbers counts images that were lost in the transport or overwritten in the reader's queue. A lower
        number means that the publisher was restarted.
        """
        with self._lock:
            self._counts["received"] += 1
            self._last_received_s = now_s
            if self._unanswered_s is None:
                self._unanswered_s = self._steady_s()
            if number is not None and self._sequence is not None and self._sequence[0] == publisher:
                self._counts["skipped"] += max(0, number - self._sequence[1] - 1)
            self._sequence = None if number is None else (publisher, number)

    def reset_sequence(self) -> None:
        """Forget the publisher's last number: images published while the node did not subscribe are no gap."""
        with self._lock:
            self._sequence = None
            self._unanswered_s = None

    def set_delay_reason(self, reason: str) -> None:
        """Tell why the next mask takes longer; "" when that is over."""
        with self._lock:
            self._delay_reason = reason

    def record_overwritten(self) -> None:
        """Count an image that a newer one replaced before it was processed."""
        with self._lock:
            self._counts["overwritten"] += 1

    def record_lost(self, now_s: float, number: int) -> None:
        """Count `number` images that the middleware reports as lost in the transport."""
        with self._lock:
            self._counts["lost"] += number
            self._last_lost_s = now_s

    def record_failed(self, now_s: float, reason: str) -> None:
        """Count an image without a mask, with the reason for /diagnostics."""
        with self._lock:
            self._counts["failed"] += 1
            self._failure = (now_s, reason)
            self._unanswered_s, self._delay_reason = None, ""

    def record_processed(
        self, now_s: float, stamp_s: float, stages_ms: Mapping[str, float], light_level: float, refine_reason: str
    ) -> None:
        """Count a mask published at `now_s` for an image with the stamp `stamp_s`.

        `light_level`, 0 to 1, and `refine_reason` are those of the pipeline's result.
        """
        with self._lock:
            self._counts["processed"] += 1
            self._published_s.append(now_s)
            self._ages_ms.append(1e3 * (now_s - stamp_s))
            self._light_level, self._refine_reason = light_level, refine_reason
            self._unanswered_s, self._delay_reason = None, ""
        self.record_stages(stages_ms)

    def record_regions(self, left_out: int, late: int, hardness_late: bool) -> None:
        """Count the regions of a frame that the deadline left out or that were late, and a late hardness network."""
        with self._lock:
            for name, number in zip(self._regions, (left_out, late, hardness_late), strict=True):
                self._regions[name] += number

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

    def rate_hz(self, now_s: float, over_s: float = 5.0) -> float:
        """Return masks per second of the node's clock over the last `over_s` seconds; 0 for fewer than two."""
        with self._lock:
            times = [t for t in self._published_s if now_s - over_s <= t <= now_s]
        if len(times) < 2 or times[-1] <= times[0]:
            return 0.0
        # Count up to the last frame only, unless the next one is overdue: then the rate falls with time.
        period_s = (times[-1] - times[0]) / (len(times) - 1)
        end_s = times[-1] if now_s - times[-1] <= 2 * period_s else now_s
        return (len(times) - 1) / (end_s - times[0])

    def report(self, now_s: float, active: bool) -> HealthReport:
        """Return the report for /diagnostics. Failures and losses are reported for 2 s of the node's clock.

        Images without a mask are a warning after `STUCK_S` or five times the median latency, whichever is longer, and
        an error after five times as long.
        """
        values = {name: str(number) for name, number in self.counts().items()}
        values["rate_hz"] = f"{self.rate_hz(now_s):.2f}"
        with self._lock:
            values.update({name: str(number) for name, number in self._regions.items()})
            values["light_level"] = "" if math.isnan(self._light_level) else f"{self._light_level:.4f}"
            values["refine_reason"] = self._refine_reason
            values.update(_percentiles("frame_age", self._ages_ms))
            for stage, times in self._stages.items():
                values.update(_percentiles(stage, times))
            level, message = self._state(now_s) if active else (OK, "inactive")
        return HealthReport(level, message, values)

    def _state(self, now_s: float) -> tuple[int, str]:
        """Return level and message of an active node."""
        failure_s, reason = self._failure
        if 0.0 <= now_s - failure_s < 2.0:  # simulated time may jump back
            return ERROR, f"a frame failed: {reason}"
        latencies = self._stages.get("latency")
        patience_s = max(STUCK_S, 5e-3 * float(np.median(latencies))) if latencies else STUCK_S
        waited_s = 0.0 if self._unanswered_s is None else self._steady_s() - self._unanswered_s
        if waited_s >= patience_s:
            if self._delay_reason:
                return WARN, f"{self._delay_reason}: no mask for {waited_s:.0f} s"
            level = ERROR if waited_s >= 5 * patience_s else WARN
            return level, f"images arrive, but no mask came out for {waited_s:.0f} s"
        if 0.0 <= now_s - self._last_lost_s < 2.0:
            return WARN, LOSS_ADVICE
        silence_s = now_s - self._last_received_s
        if silence_s >= 2.0:
            since = f"for {silence_s:.1f} s" if math.isfinite(silence_s) else "yet"
            return WARN, f"no images {since}"
        if self._ages_ms and self._ages_ms[-1] < 0:
            return WARN, "images are stamped in the future: check the camera's clock and use_sim_time"
        return OK, "running"


def _percentiles(name: str, milliseconds: deque[float]) -> dict[str, str]:
    if not milliseconds:
        return {}
    marks = np.percentile(np.fromiter(milliseconds, float), (50, 95, 99))
    return {f"{name}_ms_p{p}": f"{mark:.2f}" for p, mark in zip((50, 95, 99), marks, strict=True)}
