# SPDX-License-Identifier: Apache-2.0
"""The players. A player that leaves before its last frame was taken loses that frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_harness import Client, wait_until
from sensor_msgs.msg import Image
from tiny_bags import IMAGES, make_frames, write_tiny_bag

from nightlab_ros.playback.processes import ProcessError
from nightlab_ros.playback.protocol import PlayerProcess, run_player

pytestmark = pytest.mark.ros
COUNT = 3


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def player(folder: Path) -> PlayerProcess:
    (folder / "images").mkdir()
    for index in range(COUNT):
        cv2.imwrite(str(folder / "images" / f"{index}.png"), np.full((8, 8, 3), index, np.uint8))
    arguments = [f"--input={folder}", "--rate=20", "--warm-up"]
    return PlayerProcess("nightlab_ros.playback.player", arguments, folder / "player.log")


def bag_player(folder: Path) -> PlayerProcess:
    bag = write_tiny_bag(folder / "bag", make_frames(COUNT))
    arguments = [str(bag), "--topic", IMAGES, "--first", "0", "--stop", str(COUNT)]
    return PlayerProcess("nightlab_ros.playback.bag_player", arguments, folder / "player.log")


@pytest.mark.parametrize("make", [player, pytest.param(bag_player, marks=pytest.mark.slow)])
def test_a_player_stays_until_it_is_released(
    client: Client, tmp_path: Path, make: Callable[[Path], PlayerProcess]
) -> None:
    client.listen(Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    with make(tmp_path) as child:
        client.wait_for("image")
        child.end_warm_up()
        wait_until(child.has_played, "the last line")
        time.sleep(0.25)  # several times as long as a player takes to leave
        assert client.node.count_publishers("image") == 1
        child.release()
        wait_until(lambda: client.node.count_publishers("image") == 0, "the end of the publisher")
    assert [frame.index for frame in child.sent] == list(range(COUNT)) and child.warm_up_frames


def test_a_player_that_failed_says_so_when_it_is_released(tmp_path: Path) -> None:
    with PlayerProcess("nightlab_ros.playback.player", ["--input", "nowhere"], tmp_path / "player.log") as child:
        wait_until(child.has_played, "the end of its output")
        with pytest.raises(ProcessError, match=r"player ended with status 1[\s\S]*nowhere does not exist"):
            child.release()


def test_a_signal_that_ends_ros_ends_the_player_without_a_traceback() -> None:
    def publish_after_shutdown(node: Any) -> None:
        rclpy.shutdown()
        node.create_publisher(Image, "image", 1)

    def fail(node: Any) -> None:
        raise RuntimeError("another fault")

    assert run_player("player", publish_after_shutdown) == 130
    with pytest.raises(RuntimeError, match="another fault"):
        run_player("player", fail)
