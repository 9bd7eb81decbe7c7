# SPDX-License-Identifier: Apache-2.0
"""The line that follows a replay: how far, how fast, how long still."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nightlab_replay.records import FrameRecord

#: Where the output is no terminal, a plain line so often.
PLAIN_EVERY_S = 10.0


class ReplayLine:
    """A progress bar; where the output is no terminal, a plain line now and then."""

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        """`done` frames were replayed earlier."""
        self._console, self._total = console, total
        self._done = self._earlier = done
        self._status: Counter[str] = Counter()
        self._progress = Progress(
            TextColumn("Replaying"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total, completed=done, rate="", state="")
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> ReplayLine:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Say what goes on where no frame is done for a while."""
        self._progress.update(self._task, state=text)

    def frames(self, records: Sequence[FrameRecord]) -> None:
        """So many more frames are done."""
        self._done += len(records)
        self._status.update(record.status for record in records)
        elapsed = time.monotonic() - self._begun
        rate = (self._done - self._earlier) / max(1e-9, elapsed)
        state = "  ".join(f"{self._status[s]} {s}" for s in ("dropped", "unreadable") if self._status[s])
        self._progress.update(self._task, completed=self._done, rate=f"{rate:.1f}/s", state=state)
        if not self._console.is_terminal and time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            left_s = (self._total - self._done) / max(1e-9, rate)
            line = f"{self._done}/{self._total}  {rate:.1f}/s  {left_s:.0f} s left  {state}"
            self._console.print(line.rstrip(), soft_wrap=True)
