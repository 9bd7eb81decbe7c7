# SPDX-License-Identifier: Apache-2.0
"""Shared memory that processes left behind when they were killed."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from nightlab_ros.transport.profile import SHARED_MEMORY

#: Lock file of a segment of Fast DDS; up to Humble they were named fastrtps.
LOCK_FILE = re.compile(r"(?P<segment>(fastdds|fastrtps)_[0-9a-f]{16})_el")
#: Seconds after which a process that creates a segment has locked it.
STARTING_S = 60.0


def reclaim(folder: Path = SHARED_MEMORY) -> int:
    """Delete the segments of Fast DDS whose process has ended. Return the bytes freed.

    A process holds an exclusive lock on the lock file of its segment. The system releases it when the process ends,
    however it ends, so a segment with a lock that can be taken has no owner. Files that this user may not open, and
    those of the last `STARTING_S`, stay.
    """
    if not folder.is_dir():
        return 0
    matches = [match for match in map(LOCK_FILE.fullmatch, os.listdir(folder)) if match]
    return sum(_reclaim(folder / match[0], folder / match["segment"]) for match in matches)


def _reclaim(lock: Path, segment: Path) -> int:
    """Delete a segment and its lock file if nobody holds the lock. Return the bytes freed."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # deleted meanwhile, or another user's
        return 0
    try:
        if time.time() - os.fstat(descriptor).st_mtime < STARTING_S:
            return 0
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        freed = 0
        with suppress(FileNotFoundError):
            freed = segment.stat().st_blocks * 512
            segment.unlink()
        lock.unlink()
    except OSError:  # locked by its process, or another user's
        return 0
    finally:
        os.close(descriptor)
    return freed
