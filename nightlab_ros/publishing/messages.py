# SPDX-License-Identifier: Apache-2.0
"""Make messages of ROS from arrays and results."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from nightlab_core.data.images import fill_image
from nightlab_core.labels import ClassSet
from nightlab_core.runtime.pipeline import Result
from nightlab_core.runtime.refinement import Outcome
from nightlab_ros.publishing import run_length

#: `format` of compressed messages, as image_transport writes it: encoding of the image, then the file's.
PNG_OF_MASK, JPEG_OF_OVERLAY = "mono8; png compressed ", "bgr8; jpeg compressed bgr8"
#: Fast compression: a mask of few classes becomes hardly smaller with a slower one.
_PNG_LEVEL = (cv2.IMWRITE_PNG_COMPRESSION, 1)


def image_message(pixels: np.ndarray, encoding: str, header: Any = None) -> Any:
    """Make a sensor_msgs/Image from uint8 or uint16 (H, W) or (H, W, C). Raises ImageError; see `fill_image`."""
    from sensor_msgs.msg import Image

    return fill_image(Image(), pixels, encoding, header)


def png_message(mask: np.ndarray, header: Any) -> Any:
    """Make a sensor_msgs/CompressedImage from a mask, uint8 (H, W), without loss."""
    return _compressed(mask, ".png", _PNG_LEVEL, PNG_OF_MASK, header)


def jpeg_message(image_bgr: np.ndarray, header: Any) -> Any:
    """Make a sensor_msgs/CompressedImage from an image, uint8 (H, W, 3) BGR."""
    return _compressed(image_bgr, ".jpg", (), JPEG_OF_OVERLAY, header)


def _compressed(pixels: np.ndarray, suffix: str, options: Sequence[int], form: str, header: Any) -> Any:
    from sensor_msgs.msg import CompressedImage

    encoded = cv2.imencode(suffix, pixels, options)[1]
    return CompressedImage(header=header, format=form, data=_bytes(encoded))


def runs_message(ids: np.ndarray, header: Any) -> Any:
    """Make the sensor_msgs/Image that Autoware reads from a map of its ids, uint8 (H, W); see `run_length`."""
    from sensor_msgs.msg import Image

    height, width = ids.shape
    data = _bytes(run_length.encode_runs(ids))
    return Image(header=header, height=height, width=width, encoding=run_length.ENCODING, step=width, data=data)


def _bytes(values: np.ndarray) -> array[int]:
    data = array("B")  # rclpy checks every single element of anything else
    data.frombytes(values.tobytes())
    return data


def detections(vision_msgs: Any, result: Result, header: Any) -> Any:
    """Return the hard regions as vision_msgs/Detection2DArray, with the class id "refined" or "hard"."""
    array = vision_msgs.Detection2DArray()
    array.header = header
    regions = zip(result.boxes_xyxy, result.scores, result.refined, strict=True)
    for index, (box, score, refined) in enumerate(regions):
        x0, y0, x1, y1 = (float(value) for value in box)
        detection = vision_msgs.Detection2D()
        detection.header = header
        detection.id = str(index)
        detection.bbox.center.position.x, detection.bbox.center.position.y = (x0 + x1) / 2, (y0 + y1) / 2
        detection.bbox.size_x, detection.bbox.size_y = x1 - x0, y1 - y0
        hypothesis = vision_msgs.ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = "refined" if refined else "hard"
        hypothesis.hypothesis.score = float(score)
        detection.results = [hypothesis]
        array.detections.append(detection)
    return array


def label_info(vision_msgs: Any, classes: ClassSet, stamp: Any, threshold: float) -> Any:
    """Return class names and confidence threshold as vision_msgs/LabelInfo; 255, unlabelled, is no class."""
    info = vision_msgs.LabelInfo(threshold=float(threshold))
    info.header.stamp = stamp
    info.class_map = [vision_msgs.VisionClass(class_id=i, class_name=name) for i, name in enumerate(classes.names)]
    return info


def region_records(result: Result) -> list[dict[str, Any]]:
    """Return the hard regions of a frame, in descending score, for JSON: box in pixels, score, and outcome."""
    return [
        {"box_xyxy": box.tolist(), "score": float(score), "outcome": Outcome(outcome).name.lower()}
        for box, score, outcome in zip(result.boxes_xyxy, result.scores, result.outcomes, strict=True)
    ]
