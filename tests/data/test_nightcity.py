# SPDX-License-Identifier: Apache-2.0
"""NightCity's three label sets: each layout, and its errors."""

from pathlib import Path

import numpy as np
import pytest
from trees import write_image, write_label

from nightlab_core.data.datasets import nightcity as nc
from nightlab_core.data.datasets.nightcity import nightcity, nightcity_fine, nightcity_plus
from nightlab_core.data.datasets.paired import DatasetError

LABEL_IDS = [7, 11, 23, 26, 33, 0, 4, 255]  # road, building, sky, car, bicycle; three that are not evaluated
AS_TRAIN_IDS = [0, 2, 10, 13, 18, 255, 255, 255]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both archives of NightCity, with three frames to train on, Dubai_0016 among them, and two to validate on."""
    monkeypatch.setattr(nc, "FRAMES", {"train": 3, "val": 2})
    for split, stems in {"train": ["Chicago_0002", "Dubai_0016", "Paris_0001"], "val": ["Rome_2", "Rome_1"]}.items():
        for stem in stems:
            write_image(tmp_path / "NightCity-images/images" / split / f"{stem}.png")
            write_label(tmp_path / "NightCity-label/label" / split / f"{stem}_labelIds.png", LABEL_IDS)
    return tmp_path


def _fine(root: Path, split: str, stem: str, ids: list[int]) -> None:
    write_image(root / split / "img" / f"{stem}.png")
    write_label(root / split / "lbl" / f"{stem}_trainIds.png", ids)


def test_the_published_counts() -> None:
    assert nc.FRAMES == {"train": 2998, "val": 1299}


def test_label_ids_become_train_ids(root: Path) -> None:
    samples = list(nightcity(root, "train"))
    assert [s.name for s in samples] == ["Chicago_0002", "Dubai_0016", "Paris_0001"]
    assert samples[0].labels.ravel().tolist() == AS_TRAIN_IDS
    assert samples[0].image_bgr.shape == (2, 4, 3)
    assert [s.name for s in nightcity(root, "val")] == ["Rome_1", "Rome_2"]
    assert [s.name for s in nightcity(root, "val", "*_2")] == ["Rome_2"]


def test_the_archives_may_be_merged_into_two_folders(root: Path) -> None:
    (root / "NightCity-images/images").rename(root / "images")
    (root / "NightCity-label/label").rename(root / "label")
    assert len(nightcity(root, "train")) == 3


def test_the_misplaced_val_frame_counts_as_train(root: Path) -> None:
    for name in ("NightCity-images/images/{}/Dubai_0016.png", "NightCity-label/label/{}/Dubai_0016_labelIds.png"):
        (root / name.format("train")).rename(root / name.format("val"))
    assert [s.name for s in nightcity(root, "train")] == ["Chicago_0002", "Dubai_0016", "Paris_0001"]
    assert [s.name for s in nightcity(root, "val")] == ["Rome_1", "Rome_2"]


def test_a_missing_frame_is_counted(root: Path) -> None:
    (root / "NightCity-images/images/val/Rome_1.png").unlink()
    with pytest.raises(DatasetError, match=r"images.val gives 1 images of NightCity val, .*expected 2"):
        nightcity(root, "val")
    assert len(nightcity(root, "val", complete=False)) == 1


def test_a_missing_label_and_a_missing_archive_are_named(root: Path) -> None:
    (root / "NightCity-label/label/val/Rome_1_labelIds.png").unlink()
    with pytest.raises(DatasetError, match=r"Rome_1\.png has no label: expected .*Rome_1_labelIds\.png"):
        nightcity(root, "val")
    with pytest.raises(DatasetError, match="unpack both of NightCity's archives"):
        nightcity(root / "NightCity-images", "val")
    with pytest.raises(DatasetError, match="splits train and val; received 'test'"):
        nightcity(root, "test")


def test_a_label_of_another_size_is_named(root: Path) -> None:
    write_label(root / "NightCity-label/label/val/Rome_1_labelIds.png", LABEL_IDS, (4, 8))
    with pytest.raises(DatasetError, match=r"Rome_1_labelIds\.png is \(4, 8\), its image \(2, 4\)"):
        nightcity(root, "val")[0]


def test_an_id_of_no_class_is_named(root: Path) -> None:
    write_label(root / "NightCity-label/label/val/Rome_2_labelIds.png", [34, 200])
    with pytest.raises(DatasetError, match=r"Rome_2_labelIds\.png: labels hold ids \[34, 200\]"):
        nightcity(root, "val")[1]


def test_train_ids_are_not_mapped_again(root: Path) -> None:
    for path in (root / "NightCity-label/label/val").iterdir():
        write_label(path, AS_TRAIN_IDS)
    with pytest.raises(DatasetError, match=r"only the ids \[0, 2, 10, 13, 18\]; .*These are train ids.*nightcity_fine"):
        nightcity(root, "val")


def test_the_new_labels_of_nightcity_plus(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"NightCity-plus.val is not a folder; expected the val labels"):
        nightcity_plus(root, "val")
    for stem in ("Rome_1", "Rome_2", "Dubai_0016"):  # the archive as it is: one label of train among them
        write_label(root / f"NightCity-plus/val/{stem}_labelIds.png", [8, 26])
    samples = list(nightcity_plus(root, "val"))
    assert [s.name for s in samples] == ["Rome_1", "Rome_2"]
    assert np.unique(samples[0].labels).tolist() == [1, 13]
    assert nightcity(root, "val")[0].labels.ravel().tolist() == AS_TRAIN_IDS
    train = nightcity_plus(root, "train")
    assert len(train) == 3 and train[1].labels.ravel().tolist() == AS_TRAIN_IDS


def test_new_labels_of_twice_the_size_are_read_at_the_images_size(root: Path) -> None:
    large = np.kron(np.array([[7, 8, 11, 26], [23, 33, 0, 255]]), np.ones((2, 2))).astype(np.uint8)
    for stem in ("Rome_1", "Rome_2"):
        write_label(root / f"NightCity-plus/val/{stem}_labelIds.png", large, (4, 8))
    assert nightcity_plus(root, "val")[1].labels.tolist() == [[0, 1, 2, 13], [10, 18, 255, 255]]
    write_label(root / "NightCity-plus/val/Rome_1_labelIds.png", LABEL_IDS, (4, 6))
    with pytest.raises(DatasetError, match=r"Rome_1_labelIds\.png is \(4, 6\)"):
        nightcity_plus(root, "val")[0]


def test_nightcity_fine_is_read_as_it_is(root: Path) -> None:
    for stem in ("Rome_1", "Rome_2", "Dubai_0016"):
        _fine(root, "val", stem, [0, 2, 10, 13, 255])
    samples = list(nightcity_fine(root, "val"))
    assert [s.name for s in samples] == ["Rome_1", "Rome_2"]
    assert samples[0].labels.ravel().tolist() == [0, 2, 10, 13, 255, 0, 2, 10]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (LABEL_IDS, r"only the ids \[0, 4, 7, 11, 23, 26, 33\]; .*These are label ids"),
        ([0, 1, 2, 255], r"only the ids \[0, 1, 2\]; .*mapped from label ids to train ids twice"),
    ],
)
def test_nightcity_fine_mapped_not_at_all_or_twice(root: Path, ids: list[int], message: str) -> None:
    for stem in ("Rome_1", "Rome_2"):
        _fine(root, "val", stem, ids)
    with pytest.raises(DatasetError, match=message):
        nightcity_fine(root, "val")
    assert len(nightcity_fine(root, "val", complete=False)) == 2
