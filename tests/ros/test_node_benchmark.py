# SPDX-License-Identifier: Apache-2.0
"""The node's benchmark with a node of known speed; and once for real, where no figure is asserted."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy")

from command import nightlab

from nightlab_core.benchmark.timing import Timing
from nightlab_core.data.frames import open_frames
from nightlab_ros import node_benchmark
from nightlab_ros.node_benchmark import (
    HIGHEST_HZ,
    LOWEST_HZ,
    PRECISION,
    NodeFigures,
    Overhead,
    Trial,
    highest_rate,
    num_frames,
    summarise,
    summarise_overhead,
    write_frames,
)
from nightlab_ros.playback.protocol import SentFrame

pytestmark = pytest.mark.ros


def lost_share(capacity_hz: float, rate_hz: float) -> float:
    """A node that answers `capacity_hz` frames per second loses the rest."""
    return max(0.0, 1 - capacity_hz / rate_hz)


@pytest.mark.parametrize("first_hz", [0.1, 3.0, 9.5, 500.0])
@pytest.mark.parametrize("capacity_hz", [1.2, 9.5, 31.0, 100.0])
def test_the_highest_rate_is_found_from_any_first_rate(capacity_hz: float, first_hz: float) -> None:
    tried: list[float] = []

    def play(rate_hz: float) -> float:
        tried.append(rate_hz)
        return lost_share(capacity_hz, rate_hz)

    most = capacity_hz / 0.95  # 5 % may be lost
    assert most / PRECISION <= highest_rate(play, first_hz) < most
    assert len(tried) == len(set(tried)) and min(tried) >= LOWEST_HZ and max(tried) <= HIGHEST_HZ


def test_a_good_first_rate_saves_trials() -> None:
    tried: list[float] = []
    highest_rate(lambda rate_hz: tried.append(rate_hz) or lost_share(3.0, rate_hz), 2.8)  # type: ignore[func-returns-value]
    assert len(tried) <= 5


def test_rates_beyond_both_ends() -> None:
    assert highest_rate(lambda rate_hz: lost_share(0.5, rate_hz), 20.0) == 0
    assert highest_rate(lambda rate_hz: 0.0, 20.0) == HIGHEST_HZ


def test_a_trial_has_no_more_frames_than_the_player_holds() -> None:
    assert num_frames(10.0, 10.0, (720, 1280)) == 100
    assert num_frames(0.5, 10.0, (720, 1280)) == node_benchmark.LEAST_FRAMES
    assert num_frames(120.0, 10.0, (720, 1280)) == node_benchmark.MOST_FRAMES
    assert num_frames(120.0, 10.0, (1024, 2048)) == 85  # of 6 MiB each, in 512 MiB


def test_the_overhead_is_that_of_the_trials_own_frames() -> None:
    trial = Trial(2.0, 5, 1, None, None, None)
    assert summarise_overhead(trial, [99.0, 1.0, 2.0, 3.0, 4.0]) == Overhead(2.0, 2.5, pytest.approx(3.85))
    assert summarise_overhead(trial, []) is None
    assert summarise_overhead(replace(trial, lost=5), [1.0]) is None


def test_a_trial_is_summarised_by_hand() -> None:
    sent = [SentFrame(i, stamp_ns=i * 100_000_000, sent_ns=0, late_ms=0.0) for i in range(4)]
    arrivals = {0: 50_000_000, 100_000_000: 170_000_000, 300_000_000: 360_000_000}
    trial = summarise(10.0, sent, arrivals, 0.5)
    assert (trial.sent, trial.lost, trial.lost_share, trial.cpu_load) == (4, 1, 0.25, 0.5)
    assert trial.latency is not None and trial.latency.median_ms == pytest.approx(60) and trial.latency.runs == 3
    assert trial.jitter_ms == pytest.approx(35)  # intervals of 120 and 190 ms
    empty = summarise(10.0, sent, {}, None)
    assert empty.lost == 4 and empty.latency is None and empty.jitter_ms is None


def test_frames_are_as_many_as_a_trial_needs(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", (48, 64))
    source = open_frames(tmp_path / "frames")
    assert source.num_frames == node_benchmark.MOST_FRAMES
    assert next(iter(source)).image_bgr.shape == (48, 64, 3)


def test_the_node_is_started_once_and_measured_at_two_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    counts: list[tuple[float, int]] = []
    recorder = SimpleNamespace(stages_ms={"overhead": [50.0]})

    def node_process(parameters: dict[str, str], log: Path) -> Any:
        started.append(parameters)
        return nullcontext()

    def play_at(rate_hz: float, out: Path, recorder: Any, node: Any, count: int) -> Trial:
        counts.append((round(rate_hz, 1), count))
        lost = round(count * lost_share(20, rate_hz))
        recorder.stages_ms["overhead"] += [2.5] * (count - lost)
        latency = Timing(50.0, 50.0, 50.0, count - lost)
        return Trial(rate_hz, count, lost, latency, None, None)

    for name, fake in {
        "isolated_ros": lambda out: nullcontext(),
        "MaskRecorder": lambda spool, stages: nullcontext(recorder),
        "node_process": node_process,
        "play_at": play_at,
    }.items():
        monkeypatch.setattr(node_benchmark, name, fake)
    steps: list[str] = []
    figures = node_benchmark.measure_node({"engine": "openvino"}, (48, 64), steps.append)
    assert started == [{"autostart": "true", "image_size": "[64, 48]", "engine": "openvino"}]
    assert 20 / PRECISION <= figures.highest_rate_hz < 20 / 0.94
    assert [trial.rate_hz for trial in figures.at_rates] == [10, 30]
    assert [(trial.sent, trial.lost) for trial in figures.at_rates] == [(100, 0), (180, 60)]
    assert len(steps) == len(figures.trials)
    assert counts[0] == (1.0, 5) and counts[1] == (20.0, 100)  # from a latency of 50 ms
    rate_hz = min(10.0, figures.highest_rate_hz / 2)
    assert figures.overhead == Overhead(rate_hz, 2.5, 2.5)
    assert counts[-1] == (round(rate_hz, 1), round(10 * rate_hz))


def test_the_command_prints_the_figures(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_node(parameters: dict[str, str], frame_hw: tuple[int, int], on_step: Any) -> NodeFigures:
        assert parameters["bundle"] == str(tiny_bundle.resolve()) and parameters["engine"] == "onnxruntime"
        sent = [SentFrame(i, stamp_ns=i * 100_000_000, sent_ns=0, late_ms=0.0) for i in range(4)]
        trial = summarise(10.0, sent, {f.stamp_ns: f.stamp_ns + 20_000_000 for f in sent}, 1.5)
        return NodeFigures(frame_hw, 12.5, (trial,), (trial, summarise(30.0, sent, {}, None)), Overhead(6.2, 3.25, 4.5))

    monkeypatch.setattr(node_benchmark, "measure_node", measure_node)
    words = ("--bundle", tiny_bundle, "--engine", "onnxruntime", "--image-size", "96x64", "--out", tmp_path)
    done = nightlab("benchmark", "--node", *words)
    assert done.status == 0, done.err
    assert "96x64: highest rate with less than 5 % lost 12.5 Hz" in done.out and "150 %" in done.out
    assert "node overhead at 6.2 Hz: median 3.2 ms, p95 4.5 ms" in done.out
    assert '"highest_rate_hz": 12.5' in (tmp_path / "benchmark.json").read_text()


@pytest.mark.slow
def test_the_real_node_is_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HIGHEST_HZ": 2.0,
        "RATES_HZ": (2.0,),
        "FIRST_FRAMES": 1,
        "SEARCH_S": 1.0,
        "SHOWN_S": 1.0,
        "LEAST_FRAMES": 4,
    }.items():
        monkeypatch.setattr(node_benchmark, name, value)
    parameters = {"bundle": str(tiny_bundle.resolve()), "engine": "onnxruntime", "threads": "1"}
    figures = node_benchmark.measure_node(parameters, (64, 96))
    assert [trial.sent for trial in figures.at_rates] == [4]
    assert figures.at_rates[0].lost < 4 and figures.at_rates[0].latency is not None
    assert figures.overhead is None or 0 < figures.overhead.median_ms <= figures.overhead.p95_ms
