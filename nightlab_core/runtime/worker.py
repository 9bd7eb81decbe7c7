# SPDX-License-Identifier: Apache-2.0
"""The thread of the lower path: it prepares the engines and refines the newest frame, and may hang with an engine."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from nightlab_core.runtime.refinement import Refinement
from nightlab_core.runtime.settings import PipelineSettings

log = logging.getLogger(__name__)
#: Why frames are not refined while a step before the first frame takes longer than the pipeline waits.
NOT_PREPARED = "hard regions cannot be refined: the hardness or region network is not prepared yet, or does not answer"


@dataclass(frozen=True)
class Job:
    """Everything that the worker needs to refine a frame."""

    refinement: Refinement
    frame_bgr: np.ndarray
    hardness_input: np.ndarray
    settings: PipelineSettings
    number: int
    stamp_s: float | None
    epoch: int


class LowerPathWorker:
    """Run the lower path of one pipeline on a thread of its own."""

    def __init__(self, refine: Callable[[Job], None]) -> None:
        self._refine = refine
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nightlab-regions")
        self._waiting: deque[Job] = deque(maxlen=1)  # a newer frame replaces one that has not started
        self._current: Refinement | None = None  # of the frame that the thread is at
        self._first_step: Future[None] | None = None  # the last one

    def offer(self, job: Job) -> None:
        """Set the frame that `refine_newest` refines."""
        self._waiting.append(job)

    def refine_newest(self) -> None:
        """Refine the frame that waits, without waiting for it. Its refinement receives the result or the error."""
        self._pool.submit(self._run)

    def run_first(self, step: Callable[[], None], patience_s: float) -> BaseException | None:
        """Run a step that comes before frames, unless the thread hangs. Wait for it for `patience_s` at most.

        Return the error that it raised. Errors, also later ones, are logged, but KeyboardInterrupt is raised. Until the
        step is done, `hanging` says so.
        """
        if hanging := self.hanging():
            log.warning(hanging)
            return None
        self._first_step = self._pool.submit(step)
        if not wait((self._first_step,), patience_s).done:
            log.warning(NOT_PREPARED)
            self._first_step.add_done_callback(_log_error)
            return None
        if isinstance(self._first_step.exception(), KeyboardInterrupt):
            self._first_step.result()  # raises it
        return _log_error(self._first_step)

    def hanging(self) -> str:
        """Return why the thread cannot take a frame, or "" if it can."""
        if self._first_step is not None and not self._first_step.done():
            return NOT_PREPARED
        return self._current.hanging() if self._current is not None else ""

    def close(self) -> None:
        """Wait for the thread and end it. Closing twice is harmless."""
        self._pool.shutdown()

    def _run(self) -> None:
        if not self._waiting:  # the thread was late, and a newer frame took the place of the one submitted
            return
        job = self._waiting.pop()
        self._current = job.refinement
        try:
            self._refine(job)
        except BaseException as error:
            job.refinement.end(error)
        else:
            job.refinement.end()


def _log_error(step: Future[None]) -> BaseException | None:
    """Log the error of a step that has ended, and return it."""
    error = step.exception()
    if error is not None:
        log.warning("hard regions cannot be refined: %s: %s", type(error).__name__, error)
    return error
