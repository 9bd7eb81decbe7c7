# SPDX-License-Identifier: Apache-2.0
"""The one reader of label maps' files, and the one check of their ids."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from class_sets import CAMVID11, CITYSCAPES19

from nightlab_core.data.frames import open_frames
from nightlab_core.data.label_maps import checked_labels, read_label_map

IDS = np.array([[0, 10, 18], [255, 5, 7]], np.uint8)
IMAGE = np.zeros((2, 3, 3), np.uint8)


def _write(path: Path, labels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), labels)
    return path


def test_grey_and_palette_images_give_their_ids(tmp_path: Path) -> None:
    assert read_label_map(_write(tmp_path / "grey.png", IDS)).tolist() == IDS.tolist()
    image = pytest.importorskip("PIL.Image")
    painted = image.fromarray(IDS, mode="P")
    painted.putpalette([90, 30, 200] * 256)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    _write(tmp_path / "images" / "a.png", IMAGE)
    painted.save(tmp_path / "labels" / "a.png")
    (frame,) = open_frames(tmp_path)
    assert frame.labels is not None and frame.labels.tolist() == IDS.tolist()


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            np.zeros((2, 3, 3), np.uint8),
            # The second form is that of an environment without Pillow, which tells a palette from colours.
            r"a\.png are uint8 \(2, 3, 3\); expected class ids, .* not colours|received colours or a palette",
        ),
        (np.zeros((2, 3), np.uint16), r"a\.png are uint16 \(2, 3\); expected class ids"),
    ],
)
def test_colours_and_16_bits_are_refused(tmp_path: Path, labels: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_label_map(_write(tmp_path / "a.png", labels))


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.png", IDS)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"a\.png cannot be read: .*cut short"):
        read_label_map(path)
    with pytest.raises(FileNotFoundError):
        read_label_map(tmp_path / "missing.png")


def test_ids_are_checked_in_the_class_set() -> None:
    assert checked_labels(IDS, IMAGE, CITYSCAPES19, "a") is IDS
    void = np.array([[0, 10, 11], [255, 5, 7]], np.uint8)
    found = checked_labels(void, IMAGE, CAMVID11, "a")
    assert found is not None and found.tolist() == [[0, 10, 255], [255, 5, 7]]
    with pytest.raises(ValueError, match=r"labels a hold the ids \[18\]; camvid11 has 0-10 and 255"):
        checked_labels(IDS, IMAGE, CAMVID11, "a")
    with pytest.raises(ValueError, match=r"labels a are \(2, 3\), their image is \(4, 3\)"):
        checked_labels(IDS, np.zeros((4, 3, 3), np.uint8), CITYSCAPES19, "a")
    assert checked_labels(None, IMAGE, CITYSCAPES19, "a") is None
