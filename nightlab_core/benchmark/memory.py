# SPDX-License-Identifier: Apache-2.0
"""Measure the memory of this process."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Let `peak_mib` count from now on. Only Linux can; elsewhere the peak counts from the start of the process."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def resident_mib() -> float | None:
    """Return the memory of this process that is resident now, in MiB; None where there is no /proc."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmRSS:\s+(\d+) kB", _STATUS.read_text()):
            return int(found[1]) / 1024
    return None


def peak_mib() -> float:
    """Return the largest resident memory of this process in MiB."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()):
            return int(found[1]) / 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, others KiB
