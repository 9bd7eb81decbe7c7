# SPDX-License-Identifier: Apache-2.0
"""Measure accuracy against time: the image level alone at several input sizes, and both levels at several budgets.

The second level is worth having where its curve lies above that of the image level alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from nightlab_core.benchmark.timing import Clock, Timing
from nightlab_core.config import replace
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.labels import ClassSet, to_class_set
from nightlab_core.metrics import confusion_matrix, mean_iou
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.settings import PipelineSettings


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy and time of one configuration on all frames."""

    scale: float  #: side of the image level's input, as a multiple of the bundle's
    max_regions: int | None  #: largest number of regions of a frame; None: the image level alone
    miou: float  #: 0..1, over the classes with labelled pixels
    timing: Timing  #: of the whole pipeline
    regions: float  #: mean number of regions that were read


def measure_curve(
    engines: Engines,
    samples: Sequence[Sample],
    classes: ClassSet,
    *,
    scales: Sequence[float] = (0.75, 1.0, 1.25, 1.5),
    regions: Sequence[int] = (1, 3, 10),
    on_step: Callable[[str], None] = lambda text: None,
    clock: Clock = perf_counter,
) -> list[CurvePoint]:
    """Measure the image level alone at every scale, and both levels at every number of regions with scale 1.

    Args:
        engines: networks that accept inputs of any size.
        samples: frames with labels in `classes`. Reading them is not timed.
        classes: class set of the labels, in which results are evaluated.
        scales: factors of the sides of the image level's input, above 0.
        regions: largest numbers of regions; the hardness network decides how many of them there are.
        on_step: receives the progress before each frame.
        clock: seconds.

    All configurations segment a frame before the next frame is read, so that other work slows all of them alike.
    Raises ValueError if there are no frames or a scale is not above 0.
    """
    if not len(samples):
        raise ValueError("received no frames, expected at least one")
    configurations: list[tuple[float, int | None]] = [
        *((scale, None) for scale in scales),
        *((1.0, n) for n in regions),
    ]
    with ExitStack() as stack:
        runs = [
            _Run(scale, count, stack.enter_context(_pipeline(engines, scale, count)), classes)
            for scale, count in configurations
        ]
        frame_hw: tuple[int, ...] = ()
        for number, sample in enumerate(samples):
            on_step(f"curve: frame {number + 1} of {len(samples)}")
            if sample.image_bgr.shape[:2] != frame_hw:  # compile for this size outside the timing
                frame_hw = sample.image_bgr.shape[:2]
                for run in runs:
                    run.pipeline(sample.image_bgr)
            for run in runs:
                run.segment(sample, clock)
    return [run.point() for run in runs]


class _Run:
    """One configuration, with what it has measured so far."""

    def __init__(self, scale: float, max_regions: int | None, pipeline: Pipeline, classes: ClassSet) -> None:
        self.pipeline = pipeline
        self._scale, self._max_regions, self._classes = scale, max_regions, classes
        self._matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
        self._times_ms: list[float] = []
        self._regions: list[int] = []

    def segment(self, sample: Sample, clock: Clock) -> None:
        start = clock()
        result = self.pipeline(sample.image_bgr)
        self._times_ms.append(1e3 * (clock() - start))
        self._regions.append(int(result.refined.sum()))
        mapped = to_class_set(result.labels, self.pipeline.bundle.class_set, self._classes)
        self._matrix += confusion_matrix(sample.labels, mapped, len(self._classes))

    def point(self) -> CurvePoint:
        timing, regions = Timing.of(self._times_ms), float(np.mean(self._regions))
        return CurvePoint(self._scale, self._max_regions, mean_iou(self._matrix), timing, regions)


def _pipeline(engines: Engines, scale: float, max_regions: int | None) -> Pipeline:
    if max_regions is None:
        return Pipeline(with_scale(engines, scale), PipelineSettings(refine="never"))
    return Pipeline(with_scale(engines, scale), PipelineSettings(max_regions=max_regions))


def with_scale(engines: Engines, scale: float) -> Engines:
    """Return the same engines with a bundle whose image level reads frames at `scale` times the sides."""
    manifest = engines.bundle.manifest
    files = replace(manifest.engines, image=manifest.engines.image.scaled(scale))
    bundle = dataclasses.replace(engines.bundle, manifest=manifest.model_copy(update={"engines": files}))
    return dataclasses.replace(engines, bundle=bundle)
