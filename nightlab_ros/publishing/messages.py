# SPDX-License-Identifier: Apache-2.0
"""Make image messages of ROS."""

from __future__ import annotations

from typing import Any

import numpy as np

from nightlab_core.data.images import fill_image


def image_message(pixels: np.ndarray, encoding: str, header: Any = None) -> Any:
    """Make a sensor_msgs/Image from uint8 or uint16 (H, W) or (H, W, C). Raises ImageError; see `fill_image`."""
    from sensor_msgs.msg import Image

    return fill_image(Image(), pixels, encoding, header)
