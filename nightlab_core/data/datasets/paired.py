# SPDX-License-Identifier: Apache-2.0
"""Images and their label maps, paired file by file.

Nothing here needs torch. The constructors only list files, so that a wrong layout is reported at once; pixels are read
on access.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

import numpy as np

from nightlab_core.data.folders import describe_folder
from nightlab_core.data.image_files import IMAGE_SUFFIXES, depth_of_files, image_files, read_image
from nightlab_core.data.label_maps import read_label_map
from nightlab_core.data.pixel_depth import PixelDepth
from nightlab_core.labels import IGNORE_ID, ClassSet, map_ids, training_ids


class DatasetError(ValueError):
    """The files of a data set differ from its layout; the message names the file."""


@dataclass(frozen=True)
class Sample:
    """image_bgr uint8 (H, W, 3) BGR; labels uint8 (H, W), 255 = unlabelled; name: file stem."""

    image_bgr: np.ndarray
    labels: np.ndarray
    name: str


class LabelledImages(Sequence[Sample]):
    """Images with their label PNGs, read one by one.

    Args:
        pairs: (image, label) paths; one that is no file is an error that names it.
        classes: the class set of the samples' labels.
        file_ids: id in the file -> label, by default the class set's own `file_ids`. An id that it lacks is an error
            that names the file.
        finer_labels: accept labels that are a whole number n of times as large as their image, and read every n-th
            pixel of them.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Path, Path]],
        classes: ClassSet,
        file_ids: dict[int, int] | None = None,
        finer_labels: bool = False,
    ) -> None:
        self.classes, self.finer_labels = classes, finer_labels
        self.pixel_bits = 0  #: significant bits of 16-bit images; 0: measured over the first
        self._file_classes = classes if file_ids is None else None  # whose colours a label image may have
        self.file_ids = classes.file_ids if file_ids is None else file_ids
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
        try:
            image, labels = read_image(path, self._depth), read_label_map(label_path, self._file_classes)
        except ValueError as error:
            raise DatasetError(str(error)) from None
        if labels.shape != image.shape[:2] and self.finer_labels:
            labels = _every_nth(labels, image.shape[:2])
        if labels.shape != image.shape[:2]:
            raise DatasetError(f"{label_path} is {labels.shape}, its image {image.shape[:2]}; expected the same (H, W)")
        try:
            return Sample(image, map_ids(labels, self.file_ids), path.stem)
        except ValueError as error:
            raise DatasetError(f"{label_path}: {error}") from None

    @cached_property
    def _depth(self) -> PixelDepth:
        return depth_of_files(self.images, self.pixel_bits)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def in_class_set(self, target: ClassSet, groups: Sequence[tuple[int, ...]] = ()) -> LabelledImages:
        """Return the same images with labels in another class set; for `groups` see `labels.training_ids`."""
        if target.names == self.classes.names:
            return self
        table = {IGNORE_ID: IGNORE_ID, **training_ids(self.classes, target, groups)}
        file_ids = {file_id: table[label] for file_id, label in self.file_ids.items()}
        pairs = zip(self.images, self.labels, strict=True)
        return self._derived(pairs, target, file_ids)

    def matching(self, pattern: str) -> LabelledImages:
        """Return those whose image stem matches a glob. Raises DatasetError if none does."""
        pairs = [p for p in zip(self.images, self.labels, strict=True) if fnmatchcase(p[0].stem, pattern)]
        if not pairs:
            raise DatasetError(f"none of the {len(self)} images such as {self.images[0]} matches {pattern!r}")
        return self._derived(pairs, self.classes, self.file_ids)

    def _derived(
        self, pairs: Iterable[tuple[Path, Path]], classes: ClassSet, file_ids: dict[int, int]
    ) -> LabelledImages:
        """Return images that are read as these are, with labels in `classes`."""
        derived = LabelledImages(pairs, classes, file_ids, self.finer_labels)
        derived._file_classes, derived.pixel_bits = self._file_classes, self.pixel_bits
        return derived


class PairedFolder(LabelledImages):
    """Images and label PNGs with equal stems, in two folders.

    Args:
        images, labels: folders.
        classes: the class set of the labels.
        pattern: glob of image stems, for example "0001TP_*".
    """

    def __init__(self, images: Path, labels: Path, classes: ClassSet, pattern: str = "*") -> None:
        if not labels.is_dir():
            raise DatasetError(f"{labels} is not a folder; expected images and labels in two folders side by side")
        super().__init__(((p, labels / f"{p.stem}.png") for p in list_images(images, pattern)), classes)


def list_images(folder: Path, pattern: str = "*") -> list[Path]:
    """List the image files of a folder whose stem matches a glob, by name. Raises DatasetError if there are none."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; expected images and labels in two folders side by side")
    images = [p for p in image_files(folder) if fnmatchcase(p.stem, pattern)]
    if not images:
        raise DatasetError(
            f"{folder} holds no image that matches {pattern!r} with one of {IMAGE_SUFFIXES}; it holds "
            f"{describe_folder(folder)}"
        )
    return images


def check_mapping(samples: LabelledImages, read: int = 16) -> None:
    """Check, on label maps spread over a data set, that ids were mapped to class ids exactly once.

    Both mistakes leave ids that are valid one by one. Over several frames they show: class ids read as the 34 label ids
    of Cityscapes leave no sky, vegetation and cars. For class sets with `label_ids`. Raises DatasetError.
    """
    classes, every = samples.classes, max(1, len(samples) // read)
    paths = samples.labels[::every][:read]
    found = sorted(set().union(*(np.unique(read_label_map(p, classes)).tolist() for p in paths)) - {IGNORE_ID})
    seen = f"{paths[0].parent}: {len(paths)} label maps hold only the ids {found}"
    by_label_ids = samples.file_ids == classes.label_file_ids
    usual = ", ".join(
        f"{name} ({classes.label_ids[name] if by_label_ids else classes.id_of(name)})"
        for name in ("sky", "vegetation", "car")
    )
    twice = {classes.label_file_ids[i] for i in range(len(classes))}
    if by_label_ids and (not found or found[-1] < len(classes)):
        raise DatasetError(
            f"{seen}; expected label ids with {usual}. These are train ids: open them as a set of train ids"
            " (nightcity_fine, or folder), or get the labelIds"
        )
    if not by_label_ids and found and len(classes) <= found[-1] <= max(classes.label_file_ids):
        raise DatasetError(
            f"{seen}; expected train ids 0 to {len(classes) - 1}. These are label ids: open them as a set of label ids"
            " (nightcity), or map them first"
        )
    if not by_label_ids and set(found) <= twice:
        raise DatasetError(
            f"{seen}; expected train ids with {usual}. These labels were mapped from label ids to train ids twice: get"
            " the original labels"
        )


def _every_nth(labels: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
    (height, width), n = size_hw, labels.shape[0] // size_hw[0]
    if n > 1 and labels.shape == (n * height, n * width):
        return np.ascontiguousarray(labels[n // 2 :: n, n // 2 :: n])
    return labels
