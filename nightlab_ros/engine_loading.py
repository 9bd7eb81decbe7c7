# SPDX-License-Identifier: Apache-2.0
"""Open and prepare the engines in the background, with progress in the log and in /diagnostics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from nightlab_core.runtime.engines.engine import BuildProgress, OnProgress
from nightlab_core.runtime.engines.open import Engines
from nightlab_ros.monitoring import degradation as dg
from nightlab_ros.monitoring.health import OK, HealthReport


class EngineLoading:
    """Open engines and prepare what uses them, on a thread of its own, so that no transition waits for a compiler."""

    def __init__(
        self,
        open_engines: Callable[[OnProgress], Engines],
        prepare: Callable[[Engines], None],
        on_error: Callable[[BaseException], None],
        log: Callable[[str], None],
    ) -> None:
        """Start. `on_error` receives an exception of the two functions.

        `log` receives a line for each network that is built, and one when all are loaded.
        """
        self._open, self._prepare, self._on_error, self._log = open_engines, prepare, on_error, log
        self.engines: Engines | None = None  #: set when they are open; they may still be in preparation
        self.error: BaseException | None = None  #: why they could not be opened or prepared
        self._progress: BuildProgress | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loading", daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        """Return True until the engines are ready or have failed."""
        return self._thread.is_alive()

    def wait(self, timeout_s: float, stop: threading.Event) -> None:
        """Wait until the engines are ready, `timeout_s` have passed, or `stop` is set. Raises their error."""
        end_s = time.monotonic() + timeout_s
        while self.is_running() and not stop.is_set() and (left_s := end_s - time.monotonic()) > 0:
            self._thread.join(min(left_s, 0.1))
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Stop a build at its next step, wait for the thread, and free the engines. Closing twice is harmless."""
        self._cancelled.set()
        self._thread.join()
        if self.engines is not None:
            self.engines.close()

    def report(self) -> HealthReport | None:
        """Return the state for /diagnostics, or None once the engines are ready."""
        if self.error is not None:
            reason = f"{type(self.error).__name__}: {self.error}"
            return HealthReport(OK, "").with_finding(dg.LOADING_FAILED(reason=reason))
        if not self.is_running():
            return None
        if self._progress is None or self.engines is not None:
            return HealthReport(OK, "the engines are being loaded")
        step = self._progress
        percent = f"{100 * step.fraction:.0f}"
        values = {"build_network": step.kind, "build_percent": percent, "build_phase": step.step}
        return HealthReport(OK, f"building TensorRT plans: {step.kind} {percent} %", values)

    def _run(self) -> None:
        start_s = time.monotonic()
        try:
            self.engines = self._open(self._on_progress)
            if not self._cancelled.is_set():
                self._prepare(self.engines)
                self._log(f"the engines are loaded, after {time.monotonic() - start_s:.1f} s")
        except BaseException as error:  # also SystemExit, which would end the thread without a word
            self.error = error
            self._on_error(error)

    def _on_progress(self, progress: BuildProgress) -> bool:
        """Keep the progress of a build; returns False to end it."""
        if self._progress is None or progress.kind != self._progress.kind:
            self._log(f"building the TensorRT plan of the {progress.kind} network")
        self._progress = progress
        return not self._cancelled.is_set()
