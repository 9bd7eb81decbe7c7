# SPDX-License-Identifier: Apache-2.0
"""Fit a camera's calibration to masks of another size than its images. Imports no ROS."""

from __future__ import annotations

import copy
from typing import Any


class CalibrationError(ValueError):
    """A calibration is not that of the images. The message says what was received and what to do."""


def fitted_camera_info(info: Any, image_hw: tuple[int, int], size_hw: tuple[int, int]) -> Any:
    """Return a copy of a sensor_msgs/CameraInfo for the camera's images resized from `image_hw` to `size_hw`.

    Focal lengths, centres and baseline are scaled; pixel centres have whole coordinates. The distortion does not depend
    on the size. Raises CalibrationError if the images have another size than the calibration's, and for images to be
    resized that are a part of the calibrated image, or binned.
    """
    roi, binning = info.roi, (max(1, info.binning_y), max(1, info.binning_x))
    calibrated_hw = (roi.height or info.height) // binning[0], (roi.width or info.width) // binning[1]
    if calibrated_hw != image_hw:
        raise CalibrationError(
            f"received a calibration for {_size(calibrated_hw)}, but images of {_size(image_hw)}; "
            "give both the same size"
        )
    fitted = copy.deepcopy(info)
    if size_hw == image_hw:
        return fitted
    if calibrated_hw != (info.height, info.width):
        raise CalibrationError(
            f"received a calibration with a roi or binning, of {_size(calibrated_hw)} pixels; with output_size network "
            "expected one of the whole image: set output_size to input"
        )
    for matrix, columns in ((fitted.k, 3), (fitted.p, 4)):
        for row, scale in ((0, size_hw[1] / image_hw[1]), (1, size_hw[0] / image_hw[0])):
            for column in range(columns):
                # A centre c is at c + 0.5 from the image's edge.
                shift = 0.5 if column == 2 else 0.0
                index = row * columns + column
                matrix[index] = (matrix[index] + shift) * scale - shift
    fitted.height, fitted.width = size_hw
    return fitted


def _size(hw: tuple[int, int]) -> str:
    return f"{hw[1]}x{hw[0]}"
