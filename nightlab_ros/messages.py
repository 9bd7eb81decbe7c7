# SPDX-License-Identifier: Apache-2.0
"""Image messages of ROS: make sensor_msgs/Image, and choose the converter of the node's images.

cv_bridge is used where it works, otherwise rosbags-image; both use OpenCV and give the same pixels.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from nightlab_core.data.images import Converter, ImageError, fill_image, rosbags_image

# Run in a process of its own: a cv_bridge that was built for another NumPy may abort the interpreter.
_CV_BRIDGE_PROBE = """
from types import SimpleNamespace
from cv_bridge import CvBridge
message = SimpleNamespace(height=1, width=2, encoding="rgb8", is_bigendian=0, step=6, data=bytes([1, 2, 3, 4, 5, 6]))
assert CvBridge().imgmsg_to_cv2(message, "bgr8").tolist() == [[[3, 2, 1], [6, 5, 4]]]
"""


class ChosenConverter(NamedTuple):
    """A converter for `image_to_bgr`, and its name with the reason for the choice, for the log."""

    name: str
    convert: Converter


def image_message(pixels: np.ndarray, encoding: str, header: Any = None) -> Any:
    """Make a sensor_msgs/Image from uint8 or uint16 (H, W) or (H, W, C). Raises ImageError; see `fill_image`."""
    from sensor_msgs.msg import Image

    return fill_image(Image(), pixels, encoding, header)


def to_bgr(packed: Any) -> np.ndarray:
    """Convert a packed message with the chosen converter: the node's converter for `message_to_bgr`."""
    return choose_converter().convert(packed)


@lru_cache(maxsize=1)
def choose_converter() -> ChosenConverter:
    """Choose the converter once. If there is none, the returned one raises ImageError for all but bgr8."""
    reason = "cv_bridge is not installed"
    if importlib.util.find_spec("cv_bridge") is not None:
        command = [sys.executable, "-c", _CV_BRIDGE_PROBE]
        try:
            probe = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            reason = "cv_bridge does not answer within 60 s"
        else:
            if probe.returncode == 0:
                from cv_bridge import CvBridge

                bridge = CvBridge()
                return ChosenConverter("cv_bridge", lambda packed: bridge.imgmsg_to_cv2(packed, "bgr8"))
            last_line = (probe.stderr.strip().splitlines() or [f"exit status {probe.returncode}"])[-1]
            reason = f"cv_bridge does not work here: {last_line}"
    try:
        import rosbags.image  # noqa: F401
    except ImportError as error:
        missing = f"only bgr8 can be read: {reason}, nor is rosbags-image ({error}); install either"

        def refuse(packed: Any) -> np.ndarray:
            raise ImageError(missing)

        return ChosenConverter(missing, refuse)
    return ChosenConverter(f"rosbags-image ({reason})", rosbags_image)
