# SPDX-License-Identifier: Apache-2.0
"""The progress line of replay, bag writing and demo: how many frames are done, how fast, and how long is left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

#: Interval of plain lines if the output is not a terminal.
PLAIN_EVERY_S = 5.0


class ProgressLine:
    """Show a progress bar, or print a plain line now and then if the output is not a terminal. A context manager."""

    def __init__(self, console: Console, title: str, total: int | None, done: int = 0) -> None:
        """Start at `done` of `total` frames, for example those of an earlier session; `total` None is unknown."""
        self._console, self._title, self._total = console, title, total
        self._done = self._done_before = done
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, count=self._count(), rate="", state="")
        self._start = self._printed = time.monotonic()

    def __enter__(self) -> ProgressLine:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, done: int, state: str = "") -> None:
        """Show that `done` frames are finished, followed by a short text."""
        self._done = done
        rate = self._rate()
        self._progress.update(self._task, completed=done, count=self._count(), rate=f"{rate:.1f}/s", state=state)
        if not self._console.is_terminal and time.monotonic() - self._printed > PLAIN_EVERY_S:
            self._printed = time.monotonic()
            parts = [f"{self._title}: {self._count()}", f"{rate:.1f}/s"]
            if self._total is not None and rate > 0:
                parts.append(f"{(self._total - done) / rate:.0f} s left")
            self._console.print("  ".join([*parts, state]).rstrip(), soft_wrap=True, markup=False)

    def show_state(self, state: str) -> None:
        """Replace the text behind the numbers, while no frame is finished."""
        self._progress.update(self._task, state=state)

    def _count(self) -> str:
        return str(self._done) if self._total is None else f"{self._done}/{self._total}"

    def _rate(self) -> float:
        return (self._done - self._done_before) / max(1e-9, time.monotonic() - self._start)
