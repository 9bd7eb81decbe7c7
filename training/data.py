# SPDX-License-Identifier: Apache-2.0
"""Draw training samples without end: sample i is a function of the seed and i."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import torch
from pydantic import Field, field_validator
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from nightlab_core.classes import load_class_set
from nightlab_core.config import Settings, replace
from nightlab_core.data import transforms
from nightlab_core.data.datasets import catalogue
from nightlab_core.data.datasets.paired import DatasetError, Sample, list_images
from nightlab_core.data.datasets.unlabelled import UnlabelledImages
from nightlab_core.data.hard_regions import hard_regions, label_instances
from nightlab_core.data.rendered import night
from nightlab_core.data.rendered.shapes import CLASSES as RENDERED_CLASSES
from nightlab_core.labels import IGNORE_ID, ClassSet, ambiguous_groups, first_ids, map_ids, training_ids
from nightlab_core.runtime import regions
from training.distributed import is_first_process


class SourceSettings(Settings):
    """A source of images, and how often it is drawn."""

    kind: catalogue.Kind | Literal["rendered", "pseudo", "unlabelled"]
    folder: str = ""  #: under the data folder; of "pseudo", where `training.stages.pseudo` wrote
    split: str = ""  #: train, val or test; of plain folders (kind folder) a sub-folder
    classes: str = ""  #: of plain folders and "pseudo": key or YAML file of their class set; empty: the recipe's
    pattern: str = "*"  #: glob of the file stems that are drawn, for example those of one drive
    leave_out_pattern: str = ""  #: glob of the file stems that are not drawn; empty: none
    leave_out: tuple[str, ...] = ()  #: folders of images under the data folder whose stems are not drawn
    complete: bool = True  #: for data sets of known size: raise an error if frames are missing
    count: int = Field(default=0, ge=0)  #: rendered scenes
    pixel_bits: int = Field(default=0, ge=0, le=16)  #: significant bits of 16-bit images; 0: measured over the first
    weight: float = Field(gt=0)
    darken: float = Field(default=0.0, ge=0, le=1)  #: share of samples that are darkened

    @field_validator("leave_out", mode="before")
    @classmethod
    def _one_folder(cls, value: Any) -> Any:
        if isinstance(value, str):  # one folder, as in older checkpoints
            return (value,) if value else ()
        return tuple(value) if isinstance(value, list) else value


#: Sources whose decoded frames take at most this are kept in memory, since every frame is read many times.
IN_MEMORY_BYTES = 2 * 2**30


class _InMemory(list[Sample]):
    """A list that weak references can refer to."""


class SelectedFrames(Sequence[Sample]):
    """Some frames of a data set, read from disk one by one."""

    def __init__(self, samples: Sequence[Sample], images: Sequence[Path], indices: Sequence[int]) -> None:
        self._samples, self._indices = samples, indices
        self.images = [images[i] for i in indices]  #: the image files of the frames

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._samples[self._indices[index]]


#: Sources in use, so that several streams of a stage that draw from one source read it once.
_HELD: WeakValueDictionary[tuple[object, ...], Sequence[Sample]] = WeakValueDictionary()


def source_classes(source: SourceSettings, classes: ClassSet) -> tuple[ClassSet, ClassSet]:
    """Return the class set of a source's labels, and the one that they are evaluated in; `classes` is the recipe's."""
    if source.kind == "rendered":
        return RENDERED_CLASSES, RENDERED_CLASSES
    return catalogue.classes_of(source.kind, load_class_set(source.classes) if source.classes else classes)


def label_groups(sources: Sequence[SourceSettings], classes: ClassSet) -> tuple[tuple[int, ...], ...]:
    """Return the ambiguous labels of a recipe's sources, see `labels.ambiguous_groups`."""
    return ambiguous_groups([source_classes(source, classes)[0] for source in sources], classes)


def load_source(
    source: SourceSettings, root: Path, classes: ClassSet, groups: tuple[tuple[int, ...], ...] = ()
) -> Sequence[Sample]:
    """Open a source: decoded and in memory if it takes at most `IN_MEMORY_BYTES`, else read from disk when drawn.

    Its labels are ids of `classes`, and len(classes) + k for the k-th of `groups`.
    """
    drawn = replace(source, weight=1.0, darken=0.0)  # which decide how often and how it is drawn, not what
    key = root, drawn, classes.key, classes.names, groups
    samples = _HELD.get(key)
    if samples is None:
        _HELD[key] = samples = _read_source(source, root, classes, groups)
    return samples


def open_source(
    source: SourceSettings, root: Path, classes: ClassSet, groups: tuple[tuple[int, ...], ...] = ()
) -> SelectedFrames:
    """List the frames on disk that a source draws from, without those that it leaves out; labels as in `load_source`.

    Raises DatasetError if none are left, or if a folder to leave out holds no images.
    """
    kind, folder = source.kind, root / source.folder
    if kind == "rendered":
        raise ValueError("a rendered source has no files")
    samples: Sequence[Sample]
    if kind == "unlabelled":
        samples = UnlabelledImages(folder, source.pixel_bits)
        images = samples.paths
    else:
        if kind == "pseudo":
            kind, folder = "folder", Path(source.folder)
        samples, _ = catalogue.open_dataset(
            kind, folder, source.split, complete=source.complete,
            classes=classes, folder_classes=source_classes(source, classes)[0], groups=groups,
            pixel_bits=source.pixel_bits,
        )  # fmt: skip
        images = samples.images
    stems = {path.stem for left_out in source.leave_out for path in list_images(root / left_out)}
    indices = [
        i
        for i, path in enumerate(images)
        if fnmatchcase(path.stem, source.pattern)
        and not (source.leave_out_pattern and fnmatchcase(path.stem, source.leave_out_pattern))
        and path.stem not in stems
    ]
    if not indices:
        raise DatasetError(
            f"source {source.kind} {source.folder}: none of its {len(images)} frames, such as {images[0].name}, is left"
            " after pattern, leave_out_pattern and leave_out"
        )
    return SelectedFrames(samples, images, indices)


def _read_source(
    source: SourceSettings, root: Path, classes: ClassSet, groups: tuple[tuple[int, ...], ...]
) -> Sequence[Sample]:
    if source.kind == "rendered":
        scenes = track(range(source.count), f"rendering {source.count} scenes", disable=not is_first_process())
        frames = ((seed, night.render_scene(seed, size_hw=(480, 854))) for seed in scenes)
        ids = training_ids(RENDERED_CLASSES, classes, groups)
        return _InMemory(Sample(f.image_bgr, map_ids(f.labels, ids), f"rendered_{seed}") for seed, f in frames)
    samples = open_source(source, root, classes, groups)
    if source.kind == "unlabelled":
        return samples
    frame = samples[0]
    small = len(samples) * (frame.image_bgr.nbytes + frame.labels.nbytes) <= IN_MEMORY_BYTES
    return _InMemory(samples) if small else samples


class Samples:
    """The labelled images of sources, in an endless order. Labels are training labels, see `load_source`."""

    def __init__(self, sources: Sequence[SourceSettings], root: Path, seed: int, classes: ClassSet) -> None:
        self.sources, self.seed, self.classes = list(sources), seed, classes
        self._groups = groups = label_groups(sources, classes)
        self._first_ids = first_ids(classes, groups)
        self.samples = [load_source(s, root, classes, groups) for s in sources]
        weights = np.asarray([s.weight for s in sources])
        self.shares = weights / weights.sum()

    def class_ids(self, labels: np.ndarray) -> np.ndarray:
        """Return training labels with the first class in the place of each ambiguous label."""
        return self._first_ids[labels] if self._groups else labels

    def draw(self, *index: int) -> tuple[int, Sample, np.ndarray, np.random.Generator]:
        """Draw source, sample, its image darkened and distorted, and the generator for the next steps."""
        rng = np.random.default_rng((self.seed, *index))
        source = rng.choice(len(self.sources), p=self.shares)
        sample = self.samples[source][int(rng.integers(len(self.samples[source])))]
        image = sample.image_bgr
        if rng.random() < self.sources[source].darken:
            image = transforms.darken(image, rng)
        return source, sample, transforms.photometric(image, rng), rng


class Stream(Samples, Dataset[tuple[Tensor, ...]], ABC):
    """Crops of labelled images; sub-classes define how one is cut.

    Into a share `paste_share` of the samples, the pixels of `paste_ids` in another sample are pasted at the same place
    (ClassMix; Olsson et al., WACV 2021), so that a few cyclists appear in many streets and lights.
    """

    def __init__(
        self,
        sources: Sequence[SourceSettings],
        root: Path,
        seed: int,
        classes: ClassSet,
        paste_ids: Sequence[int] = (),
        paste_share: float = 0.0,
    ) -> None:
        super().__init__(sources, root, seed, classes)
        self.paste_ids, self.paste_share = paste_ids, paste_share

    @abstractmethod
    def crop(self, *index: int) -> tuple[int, np.ndarray, np.ndarray, np.random.Generator]:
        """Draw the crop of an index: source, image, labels, and the generator for the next steps."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        _, image, labels, rng = self.crop(index)
        if rng.random() < self.paste_share:
            image, labels = self._paste(image, labels, index, rng)
        return to_tensors(image, labels)

    def _paste(self, image: np.ndarray, labels: np.ndarray, index: int, rng: np.random.Generator) -> transforms.Pair:
        _, donor, donor_labels, _ = self.crop(index, 1)
        if donor.mean() < image.mean() / 2:  # pixels of the night would be black in a bright image
            return image, labels
        if donor.mean() > image.mean() * 2:  # pixels of the day would shine in a dark image
            donor = transforms.darken(donor, rng)
        pasted = np.isin(self.class_ids(donor_labels), self.paste_ids)
        return np.where(pasted[..., None], donor, image), np.where(pasted, donor_labels, labels)


def to_tensors(image: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Convert to (3, H, W) float32 RGB in 0..1 and (H, W) int64."""
    rgb = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(rgb).float() / 255, torch.from_numpy(labels.astype(np.int64))


class FrameStream(Stream):
    """Random crops of frames at about the image network's working scale; a share `hard_share` holds a hard class."""

    def __init__(
        self,
        sources: Sequence[SourceSettings],
        root: Path,
        seed: int,
        classes: ClassSet,
        crop_hw: tuple[int, int],
        input_hw: tuple[int, int],
        scale: tuple[float, float],
        hard_ids: Sequence[int] = (),
        hard_share: float = 0.0,
        paste_ids: Sequence[int] = (),
        paste_share: float = 0.0,
    ) -> None:
        super().__init__(sources, root, seed, classes, paste_ids, paste_share)
        self.crop_hw, self.area, self.scale = crop_hw, input_hw[0] * input_hw[1], scale
        self.hard_ids, self.hard_share = hard_ids, hard_share

    def crop(self, *index: int) -> tuple[int, np.ndarray, np.ndarray, np.random.Generator]:
        """Draw the crop of an index: source, image, labels, and the generator for the next steps."""
        source, sample, image, rng = self.draw(*index)
        working = math.sqrt(self.area / (image.shape[0] * image.shape[1]))
        scale = working * math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        wanted: tuple[int, ...] = ()
        if rng.random() < self.hard_share:
            present = np.intersect1d(self.class_ids(np.unique(sample.labels)), self.hard_ids)
            if len(present):
                wanted = tuple(np.flatnonzero(self._first_ids == rng.choice(present)).tolist())
        return source, *transforms.scale_crop_flip(image, sample.labels, self.crop_hw, scale, rng, wanted), rng


class RegionStream(Stream):
    """Enlarged windows around instances of the hard classes, cut as the pipeline cuts them."""

    def __init__(
        self,
        sources: Sequence[SourceSettings],
        root: Path,
        seed: int,
        classes: ClassSet,
        region_hw: tuple[int, int],
        hard_ids: Sequence[int],
        elsewhere: float = 0.15,
        paste_ids: Sequence[int] = (),
        paste_share: float = 0.0,
        margin: tuple[float, float] = (0.05, 0.6),
        instance_share: float = 0.25,
    ) -> None:
        super().__init__(sources, root, seed, classes, paste_ids, paste_share)
        self.region_hw, self.hard_ids, self.elsewhere = region_hw, hard_ids, elsewhere
        self.margin, self.instance_share = margin, instance_share

    def crop(self, *index: int) -> tuple[int, np.ndarray, np.ndarray, np.random.Generator]:
        """Draw the window of an index: source, image, labels, and the generator for the next steps."""
        source, sample, image, rng = self.draw(*index)
        window, labels = self.cut(image, sample.labels, self.window(sample.labels, rng))
        if rng.random() < 0.5:
            window, labels = window[:, ::-1], labels[:, ::-1]
        return source, window, labels, rng

    def window(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw a window, int64 (4,) xyxy, in labels (H, W)."""
        x0, y0, x1, y1 = self._box(self.class_ids(labels), rng)
        # A detector's box is not exact: shift and stretch it.
        jitter = rng.uniform(-0.15, 0.15, 4) * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
        box = np.asarray([x0, y0, x1, y1], np.float32) + jitter.astype(np.float32)
        aspect = self.region_hw[1] / self.region_hw[0]
        margin = float(rng.uniform(*self.margin))
        return regions.context_boxes(box[None], (labels.shape[0], labels.shape[1]), margin, aspect)[0]

    def cut(self, image: np.ndarray, labels: np.ndarray, window: np.ndarray) -> transforms.Pair:
        """Cut a window, (4,) xyxy, and enlarge it to the crops' size."""
        left, top, right, bottom = window
        return transforms.resize_pair(image[top:bottom, left:right], labels[top:bottom, left:right], self.region_hw)

    def _box(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw a box, float (4,) xyxy: an instance of a hard class, the region around it, or any place.

        The class is drawn before the instance, so that the many poles do not displace riders. By default windows are
        larger than most that the pipeline reads, which gave a higher accuracy on val.
        """
        height, width = labels.shape
        present = [i for i in self.hard_ids if (labels == i).any()]
        boxes = label_instances(labels, [int(rng.choice(present))]) if present else np.zeros((0, 4))
        if not len(boxes) or rng.random() < self.elsewhere:
            top_left = rng.uniform(0, 0.7, 2) * [width, height]
            return np.concatenate([top_left, top_left + rng.uniform(0.08, 0.3, 2) * [width, height]])
        box = boxes[rng.integers(len(boxes))]
        if rng.random() < self.instance_share:
            return box
        centre = (box[:2] + box[2:]) / 2
        around = hard_regions(labels, self.hard_ids)
        holds = (around[:, :2] <= centre).all(1) & (around[:, 2:] >= centre).all(1)
        return around[holds][0]


class BoxStream(FrameStream):
    """Samples of the detector: crops of frames, regions around hard-class instances, and where pixels are labelled."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        _, image, labels, _ = self.crop(index)
        frame, target = to_tensors(image, labels)
        boxes = hard_regions(self.class_ids(labels), self.hard_ids)
        return frame, torch.from_numpy(boxes), target != IGNORE_ID
