# SPDX-License-Identifier: Apache-2.0
"""Several cameras on one set of engines: turns, counts, silence, bad images, sizes, and a publisher that is slow."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

from fake_engines import plain_maps
from fake_node import FakeNode, fake_node
from ros_harness import wait_until
from sensor_msgs.msg import CameraInfo

from nightlab_ros.monitoring.health import ERROR, OK, WARN, HealthReport

pytestmark = pytest.mark.ros
CAMERAS = ["front", "rear"]


class Gate:
    """An image engine that answers only when the test lets it."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.open = True  # while the engines are prepared

    def __call__(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        if not self.open:
            self.begun.release()
            assert self.go.acquire(timeout=20)
        return plain_maps(3, 200)(frame)

    def step(self) -> None:
        """Let the frame in progress end, and wait until the next one has begun."""
        self.go.release()
        assert self.begun.acquire(timeout=20)


def prepared(fake: FakeNode, *cameras: str) -> None:
    """Give each camera its first image, for whose size the engines are prepared."""
    for camera in cameras:
        fake.receive(camera, stamp=0)
        fake.wait_for_counts(camera, processed=1)


def test_each_camera_has_its_own_topics(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    with fake_node(monkeypatch, tiny_bundle, cameras=CAMERAS) as fake:
        fake.start()
        published = {publisher.topic_name for publisher in fake.node.publishers}
        subscribed = {subscription.topic_name for subscription in fake.node.subscriptions}
        for camera in CAMERAS:
            assert {f"/nightlab/{camera}/{topic}" for topic in ("mask", "confidence", "overlay")} < published
            assert {f"/{camera}/image", f"/{camera}/camera_info"} <= subscribed
        assert not {"/nightlab/mask", "/image"} & (published | subscribed)


def test_the_engines_are_opened_and_closed_once(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    with fake_node(monkeypatch, tiny_bundle, cameras=CAMERAS) as fake:
        fake.start()
        prepared(fake, *CAMERAS)
    (engines,) = fake.engines
    assert [engine.closed for engine in (engines.image, engines.hardness, engines.region)] == [1, 1, 1]  # type: ignore[attr-defined]


def test_a_fast_camera_does_not_starve_a_slow_one(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    gate = Gate()
    with fake_node(monkeypatch, tiny_bundle, gate, cameras=CAMERAS) as fake:
        fake.start()
        prepared(fake, *CAMERAS)
        gate.open = False
        fake.receive("front", 1)
        assert gate.begun.acquire(timeout=20)
        for turn in range(2, 5):
            fake.receive("rear", turn)
            for _ in range(5):
                fake.receive("front", turn)
            gate.step()  # the slow camera's turn
            gate.step()  # the fast camera's
        gate.go.release()
        fake.wait_for_counts("front", processed=5)
        fake.wait_for_counts("rear", processed=4)
        assert fake.counts("front") == {"received": 17, "processed": 5, "failed": 0, "dropped": 12}
        assert fake.counts("rear") == {"received": 4, "processed": 4, "failed": 0, "dropped": 0}
        for camera, stamps in (("front", [0, 1, 2, 3, 4]), ("rear", [0, 2, 3, 4])):
            assert [stamp for name, stamp, _ in fake.masks if name == camera] == stamps


def test_a_silent_camera_is_reported_and_the_other_goes_on(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    with fake_node(monkeypatch, tiny_bundle, cameras=CAMERAS, warn_age_ms=0) as fake:
        fake.start()
        prepared(fake, "front")
        assert (fake.report("front").level, fake.report("front").message) == (OK, "running")
        assert (fake.report("rear").level, fake.report("rear").message) == (WARN, "no images yet")
        assert fake.counts("rear") == {"received": 0, "processed": 0, "failed": 0, "dropped": 0}


def test_bad_images_of_one_camera_do_not_touch_the_other(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    with fake_node(monkeypatch, tiny_bundle, cameras=CAMERAS, warn_age_ms=0) as fake:
        fake.start()
        prepared(fake, *CAMERAS)
        for stamp in range(1, 4):
            fake.receive("rear", stamp, broken=True)
            fake.wait_for_counts("rear", failed=stamp)
            fake.receive("front", stamp)
            fake.wait_for_counts("front", processed=stamp + 1)
        assert fake.report("rear").level == ERROR and "9215 bytes" in fake.report("rear").message
        assert (fake.report("front").level, fake.counts("front")["failed"]) == (OK, 0)
        fake.receive("rear", 9)
        fake.wait_for_counts("rear", processed=2, failed=3)


def test_each_camera_keeps_its_size(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    sizes = {"front": (48, 64), "rear": (30, 40)}
    with fake_node(monkeypatch, tiny_bundle, cameras=CAMERAS) as fake:
        fake.start()
        for stamp in range(3):
            for camera, size_hw in sizes.items():
                fake.receive(camera, stamp, size_hw)
                fake.wait_for_counts(camera, processed=stamp + 1)
        assert {(camera, shape) for camera, _, shape in fake.masks} == set(sizes.items())
        for camera in CAMERAS:
            assert fake.report(camera).values["image_sizes"] == "1"
        (engines,) = fake.engines
        assert len(engines.hardness.prepared) == 2  # type: ignore[attr-defined]


def test_the_calibration_comes_with_the_mask_s_header(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    with fake_node(monkeypatch, tiny_bundle, cameras=CAMERAS) as fake:
        fake.start()
        published: list[CameraInfo] = []
        outputs = fake.camera("front")._outputs
        publisher = SimpleNamespace(get_subscription_count=lambda: 1, publish=published.append)
        monkeypatch.setattr(outputs, "_mask_info", publisher)
        prepared(fake, "front")
        assert published == []
        fake.camera("front")._on_info(CameraInfo(height=48, width=64, k=[float(i) for i in range(9)]))
        fake.receive("front", 7)
        fake.wait_for_counts("front", processed=2)
        (info,) = published
        assert (info.header.stamp.sec, info.header.frame_id, info.k[2]) == (7, "front", 2.0)
        fake.receive("front", 8, size_hw=(30, 40))
        fake.wait_for_counts("front", processed=3)
        assert len(published) == 1


def test_a_slow_publisher_never_blocks_inference(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    with fake_node(monkeypatch, tiny_bundle) as fake:
        fake.start()
        prepared(fake, "")
        begun, go = threading.Event(), threading.Event()
        publish = fake.camera()._outputs.publish_result

        def blocked(*arguments: Any) -> None:
            begun.set()
            assert go.wait(20)
            publish(*arguments)

        fake.camera()._outputs.publish_result = blocked  # type: ignore[method-assign]
        (engines,) = fake.engines
        fake.receive(stamp=1)
        assert begun.wait(20)
        for stamp in range(2, 8):
            calls = len(engines.image.received)  # type: ignore[attr-defined]
            fake.receive(stamp=stamp)
            wait_until(lambda n=calls: len(engines.image.received) > n, "inference", 20.0)  # type: ignore[attr-defined, misc]
            wait_until(lambda: fake.camera()._begun_s is None, "the end of the frame", 20.0)
        go.set()
        fake.wait_for_counts(processed=5)
        assert [stamp for _, stamp, _ in fake.masks] == [0, 1, 5, 6, 7]
        assert fake.counts() == {"received": 8, "processed": 5, "failed": 0, "dropped": 3}


def test_a_long_frame_is_named_with_its_age(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    with fake_node(monkeypatch, tiny_bundle) as fake:
        fake.start()
        camera = fake.camera()
        stuck = HealthReport(ERROR, "images arrive, but no mask came out for 12 s")
        monkeypatch.setattr(camera._health, "report", lambda *_, **__: stuck)
        assert camera.report(active=True) == stuck
        monkeypatch.setattr("nightlab_ros.camera.time.monotonic", lambda: 112.0)
        camera._begun_s = 100.5
        report = camera.report(active=True)
        assert report.message == f"{stuck.message}; the frame in progress was begun 12 s ago"
        assert report.values["frame_in_progress_s"] == "11.5"
