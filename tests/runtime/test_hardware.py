# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from nightlab_core.runtime.hardware import cpu_quota, usable_cores

CORES = 8


@pytest.fixture(autouse=True)
def a_machine_with_eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)), raising=False)


def write(root: Path, **files: str) -> Path:
    """Write files, named with `__` for `/`, below a root that has a `proc` and a `sys`."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2_GROUP = {"proc__self__cgroup": "0::/jobs/one\n"}


@pytest.mark.parametrize(
    ("files", "quota", "cores"),
    [
        ({}, None, CORES),
        ({"proc__self__cgroup": "0::/\n"}, None, CORES),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "max 100000\n"}, None, CORES),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "150000 100000\n"}, 1.5, 2),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "20000 100000\n"}, 0.2, 1),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "6400000 100000\n"}, 64.0, CORES),
        ({**V2_GROUP, "sys__fs__cgroup__jobs__one__cpu.max": "300000 100000\n"}, 3.0, 3),
        (
            {
                **V2_GROUP,
                "sys__fs__cgroup__jobs__one__cpu.max": "max 100000\n",
                "sys__fs__cgroup__jobs__cpu.max": "200000 100000\n",
            },
            2.0,
            2,
        ),
        ({"proc__self__cgroup": "0::/host/path\n", "sys__fs__cgroup__cpu.max": "400000 100000\n"}, 4.0, 4),
        (
            {
                "proc__self__cgroup": "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n0::/docker/abc\n",
                "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_quota_us": "250000\n",
                "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_period_us": "100000\n",
            },
            2.5,
            3,
        ),
        (
            {
                "proc__self__cgroup": "1:cpu:/\n",
                "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1\n",
                "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000\n",
            },
            None,
            CORES,
        ),
    ],
    ids=[
        "not on linux",
        "v2 without a limit file",
        "v2 without a limit",
        "v2",
        "v2, less than a core",
        "v2, more than the machine has",
        "v2, the group of the process",
        "v2, a group above",
        "v2, the container's own group at the top",
        "v1",
        "v1 without a limit",
    ],
)
def test_cores_follow_the_quota_of_the_control_groups(
    tmp_path: Path, files: dict[str, str], quota: float | None, cores: int
) -> None:
    root = write(tmp_path, **files)
    assert cpu_quota(root) == quota
    assert usable_cores(root) == cores


def test_cores_follow_the_affinity_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert usable_cores(tmp_path) == 1
