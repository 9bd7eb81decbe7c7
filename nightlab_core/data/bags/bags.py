# SPDX-License-Identifier: Apache-2.0
"""Camera images and their label maps from a rosbag, without ROS: rosbag2 (folder, .mcap, .db3) and ROS 1's .bag."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.image import message_to_cvimage
from rosbags.typesys import Stores, get_typestore

from nightlab_core.config import ConfigError, read_yaml

_IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
#: A topic of label maps, mono8 or PNG, is known by one of these as a part of its name.
_LABEL_PARTS = ("label", "labels", "ground_truth", "gt")
#: Key in a bag's custom_data (metadata.yaml) that names the class set of its labels.
CLASSES_KEY = "nightlab_classes"


class TopicError(ValueError):
    """The image topic that was asked for is not there, or none was named and there is not exactly one."""


def custom_data(bag: Path) -> dict[str, str]:
    """What metadata.yaml says under custom_data: a folder's own, or the one beside a file, if it lists the file.

    Empty where there is none, or none that can be used.
    """
    try:
        info = read_yaml((bag.parent if bag.is_file() else bag) / "metadata.yaml")["rosbag2_bagfile_information"]
        listed = [Path(str(name)).name for name in info["relative_file_paths"]] if bag.is_file() else [bag.name]
        found = dict(info.get("custom_data") or {}) if bag.name in listed else {}
    except (OSError, ConfigError, AttributeError, KeyError, TypeError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()}


def count_images(bag: Path, topic: str | None = None) -> int:
    """The number of messages on the image topic. TopicError if there is none, or several and `topic` names none."""
    with _open(bag) as reader:
        return sum(c.msgcount for c in _image_connections(reader, bag, topic))


def read_bag(bag: Path, topic: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray | None, int, str]]:
    """Yield image, uint8 (H, W, 3) BGR; label map of the same stamp, uint8 (H, W), or None; stamp in ns; name.

    Raises TopicError as `count_images`, and ValueError for an image or a label map that cannot be decoded.
    """
    with _open(bag) as reader:
        images = _image_connections(reader, bag, topic)
        labels = [c for c in reader.connections if c.msgtype in _IMAGE_TYPES and _is_label(c.topic)]
        # Labels may be recorded late, or after all images: note where each stamp's label is, read it with its image.
        recorded_ns = {_stamp_ns(reader, c, t, raw): t for c, t, raw in reader.messages(labels)} if labels else {}
        for index, (connection, time_ns, raw) in enumerate(reader.messages(images)):
            message = reader.deserialize(raw, connection.msgtype)
            stamp_ns = _stamp_ns(reader, connection, time_ns, raw)
            name = f"{connection.topic.strip('/').replace('/', '_')}_{index:06d}"
            label_map = None
            if stamp_ns in recorded_ns:
                at = recorded_ns[stamp_ns]
                for label_connection, label_ns, label_raw in reader.messages(labels, start=at, stop=at + 1):
                    if _stamp_ns(reader, label_connection, label_ns, label_raw) == stamp_ns:
                        label_map = _decode(reader.deserialize(label_raw, label_connection.msgtype), None, name)
            yield _decode(message, "bgr8", name), label_map, stamp_ns, name


@contextmanager
def _open(bag: Path) -> Iterator[AnyReader]:
    # bags from before Iron carry no message definitions; those of images have not changed since
    with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
        yield reader


def _is_label(topic: str) -> bool:
    return any(part in _LABEL_PARTS for part in topic.lower().split("/"))


def _image_connections(reader: AnyReader, bag: Path, topic: str | None) -> list[Any]:
    found = [c for c in reader.connections if c.msgtype in _IMAGE_TYPES]
    topics = sorted({c.topic for c in found if not _is_label(c.topic)})
    if topic is None and len(topics) == 1:
        topic = topics[0]
    chosen = [c for c in found if c.topic == topic]
    if not chosen:
        if not topics:
            raise TopicError(f"{bag} holds no topic of camera images")
        wrong = f"image topic {topic} is not there" if topic else "it is not clear which image topic is meant"
        raise TopicError(f"{bag}: {wrong}; the bag's image topics are: {', '.join(topics)}. Name one of them")
    return chosen


def _stamp_ns(reader: AnyReader, connection: Any, time_ns: int, raw: bytes) -> int:
    """The header's stamp; the time of recording where the camera's driver left it at zero."""
    message: Any = reader.deserialize(raw, connection.msgtype)
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec) or time_ns


def _decode(message: Any, encoding: str | None, name: str) -> np.ndarray:
    if hasattr(message, "format"):
        flags = cv2.IMREAD_COLOR if encoding else cv2.IMREAD_UNCHANGED
        image = cv2.imdecode(np.frombuffer(message.data, np.uint8), flags)
        if image is None:
            raise ValueError(f"{name}: the compressed image of format {message.format!r} cannot be decoded")
        return image
    if not encoding and message.encoding not in ("mono8", "8UC1"):
        raise ValueError(f"{name}: its label map has the encoding {message.encoding!r}; expected mono8")
    row_bytes = message.data.size // message.height
    pixel_bytes = row_bytes // message.width
    if row_bytes != pixel_bytes * message.width:  # rows padded to the driver's alignment
        rows = message.data.reshape(message.height, row_bytes)[:, : pixel_bytes * message.width]
        message = replace(message, data=np.ascontiguousarray(rows).ravel(), step=pixel_bytes * message.width)
    return message_to_cvimage(message, encoding)
