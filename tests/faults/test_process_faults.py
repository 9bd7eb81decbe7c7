# SPDX-License-Identifier: Apache-2.0
"""The node as a process: signals while an engine hangs, and a death that leaves its memory behind."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

from fault_harness import picture
from faulty_node import Fault
from ros_harness import Client, NodeProcess

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.xdist_group("faulty_processes")]


class FaultyProcess(NodeProcess):
    """The node with faulty engines, in a process of its own."""

    program = (str(Path(__file__).parents[1] / "support" / "faulty_node.py"),)


def start(bundle: Path, namespace: str) -> tuple[FaultyProcess, Client, Any]:
    """Start the node and a client whose camera it answers."""
    process, client = FaultyProcess(namespace, bundle=str(bundle), autostart=True), Client(namespace)
    return process, client, client.connect(client.image(picture()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_although_an_engine_hangs(tiny_bundle: Path, number: signal.Signals) -> None:
    process, client, camera = start(tiny_bundle, f"hanging_{number.name.lower()}")
    try:
        image = client.image(picture(Fault.HANGS))
        repeated = client.node.create_timer(0.5, lambda: camera.publish(image))  # on a busy machine one may be lost
        client.diagnostics(lambda values: "frame_in_progress_s" in values)
        repeated.cancel()
        assert process.stop(number) == 1
        assert process.logged("did not (end|finish)")
    finally:
        client.close()


def segments_of(process: FaultyProcess) -> list[Path]:
    """Return the files of shared memory that a process owns, whose lock files it keeps open."""
    opened = [os.readlink(link) for link in Path(f"/proc/{process._process.pid}/fd").iterdir() if link.exists()]
    return [Path(name.removesuffix("_el")) for name in opened if re.search(r"^/dev/shm/fast\w+_[0-9a-f]{16}_el$", name)]


def test_a_killed_node_starts_again_and_reclaims_its_memory(tiny_bundle: Path) -> None:
    process, client, _ = start(tiny_bundle, "killed")
    try:
        segments = segments_of(process)
        assert process.stop(signal.SIGKILL) == -signal.SIGKILL
        assert segments and all(segment.exists() for segment in segments)
        client.messages["nightlab/mask"].clear()
        again = FaultyProcess("killed", bundle=str(tiny_bundle), autostart=True)
        try:
            client.connect(client.image(picture()))
            assert not any(segment.exists() for segment in segments)
            assert again.logged(r"deleted \d+ MB of shared memory of processes that have ended")
        finally:
            assert again.stop() == 0
    finally:
        client.close()
