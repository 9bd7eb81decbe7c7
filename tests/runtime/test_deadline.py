# SPDX-License-Identifier: Apache-2.0
"""The deadline of a frame, on fake engines of known cost and a clock that only they move.

The image engine answers after a number of calls of the other engines, so that both threads act in a fixed order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightlab_core.config import replace
from nightlab_core.runtime.bundle import load_bundle
from nightlab_core.runtime.clock import Clock
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import PATIENCE_S, Pipeline, Result
from nightlab_core.runtime.refinement import Outcome
from nightlab_core.runtime.settings import PipelineSettings

pytest.importorskip("onnx")
from fake_engines import FakeEngine, black, known_boxes, plain_maps

NOT_CHOSEN, READ, LEFT_OUT, LATE, *_ = Outcome
SIX = PipelineSettings(nms_iou=1.0, max_regions=6)
BOXES = np.array([[0.15 * i, 0.2, 0.15 * i + 0.1, 0.8] for i in range(6)])
SCORES = np.linspace(0.9, 0.4, 6)


class Simulation(Clock):
    """A clock, and a pipeline of fake engines that move it by their costs."""

    def __init__(self, bundle: Path, tolerant: bool = False) -> None:
        self.image_ms, self.hardness_ms, self.region_ms = 80.0, 10.0, 20.0
        self.stuck_call = ""  #: "hardness", or "region 3": this call answers only after `release`
        self.region_calls = 0  #: of this frame
        self.error: Exception | None = None  #: raised by the call that was stuck
        self.image_error: Exception | None = None  #: raised by the image engine
        self.batches: list[int] = []
        self._ms, self._start_ms = 1000.0, 1000.0
        self._called, self._stuck, self._released = threading.Semaphore(0), threading.Event(), threading.Event()
        self._calls_before_image = 0
        engines = Engines(
            load_bundle(bundle),
            image=FakeEngine("image", self._image),
            hardness=FakeEngine("hardness", self._hardness),
            region=FakeEngine("region", self._region),
        )
        self.pipeline = Pipeline(engines, SIX, clock=self, tolerant=tolerant)

    def now_s(self) -> float:
        return self._ms / 1e3

    def wait(self, condition: threading.Condition, seconds: float) -> bool:
        """Let the worker act, or let the time pass if its call is stuck."""
        if self._stuck.is_set():
            self._ms += 1e3 * seconds
            return False
        condition.wait(0.002)
        return True

    def frame(self, deadline_ms: float, calls_before_image: int = 1, **settings: Any) -> Result:
        """Segment a frame. The image level answers after some calls of the other engines, counting a stuck one."""
        self.pipeline.settings = replace(SIX, deadline_ms=deadline_ms, **settings)
        self._called = threading.Semaphore(0)
        self._calls_before_image, self.region_calls, self._start_ms = calls_before_image, 0, self._ms
        return self.pipeline(black())

    @property
    def elapsed_ms(self) -> float:
        """Time of the last frame."""
        return self._ms - self._start_ms

    def pass_ms(self, ms: float) -> None:
        """Let time pass."""
        self._ms += ms

    def release(self) -> None:
        """Let the stuck call answer, and wait until the worker is idle."""
        self.stuck_call = ""
        self._stuck.clear()
        self._released.set()
        self.pipeline._worker._pool.submit(lambda: None).result(timeout=10)
        self._released.clear()

    def _image(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        for _ in range(self._calls_before_image):
            assert self._called.acquire(timeout=10)
        if self.image_error is not None:
            raise self.image_error
        self._ms = max(self._ms, self._start_ms + self.image_ms)
        return plain_maps(1, 100)(frame)

    def _hardness(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        self._answer("hardness", self.hardness_ms)
        return known_boxes(BOXES, SCORES)(frame)

    def _region(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        self.region_calls += 1
        self.batches.append(len(crops))
        self._answer(f"region {self.region_calls}", self.region_ms * len(crops))
        return plain_maps(2, 200)(crops)

    def _answer(self, call: str, cost_ms: float) -> None:
        if call == self.stuck_call:
            self._stuck.set()
            self._called.release()
            assert self._released.wait(timeout=10)
            if self.error is not None:
                raise self.error
        else:
            self._ms += cost_ms
            self._called.release()


@contextmanager
def simulate(bundle: Path, tolerant: bool = False) -> Iterator[Simulation]:
    simulation = Simulation(bundle, tolerant)
    yield simulation
    simulation.release()
    simulation.pipeline.close()


@pytest.fixture
def simulation(tiny_bundle: Path) -> Iterator[Simulation]:
    with simulate(tiny_bundle) as simulation:
        yield simulation


def outcomes(result: Result) -> list[Outcome]:
    return [Outcome(outcome) for outcome in result.outcomes]


def test_without_a_deadline_everything_is_read_in_one_call(simulation: Simulation) -> None:
    result = simulation.frame(0, calls_before_image=2)
    assert simulation.batches == [6] and outcomes(result) == [READ] * 6 and not result.hardness_late
    assert simulation.elapsed_ms == pytest.approx(130)  # at the same time as the image level
    assert result.stages_ms["hardness"] == pytest.approx(10) and result.stages_ms["region"] == pytest.approx(120)


def test_a_deadline_with_time_for_everything_changes_no_label(simulation: Simulation) -> None:
    whole = simulation.frame(0)
    parts = simulation.frame(1000)
    assert len(simulation.batches) > 2  # read in several calls
    for name in ("labels", "confidence", "boxes_xyxy", "scores", "outcomes", "image_labels"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_regions_that_cannot_be_in_time_are_not_started(simulation: Simulation) -> None:
    result = simulation.frame(165, merge="replace")
    assert outcomes(result) == [READ] * 4 + [LEFT_OUT] * 2  # read from 80 to 160 ms, in descending score
    assert result.refined.tolist() == [True] * 4 + [False] * 2
    assert simulation.elapsed_ms == pytest.approx(160)
    x = 7 + 14 * np.arange(6)  # inside each box
    assert result.labels[32, x].tolist() == [2, 2, 2, 2, 1, 1]


def test_settings_and_deadline_are_told_apart(simulation: Simulation) -> None:
    result = simulation.frame(125, max_regions=4, score_threshold=0.45)
    assert outcomes(result) == [READ, READ, LEFT_OUT, LEFT_OUT, NOT_CHOSEN, NOT_CHOSEN]
    result = simulation.frame(125, max_regions=4, score_threshold=0.75)
    assert outcomes(result) == [READ, READ] + [NOT_CHOSEN] * 4


@pytest.mark.parametrize("deadline_ms", [50, 85])
def test_a_deadline_near_the_end_of_the_image_level_leaves_the_image_level_s_mask(
    simulation: Simulation, deadline_ms: float
) -> None:
    simulation.frame(165)  # to learn the costs
    result = simulation.frame(deadline_ms)
    assert simulation.elapsed_ms == pytest.approx(80)  # the image level alone
    assert simulation.region_calls == 0
    assert outcomes(result) == ([] if result.hardness_late else [LEFT_OUT] * 6)
    np.testing.assert_array_equal(result.labels, result.image_labels)


def test_a_late_region_is_dropped_and_the_others_are_merged(simulation: Simulation) -> None:
    simulation.frame(165)  # to learn the costs
    simulation.stuck_call = "region 3"
    result = simulation.frame(165)
    assert simulation.elapsed_ms == pytest.approx(165)  # on time
    assert outcomes(result) == [READ, READ, LATE, LEFT_OUT, LEFT_OUT, LEFT_OUT]
    before = (result.labels.copy(), result.outcomes.copy(), dict(result.stages_ms))
    simulation.release()
    assert simulation.region_calls == 3  # nothing is read for a frame that is over
    assert (before[0] == result.labels).all() and (before[1] == result.outcomes).all()
    assert before[2] == result.stages_ms


def test_a_late_job_delays_no_later_frame_and_leaves_no_queue(simulation: Simulation) -> None:
    simulation.frame(165)  # to learn the costs
    simulation.stuck_call = "region 1"
    simulation.batches.clear()
    simulation.frame(165)
    for _ in range(3):
        result = simulation.frame(165, calls_before_image=0)
        assert simulation.elapsed_ms == pytest.approx(165)
        assert result.hardness_late and len(result.boxes_xyxy) == 0
        np.testing.assert_array_equal(result.labels, result.image_labels)
    assert simulation.batches == [1] and len(simulation.pipeline._worker._waiting) == 1
    simulation.release()
    assert simulation.batches == [1]  # none of the old frames is refined
    assert outcomes(simulation.frame(165)) == [READ] * 4 + [LEFT_OUT] * 2


def test_boxes_that_come_too_late_are_reported(simulation: Simulation) -> None:
    simulation.stuck_call = "hardness"
    result = simulation.frame(165)
    assert result.hardness_late and len(result.outcomes) == 0
    assert simulation.elapsed_ms == pytest.approx(165)
    simulation.release()
    assert not simulation.frame(165, calls_before_image=0, refine="never").hardness_late


def test_costs_are_learned_while_running(simulation: Simulation) -> None:
    simulation.frame(165)
    assert simulation.pipeline.budget.reading[0].estimate_ms(1) == pytest.approx(20)
    simulation.region_ms = 50.0  # the machine became slower
    for _ in range(2):
        result = simulation.frame(165)
        assert outcomes(result) == [LATE] * 2 + [LEFT_OUT] * 4  # the second from 130 to 180 ms
    assert outcomes(simulation.frame(165)) == [READ] + [LEFT_OUT] * 5
    assert simulation.pipeline.budget.reading[0].estimate_ms(1) == pytest.approx(50)


def test_prepare_measures_the_region_engine_if_there_is_a_deadline(simulation: Simulation) -> None:
    simulation.pipeline.settings = replace(SIX, deadline_ms=100.0)
    simulation.pipeline.prepare((64, 96))
    assert simulation.batches[:5] == [1, 1, 2, 4, 10]  # the first checks the engine's output
    assert simulation.pipeline.budget.reading[0].estimate_ms(10) == pytest.approx(200)


def test_after_an_error_of_the_image_level_the_worker_waits_for_the_deadline_only(simulation: Simulation) -> None:
    simulation.image_error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        simulation.frame(165)
    simulation.image_error = None
    simulation.pass_ms(165)
    simulation.release()
    assert outcomes(simulation.frame(165)) == [READ] * 4 + [LEFT_OUT] * 2


def test_an_error_of_a_late_job_is_logged(simulation: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    simulation.frame(165)  # to learn the costs
    simulation.stuck_call, simulation.error = "region 1", RuntimeError("out of memory")
    simulation.frame(165)
    simulation.release()
    assert "was late for its frame failed" in caplog.text and "out of memory" in caplog.text
    assert outcomes(simulation.frame(165)).count(READ) == 4


def test_only_a_frame_without_any_region_read_in_time_is_late(simulation: Simulation) -> None:
    assert not simulation.frame(165).refinement_late  # some are read, others left out
    assert simulation.frame(85).refinement_late
    assert not simulation.frame(85, score_threshold=0.95).refinement_late  # none is wanted
    assert not simulation.frame(0, calls_before_image=0, refine="never").refinement_late


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("hardness", "hard regions could not be found: the hardness network does not answer"),
        ("region 1", "regions could not be read: the region network does not answer"),
    ],
)
def test_without_a_deadline_a_lower_path_that_hangs_is_waited_for_once(
    tiny_bundle: Path, call: str, reason: str
) -> None:
    with simulate(tiny_bundle, tolerant=True) as simulation:
        simulation.stuck_call = call
        calls = 1 if call == "hardness" else 2
        result = simulation.frame(0, calls)
        begun_ms = 80 if call == "hardness" else 0
        assert simulation.elapsed_ms == pytest.approx(begun_ms + 1e3 * PATIENCE_S, abs=100)
        for _ in range(3):
            assert result.refinement_error == reason and not result.hardness_late
            np.testing.assert_array_equal(result.labels, result.image_labels)
            result = simulation.frame(0, calls_before_image=0)
            assert simulation.elapsed_ms == pytest.approx(80)  # the image level alone
        assert simulation.pipeline._worker._pool._work_queue.qsize() == 0
        simulation.release()
        result = simulation.frame(0, calls_before_image=2)
        assert outcomes(result) == [READ] * 6 and result.refinement_error == ""


@pytest.mark.parametrize("call", ["hardness", "region 1"])
def test_with_a_deadline_a_lower_path_that_hangs_is_late_and_then_an_error(tiny_bundle: Path, call: str) -> None:
    with simulate(tiny_bundle, tolerant=True) as simulation:
        simulation.frame(165)  # to learn the costs
        simulation.stuck_call = call
        assert simulation.frame(165).refinement_late
        for _ in range(int(1e3 * PATIENCE_S / 165) - 1):
            result = simulation.frame(165, calls_before_image=0)
            assert simulation.elapsed_ms == pytest.approx(165)
            assert result.refinement_late and result.refinement_error == ""
        simulation.pass_ms(200)
        result = simulation.frame(165, calls_before_image=0)
        assert result.refinement_error.endswith("network does not answer") and not result.refinement_late
        assert simulation.elapsed_ms == pytest.approx(80)
        simulation.release()
        assert READ in outcomes(simulation.frame(1000))


def test_a_pipeline_that_is_not_tolerant_waits_for_the_lower_path(simulation: Simulation) -> None:
    simulation.hardness_ms = 3e3 * PATIENCE_S
    result = simulation.frame(0, calls_before_image=2)
    assert outcomes(result) == [READ] * 6 and result.refinement_error == ""
