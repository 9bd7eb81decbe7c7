# SPDX-License-Identifier: Apache-2.0
"""Crop, enlarge and segment regions with the region engine, and learn what that costs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nightlab_core.runtime.budget import LearnedCosts
from nightlab_core.runtime.clock import Clock, StageTimes
from nightlab_core.runtime.crops import CropPlan
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.outputs import checked_maps
from nightlab_core.runtime.regions import Regions, crop_and_enlarge, crop_probabilities

#: Numbers of regions whose cost `measure` measures.
MEASURED = (1, 2, 4, 10)


class RegionReader:
    """The region engine, the sizes at which it reads, and their costs for one pipeline."""

    def __init__(self, engines: Engines, clock: Clock) -> None:
        """Use an engine that other readers may use as well."""
        self.sizes_hw = engines.region_sizes_hw  #: in ascending order
        self.max_batch = engines.bundle.manifest.engines.region.max_batch
        #: Of cropping and one call of the engine, by number of regions; one for each size.
        self.costs = [LearnedCosts(self.max_batch) for _ in self.sizes_hw]
        self._file = engines.bundle.manifest.engines.region
        self._engine, self._num_classes = engines.region, len(engines.bundle.class_set)
        self._clock = clock

    def read(
        self, frame_bgr: np.ndarray, probabilities: np.ndarray | None, boxes: np.ndarray, scores: np.ndarray,
        plan: CropPlan, batch: range, stages: StageTimes,
    ) -> Iterator[tuple[np.ndarray, Regions]]:  # fmt: skip
        """Read some crops of a plan, in one call for each size. Yield the regions of a size, with their positions.

        Args:
            frame_bgr: uint8 (H, W, 3).
            probabilities: the image level's, uint8 (h, w, C), if the network reads them.
            boxes, scores: float32 (K, 4) and (K,): those of the plan.
            plan: of `plan_crops`.
            batch: the crops to read.
            stages: receives the times of the stages "crop" and "region".
        """
        in_batch = np.array(batch)
        for size in np.unique(plan.sizes[in_batch]):
            crops = in_batch[plan.sizes[in_batch] == size]
            start_s = self._clock.now_s()
            with stages("crop"):
                inputs = self._cut(frame_bgr, probabilities, plan.windows[crops], self.sizes_hw[size])
            with stages("region"):
                labels, confidence = self._segment(inputs)
            self.costs[size].record(len(crops), 1e3 * (self._clock.now_s() - start_s))
            positions = np.flatnonzero(np.isin(plan.crop_of, crops))
            crop_of = plan.crop_of[positions]
            own = np.searchsorted(crops, crop_of)
            yield (
                positions,
                Regions(boxes[positions], scores[positions], plan.windows[crop_of], labels[own], confidence[own]),
            )

    def check(self) -> None:
        """Read one black crop of each size. Raises EngineError, and the exceptions of the engine."""
        for size_hw in self.sizes_hw:
            self._segment(self._black(1, size_hw))

    def measure(self) -> None:
        """Learn the costs of some numbers of regions, so that the first frames know them."""
        for size_hw, costs in zip(self.sizes_hw, self.costs, strict=True):
            for number in sorted({min(number, self.max_batch) for number in MEASURED}):
                start_s = self._clock.now_s()
                self._segment(self._black(number, size_hw))
                costs.record(number, 1e3 * (self._clock.now_s() - start_s))

    def _cut(
        self, frame_bgr: np.ndarray, probabilities: np.ndarray | None, windows: np.ndarray, size_hw: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        inputs = {"crops": crop_and_enlarge(frame_bgr, windows, size_hw)}
        if self._file.context:
            assert probabilities is not None
            _, *context_hw, _ = self._file.input_shapes(len(windows), size_hw, self._num_classes)["context"]
            frame_hw = frame_bgr.shape[0], frame_bgr.shape[1]
            inputs["context"] = crop_probabilities(probabilities, windows, frame_hw, (context_hw[0], context_hw[1]))
        return inputs

    def _black(self, number: int, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
        shapes = self._file.input_shapes(number, size_hw, self._num_classes)
        return {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()}

    def _segment(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return checked_maps("region", self._engine(**inputs), inputs["crops"].shape[:3], self._num_classes)
