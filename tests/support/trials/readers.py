# SPDX-License-Identifier: Apache-2.0
"""The readers in the form in which the outside checks of this repository call them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from class_sets import CITYSCAPES19

from nightlab_core.data.datasets import catalogue
from nightlab_core.data.datasets.paired import LabelledImages
from nightlab_core.data.frames import open_frames
from nightlab_core.data.label_maps import label_map as label_map_of
from nightlab_core.data.label_maps import read_label_map
from nightlab_core.labels import ClassSet


def read_bag(path: Path, topic: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray | None, float]]:
    """Return image, labels and stamp in seconds of each frame of a bag."""
    return ((frame.image_bgr, frame.labels, frame.stamp_s) for frame in open_frames(path, topic=topic))


def open_dataset(kind: str, root: Path) -> tuple[LabelledImages, ClassSet]:
    """Open a data set; "train_ids" is a plain folder."""
    return catalogue.open_dataset(catalogue.FOLDER if kind == "train_ids" else kind, root)


def read_label(path: Path) -> np.ndarray:
    """Read a label map of Cityscapes' 19 classes."""
    return read_label_map(path, CITYSCAPES19)


def label_map(msg: Any) -> np.ndarray:
    """Return the ids in a message with a label map of Cityscapes' 19 classes."""
    return label_map_of(msg, CITYSCAPES19)
