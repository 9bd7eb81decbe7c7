# SPDX-License-Identifier: Apache-2.0
"""Measure how many masks are in time with a deadline for each frame, and how many regions are read by then."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nightlab_core.benchmark.timing import Timing, time_in_turns
from nightlab_core.benchmark.wrappers import FixedRegions
from nightlab_core.runtime.clock import Clock
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline, Result
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings

#: The deadline as a multiple of the image level's median.
FACTOR = 1.3
#: Frames, so that one late mask is one in a hundred.
FRAMES = 100


@dataclass(frozen=True)
class DeadlineFigures:
    """Figures of both levels with a deadline, and as many given regions as the bundle reads."""

    factor: float  #: deadline over the image level's median
    deadline_ms: float
    timing: Timing  #: of the whole pipeline
    in_time: float  #: share of the masks that were ready by the deadline, 0..1
    regions: float  #: mean number of regions that were read and merged


def measure_deadline(
    engines: Engines,
    frames_bgr: Sequence[np.ndarray],
    image_level_ms: float,
    *,
    factor: float = FACTOR,
    runs: int = FRAMES,
    warm_up: int = 3,
    limit_s: float | None = None,
    clock: Clock = Clock(),  # noqa: B008 - no state
) -> DeadlineFigures:
    """Segment frames, uint8 (H, W, 3), in turn with a deadline of `factor` times `image_level_ms`.

    Stops after `limit_s` seconds with fewer frames than `runs`, see `time_in_turns`.
    """
    count = engines.bundle.manifest.engines.region.max_batch
    fixed = dataclasses.replace(engines, hardness=FixedRegions(engines.hardness, count))
    deadline_ms = factor * image_level_ms
    results: list[Result] = []
    settings = PipelineSettings(deadline_ms=deadline_ms, max_regions=MAX_REGIONS)
    with Pipeline(fixed, settings, clock) as pipeline:
        pipeline.prepare(frames_bgr[0].shape[:2])  # measures what regions cost
        calls = {"": lambda: results.append(pipeline(frames_bgr[len(results) % len(frames_bgr)]))}
        times_ms = time_in_turns(calls, runs, warm_up, clock.now_s, limit_s)[""]
    in_time = float(np.mean([ms <= deadline_ms for ms in times_ms]))
    regions = float(np.mean([result.refined.sum() for result in results[-len(times_ms) :]]))
    return DeadlineFigures(factor, deadline_ms, Timing.of(times_ms), in_time, regions)
