# SPDX-License-Identifier: Apache-2.0
"""Measure the memory that each further camera takes on the same engines."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise

from nightlab_core.benchmark.measure import smooth_frames
from nightlab_core.benchmark.memory import resident_mib
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline, Result

#: Frames of each camera, after which its buffers have their final size.
FRAMES = 3


def camera_memory_mib(
    engines: Engines,
    frame_hw: tuple[int, int],
    cameras: int = 3,
    memory_mib: Callable[[], float | None] = resident_mib,
) -> tuple[float, ...]:
    """Return the MiB by which the process grows with each camera after the first, which has `cameras` - 1 entries.

    A camera is a pipeline with a frame and its last result, which all stay in memory. Returns () where the process's
    memory is not known.
    """
    held: list[tuple[object, Result]] = []
    marks: list[float | None] = []
    with ExitStack() as stack:
        for _ in range(cameras):
            pipeline = stack.enter_context(Pipeline(engines))
            (frame,) = smooth_frames(frame_hw, 1)
            results = [pipeline(frame) for _ in range(FRAMES)]
            held.append((frame, results[-1]))
            del results
            gc.collect()
            marks.append(memory_mib())
    known = [mark for mark in marks if mark is not None]
    return tuple(after - before for before, after in pairwise(known))
