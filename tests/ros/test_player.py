# SPDX-License-Identifier: Apache-2.0
"""The processes that play frames: one that leaves before its last frame was taken takes that frame along."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from ros_harness import Client, wait_until
from sensor_msgs.msg import Image
from tiny_bags import IMAGES, make_frames, write_tiny_bag

from nightlab_ros.live_replay import Camera
from nightlab_ros.node import BEST_EFFORT
from nightlab_ros.processes import Child, DemoError

pytestmark = [pytest.mark.ros, pytest.mark.slow]
COUNT = 3


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def player(folder: Path) -> Child:
    (folder / "images").mkdir()
    for index in range(COUNT):
        cv2.imwrite(str(folder / "images" / f"{index}.png"), np.full((8, 8, 3), index, np.uint8))
    words = ["--input", str(folder), "--rate", "20", "--knock"]
    return Child("nightlab_ros.player", words, folder / "player.log", piped=True)


def camera(folder: Path) -> Camera:
    bag = write_tiny_bag(folder / "bag", make_frames(COUNT))
    words = [str(bag), "--topic", IMAGES, "--first", "0", "--stop", str(COUNT)]
    return Camera(words, folder / "camera.log")


@pytest.mark.parametrize("make", [player, camera])
def test_it_stays_until_it_is_let_go(client: Client, tmp_path: Path, make: Callable[[Path], Child]) -> None:
    client.listen(Image, "image", BEST_EFFORT)
    with make(tmp_path) as child:
        client.wait_for("image")
        child.begin()
        wait_until(child.played, "the last line")
        time.sleep(0.5)  # several times what it takes to leave
        assert client.node.count_publishers("image") == 1
        child.let_go()
        wait_until(lambda: client.node.count_publishers("image") == 0, "its leaving")
    assert len(child.images if isinstance(child, Camera) else child.sent) == COUNT


def test_one_that_failed_says_so_when_it_is_let_go(tmp_path: Path) -> None:
    with Child("nightlab_ros.player", ["--input", "nowhere"], tmp_path / "player.log", piped=True) as child:
        wait_until(child.played, "the end of its output")
        with pytest.raises(DemoError, match=r"nightlab_ros.player ended with status 1[\s\S]*nowhere does not exist"):
            child.let_go()
