# SPDX-License-Identifier: Apache-2.0
"""Turn a frame into a mask. Read `Pipeline.__call__` first: it is the whole method.

    frame -+- image engine ------------------------------------ labels, confidence -+
           |                                                                        +- merge - mask
           +- propose (hardness engine) - select (budget) - read (region engine) ---+

Both paths start with the frame and run at the same time: the latency is that of the slower path plus the merge. Where
calibration found that to be slower, the lower path follows the image level. With a deadline, regions are read after the
image level, in small batches, and the merge takes those that are ready.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np

from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.budget import RegionBudget
from nightlab_core.runtime.bundle import Bundle
from nightlab_core.runtime.clock import Clock, StageTimes
from nightlab_core.runtime.crops import plan_crops, wanted_scale
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.light import LightGate, light_level
from nightlab_core.runtime.outputs import EngineError, checked_boxes, checked_maps, checked_probabilities
from nightlab_core.runtime.reader import RegionReader
from nightlab_core.runtime.refinement import NOTHING_FOUND, Refinement
from nightlab_core.runtime.result import RefineReason, Result
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings
from nightlab_core.runtime.temporal import Memory
from nightlab_core.runtime.worker import Job, LowerPathWorker

__all__ = ["STAGES", "Pipeline", "RefineReason", "Result"]

STAGES = ("resize", "image", "hardness", "crop", "region", "merge", "total")
#: Seconds that a tolerant pipeline waits for a step of the lower path once the image level is done.
PATIENCE_S = 5.0
#: The same, for the engines of the lower path to be checked and prepared for the first time: there are no masks yet.
FIRST_PATIENCE_S = 20.0


class Pipeline:
    """Segment the frames of one camera with both levels. Call it from one thread: one frame at a time."""

    def __init__(
        self,
        engines: Engines,
        settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
        clock: Clock = Clock(),  # noqa: B008 - no state
        *,
        tolerant: bool = False,
    ) -> None:
        """Use engines that other pipelines may use as well. `close` leaves them open.

        An error of the hardness or region engine is raised. A `tolerant` pipeline returns the image level's result,
        with the regions that were read before, and the error as `Result.refinement_error`. The same goes for an engine
        that does not answer for `PATIENCE_S`: until it does, frames are not refined.
        """
        self.engines = engines
        self.settings = settings  #: assign a new object to change settings; it is read once per frame
        self._tolerant = tolerant
        self._reader = RegionReader(engines, clock)
        self._num_classes = len(engines.bundle.class_set)
        self._has_context = engines.bundle.manifest.engines.region.context
        self.budget = RegionBudget(self._reader.costs, MAX_REGIONS)
        self._clock = clock
        self._gate, self._memory = LightGate(), Memory()
        self._number, self._epoch = -1, 0  # of the last frame; of its sequence
        self._worker = LowerPathWorker(self._refine)
        self._prepared_hws: set[tuple[int, int]] = set()

    @property
    def bundle(self) -> Bundle:
        """The bundle of the engines."""
        return self.engines.bundle

    def __call__(self, frame_bgr: np.ndarray, stamp_s: float | None = None, number: int | None = None) -> Result:
        """Segment a frame, uint8 (H, W, 3) BGR.

        `stamp_s`, its time in seconds, and `number`, its place in the camera's sequence, matter if results of earlier
        frames are used again. Without a number frames are counted.

        Raises ValueError for any other array, EngineError for an output that cannot be used, and the exceptions of the
        engines.
        """
        settings, frame_hw, stages = self.settings, rg.checked_size_hw(frame_bgr), StageTimes(self._clock, STAGES)
        refinement = Refinement(self._clock, settings.deadline_ms, PATIENCE_S if self._tolerant else math.inf)
        self._number = self._number + 1 if number is None else number
        moment = self._number, stamp_s, self._epoch
        with stages("total"):
            with stages("resize"):
                files = self.bundle.manifest.engines
                image_hw, hardness_hw = files.image.network_hw(frame_hw), files.hardness.network_hw(frame_hw)
                image_input = rg.resize_image(frame_bgr, image_hw)[None]

            light = light_level(frame_bgr)
            reason = self._refine_reason(light, settings)
            wanted = reason in ("always", "night")
            hanging = self._worker.hanging() if wanted else ""
            refines = wanted and not hanging
            if refines:
                hardness_input = (
                    image_input if hardness_hw == image_hw else rg.resize_image(frame_bgr, hardness_hw)[None]
                )
                self._worker.offer(Job(refinement, frame_bgr, hardness_input, settings, *moment))
            at_once = self.engines.choice.paths == "at_once"
            if refines and at_once:
                self._worker.refine_newest()

            with stages("image"):
                maps = self._read_image(image_input, refinement)
                image_labels = rg.resize_labels(maps[0][0], frame_hw)
                image_confidence = rg.resize_image(maps[1][0], frame_hw)
            if refines and not at_once:
                self._worker.refine_newest()
            found = replace(NOTHING_FOUND, error=hanging)
            if refines:
                found = refinement.close(self.budget, strict=not self._tolerant)

            with stages("merge"):
                labels, confidence = image_labels, image_confidence
                if found.regions is not None:
                    labels, confidence = rg.MERGES[self._merge(settings)](labels, confidence, found.regions)
                labels = rg.apply_threshold(labels, confidence, settings.confidence_threshold)
                image_labels = rg.apply_threshold(image_labels, image_confidence, settings.confidence_threshold)
        if found.regions is not None:
            self.budget.merging.record(len(found.regions.scores), stages.ms["merge"])
        return Result(
            labels=labels,
            confidence=confidence,
            image_labels=image_labels,
            image_confidence=image_confidence,
            boxes_xyxy=found.boxes_xyxy,
            scores=found.scores,
            outcomes=found.outcomes,
            ages=found.ages,
            hardness_late=found.hardness_late,
            refinement_error=found.error,
            stages_ms=stages.ms | refinement.stages.ms,
            light_level=light,
            refine_reason=reason,
        )

    def _read_image(self, image_input: np.ndarray, refinement: Refinement) -> tuple[np.ndarray, np.ndarray]:
        """Run the image level. Return labels and confidence, uint8 (1, h, w); the worker gets its probabilities."""
        probabilities = None
        try:
            output = self.engines.image(frame=image_input)
            maps = checked_maps("image", output, image_input.shape[:3], self._num_classes)
            if self._has_context:
                probabilities = checked_probabilities(output)
        finally:
            refinement.finish_image_level(probabilities)
        return maps

    def _merge(self, settings: PipelineSettings) -> rg.Merge:
        if settings.merge == "auto":
            return "window" if self._has_context else "confident"
        return settings.merge

    def _refine_reason(self, light: float, settings: PipelineSettings) -> RefineReason:
        is_night = self._gate.is_night(light, settings.night_below, settings.day_above)
        if settings.refine == "night":
            return "night" if is_night else "day"
        return settings.refine

    def _refine(self, job: Job) -> None:
        """Run the lower path: propose regions, select those that pay most for their time, and read them."""
        refinement, settings = job.refinement, job.settings
        if refinement.is_over():
            return
        frame_hw = job.frame_bgr.shape[:2]
        self._memory.begin(job.number, job.stamp_s, frame_hw, job.epoch)
        boxes, scores = self._memory.boxes(settings.hardness_every) or self._propose(job)
        limit = min(settings.max_regions, self._reader.max_batch)
        choice = self._memory.choose(job.frame_bgr, boxes, scores, settings, limit)
        refinement.propose(boxes, scores, choice)
        due, margin, share = choice.due, settings.region_margin, settings.share_windows
        wanted = boxes[due], scores[due]
        scale = wanted_scale(self.bundle.manifest.engines.image.network_hw(frame_hw), frame_hw)
        plan = plan_crops(wanted[0], choice.gains, frame_hw, margin, self._reader.sizes_hw, scale, share=share)
        context = refinement.wait_for_image_level(needed=self._has_context)
        if self._has_context and context is None:
            return
        done = 0
        while number := self.budget.select(plan.gains[done:], refinement.left_ms(), done, plan.sizes[done:]):
            batch = range(done, done + number)
            if not refinement.start(due[np.isin(plan.crop_of, batch)]):
                return
            for places, regions in self._reader.read(job.frame_bgr, context, *wanted, plan, batch, refinement.stages):
                self._memory.keep_regions(job.frame_bgr, due[places], regions, settings)
                refinement.finish(due[places], regions)
            done += number

    def _propose(self, job: Job) -> tuple[np.ndarray, np.ndarray]:
        """Return the hard regions, in descending score: boxes float32 (N, 4) in frame pixels, scores float32 (N,)."""
        height, width = job.frame_bgr.shape[:2]
        with job.refinement.stages("hardness"):
            boxes, scores = checked_boxes(self.engines.hardness(frame=job.hardness_input))
            boxes = boxes.clip(0, 1) * np.array([width, height, width, height], np.float32)
            kept = rg.non_maximum_suppression(boxes, scores, job.settings.nms_iou, MAX_REGIONS)
        self._memory.keep_boxes(boxes[kept], scores[kept])
        return boxes[kept], scores[kept]

    def check_outputs(self, frame_hw: tuple[int, int] | None = None) -> None:
        """Run each network once on a black frame of this size, or of the bundle's, and check what it returns.

        Raises EngineError for an output that cannot be used, and the exceptions of the engines. A tolerant pipeline
        logs the exceptions of the hardness and region engines, but for KeyboardInterrupt, and that they do not answer.
        """
        files = self.bundle.manifest.engines
        frame_hw = frame_hw or files.image.input_hw
        frame, small = (np.zeros((1, *f.network_hw(frame_hw), 3), np.uint8) for f in (files.image, files.hardness))
        checked_maps("image", self.engines.image(frame=frame), frame.shape[:3], self._num_classes)

        def check() -> None:
            checked_boxes(self.engines.hardness(frame=small))
            self._reader.check()

        error = self._before_frames(check)
        if isinstance(error, EngineError):
            raise error

    def _before_frames(self, step: Callable[[], None]) -> BaseException | None:
        """Run a step of the lower path before the first frame of a size. A tolerant pipeline returns its error.

        It also bounds the wait for the step, and goes on without refinement until the step is done.
        """
        if not self._tolerant:
            step()
            return None
        patience_s = PATIENCE_S if self.engines.preparation.is_calibrated else FIRST_PATIENCE_S
        return self._worker.run_first(step, patience_s)

    def is_prepared(self, frame_hw: tuple[int, int]) -> bool:
        """Return True if `prepare` was called for this size, and the engines still hold what it compiled."""
        return frame_hw in self._prepared_hws and self.engines.is_prepared(frame_hw)

    def prepare(self, frame_hw: tuple[int, int]) -> float:
        """Prepare the engines for frames of this size and run one frame. Return the seconds that this took.

        Afterwards the first real frame takes no longer than the others. A tolerant pipeline logs errors of the hardness
        and region engines, and goes on without refinement if they do not answer.
        """
        start = perf_counter()

        def prepare_lower_path() -> None:
            self.engines.prepare_lower_path(frame_hw)
            self._reader.check()
            if self.settings.deadline_ms:
                self._reader.measure()

        self._before_frames(prepare_lower_path)
        self.engines.prepare_image(frame_hw)
        gate, self._gate = self._gate, LightGate()
        try:
            self(np.zeros((*frame_hw, 3), np.uint8), number=self._number)  # raises if the image level fails
        finally:
            self._gate = gate
            self._epoch += 1
        self._prepared_hws.add(frame_hw)
        return perf_counter() - start

    def restart(self, *, is_night: bool = True) -> None:
        """Forget the frames so far. `is_night` is the side of the light gate before the next one."""
        self._gate, self._number = LightGate(is_night=is_night), -1
        self._epoch += 1

    def close(self) -> None:
        """Wait for the worker and end it. The engines stay open. Closing twice is harmless."""
        self._worker.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
