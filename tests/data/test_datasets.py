# SPDX-License-Identifier: Apache-2.0
"""Plain folders and CamVid on tiny trees, and hard regions: labels that are read, errors that name the file."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from class_sets import CITYSCAPES19

from nightlab_core.data.datasets.catalogue import camvid, plain_folder
from nightlab_core.data.datasets.paired import DatasetError, PairedFolder
from nightlab_core.data.hard_regions import hard_regions, label_instances


def _write(root: Path, stem: str, labels: np.ndarray, image_hw: tuple[int, int] | None = None) -> None:
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    height, width = image_hw or labels.shape
    cv2.imwrite(str(root / "images" / f"{stem}.png"), np.full((height, width, 3), (10, 20, 30), np.uint8))
    cv2.imwrite(str(root / "labels" / f"{stem}.png"), labels)


def test_camvid_ids_become_cityscapes_train_ids(tmp_path: Path) -> None:
    _write(tmp_path / "val", "a", np.arange(12, dtype=np.uint8).reshape(3, 4))
    (sample,) = camvid(tmp_path, "val").in_class_set(CITYSCAPES19)
    assert sample.labels.tolist() == [[10, 2, 5, 0], [1, 8, 7, 4], [13, 11, 12, 255]]
    assert sample.image_bgr[0, 0].tolist() == [10, 20, 30] and sample.name == "a"


def test_a_plain_folder_is_read_without_mapping(tmp_path: Path) -> None:
    _write(tmp_path, "a", np.array([[0, 18, 255]], np.uint8))
    assert plain_folder(tmp_path)[0].labels.tolist() == [[0, 18, 255]]


def test_patterns_choose_and_names_are_sorted(tmp_path: Path) -> None:
    for stem in ("0002_b", "0001_a", "9_c"):
        _write(tmp_path, stem, np.zeros((2, 2), np.uint8))
    assert [s.name for s in plain_folder(tmp_path, "000*")] == ["0001_a", "0002_b"]
    assert [s.name for s in plain_folder(tmp_path, "*_[bc]")] == ["0002_b", "9_c"]


def test_hidden_files_beside_the_images_are_skipped(tmp_path: Path) -> None:
    _write(tmp_path, "a", np.zeros((2, 2), np.uint8))
    for part in ("images", "labels"):
        (tmp_path / part / "._a.png").write_bytes(b"a file that macOS writes beside images")
    assert [s.name for s in plain_folder(tmp_path)] == ["a"]


def test_label_ids_of_34_classes_are_caught(tmp_path: Path) -> None:
    _write(tmp_path, "a", np.array([[7, 26, 33]], np.uint8))
    with pytest.raises(DatasetError, match=r"a\.png: labels hold ids \[26, 33\]"):
        plain_folder(tmp_path)[0]


def test_a_label_of_another_size_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "a", np.zeros((4, 6), np.uint8), image_hw=(8, 12))
    with pytest.raises(DatasetError, match=r"a\.png is \(4, 6\), its image \(8, 12\)"):
        plain_folder(tmp_path)[0]


def test_coloured_labels_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, "a", np.zeros((4, 6), np.uint8))
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(DatasetError, match="colours"):
        plain_folder(tmp_path)[0]


def test_labels_with_a_palette_give_their_indices(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    ids = np.array([[0, 10, 18, 255]], np.uint8)
    _write(tmp_path, "a", ids)
    painted = image.fromarray(ids, mode="P")
    painted.putpalette([90, 30, 200] * 256)
    painted.save(tmp_path / "labels" / "a.png")
    assert plain_folder(tmp_path)[0].labels.tolist() == ids.tolist()


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        plain_folder(tmp_path / "nowhere")
    _write(tmp_path, "a", np.zeros((4, 6), np.uint8))
    with pytest.raises(DatasetError, match="no image that matches"):
        plain_folder(tmp_path, "z*")
    (tmp_path / "labels" / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"a\.png has no label"):
        PairedFolder(tmp_path / "images", tmp_path / "labels", CITYSCAPES19)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "a", np.zeros((4, 6), np.uint8))
    (tmp_path / "images" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=r"images.a\.png cannot be read as an image"):
        plain_folder(tmp_path)[0]


def test_instances_are_connected_regions_of_one_class() -> None:
    labels = np.zeros((8, 10), np.uint8)
    labels[1:5, 1:3] = 5
    labels[1:5, 6:7] = 5
    labels[5:6, 3:4] = 5  # one pixel, touching the first by a corner
    labels[1:5, 3:5] = 11
    boxes = label_instances(labels, [5, 11], min_area=2)
    assert boxes.tolist() == [[1, 1, 4, 6], [6, 1, 7, 5], [3, 1, 5, 5]]
    assert label_instances(labels, [5], min_area=9).tolist() == [[1, 1, 4, 6]]
    assert label_instances(labels, [7]).shape == (0, 4)


def test_hard_regions_join_neighbours_and_are_never_tiny() -> None:
    labels = np.zeros((100, 200), np.uint8)
    labels[10:20, 40:42] = 5
    labels[30:40, 40:42] = 5  # 10 pixels below: one pole with a gap
    labels[98:100, 198:200] = 11  # in the corner
    boxes = hard_regions(labels, [5, 11], reach=6, min_side=24)
    assert boxes.tolist() == [[29, 4, 53, 46], [176, 76, 200, 100]]
    assert hard_regions(labels, [5, 11], reach=4, min_side=2).shape == (3, 4)
    assert hard_regions(labels, [7]).shape == (0, 4)
