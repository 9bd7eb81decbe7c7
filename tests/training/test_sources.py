# SPDX-License-Identifier: Apache-2.0
"""Where training and evaluation find labelled images, and which of them stay in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from trees import write_image, write_label

pytest.importorskip("torch")

from nightlab_core.data.datasets import DatasetError, LabelledImages
from nightlab_core.labels import BDD18, CAMVID11, CITYSCAPES19
from training import data, evaluate


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One frame of NightCity, of BDD100K, of CamVid, and of one's own."""
    write_image(tmp_path / "nightcity/images/val/Rome_1.png")
    write_label(tmp_path / "nightcity/label/val/Rome_1_labelIds.png", [7, 26])
    write_image(tmp_path / "bdd100k/images/10k/val/x.jpg")
    write_label(tmp_path / "bdd100k/labels/sem_seg/masks/val/x.png", [0, 13])
    (tmp_path / "bdd100k/night.txt").write_text("val/x\n")
    for folder in ("camvid/val", "mine/val"):
        write_image(tmp_path / folder / "images/a.png")
        write_label(tmp_path / folder / "labels/a.png", [3, 8])
    return tmp_path


def test_small_sources_are_kept_and_large_ones_are_read_when_drawn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = data.SourceSettings(kind="nightcity", folder="nightcity", split="val", complete=False, weight=1)
    kept = data.load_source(source, root)
    assert isinstance(kept, list)
    monkeypatch.setattr(data, "IN_MEMORY_BYTES", 2 * 4 * 4 - 1)  # one frame is 2x4 pixels of 3 + 1 bytes
    lazy = data.load_source(source, root)
    assert isinstance(lazy, LabelledImages)
    np.testing.assert_array_equal(lazy[0].labels, kept[0].labels)
    stream = data.FrameStream([source], root, seed=3, crop_hw=(4, 4), input_hw=(4, 8), scale=(1.0, 1.0))
    image, labels = stream[5]
    assert image.shape == (3, 4, 4) and set(labels.unique().tolist()) <= {0, 13, 255}


def test_sources_are_checked_unless_a_part_is_asked_for(root: Path) -> None:
    with pytest.raises(DatasetError, match="expected 1299"):
        data.load_source(data.SourceSettings(kind="nightcity", folder="nightcity", split="val", weight=1), root)
    with pytest.raises(ValidationError, match="nightcity_plus"):
        data.SourceSettings(kind="nightcity+", weight=1)  # type: ignore[arg-type]


def test_evaluation_finds_each_set_by_its_name(root: Path) -> None:
    samples, classes = evaluate.open_set(root, "camvid/val")
    assert classes is CAMVID11 and [s.name for s in samples] == ["a"]
    samples, classes = evaluate.open_set(root, "mine/val")
    assert classes is CITYSCAPES19 and samples[0].labels[0, 0] == 3
    with pytest.raises(DatasetError, match=r"nightcity.NightCity-plus.val is not a folder"):
        evaluate.open_set(root, "nightcity_plus/val")
    samples, classes = evaluate.open_set(root, "bdd100k_night/val")
    assert classes is BDD18 and [s.name for s in samples] == ["x"]
