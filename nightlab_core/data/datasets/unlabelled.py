# SPDX-License-Identifier: Apache-2.0
"""A folder of images without labels, to train the light adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nightlab_core.data.datasets.paired import DatasetError, Sample, list_images
from nightlab_core.data.images import read_image
from nightlab_core.labels import IGNORE_ID


class UnlabelledImages(Sequence[Sample]):
    """The images of a folder by name, read one by one, with all labels 255.

    Images whose stem is also in the folder `without`, of images or labels, are left out: frames for evaluation must not
    be trained on.
    """

    def __init__(self, folder: Path, without: Path | None = None) -> None:
        stems = {p.stem for p in list_images(without)} if without is not None else set()
        self.paths = [p for p in list_images(folder) if p.stem not in stems]
        if not self.paths:
            raise DatasetError(f"all images of {folder} are in {without}, too; no image is left")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path = self.paths[index]
        try:
            image = read_image(path)
        except ValueError as error:
            raise DatasetError(str(error)) from None
        return Sample(image, np.full(image.shape[:2], IGNORE_ID, np.uint8), path.stem)
