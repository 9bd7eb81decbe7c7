# SPDX-License-Identifier: Apache-2.0
"""Progress of a build of TensorRT plans in the configure transition: to the log and to /diagnostics."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from nightlab_core.runtime.engines.engine import BuildProgress
from nightlab_ros.health import OK, HealthReport

#: Seconds between two reports.
PERIOD_S = 0.5


class BuildProgressReporter:
    """Receive each step of a build, and publish a report at most every `PERIOD_S`.

    The transition blocks the executor, so a timer could not do this.
    """

    def __init__(
        self, publish: Callable[[HealthReport], None], log: Callable[[str], None], stop: threading.Event
    ) -> None:
        """Once `stop` is set, the next step ends the build."""
        self._publish, self._log, self._stop = publish, log, stop
        self._published_s = -math.inf
        self._kind = ""

    def __call__(self, progress: BuildProgress) -> bool:
        """Report a step; returns False to end the build."""
        now_s = time.monotonic()
        if progress.kind != self._kind:
            self._kind = progress.kind
            self._log(f"building the TensorRT plan of the {progress.kind} network")
        if now_s - self._published_s >= PERIOD_S:
            self._published_s = now_s
            percent = f"{100 * progress.fraction:.0f}"
            values = {"build_network": progress.kind, "build_percent": percent, "build_phase": progress.step}
            message = f"configuring: building TensorRT plans: {progress.kind} {percent} %"
            self._publish(HealthReport(OK, message, values))
        return not self._stop.is_set()
