# SPDX-License-Identifier: Apache-2.0
"""Captures: what they hold, the size of their folder, the service's answers, and captures at low confidence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("onnx")

from fake_engines import plain_maps
from fake_node import FakeNode, fake_node
from ros_harness import wait_until

from nightlab_core.version import package_version
from nightlab_ros.capture import store as store_module
from nightlab_ros.capture.store import CaptureError, CaptureStore
from nightlab_ros.capture_trigger import CaptureTrigger

pytestmark = pytest.mark.ros


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def request(fake: FakeNode) -> Any:
    response = SimpleNamespace(success=None, message=None)
    return fake.node._captures.on_request(None, response)


def test_a_capture_appears_with_its_files(tmp_path: Path) -> None:
    path = CaptureStore(str(tmp_path / "new/captures"), 1).save("front", {"a.txt": b"one", "b.txt": b"two"})
    assert path.name.endswith("Z-front") and names(path) == ["a.txt", "b.txt"]
    assert (path / "a.txt").read_bytes() == b"one"
    assert names(path.parent) == [path.name]


def test_the_oldest_captures_make_room_and_nothing_else_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "capture-notes").mkdir()
    (tmp_path / "capture-notes/big").write_bytes(bytes(2_000_000))
    store = CaptureStore(str(tmp_path), 1)
    paths = [store.save("", {"data": bytes(300_000)}) for _ in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    assert (tmp_path / "capture-notes/big").stat().st_size == 2_000_000


def test_a_capture_above_the_limit_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    store = CaptureStore(str(tmp_path), 1)
    kept = store.save("", {"data": bytes(900_000)})
    with pytest.raises(CaptureError, match=r"a capture has 1\.1 MB, capture_max_mb allows 1: increase it"):
        store.save("", {"data": bytes(1_100_000)})
    assert names(tmp_path) == [kept.name]


def test_a_capture_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = CaptureStore(str(tmp_path), 1)
    with pytest.raises(CaptureError, match=r"check capture_dir and its disk"):
        store.save("", {"a": b"one", "missing/b": b"two"})
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(CaptureError, match="check capture_dir"):
        CaptureStore(str(tmp_path / "file"), 1).save("", {"a": b"one"})


def test_a_home_directory_that_is_not_known_is_an_error() -> None:
    with pytest.raises(CaptureError, match="set HOME, or capture_dir"):
        CaptureStore("~/.ros/nightlab_captures", 1)


def test_the_service_writes_the_last_frame_of_each_camera(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    with fake_node(monkeypatch, tiny_bundle, cameras=["front", "rear"], capture_dir=str(tmp_path)) as fake:
        assert (request(fake).success, names(tmp_path)) == (False, [])
        fake.start()
        answer = request(fake)
        assert not answer.success and answer.message == "no frame has been published yet: activate the node first"
        for camera, size_hw in (("front", (48, 64)), ("rear", (30, 40))):
            fake.receive(camera, 7, size_hw)
            fake.wait_for_counts(camera, processed=1)
        wait_until(lambda: fake.camera("rear").last_frame, "the frame", 20.0)
        answer = request(fake)
        assert answer.success
        front, rear = (Path(path) for path in answer.message.split(", "))
        assert front.name.endswith("-front") and rear.name.endswith("-rear")
        sizes = {
            name: cv2.imread(str(rear / name), cv2.IMREAD_UNCHANGED).shape
            for name in names(rear)
            if name.endswith(".png")
        }
        assert sizes.pop("frame.png") == (30, 40, 3)
        assert set(sizes) == {
            f"{name}.png" for name in ("mask", "confidence", "image_level_mask", "image_level_confidence")
        }
        assert set(sizes.values()) == {(30, 40)}
        levels = (cv2.imread(str(rear / name), cv2.IMREAD_UNCHANGED) for name in ("image_level_mask.png", "mask.png"))
        assert [np.unique(level).tolist() for level in levels] == [[3], [3, 5]]
        description = json.loads((rear / "capture.json").read_text())
        assert (description["camera"], description["stamp"], description["frame_id"]) == ("rear", "7.000000000", "rear")
        assert {region["outcome"] for region in description["regions"]} == {"read"}
        values = description["diagnostics"]["values"]
        assert (values["version"], values["bundle"], values["engine"]) == (package_version(), "tiny", "fake")
        assert len(values["bundle_sha256"]) == 64
        assert description["settings"]["capture_dir"] == str(tmp_path)


def test_the_service_says_why_there_is_no_capture(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with fake_node(monkeypatch, tiny_bundle, capture_dir=str(tmp_path / "file")) as fake:
        fake.start()
        fake.receive()
        wait_until(lambda: fake.camera().last_frame, "the frame", 20.0)
        answer = request(fake)
        assert not answer.success and "check capture_dir and its disk" in answer.message


def test_a_frame_of_low_confidence_at_night_is_captured_once_in_a_period(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    parameters = {"capture_dir": str(tmp_path / "out"), "capture_below_confidence": 0.5, "refine": "never"}
    with fake_node(monkeypatch, tiny_bundle, plain_maps(3, 100), **parameters) as fake:
        fake.start()
        for stamp in range(3):
            fake.receive(stamp=stamp)
            fake.wait_for_counts(processed=stamp + 1)
        wait_until(lambda: (tmp_path / "out").is_dir() and names(tmp_path / "out"), "a capture", 20.0)
    (name,) = names(tmp_path / "out")
    assert json.loads((tmp_path / "out" / name / "capture.json").read_text())["stamp"].startswith("0.")


@pytest.mark.parametrize(
    ("below", "light", "confidence", "due"),
    [(0.5, 0.01, 100, True), (0.0, 0.01, 0, False), (0.5, 0.2, 100, False), (0.5, 0.01, 200, False)],
)
def test_when_a_frame_is_captured_by_itself(
    monkeypatch: pytest.MonkeyPatch, below: float, light: float, confidence: int, due: bool
) -> None:
    now_s = [50.0]
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now_s[0])
    result: Any = SimpleNamespace(light_level=light, confidence=np.full((4, 4), confidence, np.uint8))
    trigger = CaptureTrigger()
    assert trigger.is_due(result, below, 0.06, 60.0) is due
    now_s[0] = 109.0
    assert not trigger.is_due(result, below, 0.06, 60.0)
    now_s[0] = 111.0
    assert trigger.is_due(result, below, 0.06, 60.0) is due
