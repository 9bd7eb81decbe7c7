# SPDX-License-Identifier: Apache-2.0
"""The node's start where ROS cannot read its arguments or write its log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy")

from ros_harness import ROOT

from nightlab_ros import node
from nightlab_ros.start import NO_LOG_FILE, StartError, create_node, with_writable_log


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--params-file", "/nowhere.yaml"], "Couldn't parse params file: '--params-file /nowhere.yaml'"),
        (["--params-file", "BROKEN"], "Error at line"),
        (["-p", "engine"], "Couldn't parse parameter override rule: '-p engine'"),
        (["-r", "__ns:=/a-b"], "Couldn't parse remap rule: '-r __ns:=/a-b'"),
        (["--nonsense"], "unknown ROS arguments: ['--nonsense']"),
    ],
)
def test_arguments_that_ros_cannot_read_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("nightlab: [1\n")
    words = [str(broken) if word == "BROKEN" else word for word in arguments]
    previous = {number: signal.getsignal(number) for number in node.STOP_SIGNALS}
    try:
        assert node.main(["nightlab_node", "--ros-args", *words]) == 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    error = capsys.readouterr().err
    assert error.startswith("nightlab: ") and sentence in error and len(error.splitlines()) == 1


#: The program, which receives a signal when it imports rclpy.
INTERRUPTED = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "rclpy":
            os.kill(os.getpid(), NUMBER)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize(
    "run",
    [
        "from nightlab_ros.program import main; main()",
        "runpy.run_module('nightlab_ros.node', run_name='__main__')",  # as python -m nightlab_ros.node
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_imports_ends_the_program_without_an_error(run: str, number: signal.Signals) -> None:
    program = INTERRUPTED.replace("NUMBER", str(int(number))) + run
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_node_that_ros_cannot_create_ends_in_one_line() -> None:
    def refuse() -> None:
        raise RuntimeError("error creating node: no security libraries\nPlease compile, at /project/rcl/node.c:249")

    with pytest.raises(StartError, match=r"^error creating node: no security libraries Please compile$"):
        create_node(refuse)


def test_the_log_file_is_left_out_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "ROS_HOME", "ROS_LOG_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert with_writable_log(["node"]) == ["node", *NO_LOG_FILE]
    assert "HOME, ROS_HOME and ROS_LOG_DIR are not set; set ROS_LOG_DIR" in capsys.readouterr().err
    (tmp_path / "file").touch()
    for name in ("HOME", "ROS_HOME", "ROS_LOG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "file" / name))
        assert with_writable_log(["node"]) == ["node", *NO_LOG_FILE]
        assert f"no log file is written: {tmp_path / 'file' / name}" in capsys.readouterr().err
        monkeypatch.setenv(name, str(tmp_path / name))
        assert with_writable_log(["node"]) == ["node"] and not capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["HOME", "ROS_HOME", "ROS_LOG_DIR", "file"]
