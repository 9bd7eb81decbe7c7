# SPDX-License-Identifier: Apache-2.0
"""Shared memory without an owner is deleted, and nothing else."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nightlab_ros.transport.shared_memory import reclaim

KILLED, ALIVE, STARTING = (f"fastdds_{number:016x}" for number in range(3))
HUMBLE = f"fastrtps_{3:016x}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (KILLED, ALIVE, STARTING, HUMBLE):
        (tmp_path / name).write_bytes(bytes(8192))
        (tmp_path / f"{name}_el").touch()
    for other in ("fastdds_port7411", "fastdds_port7411_el", "sem.fastdds_port7411_mutex", "fastdds_xyz_el"):
        (tmp_path / other).touch()
    return tmp_path


@contextmanager
def opened_by_another_process(file: Path) -> Iterator[None]:
    """Let a process have a file open that it has not locked yet."""
    with file.open() as stream:
        process = subprocess.Popen(["sleep", "60"], stdin=stream)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_only_segments_of_ended_processes_are_deleted_at_any_age(folder: Path) -> None:
    with opened_by_another_process(folder / f"{STARTING}_el"):
        check_what_is_deleted(folder)
    assert reclaim(folder) == 8192 and not (folder / STARTING).exists()


def check_what_is_deleted(folder: Path) -> None:
    before = {file.name for file in folder.iterdir()}
    descriptor = os.open(folder / f"{ALIVE}_el", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as the process that owns the segment does
    assert reclaim(folder) == 2 * 8192
    deleted = before - {file.name for file in folder.iterdir()}
    assert deleted == {KILLED, f"{KILLED}_el", HUMBLE, f"{HUMBLE}_el"}
    assert reclaim(folder) == 0

    os.close(descriptor)  # the process ends
    assert reclaim(folder) == 8192 and not (folder / ALIVE).exists()


def test_a_link_in_place_of_a_lock_file_is_left_alone(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.touch()
    (folder / f"{KILLED}_el").unlink()
    (folder / f"{KILLED}_el").symlink_to(mine)
    reclaim(folder)
    assert mine.exists() and (folder / KILLED).exists()


def test_a_missing_folder_has_nothing_to_reclaim(tmp_path: Path) -> None:
    assert reclaim(tmp_path / "none") == 0
