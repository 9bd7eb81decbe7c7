# SPDX-License-Identifier: Apache-2.0
"""Show the progress of a training: a bar with the time left, a line every few steps, TensorBoard."""

from __future__ import annotations

import sys
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from lightning.fabric.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StepLog:
    """Log of the steps `first` to `steps`; a process that is not the first of several logs nothing.

    A line holds the mean of every loss since the line before, so that single batches have little effect. On a terminal
    there is also a bar below the lines. `folder` gets TensorBoard's files; None writes none.
    """

    def __init__(self, first: int, steps: int, every: int, folder: Path | None, *, shown: bool = True) -> None:
        self.steps, self.every, self.shown = steps, every, shown
        # Without soft_wrap, rich folds long lines at 80 columns where there is no terminal.
        self.console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=self.console, disable=not (shown and self.console.is_terminal))
        self.task = self.bar.add_task("training", total=steps, completed=first)
        self.board: Any = None
        if folder is not None and shown and first < steps:
            # A resumed run repeats the steps after the last checkpoint: purge_step hides their first record.
            self.board = TensorBoardLogger(folder, name="", version="", purge_step=first)
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.last_step, self.last_time = first, perf_counter()
        if shown and first:
            self.console.print(f"continues at step {first} of {steps}" if first < steps else f"all {steps} steps done")

    def __enter__(self) -> StepLog:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.board is not None:
            self.board.finalize("success" if kind is None else "failed")

    def update(self, done: int, losses: dict[str, float], learning_rate: float, gradient: float) -> None:
        """Record a step: `done` is the number of finished steps, `gradient` the norm before clipping."""
        if not self.shown:
            return
        self.bar.update(self.task, completed=done)
        for name, value in {**losses, "gradient": gradient}.items():
            self.sums[name] += value
        if done % self.every and done != self.steps:
            return
        count = done - self.last_step
        means = {name: value / count for name, value in self.sums.items()}
        speed = count / (perf_counter() - self.last_time)
        left = timedelta(seconds=round((self.steps - done) / speed))
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.console.print(
            f"step {done}/{self.steps}  {shown}  rate {learning_rate:.3g}  {speed:.3g} steps/s  {left} left"
        )
        if self.board is not None:
            metrics = {**means, "learning_rate": learning_rate, "steps_per_second": speed}
            self.board.log_metrics(metrics, step=done)
            self.board.save()
        self.sums.clear()
        self.last_step, self.last_time = done, perf_counter()
