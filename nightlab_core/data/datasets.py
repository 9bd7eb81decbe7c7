# SPDX-License-Identifier: Apache-2.0
"""Labelled driving images on disk, one function a data set; every label comes out as Cityscapes train ids.

Nothing here needs torch. A data set is a sequence of `Sample`; the constructors only list files, so that a wrong
layout is reported at once and pixels are read when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np

from nightlab_core.labels import CAMVID_TO_CITYSCAPES, map_ids

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_TRAIN_IDS = {i: i for i in range(19)}


class DatasetError(ValueError):
    """A data set's files are not what its layout says; the message names the file."""


@dataclass(frozen=True)
class Sample:
    """image_bgr uint8 (H, W, 3) BGR; labels uint8 (H, W), Cityscapes train ids, 255 = unlabelled; name: file stem."""

    image_bgr: np.ndarray
    labels: np.ndarray
    name: str


class PairedFolder(Sequence[Sample]):
    """Images and label PNGs with equal stems, in two folders.

    Args:
        images, labels: folders.
        mapping: id in the file -> Cityscapes train id; an id outside it is an error that names the file.
        pattern: glob of image stems, for example "0001TP_*".
    """

    def __init__(self, images: Path, labels: Path, mapping: dict[int, int] | None = None, pattern: str = "*") -> None:
        for folder in (images, labels):
            if not folder.is_dir():
                raise DatasetError(f"{folder} is not a folder; expected images and labels in two folders side by side")
        self.mapping = _TRAIN_IDS if mapping is None else mapping
        pictures = (p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        self.images = sorted(p for p in pictures if fnmatchcase(p.stem, pattern))
        if not self.images:
            raise DatasetError(f"{images} holds no image that matches {pattern!r} with one of {IMAGE_SUFFIXES}")
        self.labels = [labels / f"{p.stem}.png" for p in self.images]
        for image, label in zip(self.images, self.labels, strict=True):
            if not label.is_file():
                raise DatasetError(f"{image} has no label: expected {label}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        path, label_path = self.images[index], self.labels[index]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        labels = cv2.imread(str(label_path), cv2.IMREAD_UNCHANGED)
        if image is None or labels is None:
            raise DatasetError(f"{path if image is None else label_path} cannot be decoded as an image")
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise DatasetError(f"{label_path} is {labels.dtype} {labels.shape}; expected uint8 (H, W) ids")
        if labels.shape != image.shape[:2]:
            raise DatasetError(f"{label_path} is {labels.shape}, its image {image.shape[:2]}; expected the same (H, W)")
        try:
            return Sample(image, map_ids(labels, self.mapping), path.stem)
        except ValueError as error:
            raise DatasetError(f"{label_path}: {error}") from None

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))


def camvid(root: Path, split: str, pattern: str = "*") -> PairedFolder:
    """CamVid's SegNet split under root/{train,val,test}/{images,labels}; its 11 classes as Cityscapes train ids."""
    return PairedFolder(root / split / "images", root / split / "labels", CAMVID_TO_CITYSCAPES, pattern)


def train_id_folder(root: Path, pattern: str = "*") -> PairedFolder:
    """root/{images,labels} with Cityscapes train ids and 255: BDD100K's semantic labels, NightCity-fine, one's own."""
    return PairedFolder(root / "images", root / "labels", None, pattern)


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
