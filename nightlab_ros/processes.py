# SPDX-License-Identifier: Apache-2.0
"""The demo's processes, the environment that they share, and its line of progress."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nightlab_ros.demo.report import Recording, Sent

STOP_TIMEOUT_S = 10.0
#: Where the output is no terminal, a plain line so often.
PLAIN_EVERY_S = 5.0


class DemoError(Exception):
    """What keeps the demo from going on, in words for the user."""


def ros_environment(out: Path) -> dict[str, str]:
    """What the demo and its children need of ROS; no sourced ROS is needed, and none is disturbed.

    A domain of its own on this machine alone, so that a running robot neither hears nor disturbs the demo, and a
    Fast DDS profile with room for large images: by default most of 640x480 and more are lost between processes.
    FASTDDS_BUILTIN_TRANSPORTS would not do: limited to the local host, rmw_fastrtps sets up transports of its own.
    """
    return {
        "ROS_DOMAIN_ID": str(random.randrange(1, 102)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        _profiles_variable(): str(_config_folder() / "fastdds.xml"),
        "ROS_LOG_DIR": str((out / "ros_log").resolve()),
    }


def _profiles_variable() -> str:
    """The name up to Jazzy, or that from Kilted on, which warns of the old one."""
    up_to_jazzy = int(metadata.version("rclpy").split(".")[0]) < 8
    return "FASTRTPS_DEFAULT_PROFILES_FILE" if up_to_jazzy else "FASTDDS_DEFAULT_PROFILES_FILE"


def _config_folder() -> Path:
    """In the repository beside this package; once installed, in ROS's share folder."""
    beside = Path(__file__).resolve().parents[1] / "config"
    if beside.is_dir():
        return beside
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory("nightlab_ros")) / "config"


class Child:
    """A Python module run as a process of its own; as a context manager it ends with the block.

    Its output goes to `log`; with `piped`, standard output is read here instead: the player's lines, into `knocks` and
    `sent`.
    """

    def __init__(self, module: str, arguments: list[str], log: Path, piped: bool = False) -> None:
        self.module, self.log = module, log
        self.knocks: list[Sent] = []
        self.sent: list[Sent] = []
        self._piped = piped
        self._command = [sys.executable, "-m", module, *arguments]

    def __enter__(self) -> Child:
        with self.log.open("wb") as log:
            stdin, stdout = (subprocess.PIPE, subprocess.PIPE) if self._piped else (subprocess.DEVNULL, log)
            self._process = subprocess.Popen(self._command, stdin=stdin, stdout=stdout, stderr=log)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()

    def begin(self) -> None:
        """Tell the player that its knocking was answered."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `let_go` says why
            os.write(self._process.stdin.fileno(), b"\n")

    def played(self) -> bool:
        """True when all of the player's lines are read: it has sent everything, or failed."""
        return not self._reader.is_alive()

    def let_go(self) -> None:
        """Let the player end, which keeps what it sent until then. DemoError if it has failed, or does not end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{self.module} does not end. The end of {self.log}:\n{self.tail()}") from None
        self.check()

    def check(self) -> None:
        """DemoError, with the end of the log, if the process has failed."""
        status = self._process.poll()
        if status not in (None, 0):
            raise DemoError(f"{self.module} ended with status {status}. The end of {self.log}:\n{self.tail()}")

    def tail(self, lines: int = 20) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _read(self) -> None:
        if self._process.stdout is not None:
            with self._process.stdout as lines:
                for line in lines:
                    values = json.loads(line)
                    sent = Sent(**{**values, "size_hw": tuple(values["size_hw"])})
                    (self.sent if sent.index >= 0 else self.knocks).append(sent)


class LiveLine:
    """One line that follows what happens; where the output is no terminal, a plain line now and then."""

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
        self._said = time.monotonic()

    def __enter__(self) -> LiveLine:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, done: int, recording: Recording | None = None) -> None:
        """`done` of the total; what came back of it, where there is a recording."""
        counted = f"{done}/{self._total}" if self._total else str(done)
        state = live_state(recording) if recording else ""
        self._progress.update(self._task, completed=done, done=counted, state=state)
        if not self._console.is_terminal and time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._console.print(f"{self._title}: {counted}  {state}".rstrip(), soft_wrap=True)


def live_state(recording: Recording) -> str:
    """Masks, drops, rate and latency so far. A frame counts as dropped once a later one's mask is here."""
    answered = recording.answered
    if not answered:
        return "no mask yet"
    dropped = sum(s.index < answered[-1].index for s in recording.sent) - (len(answered) - 1)
    recent = [s.stamp_ns for s in answered[-20:]]
    rate = (len(recent) - 1) / max(1e-9, (recent[-1] - recent[0]) / 1e9) if len(recent) > 1 else 0.0
    latency = np.median([recording.masks[s.stamp_ns].latency_ms for s in answered])
    return f"masks {len(answered)}  dropped {dropped}  {rate:.1f} Hz  p50 {latency:.0f} ms"
