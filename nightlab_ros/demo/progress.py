# SPDX-License-Identifier: Apache-2.0
"""Progress of the demo, as one line that is updated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nightlab_ros.mask_recorder import MASK, MaskRecorder
from nightlab_ros.playback import SentFrame

#: Seconds between two lines where the output is not a terminal.
PLAIN_EVERY_S = 5.0


class DemoProgress:
    """Progress bar; a plain line now and then where the output is not a terminal."""

    def __init__(self, console: Console, title: str, total: int | None) -> None:
        self._console, self._title, self._total = console, title, total
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total, done="", state="")
        self._printed_s = time.monotonic()

    def __enter__(self) -> DemoProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, done: int, state: str = "") -> None:
        """Show `done` of the total, and `state` behind it."""
        counted = f"{done}/{self._total}" if self._total else str(done)
        self._progress.update(self._task, completed=done, done=counted, state=state)
        if not self._console.is_terminal and time.monotonic() - self._printed_s > PLAIN_EVERY_S:
            self._printed_s = time.monotonic()
            self._console.print(f"{self._title}: {counted}  {state}".rstrip(), soft_wrap=True)


def playback_state(sent: Sequence[SentFrame], recorder: MaskRecorder) -> str:
    """Return masks, drops, rate and latency so far. A frame counts as dropped once a later frame's mask is here."""
    masks = recorder.received[MASK]
    answered = [frame for frame in sent if frame.stamp_ns in masks]
    if not answered:
        return "no mask yet"
    dropped = sum(frame.index < answered[-1].index for frame in sent) - (len(answered) - 1)
    recent = [frame.stamp_ns for frame in answered[-20:]]
    rate = (len(recent) - 1) / max(1e-9, (recent[-1] - recent[0]) / 1e9) if len(recent) > 1 else 0.0
    latency_ms = np.median([masks[frame.stamp_ns][0].latency_ms for frame in answered])
    return f"masks {len(answered)}  dropped {dropped}  {rate:.1f} Hz  p50 {latency_ms:.0f} ms"
