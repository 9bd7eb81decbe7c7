# SPDX-License-Identifier: Apache-2.0
"""Measure accuracy against time: the image level alone at several input sizes, and both levels at several budgets.

A budget is a largest number of regions, or a deadline, which is a multiple of the image level's median time.

The second level is worth having where its curve lies above that of the image level alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from nightlab_core.benchmark.timing import Clock, Timing, time_in_turns
from nightlab_core.config import replace
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.labels import ClassSet, to_class_set
from nightlab_core.metrics import confusion_matrix, mean_iou
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings

#: Names of the curves.
BY_SCALE, BY_REGIONS = "image level, by scale", "both levels, by regions"
BY_DEADLINE = "both levels, by deadline over image level's time"
OTHER = "both levels, with"
#: Calls of the image level alone, from which the deadlines follow.
IMAGE_LEVEL_RUNS = 5


@dataclass(frozen=True)
class Configuration:
    """One way to run the pipeline: a point of a curve."""

    curve: str  #: name of the curve
    name: str  #: of the point, on its curve
    settings: PipelineSettings
    scale: float = 1.0  #: side of the image level's input, as a multiple of the bundle's
    deadline: float | None = None  #: as a multiple of the image level's median; None: that of the settings


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy and time of one configuration on all frames."""

    curve: str  #: see `Configuration`
    name: str
    miou: float  #: 0..1, over the classes with labelled pixels
    timing: Timing  #: of the whole pipeline
    regions: float  #: mean number of regions whose labels were merged
    in_time: float | None  #: share of the frames that were ready by the deadline, 0..1; None: no deadline


def curve_configurations(
    scales: Sequence[float], regions: Sequence[int], deadlines: Sequence[float]
) -> list[Configuration]:
    """Return the image level alone at some scales, and both levels with some numbers of regions and deadlines."""
    alone, both = PipelineSettings(refine="never"), PipelineSettings(refine="always")
    most = replace(both, max_regions=MAX_REGIONS)
    return [
        *(Configuration(BY_SCALE, f"{scale:g}", alone, scale) for scale in scales),
        *(Configuration(BY_REGIONS, f"{n}", replace(both, max_regions=n)) for n in regions),
        *(Configuration(BY_DEADLINE, f"{factor:g}", most, deadline=factor) for factor in deadlines),
    ]


def share_of_gain(points: Sequence[CurvePoint], number: int) -> float | None:
    """Return the gain over the image level alone with `number` regions, as a share of that with ten.

    None if one of the three points is missing, or ten regions gain nothing.
    """
    miou = {(point.curve, point.name): point.miou for point in points}
    alone, some, ten = (
        miou.get(key, math.nan) for key in ((BY_SCALE, "1"), (BY_REGIONS, f"{number}"), (BY_REGIONS, f"{MAX_REGIONS}"))
    )
    return (some - alone) / (ten - alone) if ten > alone and math.isfinite(some) else None


def measure_curve(
    engines: Engines,
    samples: Sequence[Sample],
    classes: ClassSet,
    configurations: Sequence[Configuration],
    *,
    on_step: Callable[[str], None] = lambda text: None,
    clock: Clock = perf_counter,
) -> list[CurvePoint]:
    """Measure every configuration.

    Args:
        engines: networks that accept inputs of any size.
        samples: frames with labels in `classes`. Reading them is not timed.
        classes: class set of the labels, in which results are evaluated.
        configurations: what to run.
        on_step: receives the progress before each frame.
        clock: seconds.

    All configurations segment a frame before the next frame is read, so that other work slows all of them alike.
    Raises ValueError if there are no frames or a scale is not above 0.
    """
    if not len(samples):
        raise ValueError("received no frames, expected at least one")
    with ExitStack() as stack:
        image_level = stack.enter_context(Pipeline(engines, PipelineSettings(refine="never")))
        runs = [
            _Run(c, stack.enter_context(Pipeline(with_scale(engines, c.scale), c.settings)), classes)
            for c in configurations
        ]
        frame_hw: tuple[int, ...] = ()
        for number, sample in enumerate(samples):
            on_step(f"frame {number + 1} of {len(samples)}")
            if sample.image_bgr.shape[:2] != frame_hw:  # compile for this size outside the timing
                frame_hw = sample.image_bgr.shape[:2]
                alone = time_in_turns({"": lambda: image_level(sample.image_bgr)}, IMAGE_LEVEL_RUNS, 1, clock)  # noqa: B023
                for run in runs:
                    run.prepare(sample.image_bgr, float(np.median(alone[""])))
            for run in runs:
                run.segment(sample, clock)
    return [run.point() for run in runs]


class _Run:
    """One configuration, with what it has measured so far."""

    def __init__(self, configuration: Configuration, pipeline: Pipeline, classes: ClassSet) -> None:
        self._configuration, self._pipeline, self._classes = configuration, pipeline, classes
        self._matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
        self._times_ms: list[float] = []
        self._in_time: list[bool] = []
        self._regions: list[int] = []

    def prepare(self, image_bgr: np.ndarray, image_level_ms: float) -> None:
        """Compile for images of this size, and set the deadline."""
        self._pipeline(image_bgr)
        if (factor := self._configuration.deadline) is not None:
            self._pipeline.settings = replace(self._pipeline.settings, deadline_ms=factor * image_level_ms)
            self._pipeline.prepare(image_bgr.shape[:2])  # measures what regions cost

    def segment(self, sample: Sample, clock: Clock) -> None:
        """Segment a frame and evaluate it."""
        start = clock()
        result = self._pipeline(sample.image_bgr)
        self._times_ms.append(1e3 * (clock() - start))
        self._in_time.append(self._times_ms[-1] <= self._pipeline.settings.deadline_ms)
        self._regions.append(int(result.refined.sum()))
        mapped = to_class_set(result.labels, self._pipeline.bundle.class_set, self._classes)
        self._matrix += confusion_matrix(sample.labels, mapped, len(self._classes))

    def point(self) -> CurvePoint:
        """Return the figures of all frames."""
        return CurvePoint(
            curve=self._configuration.curve,
            name=self._configuration.name,
            miou=mean_iou(self._matrix),
            timing=Timing.of(self._times_ms),
            regions=float(np.mean(self._regions)),
            in_time=float(np.mean(self._in_time)) if self._pipeline.settings.deadline_ms else None,
        )


def with_scale(engines: Engines, scale: float) -> Engines:
    """Return the same engines with a bundle whose image level reads frames at `scale` times the sides."""
    manifest = engines.bundle.manifest
    files = replace(manifest.engines, image=manifest.engines.image.scaled(scale))
    bundle = dataclasses.replace(engines.bundle, manifest=manifest.model_copy(update={"engines": files}))
    return dataclasses.replace(engines, bundle=bundle)
