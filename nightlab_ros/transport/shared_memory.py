# SPDX-License-Identifier: Apache-2.0
"""Shared memory that processes left behind when they were killed."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

from nightlab_ros.transport.profile import SHARED_MEMORY

#: Lock file of a segment of Fast DDS; up to Humble they were named fastrtps.
LOCK_FILE = re.compile(r"(?P<segment>(fastdds|fastrtps)_[0-9a-f]{16})_el")


def reclaim(folder: Path = SHARED_MEMORY) -> int:
    """Delete the segments of Fast DDS whose process has ended. Return the bytes freed.

    A process keeps the lock file of its segment open, with an exclusive lock that the system releases when the process
    ends, however it ends. A segment is deleted if the lock can be taken, also by processes of other containers, and no
    process of this one has the file open, as one does that is about to lock it. Files that this user may not open stay.
    """
    if not folder.is_dir():
        return 0
    matches = [match for match in map(LOCK_FILE.fullmatch, os.listdir(folder)) if match]
    return sum(_reclaim(folder / match[0], folder / match["segment"]) for match in matches)


def _is_open(file: os.stat_result) -> bool:
    """Return True if another process has a file open, or if there is no /proc to tell."""
    processes = [process for process in Path("/proc").glob("[0-9]*") if process.name != str(os.getpid())]
    for process in processes:
        with suppress(OSError):  # it has ended, or is another user's, who cannot have made a file that this user locks
            for descriptor in os.scandir(process / "fd"):
                with suppress(OSError):
                    if os.path.samestat(descriptor.stat(), file):
                        return True
    return not processes


def _reclaim(lock: Path, segment: Path) -> int:
    """Delete a segment and its lock file if nobody holds the lock. Return the bytes freed."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # deleted meanwhile, or another user's
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_open(os.fstat(descriptor)):
            return 0
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
