# SPDX-License-Identifier: Apache-2.0
"""Folders of images without labels."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from nightlab_core.data.datasets.paired import DatasetError
from nightlab_core.data.datasets.unlabelled import UnlabelledImages


def _pictures(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((6, 8, 3), 10 * i, np.uint8))
    return folder


def test_images_are_sorted_by_name_and_unlabelled(tmp_path: Path) -> None:
    samples = UnlabelledImages(_pictures(tmp_path / "a", "2.png", "1.png"))
    assert [s.name for s in samples] == ["1", "2"] and len(samples) == 2
    assert samples[1].image_bgr[0, 0].tolist() == [0, 0, 0]
    assert samples[0].labels.shape == (6, 8) and (samples[0].labels == 255).all()
    assert [s.name for s in samples[:1]] == ["1"]


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    folder = _pictures(tmp_path / "a", "1.png")
    (folder / "2.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"2\.png cannot be read as an image"):
        UnlabelledImages(folder)[1]
    with pytest.raises(DatasetError, match="missing"):
        UnlabelledImages(tmp_path / "missing")
