# SPDX-License-Identifier: Apache-2.0
"""Cityscapes' layout, and `open_dataset` for every kind."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from class_sets import BDD18, CAMVID11, CITYSCAPES19
from trees import write_image, write_label

from nightlab_core.data.datasets import bdd, nightcity
from nightlab_core.data.datasets.catalogue import DATASETS, Kind, open_dataset
from nightlab_core.data.datasets.cityscapes import cityscapes
from nightlab_core.data.datasets.paired import DatasetError
from nightlab_core.labels import to_class_set

STEMS = ("aachen/aachen_000000_000019", "zurich/zurich_000001_000019")


def _cityscapes(root: Path, kind: str, ids: list[int]) -> None:
    for stem in STEMS:
        write_image(root / "leftImg8bit/train" / f"{stem}_leftImg8bit.png")
        write_label(root / "gtFine/train" / f"{stem}_gtFine_{kind}.png", ids)


def test_cityscapes_label_ids_come_before_train_ids(tmp_path: Path) -> None:
    _cityscapes(tmp_path, "labelTrainIds", [0, 255, 13, 10])
    assert np.unique(cityscapes(tmp_path, "train", complete=False)[0].labels).tolist() == [0, 10, 13, 255]
    _cityscapes(tmp_path, "labelIds", [8, 3, 33, 21])
    samples = list(cityscapes(tmp_path, "train", complete=False))
    assert [s.name for s in samples] == ["aachen_000000_000019_leftImg8bit", "zurich_000001_000019_leftImg8bit"]
    assert samples[1].labels[0].tolist() == [1, 255, 18, 8]
    assert len(cityscapes(tmp_path, "train", "zurich*", complete=False)) == 1


def test_cityscapes_errors(tmp_path: Path) -> None:
    _cityscapes(tmp_path, "labelIds", [8, 3, 33, 21])
    with pytest.raises(DatasetError, match=r"train holds 2 files .*expected 2975"):
        cityscapes(tmp_path, "train")
    with pytest.raises(DatasetError, match="received 'test'"):
        cityscapes(tmp_path, "test")
    (tmp_path / f"gtFine/train/{STEMS[1]}_gtFine_labelIds.png").unlink()
    with pytest.raises(DatasetError, match=r"has no label: expected .*zurich_000001_000019_gtFine_labelIds\.png"):
        cityscapes(tmp_path, "train", complete=False)


def test_every_kind_has_a_function_and_a_class_set(tmp_path: Path) -> None:
    assert sorted(("folder", *DATASETS)) == sorted(get_args(Kind))
    assert {kind: known.evaluated.key for kind, known in DATASETS.items() if known.evaluated is not CITYSCAPES19} == {
        "camvid": "camvid11",
        "bdd100k_night": "bdd18",
    }
    for kind in DATASETS:
        with pytest.raises(DatasetError, match=str(tmp_path)):
            open_dataset(kind, tmp_path, "val")
    with pytest.raises(DatasetError, match="received the data set 'nightcity\\+'; expected one of folder, camvid"):
        open_dataset("nightcity+", tmp_path)


def test_the_guide_names_every_kind_its_frames_and_its_classes() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    rows = {line.split("`")[1]: line for line in guide.splitlines() if line.startswith("| `")}
    assert sorted(rows) == sorted(get_args(Kind))
    for kind, known in DATASETS.items():
        assert f"{len(known.evaluated)} classes" in rows[kind] and f"| `{known.folder}`" in rows[kind]
    for counts, kind in ((nightcity.FRAMES, "nightcity"), (bdd.FRAMES, "bdd100k")):
        assert f"| {counts['train']}, {counts['val']} |" in rows[kind]


def test_plain_folders_with_and_without_a_split(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "val"):
        write_image(folder / "images/a.png")
        write_label(folder / "labels/a.png", [0, 18])
    for split in ("", "val"):
        samples, classes = open_dataset("folder", tmp_path, split)
        assert [s.name for s in samples] == ["a"] and classes is CITYSCAPES19


def test_a_part_of_a_data_set_can_be_opened(tmp_path: Path) -> None:
    _cityscapes(tmp_path, "labelIds", [8, 3, 33, 21])
    samples, _ = open_dataset("cityscapes", tmp_path, "train", "aachen*", complete=False)
    assert len(samples) == 1


def test_train_labels_are_not_evaluated_in_18_classes() -> None:
    train_ids = np.array([[0, 15, 16, 17, 18, 255]], np.uint8)
    assert to_class_set(train_ids, CITYSCAPES19, BDD18).tolist() == [[0, 15, 255, 16, 17, 255]]
    assert to_class_set(train_ids, CITYSCAPES19, CITYSCAPES19) is train_ids
    assert to_class_set(train_ids[:, :1], CITYSCAPES19, CAMVID11).tolist() == [[CAMVID11.id_of("road")]]
    names = [CITYSCAPES19.names[i] for i in range(19) if i != 16]
    assert names == list(BDD18.names)
