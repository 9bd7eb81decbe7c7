# SPDX-License-Identifier: Apache-2.0
"""Name the processor, and count the cores that this process may use: in a container, fewer than there are."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def cpu_model() -> str:
    """Return the name of the processor's model."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many cores this process may use, at least 1.

    The smallest of: the machine's cores, the process's affinity, and the quotas of its control groups (v1 and v2),
    rounded up. `root` holds `proc` and `sys`.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the cores' worth of time that control groups allow this process; None without a limit or outside Linux.

    A limit of any group above the process's own holds as well. Inside a container the files of its own group often lie
    at the top of the mount, whatever path /proc names.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folders, read = (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            folders, read = (root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"), _quota_v1
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in folders:
            for part in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # no such group here, or one without a limit
                    quotas.append(read(folder / part))
    return min(quotas, default=None)


def _quota_v2(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text().split()
    return float(quota) / float(period)  # "max" is no number: ValueError


def _quota_v1(group: Path) -> float:
    quota, period = (float((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota <= 0:
        raise ValueError("-1: no limit")
    return quota / period
