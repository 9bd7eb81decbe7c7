# SPDX-License-Identifier: Apache-2.0
"""What the node says while TensorRT engines are built in its configure transition."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from nightlab_core.runtime.engines.engine import BuildProgress
from nightlab_ros.health import OK, Report

PERIOD_S = 0.5


class BuildReporter:
    """Is told of every step of a build and publishes one in half a second: the transition keeps the executor, so no
    timer could. Answers whether to go on, which ``stop`` ends."""

    def __init__(self, publish: Callable[[Report], None], log: Callable[[str], None], stop: threading.Event) -> None:
        self._publish, self._log, self._stop = publish, log, stop
        self._said_s = -math.inf
        self._kind = ""

    def __call__(self, progress: BuildProgress) -> bool:
        now_s = time.monotonic()
        if progress.kind != self._kind:
            self._kind = progress.kind
            self._log(f"building the TensorRT engine of the {progress.kind} network")
        if now_s - self._said_s >= PERIOD_S:
            self._said_s = now_s
            percent = f"{100 * progress.fraction:.0f}"
            values = {"build_network": progress.kind, "build_percent": percent, "build_phase": progress.step}
            self._publish(Report(OK, f"configuring: building TensorRT engines: {progress.kind} {percent} %", values))
        return not self._stop.is_set()
