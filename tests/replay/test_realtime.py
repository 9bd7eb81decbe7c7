# SPDX-License-Identifier: Apache-2.0
"""Replay at the recorded rate: dropped frames and the simulated clock."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from class_sets import CITYSCAPES19
from replays import start_run
from tiny_bags import make_frames, write_tiny_bag

from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.realtime import DROPPED, LONGEST_GAP_S, due_times_s, recorded_at, replay_realtime
from nightlab_replay.records import RunData
from nightlab_replay.session import join_spans, store_results
from nightlab_replay.store import load_run


class SlowPipeline:
    """A pipeline that takes `pause_s` longer for each frame."""

    def __init__(self, pipeline: Pipeline, pause_s: float) -> None:
        self._pipeline, self._pause_s = pipeline, pause_s
        self.bundle, self.prepare = pipeline.bundle, pipeline.prepare

    def __call__(self, frame: np.ndarray, stamp_s: float) -> object:
        time.sleep(self._pause_s)
        return self._pipeline(frame, stamp_s)


def test_a_slow_pipeline_drops_frames_as_the_node_does(tmp_path: Path, pipeline: Pipeline) -> None:
    bag = write_tiny_bag(tmp_path / "bag", make_frames(12), step_ns=50_000_000)
    run, spans = start_run(tmp_path / "out", [bag], pipeline)
    start = time.monotonic()
    slow: Pipeline = SlowPipeline(pipeline, 0.2)  # type: ignore[assignment]
    store_results(tmp_path / "out", run, replay_realtime(join_spans(spans), slow, CITYSCAPES19))
    assert time.monotonic() - start > 0.55  # 11 steps of 50 ms
    data = load_run(tmp_path / "out")
    assert data.complete
    ok, dropped = ([r for r in data.records if r.status == s] for s in ("ok", "dropped"))
    assert len(ok) + len(dropped) == 12 and len(dropped) >= 6
    assert ok[-1].index == 11  # the last frame is never replaced
    assert {r.reason for r in dropped} == {DROPPED} and all(r.light_level is None for r in dropped)
    assert all(r.latency_ms is not None and r.latency_ms > 200 for r in ok)
    assert len(data.counts) == len(ok)


def test_a_pipeline_that_keeps_up_drops_nothing(tmp_path: Path, pipeline: Pipeline, serial: RunData) -> None:
    bag = write_tiny_bag(tmp_path / "one", make_frames(11), step_ns=200_000_000)
    run, spans = start_run(tmp_path / "out", [bag], pipeline)
    store_results(tmp_path / "out", run, replay_realtime(join_spans(spans), pipeline, CITYSCAPES19, rate=2))
    data = load_run(tmp_path / "out")
    done = [r.index for r in data.labelled]  # all 11, unless the machine takes more than 200 ms for a frame
    assert done[-1] == 10
    np.testing.assert_array_equal(data.counts.confusion, serial.counts.confusion[done])


def test_an_unreadable_frame_is_recorded_with_its_reason(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = Bag.raw
    monkeypatch.setattr(Bag, "raw", lambda bag, index: BagError("lost") if index == 1 else raw(bag, index))
    bag = write_tiny_bag(tmp_path / "bag", make_frames(3), step_ns=100_000_000)
    run, spans = start_run(tmp_path / "out", [bag], pipeline)
    store_results(tmp_path / "out", run, replay_realtime(spans, pipeline, CITYSCAPES19, keep_masks=True))
    records = load_run(tmp_path / "out").records
    assert (records[1].status, records[1].reason) == ("unreadable", "lost")
    assert [r.index for r in records] == [0, 1, 2] and records[2].status == "ok"


def test_an_error_of_the_pipeline_ends_the_replay(tmp_path: Path, pipeline: Pipeline) -> None:
    class FailingPipeline(SlowPipeline):
        def __call__(self, frame: np.ndarray, stamp_s: float) -> object:
            raise RuntimeError("out of memory")

    bag = write_tiny_bag(tmp_path / "bag", make_frames(3), step_ns=1_000_000)
    _, spans = start_run(tmp_path / "out", [bag], pipeline)
    failing: Pipeline = FailingPipeline(pipeline, 0)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="out of memory"):
        list(replay_realtime(join_spans(spans), failing, CITYSCAPES19))


def test_due_times() -> None:
    times_ns = np.array([5, 6, 6, 5, 60, 61]) * 10**9
    expected = np.cumsum([0, 0.5, 0, 0, LONGEST_GAP_S, 0.5])
    np.testing.assert_allclose(due_times_s(times_ns, 2.0), expected)


def test_the_clock_shows_the_recording_time_after_a_long_gap() -> None:
    times_ns = 1_763_846_812_123_456_789 + np.array([0, 1, 1, 1001, 1002]) * 10**9
    rate = 2.0
    due_s = due_times_s(times_ns, rate)
    at = recorded_at(times_ns, due_s, rate)
    assert [at(due) for due in due_s] == times_ns.tolist()
    assert at(float(due_s[2]) + LONGEST_GAP_S / 4) == times_ns[2] + 250 * 10**9
    assert at(float(due_s[-1]) + 0.5) == times_ns[-1] + 10**9
    alone = recorded_at(times_ns[:1], due_s[:1], rate)
    assert (alone(0.0), alone(0.5)) == (times_ns[0], times_ns[0] + 10**9)
