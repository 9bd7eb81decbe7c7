# SPDX-License-Identifier: Apache-2.0
"""Regions and label info as messages. vision_msgs itself comes with an installed ROS only; its fields stand in here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from class_sets import CITYSCAPES19
from std_msgs.msg import Header

from nightlab_ros.publishing.messages import detections, label_info

pytestmark = pytest.mark.ros


class Closed:
    """An object that takes no attribute but those it was made with, as a message does."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.__dict__, f"the message has no field {name}"
        self.__dict__[name] = value


def messages() -> Any:
    try:
        import vision_msgs.msg

        return vision_msgs.msg
    except ImportError:
        return SimpleNamespace(
            Detection2DArray=lambda: Closed(header=Header(), detections=[]),
            Detection2D=lambda: Closed(
                header=Header(),
                results=[],
                bbox=Closed(center=Closed(position=Closed(x=0.0, y=0.0), theta=0.0), size_x=0.0, size_y=0.0),
                id="",
            ),
            ObjectHypothesisWithPose=lambda: Closed(hypothesis=Closed(class_id="", score=0.0), pose=None),
            LabelInfo=lambda threshold: Closed(header=Header(), class_map=[], threshold=threshold),
            VisionClass=lambda **fields: Closed(**{"class_id": 0, "class_name": "", **fields}),
        )


def test_regions_are_boxes_in_pixels_with_scores() -> None:
    boxes = np.array([[10, 20, 50, 40], [0, 0, 5.5, 9]], np.float32)
    result = SimpleNamespace(
        boxes_xyxy=boxes, scores=np.array([0.75, 0.5], np.float32), refined=np.array([True, False])
    )
    header = Header(frame_id="front_camera")
    array = detections(messages(), result, header)  # type: ignore[arg-type]
    assert array.header == header and len(array.detections) == 2
    first, second = array.detections
    assert (first.bbox.center.position.x, first.bbox.center.position.y) == (30.0, 30.0)
    assert (first.bbox.size_x, first.bbox.size_y, first.id, first.header) == (40.0, 20.0, "0", header)
    assert (first.results[0].hypothesis.class_id, first.results[0].hypothesis.score) == ("refined", 0.75)
    assert (second.results[0].hypothesis.class_id, second.bbox.size_x) == ("hard", 5.5)


def test_label_info_names_every_class() -> None:
    info = label_info(messages(), CITYSCAPES19, Header().stamp, 0.5)
    assert info.threshold == 0.5
    assert [(c.class_id, c.class_name) for c in info.class_map] == list(enumerate(CITYSCAPES19.names))
