# SPDX-License-Identifier: Apache-2.0
"""A folder of images without labels, to train the light adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nightlab_core.data.datasets.paired import DatasetError, Sample, list_images
from nightlab_core.data.image_files import depth_of_files, read_image
from nightlab_core.data.pixel_depth import PixelDepth
from nightlab_core.labels import IGNORE_ID


class UnlabelledImages(Sequence[Sample]):
    """The images of a folder by name, read one by one, with all labels 255. Raises DatasetError if there are none.

    `pixel_bits` are the significant bits of 16-bit images; 0 measures them over the first.
    """

    def __init__(self, folder: Path, pixel_bits: int = 0) -> None:
        self.pixel_bits = pixel_bits
        self.paths = list_images(folder)

    @cached_property
    def _depth(self) -> PixelDepth:
        return depth_of_files(self.paths, self.pixel_bits)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path = self.paths[index]
        try:
            image = read_image(path, self._depth)
        except ValueError as error:
            raise DatasetError(str(error)) from None
        return Sample(image, np.full(image.shape[:2], IGNORE_ID, np.uint8), path.stem)
