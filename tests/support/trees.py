# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets on disk."""

from pathlib import Path

import cv2
import numpy as np


def write_image(path: Path, size_hw: tuple[int, int] = (2, 4)) -> None:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size_hw, 3), (10, 20, 30), np.uint8))


def write_label(path: Path, ids: list[int] | np.ndarray, size_hw: tuple[int, int] = (2, 4)) -> None:
    """A label map whose pixels are the ids, again and again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.resize(np.asarray(ids, np.uint8), size_hw))
