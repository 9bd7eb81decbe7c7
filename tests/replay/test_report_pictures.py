# SPDX-License-Identifier: Apache-2.0
"""From a real bag and a real bundle to pages with pictures: two replays, their reports, and their comparison."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_bags import make_frames, write_tiny_bag

from nightlab_replay.cli import main
from nightlab_replay.records import load_run
from nightlab_replay.report.pictures import Again, PicturesError, worst_frames


@pytest.fixture(scope="module")
def runs(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two replays, the second without its region level."""
    folder = tmp_path_factory.mktemp("pictures")
    bag = write_tiny_bag(folder / "bag", make_frames(10), step_ns=2_000_000_000)
    shutil.copytree(tiny_bundle, folder / "bundle")
    words = [str(bag), "--bundle", str(folder / "bundle"), "--engine", "onnxruntime", "--threads", "1"]
    assert main([*words, "--out", str(folder / "a")]) == 0
    assert main([*words, "--out", str(folder / "b"), "--set", "max_regions=0"]) == 0
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
    assert list(found) == ["camera", "truth", "both levels, regions outlined", "errors"]
    wanted = worst_frames(load_run(runs[0]))
    assert len(wanted) == len(found["camera"]) >= 2
    frames = make_frames(10)
    for (record, _), picture in zip(wanted, found["camera"], strict=True):
        assert picture.shape == (48, 64, 3)
        # JPEG blurs noise, so that likeness is all there is to ask for: to the right frame and to no other
        likeness = [np.corrcoef(picture.ravel(), other.ravel())[0, 1] for other, _ in frames]
        assert int(np.argmax(likeness)) == record.index


def test_what_is_drawn_is_what_was_judged(runs: tuple[Path, Path]) -> None:
    data = load_run(runs[0])
    with Again(data.run) as again:
        for row, record in enumerate(data.labelled[:3]):
            frame, result = again(record)
            assert frame.labels is not None
            known = frame.labels != 255
            right = int((result.labels == frame.labels)[known].sum())
            assert right == int(np.trace(data.counts.confusion[row, 1].sum(axis=0)[:, :19]))


def test_the_comparison_shows_both_bundles(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, runs)]) == 0
    assert "10 frames" in capsys.readouterr().out
    found = pictures(runs[1] / "compare.html")
    assert list(found) == ["camera", "truth", "A", "B", "errors"]
    page = (runs[1] / "compare.html").read_text()
    assert "settings.pipeline.max_regions" in page and "Pictures are missing" not in page


def test_a_bundle_or_bag_that_changed_is_not_drawn_from(runs: tuple[Path, Path]) -> None:
    run = load_run(runs[0]).run
    other = run.bundle.model_copy(update={"sha256": {**run.bundle.sha256, "bundle.yaml": "00" * 32}})
    with pytest.raises(PicturesError, match="another one took its place"):
        Again(run.model_copy(update={"bundle": other}))
    gone = run.bags[0].model_copy(update={"path": run.bags[0].path + "_gone"})
    with (
        Again(run.model_copy(update={"bags": (gone,)})) as again,
        pytest.raises(PicturesError, match="cannot be read again"),
    ):
        again(load_run(runs[0]).records[0])
