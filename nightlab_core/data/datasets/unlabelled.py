# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures without labels, for what learns from light alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nightlab_core.data.datasets.paired import DatasetError, Sample, list_images
from nightlab_core.labels import IGNORE_ID


class UnlabelledImages(Sequence[Sample]):
    """The pictures of a folder by name, read one by one, with labels of 255 alone.

    `without` is another folder of pictures or labels: what has the same stem there is left out, since the frames that
    one measures on are not to be learnt from.
    """

    def __init__(self, folder: Path, without: Path | None = None) -> None:
        stems = {p.stem for p in list_images(without)} if without is not None else set()
        self.paths = [p for p in list_images(folder) if p.stem not in stems]
        if not self.paths:
            raise DatasetError(f"all pictures of {folder} are in {without} too; nothing is left")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path = self.paths[index]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise DatasetError(f"{path} cannot be decoded as an image")
        return Sample(image, np.full(image.shape[:2], IGNORE_ID, np.uint8), path.stem)
