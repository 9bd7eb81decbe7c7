# SPDX-License-Identifier: Apache-2.0
"""`nightlab replay` as a user calls it: figures, errors, and interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from class_sets import CITYSCAPES19
from command import nightlab
from rosbags.typesys import Stores, get_typestore
from tiny_bags import make_frames, write_tiny_bag

from nightlab_core.data.bags.write import BagWriter
from nightlab_core.runtime.bundle import Bundle
from nightlab_core.runtime.engines.engine import EngineOptions
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.engines.tensorrt.plans import PlanError
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.execute import Span, SpanResult, replay_spans
from nightlab_replay.records import Run
from nightlab_replay.store import load_run

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start_process(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nightlab_cli", "replay", *map(str, words)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until a file of this pattern exists while the process runs."""
    until = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["camvid", "own"])
def test_the_accuracy_equals_that_of_nightlab_evaluate(
    tmp_path: Path, pipeline: Pipeline, tiny_bundle: Path, name: str
) -> None:
    evaluate = pytest.importorskip("training.evaluation.evaluate")
    folder = tmp_path / name / "test"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index, (image, labels) in enumerate(make_frames(5)):
        ids = labels % 12 if name == "camvid" else labels  # CamVid's void is 11
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
        cv2.imwrite(
            str(folder / "labels" / f"{index}.png"), np.where(labels == 255, 11 if name == "camvid" else 255, ids)
        )
    samples, classes = evaluate.open_set(tmp_path, f"{name}/test")
    expected = evaluate.evaluate(pipeline, samples, classes, name, pipeline.bundle.class_set)
    assert nightlab("bag", folder, "--out", tmp_path / "bag").status == 0
    words = ["replay", tmp_path / "bag", "--bundle", tiny_bundle, "--engine", "onnxruntime"]
    assert nightlab(*words, "--out", tmp_path / "out").status == 0
    data = load_run(tmp_path / "out")
    assert data.run.settings.classes == classes.key and len(data.labelled) == 5
    matrices = data.counts.confusion.sum(axis=2)
    np.testing.assert_array_equal(matrices[:, 0], expected.image_level)
    np.testing.assert_array_equal(matrices[:, 1], expected.both_levels)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_report_and_the_same_command_resumes(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, by: signal.Signals
) -> None:
    def interrupted(*args: Any, on_frames: Any, **options: Any) -> Iterator[SpanResult]:
        def count(records: Any) -> None:
            on_frames(records)
            if records[-1].index == 4:
                os.kill(os.getpid(), by)

        yield from replay_spans(*args, on_frames=count, **options)

    words = ["replay", bags[0], "--bundle", tiny_bundle, "--engine", "onnxruntime", "--out", tmp_path]
    with monkeypatch.context() as patched:
        patched.setattr("nightlab_replay.replay.replay_spans", interrupted)
        assert nightlab(*words).status == 130
    partial = load_run(tmp_path)
    assert 5 <= len(partial.records) < 11 and not partial.complete
    assert json.loads((tmp_path / "report.json").read_text())["complete"] is False
    assert "Partial report" in (tmp_path / "report.html").read_text()
    done = nightlab(*words)
    assert done.status == 0 and f"{len(partial.records)} of them done before" in done.out
    assert load_run(tmp_path).complete


def test_a_killed_process_loses_only_the_current_chunk(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_tiny_bag(tmp_path / "bag", make_frames(160), step_ns=25_000_000)  # 4 s, in chunks of 64 frames or more
    words = [bag, "--bundle", tiny_bundle, "--engine", "onnxruntime", "--realtime", "--out", tmp_path / "out"]
    with start_process(*words) as process:
        wait_for(tmp_path / "out" / "chunks", "*.npz", process)
        process.kill()
        process.wait()
    stored = len(load_run(tmp_path / "out").records)
    assert 64 <= stored < 160
    done = nightlab("replay", *words)
    assert done.status == 0 and f"{stored} of them done before" in done.out
    assert load_run(tmp_path / "out").complete


@pytest.mark.slow
def test_an_interrupted_process_ends_with_status_130(tmp_path: Path, tiny_bundle: Path) -> None:
    bag = write_tiny_bag(tmp_path / "bag", make_frames(40), step_ns=200_000_000)
    words = [bag, "--bundle", tiny_bundle, "--engine", "onnxruntime", "--realtime", "--out", tmp_path / "out"]
    with start_process(*words) as process:
        wait_for(tmp_path / "out", "run.json", process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Stopping after the current frame" in output and "Incomplete" in output
    assert (tmp_path / "out" / "report.html").exists()


def test_a_run_on_a_cluster_differs_from_a_local_one(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replay_here(spans: list[Span], run: Run, **options: object) -> Iterator[SpanResult]:
        assert options["scheduler"] == "tcp://host:8786"
        return replay_spans(spans, pipeline, CITYSCAPES19)

    monkeypatch.setattr("nightlab_replay.cluster.replay_distributed", replay_here)
    words = ["replay", bags[1], "--bundle", tiny_bundle, "--engine", "onnxruntime", "--out", tmp_path]
    assert nightlab(*words, "--scheduler", "tcp://host:8786").status == 0
    assert load_run(tmp_path).run.workers == -1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--speed", "0"], "--speed is 0"),
        (["--speed", "2"], "--speed needs --realtime or --ros"),
        (["--realtime", "--workers", "2"], "cannot be combined with --realtime"),
        (["--workers", "2", "--scheduler", "tcp://host:8786"], "cannot be combined with --scheduler"),
        (["--set", "max_regions=99"], "max_regions=99"),
        (["--set", "colour=blue"], "expected NAME=VALUE"),
        (["--topic", "/none"], "/camera/image_raw"),
        (["--bundle", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, words: list[str], message: str
) -> None:
    done = nightlab("replay", bags[0], "--bundle", tiny_bundle, "--out", tmp_path, *words)
    assert done.status == 1 and message in done.err and "Traceback" not in done.err


def test_plans_are_looked_up_by_the_size_of_the_first_readable_frame(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = []

    def open_engines(bundle: Bundle, options: EngineOptions) -> None:
        requested.append((options.engine, options.frame_hw))
        raise PlanError("there is no plan of the image network")

    monkeypatch.setattr(Engines, "open", open_engines)
    empty = tmp_path / "empty.mcap"
    empty.write_bytes(b"")
    done = nightlab(
        "replay", empty, bags[0], "--bundle", tiny_bundle, "--engine", "tensorrt", "--out", tmp_path / "out"
    )
    assert done.status == 1 and requested == [("tensorrt", (48, 64))]
    assert done.err == "nightlab replay: there is no plan of the image network\n"


def test_one_bad_bag_of_many_does_not_stop_the_others(tmp_path: Path, bags: list[Path], tiny_bundle: Path) -> None:
    dangling = tmp_path / "dangling"
    dangling.mkdir()
    shutil.copy(bags[0] / "metadata.yaml", dangling)
    (dangling / "one.mcap").symlink_to(tmp_path / "nowhere.mcap")
    no_camera = tmp_path / "no_camera"
    with BagWriter(no_camera) as bag:
        bag.image("/camera/labels", make_frames(1)[0][1], 10**9, "camera", time_ns=10**9)
    missing = tmp_path / "missing"
    words = [*bags[:1], dangling, no_camera, missing, "--bundle", tiny_bundle, "--engine", "onnxruntime"]
    done = nightlab("replay", *words, "--out", tmp_path / "out")
    assert done.status == 1 and "Traceback" not in done.err
    for problem in ("holds no topic of camera images", "missing does not exist", "dangling is no rosbag: it holds"):
        assert problem in done.out
    assert "nothing could be read of dangling, no_camera, missing" in done.err
    data = load_run(tmp_path / "out")
    assert data.complete and {r.bag for r in data.records} == {bags[0].name}
    done = nightlab("replay", missing, no_camera, "--bundle", tiny_bundle, "--out", tmp_path / "none")
    assert done.status == 1 and "missing does not exist" in done.err and not (tmp_path / "none").exists()


def test_a_bag_none_of_whose_frames_can_be_read_is_a_failure(tmp_path: Path, tiny_bundle: Path) -> None:
    types = get_typestore(Stores.ROS2_HUMBLE).types
    stamp = types["builtin_interfaces/msg/Time"](1, 0)
    header = types["std_msgs/msg/Header"](stamp, "camera")
    pixels = np.zeros(4 * 4 * 4, np.uint8)
    with BagWriter(tmp_path / "bag") as bag:
        bag._write("/camera/image_raw", types["sensor_msgs/msg/Image"](header, 4, 4, "32FC1", 0, 16, pixels), 10**9)
    words = [tmp_path / "bag", "--bundle", tiny_bundle, "--engine", "onnxruntime", "--out", tmp_path / "out"]
    first, again = nightlab("replay", *words), nightlab("replay", *words)
    assert "'32FC1'" in first.out
    for done in (first, again):
        assert done.status == 1 and "nothing could be read of bag" in done.err


def test_a_bag_that_cannot_be_read_still_gets_a_report(tmp_path: Path, bags: list[Path], tiny_bundle: Path) -> None:
    empty = tmp_path / "empty.mcap"
    empty.write_bytes(b"")
    headless = tmp_path / "headless.mcap"  # cut off before the list of topics
    headless.write_bytes((bags[0] / "one.mcap").read_bytes()[:60])
    cut = tmp_path / "cut.mcap"
    cut.write_bytes((bags[0] / "one.mcap").read_bytes()[:100_000])
    words = ["replay", empty, headless, cut, "--bundle", tiny_bundle, "--engine", "onnxruntime"]
    done = nightlab(*words, "--out", tmp_path / "out")
    assert done.status == 1 and "do not begin as an MCAP file" in done.out
    assert "nothing could be read of empty.mcap, headless.mcap" in done.err
    data = load_run(tmp_path / "out")
    assert data.complete and 0 < len(data.records) < 11 and {r.bag for r in data.records} == {"cut.mcap"}
    assert (tmp_path / "out" / "report.html").exists()


def test_an_empty_path_is_not_the_working_directory(tmp_path: Path) -> None:
    done = nightlab("replay", "", "--out", tmp_path / "out")
    assert done.status == 2 and "received an empty path" in done.err and not (tmp_path / "out").exists()
