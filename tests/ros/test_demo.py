# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: node and player in their own processes, on the tiny bundle whose answers are known."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("rclpy")
pytestmark = [pytest.mark.ros, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SIZE_HW = (64, 96)  # the tiny bundle's own size: no resizing, so the image level's answer is exact


def write_clip(folder: Path, count: int) -> Path:
    from tiny_bundle import image_level

    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        frame = np.random.default_rng(i).integers(0, 256, (*SIZE_HW, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i:02d}.png"), frame)
        cv2.imwrite(str(folder / "labels" / f"{i:02d}.png"), image_level(frame)[0])
    return folder


def run_demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nightlab_ros.demo.demo", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL, check=False
    )


def test_every_frame_comes_back_and_is_scored(tiny_bundle: Path, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "clip", 12), tmp_path / "out"
    done = run_demo("--input", clip, "--rate", "4", "--out", out, "--param", f"bundle:={tiny_bundle}")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "demo.json").read_text())
    received, skipped = report["received"], int(report["node"]["dropped"])  # a busy machine may skip one
    assert report["sent"] == 12 and report["dropped"] == 12 - received <= skipped, done.stdout
    assert received >= 6, done.stdout
    assert report["problems"] == []
    assert report["accuracy"]["miou"]["image_level"] == 1.0, "the truth is the image level's own answer"
    assert report["accuracy"]["miou"]["both_levels"] < 1.0, "the second level answers otherwise"
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    assert {"image", "hardness", "region", "merge"} <= set(report["stages_ms"])
    gaps_s = np.diff([f["stamp_ns"] for f in report["frames"]]) / 1e9
    assert abs(np.median(gaps_s) - 0.25) < 0.02, "the rate is held"
    assert len(list((out / "overlays").iterdir())) == received and (out / "index.html").is_file()
    assert "masks received" in done.stdout and str(out / "index.html") in done.stdout


def test_rendered_clip_stays_as_a_labelled_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run_demo("--frames", "3", "--rate", "2", "--out", tmp_path, "--param", f"bundle:={tiny_bundle}")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "demo.json").read_text())
    assert report["rendered"] and report["sent"] == 3 and 0 < report["received"] <= 3
    assert report["frames"][0]["size_hw"] == [720, 1280]
    assert len(list((tmp_path / "clip" / "labels").iterdir())) == 3


def test_a_node_that_dies_ends_the_demo_with_its_last_words(tiny_bundle: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip", 2)
    words = ("--input", clip, "--out", tmp_path / "out", "--param", f"bundle:={tiny_bundle}")
    done = run_demo(*words, "--param", "mode:=telepathy")
    assert done.returncode == 1
    assert "nightlab_ros.node ended with status 1" in done.stdout and "telepathy" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_engines_that_are_being_built_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from nightlab_ros.demo.demo import demo

    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    class Monitor:
        """The build's percent goes on until `ends_s`."""

        def __init__(self, ends_s: float, answers_s: float) -> None:
            self._ends_s, self._answers_s = ends_s, answers_s

        @property
        def diagnostics(self) -> dict[str, str]:
            return {"build_percent": str(int(min(clock[0], self._ends_s) / 10)), "received": str(clock[0])}

        def has_answer(self, stamp_ns: int) -> bool:
            return clock[0] >= self._answers_s

        def forget(self) -> None:
            pass

    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    child: Any = SimpleNamespace(
        check=lambda: None,
        begin=lambda: None,
        log="node.log",
        tail=lambda: "its end",
        knocks=[SimpleNamespace(stamp_ns=1)],
    )
    console = Console(file=io.StringIO())
    slow: Any = Monitor(ends_s=900, answers_s=1000)
    demo.wait_for_answer(slow, child, child, console)
    clock[0] = 0.0
    stuck: Any = Monitor(ends_s=500, answers_s=1000)
    with pytest.raises(demo.DemoError, match="no mask came back within 240 s"):
        demo.wait_for_answer(stuck, child, child, console)
    assert 740 < clock[0] < 760


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--input", "nowhere"), "nowhere does not exist"),
        (("--rate", "0"), "rate is 0.0; expected frames a second, above 0"),
        (("--frames", "1", "--param", "bundle:=nowhere"), "nowhere"),
        (("--frames", "1", "--param", "mode"), "parameter 'mode'; expected name:=value"),
    ],
)
def test_wrong_arguments_are_answered_in_words(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    done = run_demo(*words, "--out", tmp_path)
    assert done.returncode == 1
    assert says in done.stdout and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
