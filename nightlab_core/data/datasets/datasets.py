# SPDX-License-Identifier: Apache-2.0
"""Labelled driving images on disk, one function a data set; every label comes out as Cityscapes train ids.

Nothing here needs torch. A data set is a sequence of `Sample`; opening one only lists its files and looks at a few
labels, so that a wrong layout is reported at once. docs/datasets.md says where to get each and how to unpack it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from nightlab_core.data.datasets.bdd import bdd100k, bdd100k_day, bdd100k_night
from nightlab_core.data.datasets.nightcity import nightcity, nightcity_fine, nightcity_plus
from nightlab_core.data.datasets.paired import DatasetError, LabelledImages, PairedFolder, Sample, check_mapping
from nightlab_core.labels import (
    BDD18,
    CAMVID11,
    CAMVID_TO_CITYSCAPES,
    CITYSCAPES19,
    CITYSCAPES_IDS_TO_TRAIN_IDS,
    ClassSet,
)

__all__ = [
    "DATASETS",
    "SHARED_FOLDERS",
    "DatasetError",
    "Kind",
    "LabelledImages",
    "PairedFolder",
    "Sample",
    "bdd100k",
    "bdd100k_day",
    "bdd100k_night",
    "camvid",
    "cityscapes",
    "hard_regions",
    "label_instances",
    "nightcity",
    "nightcity_fine",
    "nightcity_plus",
    "open_dataset",
    "predicted_regions",
    "train_id_folder",
]

Kind = Literal[
    "camvid", "train_ids", "cityscapes", "nightcity", "nightcity_plus", "nightcity_fine", "bdd100k", "bdd100k_night",
    "bdd100k_day",
]  # fmt: skip


def open_dataset(
    kind: Kind, root: Path, split: str = "", pattern: str = "*", complete: bool = True
) -> tuple[LabelledImages, ClassSet]:
    """A data set, and the class set that it is judged in.

    Args:
        kind: which data set.
        root: its folder, laid out as the docstring of the data set's own function says.
        split: train or val, and test of CamVid; for plain folders (train_ids) a sub-folder, or none.
        pattern: glob of image stems.
        complete: where it is known how many frames there are, check that they are there and that their ids were not
            mapped twice or not at all. False to work with a part of the data set.

    Raises DatasetError for files that are not what the layout says.
    """
    if kind not in DATASETS:
        raise DatasetError(f"there is no data set {kind!r}; expected one of {', '.join(DATASETS)}")
    function, classes = DATASETS[kind]
    return function(root, split, pattern, complete), classes


def camvid(root: Path, split: str, pattern: str = "*") -> PairedFolder:
    """CamVid's SegNet split under root/{train,val,test}/{images,labels}; its 11 classes as Cityscapes train ids."""
    return PairedFolder(root / split / "images", root / split / "labels", CAMVID_TO_CITYSCAPES, pattern)


def train_id_folder(root: Path, pattern: str = "*") -> PairedFolder:
    """root/{images,labels}: one's own frames, label PNGs of equal stems with Cityscapes train ids and 255."""
    return PairedFolder(root / "images", root / "labels", None, pattern)


def cityscapes(root: Path, split: str, pattern: str = "*", complete: bool = True) -> LabelledImages:
    """Cityscapes with fine labels, 2975 train and 500 val frames of 2048x1024 (https://www.cityscapes-dataset.com):

        root/leftImg8bit/{train,val}/aachen/aachen_000000_000019_leftImg8bit.png
        root/gtFine/{train,val}/aachen/aachen_000000_000019_gtFine_labelIds.png

    Label ids are mapped to train ids here. `_gtFine_labelTrainIds.png`, which cityscapesScripts write, are read where
    the first frame has no labelIds. The test split's labels are blank, so it is refused.
    """
    frames = {"train": 2975, "val": 500}
    if split not in frames:
        raise DatasetError(f"Cityscapes has labels of the splits {' and '.join(frames)}; received {split!r}")
    folder, ending = root / "leftImg8bit" / split, "_leftImg8bit.png"
    images = sorted(folder.glob(f"*/*{ending}"))
    if not images or (complete and len(images) != frames[split]):
        raise DatasetError(
            f"{folder} holds {len(images)} files <city>/*{ending}; expected {frames[split]}."
            f" Unpack leftImg8bit_trainvaltest.zip in {root}; for a part of it, say complete: false in a recipe,"
            " --partial to a command"
        )
    stems = [root / "gtFine" / split / p.parent.name / f"{p.name.removesuffix(ending)}_gtFine_" for p in images]
    mapped = Path(f"{stems[0]}labelTrainIds.png").is_file() and not Path(f"{stems[0]}labelIds.png").is_file()
    labels = [Path(f"{stem}{'labelTrainIds' if mapped else 'labelIds'}.png") for stem in stems]
    samples = LabelledImages(zip(images, labels, strict=True), None if mapped else CITYSCAPES_IDS_TO_TRAIN_IDS)
    if complete:
        check_mapping(samples)
    return samples.matching(pattern)


#: How each kind is opened (root, split, pattern, complete), and the class set that it is judged in.
DATASETS: dict[Kind, tuple[Callable[[Path, str, str, bool], LabelledImages], ClassSet]] = {
    "camvid": (lambda root, split, pattern, complete: camvid(root, split, pattern), CAMVID11),
    "train_ids": (lambda root, split, pattern, complete: train_id_folder(root / split, pattern), CITYSCAPES19),
    "cityscapes": (cityscapes, CITYSCAPES19),
    "nightcity": (nightcity, CITYSCAPES19),
    "nightcity_plus": (nightcity_plus, CITYSCAPES19),
    "nightcity_fine": (nightcity_fine, CITYSCAPES19),
    "bdd100k": (bdd100k, CITYSCAPES19),
    "bdd100k_night": (bdd100k_night, BDD18),
    "bdd100k_day": (bdd100k_day, CITYSCAPES19),
}
#: Kinds that lie in another's folder: the same images, with other labels or fewer of them.
SHARED_FOLDERS: dict[str, str] = {
    "nightcity_plus": "nightcity", "bdd100k_night": "bdd100k", "bdd100k_day": "bdd100k",
}  # fmt: skip


def label_instances(labels: np.ndarray, class_ids: Sequence[int], min_area: int = 16) -> np.ndarray:
    """Boxes of the connected regions of some classes, float32 (N, 4) xyxy in pixels (NightLab, CVPR 2022).

    labels uint8 (H, W). Regions smaller than `min_area` pixels are noise of the labelling and are left out.
    """
    boxes = []
    for class_id in class_ids:
        mask = (labels == class_id).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        for x, y, width, height, area in stats[1:count]:
            if area >= min_area:
                boxes.append((x, y, x + width, y + height))
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def hard_regions(labels: np.ndarray, class_ids: Sequence[int], reach: int = 8, min_side: int = 48) -> np.ndarray:
    """Boxes worth reading again, float32 (N, 4) xyxy in pixels: instances of some classes with what surrounds them.

    labels uint8 (H, W). Ten regions have to serve a whole frame, so instances that are closer than twice `reach`
    pixels share a box, and a box is at least `min_side` pixels a side where the frame allows.
    """
    height, width = labels.shape
    mask = np.isin(labels, np.asarray(class_ids)).astype(np.uint8)
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    boxes = label_instances(cv2.dilate(mask, kernel), [1])
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    sides = np.minimum(np.maximum(sides, min_side), [width, height])
    top_left = np.clip(centre - sides / 2, 0, [width, height] - sides)
    return np.concatenate([top_left, top_left + sides], axis=1).astype(np.float32)


def predicted_regions(
    labels: np.ndarray, confidence: np.ndarray, class_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes worth reading again by a prediction instead of the truth: boxes as `hard_regions` has them, and scores.

    labels and confidence uint8 (H, W). A score, float32 (N,) in 0..1, is how unsure the prediction is in the box on
    average: the paper names no order for these boxes, and this one needs nothing that is not there anyway.
    """
    boxes = hard_regions(labels, class_ids)
    means = [confidence[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in boxes.round().astype(int)]
    return boxes, (1 - np.asarray(means, np.float32) / 255).reshape(-1)
