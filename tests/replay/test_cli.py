# SPDX-License-Identifier: Apache-2.0
"""nightlab-replay as a user calls it: its figures, its errors, and how it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from command import nightlab
from tiny_bags import make_frames, write_tiny_bag

from nightlab_core.labels import CITYSCAPES19
from nightlab_core.runtime.bundle import Bundle
from nightlab_core.runtime.engines.engine import EngineOptions
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.engines.tensorrt.plans import PlanError
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.cli import main
from nightlab_replay.execute import Span, SpanResult, replay_spans
from nightlab_replay.records import Run, load_run

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "nightlab_replay.cli", *map(str, words)]


@pytest.mark.parametrize("name", ["camvid", "own"])
def test_accuracy_is_that_of_the_evaluation(tmp_path: Path, pipeline: Pipeline, tiny_bundle: Path, name: str) -> None:
    """The very numbers of training/evaluate.py, by nightlab-bag and nightlab-replay as a user calls them."""
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
    expected = evaluate.evaluate(pipeline, samples, classes, name)
    assert nightlab("bag", folder, "--out", tmp_path / "bag").status == 0
    arguments = [str(tmp_path / "bag"), "--bundle", str(tiny_bundle), "--engine", "onnxruntime"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    data = load_run(tmp_path / "out")
    assert data.run.settings.classes == classes.key and len(data.labelled) == 5
    matrices = data.counts.confusion.sum(axis=2)
    np.testing.assert_array_equal(matrices[:, 0], expected.image_level)
    np.testing.assert_array_equal(matrices[:, 1], expected.both_levels)


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_report_and_the_same_command_goes_on(
    tmp_path: Path, tiny_bundle: Path, by: signal.Signals
) -> None:
    bag = write_tiny_bag(tmp_path / "bag", make_frames(40), step_ns=200_000_000)
    words = command(bag, "--bundle", tiny_bundle, "--engine", "onnxruntime", "--realtime", "--out", tmp_path / "out")
    with subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while not (tmp_path / "out" / "run.json").exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        time.sleep(1.5)  # of the 8 s that the bag lasts
        process.send_signal(by)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    partial = load_run(tmp_path / "out")
    assert 0 < len(partial.records) < 40, output
    assert json.loads((tmp_path / "out" / "report.json").read_text())
    assert "not complete" in (tmp_path / "out" / "report.html").read_text().lower() or not partial.complete
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(partial.records)} of them done before" in done.stdout
    assert load_run(tmp_path / "out").complete


def test_a_run_on_a_cluster_does_not_pass_for_one_on_this_machine(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(spans: list[Span], run: Run, **options: object) -> Iterator[SpanResult]:
        assert options["scheduler"] == "tcp://host:8786"
        return replay_spans(spans, pipeline, CITYSCAPES19)

    monkeypatch.setattr("nightlab_replay.cluster.replay_distributed", here)
    words = [str(bags[1]), "--bundle", str(tiny_bundle), "--engine", "onnxruntime", "--out", str(tmp_path)]
    assert main([*words, "--scheduler", "tcp://host:8786"]) == 0
    assert load_run(tmp_path).run.workers == -1


@pytest.mark.parametrize(
    "words, said",
    [
        (["--rate", "0"], "--rate is 0"),
        (["--rate", "2"], "--rate is for --realtime"),
        (["--workers", "0"], "--workers is 0"),
        (["--set", "max_regions=99"], "max_regions=99"),
        (["--set", "colour=blue"], "expected NAME=VALUE"),
        (["--topic", "/none"], "/camera/image_raw"),
        (["--bundle", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_without_a_traceback(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main([str(bags[0]), "--bundle", str(tiny_bundle), "--out", str(tmp_path), *words]) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_tensorrt_is_looked_for_by_the_frames_size_and_without_a_plan_one_reads_why(
    tmp_path: Path,
    bags: list[Path],
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def open_engines(bundle: Bundle, options: EngineOptions) -> None:
        asked.append((options.engine, options.frame_hw))
        raise PlanError("there is no plan of the image network")

    monkeypatch.setattr(Engines, "open", open_engines)
    nothing = tmp_path / "nothing.mcap"
    nothing.write_bytes(b"")  # a bag without a frame says nothing of the size
    words = [str(nothing), str(bags[0]), "--bundle", str(tiny_bundle), "--engine", "tensorrt"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert asked == [("tensorrt", (48, 64))]
    assert capsys.readouterr().err == "nightlab-replay: there is no plan of the image network\n"


def test_a_bag_that_cannot_be_read_still_gets_a_report(
    tmp_path: Path, bags: list[Path], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing.mcap"
    nothing.write_bytes(b"")
    headless = tmp_path / "headless.mcap"  # cut off before the list of topics
    headless.write_bytes((bags[0] / "one.mcap").read_bytes()[:60])
    cut = tmp_path / "cut.mcap"
    cut.write_bytes((bags[0] / "one.mcap").read_bytes()[:100_000])
    words = [str(nothing), str(headless), str(cut), "--bundle", str(tiny_bundle), "--engine", "onnxruntime"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "do not begin as an MCAP file" in capsys.readouterr().out
    data = load_run(tmp_path / "out")
    assert data.complete and 0 < len(data.records) < 11 and {r.bag for r in data.records} == {"cut.mcap"}
    assert (tmp_path / "out" / "report.html").exists()
