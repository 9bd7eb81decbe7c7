# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: node and player in their own processes, with the tiny bundle whose masks are known."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from command import nightlab
from rich.console import Console
from ros_harness import wait_until
from tiny_bundle import image_level

from nightlab_ros.demo.demo import DemoSettings, parse_parameters, run_demo
from nightlab_ros.playback import protocol
from nightlab_ros.playback.player import PlayerSettings
from nightlab_ros.playback.processes import ProcessError

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parents[3]
SIZE_HW = (64, 96)  # the tiny bundle's own size: nothing is resized, so the image level's labels are exact


def write_clip(folder: Path, count: int) -> Path:
    """Write noise images with the tiny bundle's image-level masks as their labels."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        frame = np.random.default_rng(i).integers(0, 256, (*SIZE_HW, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i:02d}.png"), frame)
        cv2.imwrite(str(folder / "labels" / f"{i:02d}.png"), image_level(frame)[0])
    return folder


def start_demo(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "nightlab_cli", "demo", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell's background job, such as a test run, ignores SIGINT, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_every_mask_comes_back_and_is_scored(tiny_bundle: Path, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "clip", 12), tmp_path / "out"
    parameters = f"bundle:={tiny_bundle} deadline_ms:=0.0"  # however busy the machine is, every region is read
    process = start_demo("--input", clip, "--rate", "8", "--out", out, "--param", parameters)
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    report = json.loads((out / "demo.json").read_text())
    received, skipped = report["received"], int(report["node"]["dropped"])  # a busy machine may skip some
    assert report["sent"] == 12 and report["dropped"] == 12 - received <= skipped, printed
    assert received >= 1, printed
    assert report["problems"] == []
    assert report["accuracy"]["miou"]["image_level"] == 1.0, "the labels are the image level's own"
    assert report["accuracy"]["miou"]["both_levels"] < 1.0, "the region level's labels differ"
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    assert {"image", "hardness", "region", "merge"} <= set(report["stages_ms"])
    assert report["regions"]["read"] >= received and 0 < report["masks_hz"] <= 8.1
    gaps_s = np.diff([f["stamp_ns"] for f in report["frames"]]) / 1e9
    assert np.median(gaps_s) > 0.1, "frames are sent at the rate, on a busy machine later"
    assert len(list((out / "overlays").iterdir())) == received and (out / "index.html").is_file()
    assert "masks received" in printed and str(out / "index.html") in printed


@pytest.mark.slow
def test_the_rendered_clip_stays_as_a_labelled_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = DemoSettings(PlayerSettings(frames=3, rate=2), tmp_path, {"bundle": str(tiny_bundle)})
    assert run_demo(settings, Console(file=io.StringIO())) == []
    report = json.loads((tmp_path / "demo.json").read_text())
    assert report["rendered"] and report["sent"] == 3 and 0 < report["received"] <= 3
    assert report["frames"][0]["size_hw"] == [720, 1280]
    assert len(list((tmp_path / "clip" / "labels").iterdir())) == 3


def test_a_node_that_fails_ends_the_demo_with_the_end_of_its_log(tiny_bundle: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip", 2)
    parameters = {"bundle": str(tiny_bundle), "refine": "telepathy"}
    with pytest.raises(ProcessError, match=r"nightlab_ros.node ended with status 1[\s\S]*telepathy"):
        run_demo(DemoSettings(PlayerSettings(str(clip)), tmp_path, parameters), Console(file=io.StringIO()))


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_its_processes(tiny_bundle: Path, tmp_path: Path, by: signal.Signals) -> None:
    clip = write_clip(tmp_path / "clip", 50)
    process = start_demo("--input", clip, "--rate", "2", "--out", tmp_path / "out", "--param", f"bundle:={tiny_bundle}")
    assert process.stdout is not None
    line = ""
    while not line.startswith("The node answers"):
        line = process.stdout.readline()
        assert line, "the demo ended"
    process.send_signal(by)
    rest = process.stdout.read()
    assert process.wait() == 130 and "nightlab demo: interrupted" in rest and "Traceback" not in rest
    wait_until(lambda: _group_is_empty(process.pid), "the end of the child processes")


def _group_is_empty(group: int) -> bool:
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    return not any(int(fields[2]) == group and fields[0] != "Z" for fields in stats)


def test_the_first_mask_is_waited_for_while_engines_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    class BuildingRecorder:
        """The build's percent rises until `stops_s`; the mask comes at `answers_s`."""

        def __init__(self, stops_s: float, answers_s: float) -> None:
            self._stops_s, self._answers_s = stops_s, answers_s

        @property
        def diagnostics(self) -> dict[str, str]:
            return {"build_percent": str(int(min(clock[0], self._stops_s) / 10)), "received": str(clock[0])}

        def has_masks(self, stamp_ns: int) -> bool:
            return clock[0] >= self._answers_s

    monkeypatch.setattr(protocol, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    child: Any = SimpleNamespace(
        check=lambda: None,
        has_played=lambda: False,
        log_tail=lambda: "the end of the log",
        warm_up_frames=[SimpleNamespace(stamp_ns=1)],
    )
    building: Any = BuildingRecorder(stops_s=900, answers_s=1000)
    assert protocol.wait_for_warm_up(building, child, child)
    clock[0] = 0.0
    stuck: Any = BuildingRecorder(stops_s=500, answers_s=1000)
    with pytest.raises(ProcessError, match="no mask came back within 240 s"):
        protocol.wait_for_warm_up(stuck, child, child)
    assert 740 < clock[0] < 760


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--input", "nowhere"), "nowhere does not exist"),
        (("--rate", "0"), "rate is 0.0; expected a finite number of frames per second, above 0"),
        (("--frames", "1", "--param", "bundle:=nowhere"), "nowhere"),
        (("--frames", "1", "--param", "output_size:=network"), "output_size: received network, expected input"),
        (
            ("--frames", "1", "--param", "refin:=never"),
            "'refin', which this node does not have: did you mean 'refine'?",
        ),
        (("--input", ""), "received an empty path; expected a rosbag"),
        (("--frames", "1", "--param", "refine"), "received the parameter 'refine'; expected NAME:=VALUE"),
    ],
)
def test_wrong_arguments_are_answered_with_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = nightlab("demo", *arguments, "--out", tmp_path / "out")
    assert done.status == 1 and done.err.startswith("nightlab demo: ") and sentence in done.err


def test_parameters_may_share_a_text_and_hold_spaces() -> None:
    given = ['bundle:=/my drive\'s/best "one" refine:=never', "image_size:=[1280, 720]"]
    assert parse_parameters(given) == {
        "bundle": '/my drive\'s/best "one"',
        "refine": "never",
        "image_size": "[1280, 720]",
    }
    for wrong in ("refine", ":=never", "", "never refine:=never"):
        with pytest.raises(ValueError, match="expected NAME:=VALUE"):
            parse_parameters([wrong])
