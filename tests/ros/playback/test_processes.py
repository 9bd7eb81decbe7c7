# SPDX-License-Identifier: Apache-2.0
"""Child processes end with their parent, and no two runs share a ROS domain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from ros_harness import wait_until

from nightlab_ros.playback import processes
from nightlab_ros.playback.processes import ChildProcess, ProcessError, claim_domain, isolated_ros

PARENT = """
import sys, time
from pathlib import Path
from nightlab_ros.playback.processes import ChildProcess
with ChildProcess("http.server", ["0", "--bind", "127.0.0.1"], Path(sys.argv[1])) as child:
    print(child.pid, flush=True)
    time.sleep(60)
"""


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(log)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_until(lambda: has_started(child), "the start of the child")
    parent.kill()
    parent.communicate()
    wait_until(lambda: has_ended(child), "the end of the child", patience_s=20)


def has_started(pid: int) -> bool:
    """The child ignores SIGHUP, so child.py has begun to run."""
    ignored = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
    return bool(int(ignored.split()[1], 16) >> (signal.SIGHUP - 1) & 1)


def test_a_child_ends_with_its_block(tmp_path: Path) -> None:
    with ChildProcess("http.server", ["0", "--bind", "127.0.0.1"], tmp_path / "log") as child:
        pid = child.pid
        assert not has_ended(pid)
        child.check()
    assert has_ended(pid)


def test_a_failed_child_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with ChildProcess("no_such_module", [], tmp_path / "log") as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessError, match=r"no_such_module ended with status 1[\s\S]*No module named"):
            child.check()


def test_each_run_has_a_domain_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "DOMAINS", range(300, 306))
    monkeypatch.setenv("ROS_DOMAIN_ID", "302")  # that of the user's robot
    with ExitStack() as stack:
        found = set()
        for _ in range(5):
            domain, claim = claim_domain()
            stack.enter_context(claim)
            found.add(domain)
        assert found == {300, 301, 303, 304, 305}
        with pytest.raises(ProcessError, match="use all ROS domains from 300 to 305"):
            claim_domain()
    with isolated_ros(tmp_path):
        assert int(os.environ["ROS_DOMAIN_ID"]) in found
        taken = int(os.environ["ROS_DOMAIN_ID"])
        with ExitStack() as stack:
            for _ in range(4):
                domain, claim = claim_domain()
                stack.enter_context(claim)
                assert domain != taken
    assert os.environ["ROS_DOMAIN_ID"] == "302"
