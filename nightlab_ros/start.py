# SPDX-License-Identifier: Apache-2.0
"""Start ROS in the node's process: its command line, and its log files, which may have nowhere to go."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import rclpy
from rclpy.signals import SignalHandlerOptions

T = TypeVar("T")

#: Arguments that keep rcl from opening a log file, at which it would fail. Messages go to the terminal and /rosout.
NO_LOG_FILE = ["--ros-args", "--disable-external-lib-logs", "--"]


class StartError(RuntimeError):
    """ROS cannot start. The message says why."""


def start_ros(arguments: Sequence[str] | None = None) -> None:
    """Initialise rclpy with a command line, by default the process's own, without signal handlers.

    Raises StartError for arguments or files of parameters that ROS cannot read.
    """
    try:
        rclpy.init(
            args=with_writable_log(sys.argv if arguments is None else arguments),
            signal_handler_options=SignalHandlerOptions.NO,
        )
    except RuntimeError as error:  # the base of rcl's errors
        raise _start_error(error) from error


def create_node(node_class: Callable[[], T]) -> T:
    """Create a node. Raises StartError if ROS cannot, for example with a middleware without the security asked for."""
    try:
        return node_class()
    except RuntimeError as error:
        raise _start_error(error) from error


def _start_error(error: RuntimeError) -> StartError:
    text = " ".join(str(error).split(", at /")[0].split())  # rcl's errors end with lines of its source
    unknown = type(error).__name__ == "UnknownROSArgsError"
    return StartError(f"unknown ROS arguments: {text}" if unknown else text)


def with_writable_log(arguments: Sequence[str]) -> list[str]:
    """Return a node's command line, without a log file where its folder cannot be written; standard error says so."""
    if problem := _problem(_log_folder()):
        print(f"no log file is written: {problem}; set ROS_LOG_DIR to a folder that can be written", file=sys.stderr)
        return [*arguments, *NO_LOG_FILE]
    return list(arguments)


def _log_folder() -> Path | None:
    """Return the folder that rcl takes, or None where no variable leads to one."""
    if folder := os.environ.get("ROS_LOG_DIR"):
        return Path(folder)
    if home := os.environ.get("ROS_HOME"):
        return Path(home, "log")
    home = os.environ.get("HOME")
    return Path(home, ".ros", "log") if home else None


def _problem(folder: Path | None) -> str:
    """Return why no file can be written into a folder, or ""."""
    if folder is None:
        return "HOME, ROS_HOME and ROS_LOG_DIR are not set"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return ""
