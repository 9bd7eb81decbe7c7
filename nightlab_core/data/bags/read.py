# SPDX-License-Identifier: Apache-2.0
"""A bag's camera frames with their labels, by number, without ROS."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from rosbags.typesys import Stores, get_typestore

from nightlab_core.data.bags.bags import CLASSES_KEY
from nightlab_core.data.bags.storage import BagError, Storage, Topic, open_storage
from nightlab_core.data.frames import checked_labels
from nightlab_core.data.images import ImageError, compressed_to_bgr, image_to_bgr
from nightlab_core.labels import ClassSet

IMAGE_TYPE, COMPRESSED_TYPE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
#: A topic of label maps, mono8 or PNG, has one of these as a part of its name.
LABEL_PARTS = ("label", "labels", "ground_truth", "gt")
#: Types of images have not changed since Humble, and bags older than Iron carry no definitions.
_TYPES = get_typestore(Stores.ROS2_HUMBLE)
#: A serialised message begins with 4 bytes that say how, then the header's stamp: seconds and nanoseconds.
_STAMP_BYTES = 12


@dataclass(frozen=True)
class BagFrame:
    """One image message. `image_bgr` uint8 (H, W, 3) BGR, or None with the reason; `labels` uint8 (H, W), 255 =
    unlabelled, or None, with a reason if there was a label map that could not be used."""

    index: int
    time_ns: int
    stamp_ns: int
    frame_id: str
    image_bgr: np.ndarray | None
    labels: np.ndarray | None
    reason: str = ""


class MissingTopicError(ValueError):
    """The topic that was asked for is not there, or none that would do."""


class Bag:
    """An opened bag; a context manager. Any thread may read."""

    def __init__(self, path: Path, topic: str | None = None, label_topic: str | None = None) -> None:
        """Raises FileNotFoundError; BagError if nothing can be read; ValueError, with the topics, if it is not clear
        which one holds the camera's images or the labels."""
        self.path = path
        self._storage: Storage = open_storage(path)
        self._lock = threading.Lock()  # the storage belongs to one thread at a time
        try:
            topics = self.topics
            self.image_topic = _choose(path, topics, topic, "image", labels=False)
            self.label_topic = _choose(path, topics, label_topic, "label", labels=True)
            self._images = self._storage.index(self.image_topic)
            self._labels = self._label_index()
        except MissingTopicError as error:
            self._storage.close()
            if not self.problems:
                raise
            raise BagError(f"{error}\n{'; '.join(self.problems)}") from error  # it may have been in the lost part
        except BaseException:
            self._storage.close()
            raise
        if not len(self._images):
            self.problems.append(f"{self.image_topic} holds no message that can be read")

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._storage.close()

    def __len__(self) -> int:
        return len(self._images)

    @property
    def topics(self) -> dict[str, Topic]:
        """All topics by name."""
        return self._storage.topics

    @property
    def kind(self) -> str:
        """Its storage: "sqlite3", "mcap", "rosbag1" or "compressed"."""
        return self._storage.kind

    @property
    def problems(self) -> list[str]:
        """What is wrong with the bag as a whole, in words."""
        return self._storage.problems

    @property
    def label_classes(self) -> str | None:
        """The key of the labels' class set, if the bag says so."""
        return self._storage.custom_data.get(CLASSES_KEY)

    @property
    def num_labels(self) -> int:
        """Label maps with different stamps."""
        return len(self._labels)

    @property
    def times_ns(self) -> np.ndarray:
        """int64 (N,): when each image was recorded, ascending."""
        return self._images[:, 0]

    def raw(self, index: int) -> bytes | BagError:
        """The serialised image message, or why it cannot be read."""
        try:
            with self._lock:
                return self._storage.read(self._images[index])
        except BagError as error:
            return error

    def frame(self, index: int, classes: ClassSet | None = None) -> BagFrame:
        """One frame; with its labels, checked against `classes`, if these are given. Never raises for what is in the
        bag: `BagFrame.reason` says what is wrong."""
        frame = self.decode(index, self.raw(index))
        return frame if classes is None else self.with_labels(frame, classes)

    def decode(self, index: int, raw: bytes | BagError) -> BagFrame:
        """The frame in a message that `raw` returned, without its labels; touches no file."""
        time_ns = int(self._images[index, 0])
        stamp_ns, frame_id = time_ns, ""
        try:
            if isinstance(raw, BagError):
                raise raw
            message = self._message(raw, self.image_topic)
            stamp_ns, frame_id = header_of(message, time_ns)
            image = compressed_to_bgr(message) if hasattr(message, "format") else image_to_bgr(message)
        except (BagError, ImageError) as error:
            return BagFrame(index, time_ns, stamp_ns, frame_id, None, None, str(error))
        except Exception as error:  # of the library that converts the encoding
            reason = f"the image cannot be converted ({type(error).__name__}: {error})"
            return BagFrame(index, time_ns, stamp_ns, frame_id, None, None, reason)
        return BagFrame(index, time_ns, stamp_ns, frame_id, image, None)

    def with_labels(self, frame: BagFrame, classes: ClassSet) -> BagFrame:
        """The frame with its labels, checked against `classes`, where it has any."""
        if frame.image_bgr is None or frame.stamp_ns not in self._labels:
            return frame
        try:
            return replace(frame, labels=self._label_map(frame.stamp_ns, frame.image_bgr, classes))
        except ValueError as error:
            return replace(frame, reason=f"no labels: {error}")

    def frames(self, first: int, stop: int, classes: ClassSet | None = None) -> Iterator[BagFrame]:
        """The frames first..stop - 1."""
        return (self.frame(index, classes) for index in range(first, stop))

    def _label_map(self, stamp_ns: int, image_bgr: np.ndarray, classes: ClassSet) -> np.ndarray | None:
        assert self.label_topic is not None
        row = self._labels[stamp_ns]
        with self._lock:
            raw = self._storage.read(row)
        message = self._message(raw, self.label_topic)
        return checked_labels(label_map(message), image_bgr, classes, f"of {stamp_ns} ns")

    def _message(self, raw: bytes, topic: str) -> Any:
        kind = self.topics[topic].type
        try:
            return _TYPES.deserialize_cdr(raw, kind)
        except Exception as error:  # of whatever kind: the bytes may be anything
            detail = " ".join(str(error).split()) or type(error).__name__
            raise BagError(f"{len(raw)} bytes are no {kind} ({detail})") from error

    def _label_index(self) -> dict[int, np.ndarray]:
        """Where the label map of each stamp is. Labels may be recorded late, or after all images."""
        if self.label_topic is None:
            return {}
        found = {}
        unreadable = 0
        for row in self._storage.index(self.label_topic):
            try:
                seconds, nanoseconds = struct.unpack("<iI", self._storage.head(row, _STAMP_BYTES)[4:])
            except (BagError, struct.error):
                unreadable += 1
                continue
            found[(seconds * 1_000_000_000 + nanoseconds) or int(row[0])] = row
        if unreadable:
            self.problems.append(f"{unreadable} messages of {self.label_topic} cannot be read")
        return found


def header_of(message: Any, time_ns: int) -> tuple[int, str]:
    """Stamp in ns and frame_id; the time of recording where the camera's driver left the stamp at zero."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec) or time_ns, str(message.header.frame_id)


def label_map(message: Any) -> np.ndarray:
    """The ids of a mono8 Image or of a CompressedImage (PNG): uint8 (H, W). Raises ValueError."""
    if hasattr(message, "format"):
        labels = (
            cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED) if len(message.data) else None
        )
        if labels is None:
            raise ValueError(f"the compressed label map of format {message.format!r} cannot be decoded")
        return labels
    if message.encoding not in ("mono8", "8UC1"):
        raise ValueError(f"the label map has the encoding {message.encoding!r}; expected mono8, class ids")
    if message.step < message.width or len(message.data) != message.step * message.height:
        raise ValueError(
            f"the label map has {len(message.data)} bytes for {message.width}x{message.height} with step {message.step}"
        )
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, : message.width]


def is_label_topic(topic: str) -> bool:
    """Whether a topic holds label maps, by its name."""
    return any(part in LABEL_PARTS for part in topic.lower().split("/"))


def _choose(path: Path, topics: dict[str, Topic], asked: str | None, what: str, *, labels: bool) -> Any:
    """The one topic of images, or of label maps, or None where there are no label maps."""
    of_images = {name: t for name, t in topics.items() if t.type in (IMAGE_TYPE, COMPRESSED_TYPE)}
    if asked is not None:
        if asked in of_images:
            return asked
        raise MissingTopicError(f"{path}: {what} topic {asked} is not there. {_listed(topics)}")
    found = [name for name in of_images if is_label_topic(name) == labels]
    # of a camera that was recorded both ways, the raw images
    found = [name for name in found if not (name.endswith("/compressed") and name[: -len("/compressed")] in found)]
    found = [name for name in found if topics[name].count] or found
    if len(found) == 1:
        return found[0]
    if not found and labels:
        return None
    if not found:
        raise MissingTopicError(f"{path} holds no topic of camera images. {_listed(topics)}")
    option = "--label-topic" if labels else "--topic"
    raise ValueError(f"{path} holds several {what} topics: name one with {option}. {_listed(topics)}")


def _listed(topics: dict[str, Topic]) -> str:
    lines = [f"  {name}  {topic.type}  {topic.count}" for name, topic in sorted(topics.items())]
    return "Its topics, with type and number of messages:\n" + "\n".join(lines or ["  none"])
