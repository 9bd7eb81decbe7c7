# SPDX-License-Identifier: Apache-2.0
"""Draw training samples without end: sample i is a function of the seed and i."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nightlab_core.data import transforms
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.data.hard_regions import hard_regions, label_instances
from nightlab_core.labels import IGNORE_ID, ClassSet, first_ids
from nightlab_core.runtime import regions
from training.sources import SourceSettings, label_groups, load_source


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
