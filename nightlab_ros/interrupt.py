# SPDX-License-Identifier: Apache-2.0
"""Signals while modules are imported, which takes seconds on a busy machine. Imports nothing of the node."""

from __future__ import annotations

import os
import signal


def end_at_signals() -> None:
    """Let SIGINT and SIGTERM end the process with status 0 until the node handles them; there is nothing to free yet.

    `ros2 launch` and `ros2 run` report a process that a signal killed as an error.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # SIGINT is, in a shell's background
            signal.signal(number, lambda *_: os._exit(0))
