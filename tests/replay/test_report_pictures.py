# SPDX-License-Identifier: Apache-2.0
"""Pictures of the pages: two replays of a bag, their reports, and their comparison."""

from __future__ import annotations

import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from command import nightlab
from replay_samples import write_sample
from tiny_bags import make_frames, write_tiny_bag

from nightlab_core.version import package_version
from nightlab_replay.records import FrameCounts
from nightlab_replay.report.compare import write_comparison
from nightlab_replay.report.pictures import PicturesError, Resegmenter, worst_frames
from nightlab_replay.store import load_run


@pytest.fixture(scope="module")
def runs(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two replays, the second without regions."""
    folder = tmp_path_factory.mktemp("pictures")
    bag = write_tiny_bag(folder / "bag", make_frames(10), step_ns=2_000_000_000)
    shutil.copytree(tiny_bundle, folder / "bundle")
    words = ["replay", bag, "--bundle", folder / "bundle", "--engine", "onnxruntime", "--threads", 1]
    assert nightlab(*words, "--out", folder / "a").status == 0
    assert nightlab(*words, "--out", folder / "b", "--set", "max_regions=0").status == 0
    return folder / "a", folder / "b"


def pictures(page: Path) -> dict[str, list[np.ndarray]]:
    """The page's pictures by caption, decoded."""
    found: dict[str, list[np.ndarray]] = {}
    for data, caption in re.findall(r'base64,([^"]+)" alt="[^"]*: ([^"]*)"', page.read_text()):
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        found.setdefault(caption, []).append(picture)
    return found


def test_the_worst_frames_are_read_and_segmented_again(runs: tuple[Path, Path]) -> None:
    found = pictures(runs[0] / "report.html")
    assert list(found) == ["camera", "ground truth", "both levels, regions outlined", "errors"]
    wanted = worst_frames(load_run(runs[0]))
    assert len(wanted) == len(found["camera"]) >= 2
    frames = make_frames(10)
    for (record, _), picture in zip(wanted, found["camera"], strict=True):
        assert picture.shape == (48, 64, 3)
        # JPEG blurs noise, so the picture only has to be closer to the right frame than to any other
        correlation = [np.corrcoef(picture.ravel(), other.ravel())[0, 1] for other, _ in frames]
        assert int(np.argmax(correlation)) == record.index


def test_the_drawn_frames_are_the_evaluated_ones(runs: tuple[Path, Path]) -> None:
    data = load_run(runs[0])
    with Resegmenter(data.run) as segment:
        for row, record in enumerate(data.labelled[:3]):
            frame, result = segment(record)
            assert frame.labels is not None
            known = frame.labels != 255
            right = int((result.labels == frame.labels)[known].sum())
            assert right == int(np.trace(data.counts.confusion[row, 1].sum(axis=0)[:, :19]))


def test_the_comparison_shows_both_bundles(runs: tuple[Path, Path]) -> None:
    done = nightlab("compare", *runs)
    assert done.status == 0 and "10 frames" in done.out
    found = pictures(runs[1] / "compare.html")
    assert list(found) == ["camera", "ground truth", "A", "B", "errors"]
    page = (runs[1] / "compare.html").read_text()
    assert "settings.pipeline.max_regions" in page and "Pictures are missing" not in page
    assert "nightlab_ros" in page and package_version() in page


def test_nothing_is_drawn_from_a_changed_bundle_or_bag(runs: tuple[Path, Path]) -> None:
    run = load_run(runs[0]).run
    other = run.bundle.model_copy(update={"sha256": {**run.bundle.sha256, "bundle.yaml": "00" * 32}})
    with pytest.raises(PicturesError, match="replaced by another one"):
        Resegmenter(run.model_copy(update={"bundle": other}))
    gone = run.bags[0].model_copy(update={"path": run.bags[0].path + "_gone"})
    with (
        Resegmenter(run.model_copy(update={"bags": (gone,)})) as segment,
        pytest.raises(PicturesError, match="cannot be read"),
    ):
        segment(load_run(runs[0]).records[0])


def test_frames_without_labels_are_compared_by_confidence(runs: tuple[Path, Path], tmp_path: Path) -> None:
    folders = []
    for folder in runs:
        data = load_run(folder)
        unlabelled = [replace(r, labelled=False) for r in data.records]
        folders.append(
            write_sample(tmp_path / folder.name, replace(data, records=unlabelled, counts=FrameCounts.empty(19)))
        )
    write_comparison(*folders)
    page = (folders[1] / "compare.html").read_text()
    assert "mean confidence" in page and "Frames to review" in page
    assert "accuracy cannot be compared" in page
