# SPDX-License-Identifier: Apache-2.0
"""Results of earlier frames that are used again: boxes, unchanged regions, turns, carried labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightlab_core.runtime.bundle import load_bundle
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline, Result
from nightlab_core.runtime.refinement import Outcome
from nightlab_core.runtime.settings import KEY_FRAMES, PipelineSettings
from nightlab_core.runtime.temporal import MAX_GAP_S, first_needed

pytest.importorskip("onnx")
from fake_engines import FakeEngine, black, known_boxes, plain_maps

#: Three boxes apart, 40 x 30 pixels in frames of 400 x 300.
BOXES = np.array([[0.1, 0.1, 0.2, 0.2], [0.5, 0.1, 0.6, 0.2], [0.1, 0.6, 0.2, 0.7]])
SCORES = np.array([0.9, 0.8, 0.7])
SIZE_HW = (300, 400)
NOT_CHOSEN, READ, UNCHANGED = Outcome.NOT_CHOSEN, Outcome.READ, Outcome.UNCHANGED


class Camera:
    """A pipeline of fake engines. The labels of the region engine count its calls, from 2 to 18."""

    def __init__(self, bundle: Path, **settings: Any) -> None:
        self.calls = 0
        self.hardness = FakeEngine("hardness", known_boxes(BOXES, SCORES))
        self.region = FakeEngine("region", self._read)
        engines = Engines(load_bundle(bundle), FakeEngine("image", plain_maps(1, 100)), self.hardness, self.region)
        self.pipeline = Pipeline(engines, PipelineSettings(**settings))

    def _read(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        self.calls += 1
        return plain_maps(1 + self.calls % 18, 200)(crops)

    def __call__(self, frame: np.ndarray | None = None, **moment: Any) -> Result:
        return self.pipeline(black(*SIZE_HW) if frame is None else frame, **moment)

    def move(self, dx: float) -> None:
        """Move all boxes to the right by a fraction of the frame."""
        self.hardness.answer = known_boxes(BOXES + np.array([dx, 0, dx, 0]), SCORES)


@pytest.fixture
def camera(tiny_bundle: Path) -> Iterator[Callable[..., Camera]]:
    made = []

    def make(**settings: Any) -> Camera:
        made.append(Camera(tiny_bundle, **settings))
        return made[-1]

    yield make
    for one in made:
        one.pipeline.close()


def labels_in_boxes(result: Result) -> list[int]:
    centres = (result.boxes_xyxy[:, :2] + result.boxes_xyxy[:, 2:]) / 2
    return [int(result.labels[int(y), int(x)]) for x, y in centres]


def test_everything_is_off_by_default(camera: Callable[..., Camera]) -> None:
    one = camera()
    for number in range(3):
        result = one()
        assert result.outcomes.tolist() == [READ] * 3 and result.ages.tolist() == [0] * 3
        assert labels_in_boxes(result) == [2 + number] * 3
    assert len(one.hardness.received) == len(one.region.received) == 3


def test_the_hardness_network_runs_in_every_nth_frame(camera: Callable[..., Camera]) -> None:
    one = camera(hardness_every=3)
    ran = []
    for number in range(7):
        one.move(0.01 * number)
        before = len(one.hardness.received)
        result = one()
        ran.append(len(one.hardness.received) > before)
        assert result.boxes_xyxy[0, 0] == pytest.approx(40 + 4 * (number - number % 3))
        assert result.outcomes.tolist() == [READ] * 3
    assert ran == [True, False, False, True, False, False, True]


def test_the_next_period_begins_though_its_first_frame_is_missing(camera: Callable[..., Camera]) -> None:
    one = camera(hardness_every=3)
    for number in (0, 1, 2, 4, 5):
        one(number=number)
    assert len(one.hardness.received) == 2


def test_a_region_whose_pixels_do_not_change_is_not_read_again(camera: Callable[..., Camera]) -> None:
    one = camera(unchanged_below=4.0)
    assert one().ages.tolist() == [0, 0, 0]
    frame = black(*SIZE_HW)
    frame[35:40, 55:60, 2] = 200  # a small red light in the first box
    result = one(frame)
    assert result.outcomes.tolist() == [READ, UNCHANGED, UNCHANGED] and result.ages.tolist() == [0, 1, 1]
    assert labels_in_boxes(result) == [3, 2, 2] and one.region.received[-1][0] == 1
    result = one(frame + 3)  # the noise of a camera
    assert result.outcomes.tolist() == [UNCHANGED] * 3 and result.ages.tolist() == [1, 2, 2]
    assert one(frame + 5).outcomes.tolist() == [READ] * 3


def test_a_slow_change_is_measured_since_the_region_was_read(camera: Callable[..., Camera]) -> None:
    one = camera(unchanged_below=4.0)
    outcomes = [one(black(*SIZE_HW) + np.uint8(grey)).outcomes[0] for grey in range(6)]
    assert outcomes == [READ, UNCHANGED, UNCHANGED, UNCHANGED, READ, UNCHANGED]


def test_unchanged_regions_leave_room_for_others(camera: Callable[..., Camera]) -> None:
    one = camera(unchanged_below=4.0, max_regions=1)
    outcomes = [one().outcomes.tolist() for _ in range(3)]
    assert outcomes == [
        [READ, NOT_CHOSEN, NOT_CHOSEN],
        [UNCHANGED, READ, NOT_CHOSEN],
        [UNCHANGED, UNCHANGED, READ],
    ]


def test_regions_are_read_in_turn_and_carried_meanwhile(camera: Callable[..., Camera]) -> None:
    one = camera(regions_in_turn=True, max_regions=1, carry_frames=2)
    results = [one() for _ in range(6)]
    assert [r.outcomes.tolist().index(READ) for r in results] == [0, 1, 2, 0, 1, 2]
    assert [r.ages.tolist() for r in results[:4]] == [[0, -1, -1], [1, 0, -1], [2, 1, 0], [0, 2, 1]]
    assert labels_in_boxes(results[2]) == [2, 3, 4] and labels_in_boxes(results[3]) == [5, 3, 4]
    assert results[1].refined.tolist() == [True, True, False]


def test_hard_regions_get_their_turn_more_often(camera: Callable[..., Camera]) -> None:
    one = camera(regions_in_turn=True, max_regions=1)
    one.hardness.answer = known_boxes(BOXES, np.array([0.9, 0.3, 0.2]))
    read = [one().outcomes.tolist().index(READ) for _ in range(20)]
    assert read.count(0) > read.count(1) >= read.count(2) > 0


def test_carried_labels_have_a_limit_of_age_and_move_with_their_box(camera: Callable[..., Camera]) -> None:
    one = camera(carry_frames=2)
    one()
    one.pipeline.settings = PipelineSettings(carry_frames=2, max_regions=0)
    one.move(0.02)  # 8 pixels
    result = one()
    assert result.ages.tolist() == [1, 1, 1] and result.outcomes.tolist() == [NOT_CHOSEN] * 3
    x, y = 40 + 40 + 7, 45  # right edge of the moved box
    assert labels_in_boxes(result) == [2, 2, 2] and result.labels[y, x] == 2
    assert one().ages.tolist() == [2, 2, 2]
    assert one().ages.tolist() == [-1, -1, -1]


def test_another_box_gets_no_carried_labels(camera: Callable[..., Camera]) -> None:
    one = camera(carry_frames=9)
    one()
    one.pipeline.settings = PipelineSettings(carry_frames=9, max_regions=0)
    one.move(0.05)  # half a box: an IoU of a third
    assert one().ages.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("carry", [0, 5])
def test_a_region_that_failed_keeps_its_earlier_labels(tiny_bundle: Path, carry: int) -> None:
    one = Camera(tiny_bundle, carry_frames=carry)
    with Pipeline(one.pipeline.engines, one.pipeline.settings, tolerant=True) as pipeline:
        assert pipeline(black(*SIZE_HW)).ages.tolist() == [0, 0, 0]

        def fail(crops: np.ndarray) -> dict[str, np.ndarray]:
            raise RuntimeError("out of memory")

        one.region.answer = fail
        result = pipeline(black(*SIZE_HW))
    one.pipeline.close()
    assert result.outcomes.tolist() == [Outcome.FAILED] * 3 and "out of memory" in result.refinement_error
    assert result.ages.tolist() == ([1, 1, 1] if carry else [-1, -1, -1])


ECONOMY = {"hardness_every": 4, "unchanged_below": 4.0, "carry_frames": 9}


@pytest.mark.parametrize(
    ("second", "forgets"),
    [
        ({"number": 6, "stamp_s": 10.1}, False),
        ({"number": 6}, False),
        ({"number": 6, "stamp_s": 10.1 + MAX_GAP_S}, True),
        ({"number": 6, "stamp_s": 9.9}, True),
        ({"number": 4, "stamp_s": 10.1}, True),
        ({"number": KEY_FRAMES, "stamp_s": 10.1}, True),
    ],
)
def test_the_memory_ends_with_a_jump_and_at_key_frames(
    camera: Callable[..., Camera], second: dict[str, Any], forgets: bool
) -> None:
    one = camera(**ECONOMY)
    one(number=5, stamp_s=10.0)
    assert one(**second).ages.tolist() == ([0, 0, 0] if forgets else [1, 1, 1])


def test_the_memory_ends_with_another_size_a_restart_and_preparation(camera: Callable[..., Camera]) -> None:
    one = camera(**ECONOMY)
    one()
    assert one(black(300, 410)).ages.tolist() == [0, 0, 0]
    assert one(black(300, 410)).ages.tolist() == [1, 1, 1]
    one.pipeline.restart()
    assert one(black(300, 410)).ages.tolist() == [0, 0, 0]
    one.pipeline.prepare((300, 410))
    assert one(black(300, 410)).ages.tolist() == [0, 0, 0]


def test_preparation_leaves_the_light_gate_alone(camera: Callable[..., Camera]) -> None:
    one = camera(refine="night")
    assert one(np.full((*SIZE_HW, 3), 120, np.uint8)).refine_reason == "day"
    one.pipeline.prepare(SIZE_HW)
    assert one(np.full((*SIZE_HW, 3), 80, np.uint8)).refine_reason == "day"


def test_frames_depend_on_those_since_the_key_frame() -> None:
    assert first_needed(KEY_FRAMES + 7, PipelineSettings()) == KEY_FRAMES + 7
    for name, value in {**ECONOMY, "regions_in_turn": True}.items():
        settings = PipelineSettings(**{name: value})
        assert [first_needed(n, settings) for n in (0, 7, KEY_FRAMES + 7)] == [0, 0, KEY_FRAMES]


def moving(number: int) -> np.ndarray:
    return np.random.default_rng(number // 3).integers(0, 9, (*SIZE_HW, 3), np.uint8)


@pytest.mark.parametrize("start", [KEY_FRAMES, KEY_FRAMES + 5])
def test_a_run_from_the_key_frame_gives_the_masks_of_a_run_in_a_row(tiny_bundle: Path, start: int) -> None:
    settings = {**ECONOMY, "regions_in_turn": True, "max_regions": 1}
    masks: list[dict[int, Result]] = []
    for first in (3, first_needed(start, PipelineSettings(**settings))):
        one = Camera(tiny_bundle, **settings)
        one.region.answer = lambda crops: {
            "labels": crops[..., 0] % 19, "confidence": np.full(crops.shape[:3], 200, np.uint8)
        }  # fmt: skip
        masks.append({})
        for number in range(first, start + 8):
            one.move(0.002 * number)
            masks[-1][number] = one(moving(number), number=number, stamp_s=0.1 * number)
        one.pipeline.close()
    outcomes = set()
    for number in range(start, start + 8):
        row, span = (run[number] for run in masks)
        for name in ("labels", "confidence", "outcomes", "ages", "boxes_xyxy"):
            np.testing.assert_array_equal(getattr(row, name), getattr(span, name))
        outcomes |= set(row.outcomes.tolist())
    assert len(outcomes) > 1
