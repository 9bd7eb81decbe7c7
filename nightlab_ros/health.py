# SPDX-License-Identifier: Apache-2.0
"""Counts, rate, frame age and percentiles of every stage: what /diagnostics says. No ROS, so that it is tested without.

Times come in from outside: stamps and ``now_s`` in seconds of the node's clock, which may be simulated; stage times in
milliseconds of the wall clock, by which alone it is judged whether masks still come out. One lock, as the
subscription's thread counts while the worker's thread records.
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


#: Without a mask or a failure for so long, or for five times what a frame takes, the pipeline is called stuck.
STUCK_S = 2.0


@dataclass(frozen=True)
class Report:
    """One diagnostic status: level (0 ok, 1 warning, 2 error), a sentence, and values in the order to show them."""

    level: int
    message: str
    values: dict[str, str] = field(default_factory=dict)


class Health:
    """Statistics over the last ``window`` processed frames, and counts since the node was configured.

    ``steady_s`` is a clock that no simulation stops.
    """

    def __init__(self, window: int = 100, steady_s: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._steady_s = steady_s
        self._unanswered_s: float | None = None  # since when images came without an outcome
        self._preparing = ""
        self._counts = dict.fromkeys(("received", "processed", "failed", "overwritten", "skipped", "lost"), 0)
        self._sequence: tuple[object, int] | None = None
        self._published_s: deque[float] = deque(maxlen=window)
        self._ages_ms: deque[float] = deque(maxlen=window)
        self._stages: dict[str, deque[float]] = {}
        self._window = window
        self._light_level = math.nan
        self._failure: tuple[float, str] = (-math.inf, "")
        self._last_received_s = self._last_lost_s = -math.inf

    def received(self, now_s: float, publisher: object = None, number: int | None = None) -> None:
        """A message reached the node: the ``number``-th of its publisher, if the middleware tells.

        A gap in the numbers is what never reached the callback: lost in the transport, or overwritten in the reader's
        history of one. A lower number is a publisher that started anew.
        """
        with self._lock:
            self._counts["received"] += 1
            self._last_received_s = now_s
            if self._unanswered_s is None:
                self._unanswered_s = self._steady_s()
            if number is not None and self._sequence is not None and self._sequence[0] == publisher:
                self._counts["skipped"] += max(0, number - self._sequence[1] - 1)
            self._sequence = None if number is None else (publisher, number)

    def resubscribed(self) -> None:
        """What was published while the node did not listen is no gap."""
        with self._lock:
            self._sequence = None
            self._unanswered_s = None

    def preparing(self, what: str) -> None:
        """The next outcome takes its time, for ``what`` is done before it; empty: no longer."""
        with self._lock:
            self._preparing = what

    def overwritten(self) -> None:
        """A newer message came before the worker began this one."""
        with self._lock:
            self._counts["overwritten"] += 1

    def lost(self, now_s: float, number: int) -> None:
        """The middleware says that so many messages were lost on the way."""
        with self._lock:
            self._counts["lost"] += number
            self._last_lost_s = now_s

    def failed(self, now_s: float, reason: str) -> None:
        """A frame gave no mask."""
        with self._lock:
            self._counts["failed"] += 1
            self._failure = (now_s, reason)
            self._unanswered_s, self._preparing = None, ""

    def processed(self, now_s: float, stamp_s: float, stages_ms: Mapping[str, float], light_level: float) -> None:
        """A mask was published at ``now_s`` for a frame stamped ``stamp_s``; ``light_level`` is 0..1."""
        with self._lock:
            self._counts["processed"] += 1
            self._published_s.append(now_s)
            self._ages_ms.append(1e3 * (now_s - stamp_s))
            self._light_level = light_level
            self._unanswered_s, self._preparing = None, ""
        self.stages(stages_ms)

    def stages(self, stages_ms: Mapping[str, float]) -> None:
        """Milliseconds of what was done for a frame."""
        with self._lock:
            for stage, milliseconds in stages_ms.items():
                self._stages.setdefault(stage, deque(maxlen=self._window)).append(milliseconds)

    def counts(self) -> dict[str, int]:
        """received, processed, failed; dropped: published, but never begun; and of these lost, in the transport.

        Where the middleware numbers its messages, processed + failed + dropped is the number that was published.
        """
        with self._lock:
            counts = dict(self._counts)
        # The reader knows of a loss before the next message shows the gap, and not every middleware numbers messages.
        counts["dropped"] = counts.pop("overwritten") + max(counts.pop("skipped"), counts["lost"])
        return counts

    def rate_hz(self, now_s: float, over_s: float = 5.0) -> float:
        """Masks per second of the node's clock, over the last ``over_s`` seconds; 0 when there was none."""
        with self._lock:
            times = [t for t in self._published_s if now_s - over_s <= t <= now_s]
        if len(times) < 2 or times[-1] <= times[0]:
            return 0.0
        # To the last frame only, unless the next one is overdue: then the rate falls as the silence lasts.
        period_s = (times[-1] - times[0]) / (len(times) - 1)
        end_s = times[-1] if now_s - times[-1] <= 2 * period_s else now_s
        return (len(times) - 1) / (end_s - times[0])

    def report(self, now_s: float, active: bool) -> Report:
        """What to publish now. Silence and failures count when they are less than 2 s old, by the node's clock.

        Images without an outcome are a warning after ``STUCK_S`` or more, and an error after five times as long.
        """
        values = {name: str(number) for name, number in self.counts().items()}
        values["rate_hz"] = f"{self.rate_hz(now_s):.2f}"
        with self._lock:
            ages = list(self._ages_ms)
            values["light_level"] = "" if math.isnan(self._light_level) else f"{self._light_level:.4f}"
            values.update(_percentiles("frame_age", ages))
            for stage, times in self._stages.items():
                values.update(_percentiles(stage, times))
            silence_s, (failure_s, reason) = now_s - self._last_received_s, self._failure
            loss_age_s = now_s - self._last_lost_s
            waited_s = 0.0 if self._unanswered_s is None else self._steady_s() - self._unanswered_s
            preparing, latencies = self._preparing, self._stages.get("latency")
        if not active:
            return Report(OK, "inactive", values)
        if 0.0 <= now_s - failure_s < 2.0:  # simulated time may jump back
            return Report(ERROR, f"a frame failed: {reason}", values)
        patience_s = max(STUCK_S, 5e-3 * float(np.median(latencies))) if latencies else STUCK_S
        if waited_s >= patience_s:
            if preparing:
                return Report(WARN, f"{preparing}: no mask for {waited_s:.0f} s", values)
            level = ERROR if waited_s >= 5 * patience_s else WARN
            return Report(level, f"images arrive, but no mask came out for {waited_s:.0f} s", values)
        if 0.0 <= loss_age_s < 2.0:
            return Report(WARN, LOSS_ADVICE, values)
        if silence_s >= 2.0:
            since = f"for {silence_s:.1f} s" if math.isfinite(silence_s) else "yet"
            return Report(WARN, f"no images {since}", values)
        if ages and ages[-1] < 0:
            return Report(WARN, "images are stamped in the future: check the camera's clock and use_sim_time", values)
        return Report(OK, "running", values)


def _percentiles(name: str, milliseconds: list[float] | deque[float]) -> dict[str, str]:
    if not milliseconds:
        return {}
    marks = np.percentile(np.fromiter(milliseconds, float), (50, 95, 99))
    return {f"{name}_ms_p{p}": f"{mark:.2f}" for p, mark in zip((50, 95, 99), marks, strict=True)}
