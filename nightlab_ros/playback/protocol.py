# SPDX-License-Identifier: Apache-2.0
"""Play frames to the node from a player process, and record its masks. Player and parent follow one protocol.

1. Warm-up: the player sends its first frame again and again until a line arrives on its standard input. The parent
   writes that line when a mask has come back: both directions then work, and the engines are warm.
2. The player sends each frame once. It writes one line of JSON to standard output per frame sent (`SentFrame`).
3. After the last frame the player closes its standard output, and ends when its standard input does. Until then its
   publisher exists: a best-effort subscription loses what it has not taken when the publisher goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException

from nightlab_ros.playback.mask_recorder import MaskRecorder
from nightlab_ros.playback.processes import ChildProcess, ProcessError

#: Longest wait for a player's end, in seconds: a busy machine takes long to close its publisher.
RELEASE_TIMEOUT_S = 60.0
#: Index of a warm-up frame.
WARM_UP = -1
#: First pause between two warm-up frames, in seconds. Each pause is half as long again as the one before it, so that a
#: slow machine can answer the last frame in time.
WARM_UP_PAUSE_S = 1.0
#: Longest wait for the first mask, in seconds, counted from the last progress of a build of engines.
FIRST_MASK_TIMEOUT_S = 240.0
#: After so many seconds without a frame or a mask, the masks that are missing count as dropped.
QUIET_S = 3.0


@dataclass(frozen=True)
class SentFrame:
    """A frame that a player sent. Times are nanoseconds of the wall clock unless said otherwise."""

    index: int  #: place in the source, or WARM_UP
    stamp_ns: int  #: stamp in the message's header
    sent_ns: int
    late_ms: float  #: milliseconds from when the frame was due until it was sent
    name: str = ""
    size_hw: tuple[int, int] | None = None  #: None where the player does not decode the image
    clock_ns: int | None = None  #: time of /clock; None without a simulated clock
    has_own_stamp: bool = True  #: the stamp is the recorded one


# The player's side.


def print_sent(frame: SentFrame) -> None:
    """Tell the parent that a frame was sent."""
    print(json.dumps(asdict(frame)), flush=True)


def warm_up(send: Callable[[], None]) -> None:
    """Call `send` now and then until the parent ends the warm-up."""
    ended = threading.Event()

    def read_line() -> None:
        sys.stdin.readline()
        ended.set()

    threading.Thread(target=read_line, daemon=True).start()
    pause_s = WARM_UP_PAUSE_S
    while not ended.is_set():
        send()
        ended.wait(pause_s)
        pause_s *= 1.5


def wait_until_released() -> None:
    """Close standard output to tell the parent that all frames are sent, and wait for the end of standard input."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # closing sys.stdout would leave its descriptor open
    sys.stdin.read()


def run_player(name: str, play: Callable[[Any], None]) -> int:
    """Call `play` with a new ROS node of this name, and return the exit status.

    0 when `play` returned, 1 with a reason on standard error for its ValueError or OSError, 130 when interrupted.
    """
    rclpy.init(args=[])
    node = rclpy.create_node(name)
    try:
        play(node)
    except (KeyboardInterrupt, ExternalShutdownException, BrokenPipeError):
        return 130
    except RuntimeError:  # of rclpy, if a signal ended the context meanwhile
        if rclpy.ok():
            raise
        return 130
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


# The parent's side.


class PlayerProcess(ChildProcess):
    """A player as a child process. A thread reads its lines into `sent` and `warm_up_frames`."""

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        super().__init__(module, arguments, log)
        self.sent: list[SentFrame] = []
        self.warm_up_frames: list[SentFrame] = []

    def __enter__(self) -> PlayerProcess:
        with self.log.open("wb") as log:
            self._start(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        super().__exit__(kind, error, traceback)
        self._reader.join()

    def end_warm_up(self) -> None:
        """Tell the player to play its frames."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the player has ended, and `release` or `check` says why
            os.write(self._process.stdin.fileno(), b"\n")

    def has_played(self) -> bool:
        """Return True when the player has sent all frames, or has failed, and all its lines are read."""
        return not self._reader.is_alive()

    def release(self) -> None:
        """Let the player end. Raise ProcessError if it has failed or does not end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(RELEASE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.module} does not end. {self.log_tail()}") from None
        self.check()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                values = json.loads(line)
                if values["size_hw"] is not None:
                    values["size_hw"] = tuple(values["size_hw"])
                frame = SentFrame(**values)
                (self.warm_up_frames if frame.index == WARM_UP else self.sent).append(frame)


def wait_for_warm_up(
    recorder: MaskRecorder, node: ChildProcess, player: PlayerProcess, stopped: Callable[[], bool] = lambda: False
) -> bool:
    """Wait for the masks of the player's latest warm-up frame.

    Returns False if `stopped` returned True or if the player has no frame to send. Raises ProcessError if a process
    fails, or if no mask comes for `FIRST_MASK_TIMEOUT_S` while no build of engines makes progress.
    """
    progress_s = time.monotonic()
    build: dict[str, str] = {}
    while not (player.warm_up_frames and recorder.has_masks(player.warm_up_frames[-1].stamp_ns)):
        node.check()
        player.check()
        if player.has_played():
            player.release()
            return False
        if stopped():
            return False
        latest = {name: value for name, value in recorder.diagnostics.items() if name.startswith("build_")}
        if latest != build:
            progress_s, build = time.monotonic(), latest
        if time.monotonic() - progress_s > FIRST_MASK_TIMEOUT_S:
            raise ProcessError(f"no mask came back within {FIRST_MASK_TIMEOUT_S:g} s. {node.log_tail()}")
        time.sleep(0.02)
    return True


def record_playback(
    recorder: MaskRecorder,
    node: ChildProcess,
    player: PlayerProcess,
    *,
    on_progress: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Let the player play, and wait until each frame's masks are here or nothing has come for `QUIET_S`.

    Then waits for diagnostics that count all of it, and releases the player, unless `stopped` returned True. Calls
    `on_progress` every 50 ms. Raises ProcessError if a process fails.
    """
    player.end_warm_up()
    progress_s, seen = time.monotonic(), -1
    while not stopped():
        node.check()
        # Counting masks would not do: a late mask of a warm-up frame may be among them.
        played = player.has_played()
        if played and all(recorder.has_masks(frame.stamp_ns) for frame in player.sent):
            break
        count = len(player.sent) + recorder.num_masks
        if count != seen:
            progress_s, seen = time.monotonic(), count
        if played and time.monotonic() - progress_s > QUIET_S:
            break
        on_progress()
        time.sleep(0.05)
    on_progress()
    recorder.wait_for_diagnostics()  # while the player's /clock, if any, still runs
    if not stopped():
        player.release()
