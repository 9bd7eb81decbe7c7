# SPDX-License-Identifier: Apache-2.0
"""The launch file with respawn: a node that is killed comes back active, with its parameters. Needs ros2 launch.

pytest tests/faults/test_respawn.py -s shows the seconds from kill -9 to the next mask.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")
pytest.importorskip("launch_ros")

from fault_harness import picture
from rcl_interfaces.srv import GetParameters
from ros_harness import ROOT, Client, NodeProcess, wait_until

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.xdist_group("faulty_processes")]

#: `ros2 launch FILE ARGUMENTS`.
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [argument.split(":=", 1) for argument in sys.argv[2:] if ":=" in argument and argument[0] != "_"]
source = PythonLaunchDescriptionSource(sys.argv[1])
service = LaunchService()
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)]))
sys.exit(service.run())
"""


class LaunchedNode(NodeProcess):
    """The launch file in a process of its own."""

    program = ("-c", LAUNCH, str(ROOT / "launch" / "nightlab.launch.py"), "namespace:=respawned", "respawn:=true")


@pytest.fixture
def launched(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The launch file, with an installed package whose program is the node of this repository."""
    package = tmp_path / "share/ament_index/resource_index/packages/nightlab_ros"
    program = tmp_path / "lib/nightlab_ros/nightlab_node"
    for file in (package, program):
        file.parent.mkdir(parents=True)
    package.touch()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m nightlab_ros.node "$@"\n')
    program.chmod(0o755)
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(f"/**:\n  ros__parameters:\n    bundle: {tiny_bundle}\n    max_regions: 7\n")
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}:{os.environ.get('AMENT_PREFIX_PATH', '')}".rstrip(":"))
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))
    monkeypatch.setattr(LaunchedNode, "program", (*LaunchedNode.program, f"params_file:={parameters}"))
    process = LaunchedNode()
    yield process
    process.stop()


def max_regions(client: Client) -> int:
    """Return the parameter's value in the running node."""
    answer = client.call(GetParameters, "nightlab/get_parameters", GetParameters.Request(names=["max_regions"]))
    return answer.values[0].integer_value


def test_a_killed_node_comes_back_active_with_its_parameters(launched: LaunchedNode) -> None:
    client = Client("respawned")
    try:
        camera = client.connect(client.image(picture()))
        assert max_regions(client) == 7
        pids = [int(re.findall(r"pid \[(\d+)\]", launched.wait_for_log(r"process started with pid"))[0])]
        os.kill(pids[0], signal.SIGKILL)
        begin_s = time.monotonic()
        client.messages["nightlab/mask"].clear()

        def answered() -> bool:
            camera.publish(client.image(picture()))
            time.sleep(0.05)
            return bool(client.messages["nightlab/mask"])

        wait_until(answered, "a mask of the next process")
        print(f"\n{time.monotonic() - begin_s:.1f} s from kill -9 to the next mask")
        assert len(launched.logged("process started with pid")) == 2
        wait_until(lambda: client.state() == "active", "the active node")
        assert max_regions(client) == 7
    finally:
        client.close()
