# SPDX-License-Identifier: Apache-2.0
"""Child processes of the demo and of the live replay, and the ROS environment that they share."""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from nightlab_ros.transport.profile import choose_profile, profile_variable

#: Seconds between SIGTERM and SIGKILL at the end.
STOP_TIMEOUT_S = 10.0
#: Processes that exchange images: node, player and recorder.
NUM_PROCESSES = 3
#: ROS domains of demos and replays: the highest that every operating system has ports for is 101; robots mostly use 0.
DOMAINS = range(1, 102)

Process = TypeVar("Process", bound="ChildProcess")


class ProcessError(RuntimeError):
    """A child process failed or did not answer. The message says why."""


class ChildProcess:
    """Run a Python module as a child process, from the beginning to the end of a `with` block.

    Standard output and standard error go to the file `log`. If this process ends otherwise, even by SIGKILL, the child
    ends, too.
    """

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        """Prepare `python -m module arguments`; entering the block starts it."""
        self.module, self.log = module, log
        self._arguments = arguments

    def __enter__(self: Process) -> Process:
        with self.log.open("wb") as log:
            self._start(stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def _start(self, **streams: Any) -> None:
        """Start the process; child.py says what the pipe is for."""
        descriptor, self._alive = os.pipe()
        command = [sys.executable, "-m", "nightlab_ros.playback.child", str(descriptor), self.module, *self._arguments]
        try:
            self._process = subprocess.Popen(command, pass_fds=(descriptor,), **streams)
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(descriptor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        os.close(self._alive)

    @property
    def pid(self) -> int:
        """The process's id, within the `with` block."""
        return self._process.pid

    def check(self) -> None:
        """Raise ProcessError with the end of the log if the process has failed."""
        status = self._process.poll()
        if status not in (None, 0):
            raise ProcessError(f"{self.module} ended with status {status}. {self.log_tail()}")

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the log, with the log's path above them."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join([f"The end of {self.log}:", *text.splitlines()[-lines:]])


def node_process(parameters: dict[str, str], log: Path) -> ChildProcess:
    """Return the node as a child process, with `parameters` by name, as text like on ROS's command line."""
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    return ChildProcess("nightlab_ros.node", ["--ros-args", *arguments], log)


@contextmanager
def isolated_ros(out: Path) -> Iterator[None]:
    """Set ROS's environment variables for this process and its children within a `with` block.

    ROS need not be sourced. A domain of its own, on this machine alone, keeps other runs and a running robot apart. The
    Fast DDS profile has room for large images, or goes over UDP where /dev/shm is too small; a line on standard error
    says so. FASTDDS_BUILTIN_TRANSPORTS cannot do that on the local host, because rmw_fastrtps then sets up its own
    transports. ROS's logs go to `out`/ros_log.
    """
    domain, claim = claim_domain()
    profile, note = choose_profile(NUM_PROCESSES)
    if note:
        print(note, file=sys.stderr)
    variables = {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        profile_variable(): str(profile),
        "ROS_LOG_DIR": str((out / "ros_log").resolve()),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with claim:
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def claim_domain() -> tuple[int, socket.socket]:
    """Return a ROS domain that no other run on this machine uses, and the socket that holds it until it is closed.

    An abstract socket belongs to the network namespace, as the domain's ports do, and ends with its process. Raises
    ProcessError if all domains are taken.
    """
    own = os.environ.get("ROS_DOMAIN_ID", "")
    domains = [domain for domain in DOMAINS if str(domain) != own]
    for domain in random.sample(domains, len(domains)):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0nightlab_domain_{domain}")
            return domain, claim
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise
    raise ProcessError(f"other runs on this machine use all ROS domains from {DOMAINS[0]} to {DOMAINS[-1]}; end one")
