# SPDX-License-Identifier: Apache-2.0
"""SIGINT while modules are imported, which takes seconds on a busy machine. Imports nothing of the node."""

from __future__ import annotations

import signal


def end_at_sigint() -> None:
    """Let SIGINT end the process without a traceback, as SIGTERM does, until the node handles both."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in a shell's background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
