# SPDX-License-Identifier: Apache-2.0
"""Folders for a command's output. No command deletes or overwrites what is the user's, or another run's."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from nightlab_core.files import named_errors

#: File that marks a folder as the output of a command, and that a running command locks.
MARKER = ".nightlab"


class OutputError(OSError):
    """A folder cannot take the output of a command. The message says why, and what to do."""


@contextmanager
def output_folder(folder: Path, command: str) -> Iterator[None]:
    """Hold a folder for the output of `command`, such as "demo", within a `with` block. It is created if missing.

    The folder must be empty, or hold the output of an earlier run of the same command. Raises OutputError if it holds
    anything else, or if another process is writing into it, and OSError if it cannot be written.
    """
    existed = folder.is_dir()
    if not _is_empty(folder):
        _check_owner(folder, command)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / MARKER).open("a+b", buffering=0) as marker:
        _lock(marker, folder)
        try:
            with named_errors(folder):
                marker.truncate(0)
                marker.write(json.dumps({"command": command, "process": os.getpid()}).encode() + b"\n")
            yield
        finally:
            if not existed and [path.name for path in folder.iterdir()] == [MARKER]:  # nothing was written
                (folder / MARKER).unlink()
                folder.rmdir()


def check_is_new(folder: Path) -> None:
    """Raise OutputError unless `folder` is missing or empty."""
    if not _is_empty(folder):
        raise OutputError(f"{folder} is not empty; expected a new or an empty folder for the output")


def check_report(path: Path, is_report: Callable[[Any], bool]) -> None:
    """Raise OutputError if a file exists and its JSON is no report of the command, as `is_report` decides."""
    try:
        if is_report(json.loads(path.read_bytes())):
            return
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        pass
    raise OutputError(f"{path} is there and is no earlier report of this command; choose another file for the report")


def _is_empty(folder: Path) -> bool:
    """Return True for an empty or missing folder. Raises OutputError for a file."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        raise OutputError(f"{folder} is a file; expected a folder for the output") from None


def _check_owner(folder: Path, command: str) -> None:
    owner = _owner(folder)
    if owner is None:
        raise OutputError(
            f"{folder} holds files that nightlab {command} did not write; choose a new or an empty folder"
        )
    if owner != command:
        raise OutputError(f"{folder} holds the output of nightlab {owner}; choose another folder for the output")


def _owner(folder: Path) -> str | None:
    """Return the command whose output a folder holds, or None if it is no command's."""
    try:
        values = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return values.get("command") if isinstance(values, dict) else None


def _lock(marker: FileIO, folder: Path) -> None:
    """Lock the marker until it is closed. The lock ends with the process, however it ends."""
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        marker.seek(0)
        owner = marker.readline().decode().strip()
        raise OutputError(
            f"another process is writing into {folder} ({owner}); wait until it ends, or choose another folder for the "
            "output"
        ) from None
