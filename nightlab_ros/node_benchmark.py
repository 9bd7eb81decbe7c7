# SPDX-License-Identifier: Apache-2.0
"""Measure the node as ros2_benchmark does: the highest rate with few lost frames, then latency, jitter and CPU load.

The overhead is the time that the node adds: from the arrival of an image until its mask is published, without the
pipeline's own time. The node measures it and publishes it for each frame, here at a rate at which no frame waits for
another.

The player, the node and the recorder are processes of their own. The player holds its frames in memory.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from nightlab_core.benchmark.measure import smooth_frames
from nightlab_core.benchmark.timing import Timing
from nightlab_ros.playback.mask_recorder import MASK, MaskRecorder, MaskSpool
from nightlab_ros.playback.player import PREFETCH_BYTES, PlayerSettings
from nightlab_ros.playback.processes import ChildProcess, ProcessError, isolated_ros, node_process
from nightlab_ros.playback.protocol import PlayerProcess, SentFrame, record_playback, wait_for_warm_up

#: Stage of the node's times that is the overhead.
OVERHEAD = "overhead"
#: A rate is too high from this share of lost frames on.
LOST_LIMIT = 0.05
#: Rates at which latency, jitter and load are measured.
RATES_HZ = (10.0, 30.0)
#: The highest rate is between these, and is found to the factor `PRECISION`. The search begins at the rate that the
#: latency of single frames allows, and moves by the factor `STEP` until it has passed the highest rate.
LOWEST_HZ, HIGHEST_HZ, STEP, PRECISION = 1.0, 120.0, 1.5, 1.1
#: Frames from which that latency is measured, at the lowest rate.
FIRST_FRAMES = 5
#: A trial of the search, and one whose figures are shown, last about so many seconds, within these numbers of frames.
SEARCH_S, SHOWN_S, LEAST_FRAMES, MOST_FRAMES = 5.0, 10.0, 20, 180
#: The overhead is measured at this rate, or at half the highest one if that is lower.
OVERHEAD_HZ = 10.0


@dataclass(frozen=True)
class Trial:
    """One playback at a fixed rate."""

    rate_hz: float
    sent: int
    lost: int
    latency: Timing | None  #: from the stamp to the arrival of the mask; None: no mask came
    jitter_ms: float | None  #: standard deviation of the intervals between masks; None: fewer than three masks
    cpu_load: float | None  #: processor time of the node over the time that passed, 1 for one core; None: not on Linux

    @property
    def lost_share(self) -> float:
        """Share of the frames that were lost, 0..1."""
        return self.lost / self.sent if self.sent else 1.0


@dataclass(frozen=True)
class Overhead:
    """Time that the node adds to the pipeline's own."""

    rate_hz: float  #: at which it was measured
    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class NodeFigures:
    """The node's figures; see the module."""

    frame_hw: tuple[int, int]
    highest_rate_hz: float  #: with less than `LOST_LIMIT` of the frames lost; 0 if the lowest rate loses more
    trials: tuple[Trial, ...]  #: in the order in which they were made
    at_rates: tuple[Trial, ...]  #: at `RATES_HZ`
    overhead: Overhead | None  #: None: the lowest rate already loses frames


def measure_node(
    parameters: dict[str, str],
    frame_hw: tuple[int, int],
    on_step: Callable[[str], None] = lambda text: None,
) -> NodeFigures:
    """Start the node with these parameters and measure it with frames of this size.

    Raises ProcessError if the node or the player fails.
    """
    height, width = frame_hw
    parameters = {"autostart": "true", "image_size": f"[{width}, {height}]", **parameters}
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_frames(out / "frames", frame_hw)
        with (
            MaskSpool(out) as spool,
            isolated_ros(out),
            MaskRecorder(spool, stages=(OVERHEAD,)) as recorder,
            node_process(parameters, out / "node.log") as node,
        ):

            def run(rate_hz: float, count: int) -> Trial:
                on_step(f"node: {rate_hz:.1f} Hz")
                trial = play_at(rate_hz, out, recorder, node, count)
                trials.append(trial)
                return trial

            latency = run(LOWEST_HZ, FIRST_FRAMES).latency
            first_hz = LOWEST_HZ if latency is None else 1e3 / latency.median_ms
            highest = highest_rate(lambda hz: run(hz, num_frames(hz, SEARCH_S, frame_hw)).lost_share, first_hz)
            at_rates = tuple(run(hz, num_frames(hz, SHOWN_S, frame_hw)) for hz in RATES_HZ)
            overhead = None
            if highest:
                rate_hz = min(OVERHEAD_HZ, highest / 2)
                trial = run(rate_hz, num_frames(rate_hz, SHOWN_S, frame_hw))
                overhead = summarise_overhead(trial, recorder.stages_ms[OVERHEAD])
    return NodeFigures(frame_hw, highest, tuple(trials), at_rates, overhead)


def num_frames(rate_hz: float, seconds: float, frame_hw: tuple[int, int]) -> int:
    """Return the number of frames of a trial: no more than the player holds in memory."""
    most = min(MOST_FRAMES, PREFETCH_BYTES // (3 * frame_hw[0] * frame_hw[1]))
    return max(1, min(most, max(LEAST_FRAMES, round(rate_hz * seconds))))


def summarise_overhead(trial: Trial, values_ms: Sequence[float]) -> Overhead | None:
    """Return the overhead from the node's values so far, of which a trial's are the last; None without any."""
    own = values_ms[-(trial.sent - trial.lost) :] if trial.sent > trial.lost else ()
    if not len(own):
        return None
    median, p95 = (float(mark) for mark in np.percentile(own, (50, 95)))
    return Overhead(trial.rate_hz, median, p95)


def highest_rate(lost_share: Callable[[float], float], first_hz: float) -> float:
    """Find the highest rate in Hz at which `lost_share` is below `LOST_LIMIT`.

    Tries `first_hz`, then steps until the rate is passed, and then bisects its logarithm. Returns 0 if the lowest rate
    loses more, and the highest rate if that loses less.
    """
    rate_hz, low, high = min(max(first_hz, LOWEST_HZ), HIGHEST_HZ), 0.0, math.inf
    while low < HIGHEST_HZ and high > LOWEST_HZ and low * PRECISION < high:
        if lost_share(rate_hz) < LOST_LIMIT:
            low = rate_hz
        else:
            high = rate_hz
        if not low:
            rate_hz = max(rate_hz / STEP, LOWEST_HZ)
        elif math.isinf(high):
            rate_hz = min(rate_hz * STEP, HIGHEST_HZ)
        else:
            rate_hz = math.sqrt(low * high)
    return low


def play_at(rate_hz: float, out: Path, recorder: MaskRecorder, node: ChildProcess, count: int) -> Trial:
    """Play `count` of the frames of `write_frames` in `out` at a rate, and return what came back."""
    settings = PlayerSettings(input=str(out / "frames"), frames=count, rate=rate_hz)
    arguments = [*settings.arguments(), "--warm-up"]
    with PlayerProcess("nightlab_ros.playback.player", arguments, out / "player.log") as player:
        if not wait_for_warm_up(recorder, node, player):
            raise ProcessError(f"the player sent no frame. {player.log_tail()}")
        start_s, start_cpu_s = time.monotonic(), _cpu_seconds(node.pid)
        measured: list[float | None] = [None]

        def measure_load() -> None:  # until the last frame is sent: later the node is idle
            cpu_s, passed_s = _cpu_seconds(node.pid), time.monotonic() - start_s
            if cpu_s is not None and start_cpu_s is not None and passed_s > 0 and not player.has_played():
                measured[0] = (cpu_s - start_cpu_s) / passed_s

        record_playback(recorder, node, player, on_progress=measure_load)
    masks = recorder.received[MASK]
    arrivals = {
        frame.stamp_ns: masks[frame.stamp_ns][0].received_ns for frame in player.sent if frame.stamp_ns in masks
    }
    return summarise(rate_hz, player.sent, arrivals, measured[0])


def summarise(rate_hz: float, sent: Sequence[SentFrame], arrivals_ns: dict[int, int], cpu_load: float | None) -> Trial:
    """Compute a trial's figures from the frames sent and the arrival of each mask by its frame's stamp."""
    latencies_ms = [(arrivals_ns[f.stamp_ns] - f.stamp_ns) / 1e6 for f in sent if f.stamp_ns in arrivals_ns]
    intervals_ms = [(b - a) / 1e6 for a, b in pairwise(sorted(arrivals_ns.values()))]
    return Trial(
        rate_hz=rate_hz,
        sent=len(sent),
        lost=len(sent) - len(latencies_ms),
        latency=Timing.of(latencies_ms) if latencies_ms else None,
        jitter_ms=float(np.std(intervals_ms)) if len(intervals_ms) > 1 else None,
        cpu_load=cpu_load,
    )


def write_frames(folder: Path, frame_hw: tuple[int, int], different: int = 6) -> None:
    """Write MOST_FRAMES images into a new folder, which are links to a few different ones."""
    folder.mkdir(parents=True)
    for index, image in enumerate(smooth_frames(frame_hw, different)):
        cv2.imwrite(str(folder / f"{index:04}.jpg"), image)
    for index in range(different, MOST_FRAMES):
        (folder / f"{index:04}.jpg").symlink_to(folder / f"{index % different:04}.jpg")


def _cpu_seconds(pid: int) -> float | None:
    """Return the processor time of a process so far, or None where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
