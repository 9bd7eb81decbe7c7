# SPDX-License-Identifier: Apache-2.0
"""The readers in the form in which the outside checks of this repository call them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nightlab_core.data.datasets import catalogue
from nightlab_core.data.datasets.paired import LabelledImages
from nightlab_core.data.frames import open_frames
from nightlab_core.labels import ClassSet


def read_bag(path: Path, topic: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray | None, float]]:
    """Return image, labels and stamp in seconds of each frame of a bag."""
    return ((frame.image_bgr, frame.labels, frame.stamp_s) for frame in open_frames(path, topic=topic))


def open_dataset(kind: str, root: Path) -> tuple[LabelledImages, ClassSet]:
    """Open a data set; "train_ids" is a plain folder."""
    return catalogue.open_dataset(catalogue.FOLDER if kind == "train_ids" else kind, root)
