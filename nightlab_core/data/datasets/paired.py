# SPDX-License-Identifier: Apache-2.0
"""Images and their label maps, paired file by file. What a data set's layout is stands in `datasets.py`.

Nothing here needs torch. The constructors only list files, so that a wrong layout is reported at once; pixels are read
when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import cv2
import numpy as np

from nightlab_core.labels import IGNORE_ID, map_ids

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
TRAIN_IDS = {i: i for i in range(19)}


class DatasetError(ValueError):
    """A data set's files are not what its layout says; the message names the file."""


@dataclass(frozen=True)
class Sample:
    """image_bgr uint8 (H, W, 3) BGR; labels uint8 (H, W), Cityscapes train ids, 255 = unlabelled; name: file stem."""

    image_bgr: np.ndarray
    labels: np.ndarray
    name: str


class LabelledImages(Sequence[Sample]):
    """Images with their label PNGs, read one by one.

    Args:
        pairs: (image, label) paths; one that is no file is an error that names it.
        mapping: id in the file -> Cityscapes train id, by default train ids as they are. An id outside it is an error
            that names the file.
        finer_labels: take labels a whole number of times as large as their image, and read every n-th pixel of them.
    """

    def __init__(
        self, pairs: Iterable[tuple[Path, Path]], mapping: dict[int, int] | None = None, finer_labels: bool = False
    ) -> None:
        self.mapping = TRAIN_IDS if mapping is None else mapping
        self.finer_labels = finer_labels
        self.images: list[Path] = []
        self.labels: list[Path] = []
        for image, label in pairs:
            if not image.is_file():
                raise DatasetError(f"{label} has no image: expected {image}")
            if not label.is_file():
                raise DatasetError(f"{image} has no label: expected {label}")
            self.images.append(image)
            self.labels.append(label)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        path, label_path = self.images[index], self.labels[index]
        image, labels = cv2.imread(str(path), cv2.IMREAD_COLOR), read_label(label_path)
        if image is None:
            raise DatasetError(f"{path} cannot be decoded as an image")
        if labels.shape != image.shape[:2] and self.finer_labels:
            labels = _every_nth(labels, image.shape[:2])
        if labels.shape != image.shape[:2]:
            raise DatasetError(f"{label_path} is {labels.shape}, its image {image.shape[:2]}; expected the same (H, W)")
        try:
            return Sample(image, map_ids(labels, self.mapping), path.stem)
        except ValueError as error:
            raise DatasetError(f"{label_path}: {error}") from None

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def matching(self, pattern: str) -> LabelledImages:
        """Those whose image stem matches a glob. Raises DatasetError where none does."""
        pairs = [p for p in zip(self.images, self.labels, strict=True) if fnmatchcase(p[0].stem, pattern)]
        if not pairs:
            raise DatasetError(f"none of the {len(self)} images such as {self.images[0]} matches {pattern!r}")
        return LabelledImages(pairs, self.mapping, self.finer_labels)


class PairedFolder(LabelledImages):
    """Images and label PNGs with equal stems, in two folders.

    Args:
        images, labels: folders.
        mapping: id in the file -> Cityscapes train id; an id outside it is an error that names the file.
        pattern: glob of image stems, for example "0001TP_*".
    """

    def __init__(self, images: Path, labels: Path, mapping: dict[int, int] | None = None, pattern: str = "*") -> None:
        if not labels.is_dir():
            raise DatasetError(f"{labels} is not a folder; expected images and labels in two folders side by side")
        super().__init__(((p, labels / f"{p.stem}.png") for p in list_images(images, pattern)), mapping)


def list_images(folder: Path, pattern: str = "*") -> list[Path]:
    """The images of a folder whose stem matches a glob, by name. Raises DatasetError where there are none."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; expected images and labels in two folders side by side")
    pictures = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    images = sorted(p for p in pictures if fnmatchcase(p.stem, pattern))
    if not images:
        raise DatasetError(f"{folder} holds no image that matches {pattern!r} with one of {IMAGE_SUFFIXES}")
    return images


def read_label(path: Path) -> np.ndarray:
    """A label map as the file has it, uint8 (H, W); of a PNG with a palette, its indices.

    Raises DatasetError for a colour picture and for 16 bits.
    """
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None:
        raise DatasetError(f"{path} cannot be decoded as an image")
    if labels.ndim == 3:  # OpenCV paints a palette's colours
        labels = _palette_indices(path, labels)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DatasetError(f"{path} is {labels.dtype} {labels.shape}; expected uint8 (H, W) ids")
    return labels


def check_mapping(samples: LabelledImages, read: int = 16) -> None:
    """Look for labels that were mapped twice, or not at all, in some label maps spread over a data set.

    Both mistakes leave ids that are valid one by one, so that no single pixel gives them away: train ids read as
    Cityscapes' 34 label ids turn riders into walls, and mIoU is near zero. Over several frames the ids do: no drive is
    without sky, vegetation and cars. For sets of train ids and of label ids. Raises DatasetError that says what was
    found and what to do.
    """
    every = max(1, len(samples) // read)
    paths = samples.labels[::every][:read]
    found = sorted(set().union(*(np.unique(read_label(p)).tolist() for p in paths)) - {IGNORE_ID})
    seen = f"{paths[0].parent}: {len(paths)} label maps hold the ids {found} alone"
    if samples.mapping is not TRAIN_IDS and (not found or found[-1] <= 18):
        raise DatasetError(
            f"{seen}; of Cityscapes' 34 label ids, sky (23), vegetation (21) and cars (26) are missing. These are train"
            " ids, and mapping them again would spoil them: open them as a set of train ids (nightcity_fine, or"
            " train_ids for a plain folder), or get the labelIds"
        )
    if samples.mapping is TRAIN_IDS and found and 18 < found[-1] <= 33:
        raise DatasetError(
            f"{seen}; expected Cityscapes train ids 0 to 18. These are label ids of 34 classes which were not mapped:"
            " open them as a set of label ids (nightcity), or map them first"
        )
    if samples.mapping is TRAIN_IDS and set(found) <= {0, 1, 2, 3, 4, 5}:
        raise DatasetError(
            f"{seen}; train ids without sky (10), vegetation (8) and cars (13) are labels that were mapped from label"
            " ids to train ids twice: get the original labels"
        )


def _palette_indices(path: Path, painted: np.ndarray) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:  # the vehicle's environment has none
        raise DatasetError(f"{path} is a colour picture or has a palette; expected one channel of ids") from None
    with Image.open(path) as picture:
        return np.asarray(picture) if picture.mode == "P" else painted


def _every_nth(labels: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
    (height, width), n = size_hw, labels.shape[0] // size_hw[0]
    if n > 1 and labels.shape == (n * height, n * width):
        return np.ascontiguousarray(labels[n // 2 :: n, n // 2 :: n])
    return labels
