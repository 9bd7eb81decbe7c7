# SPDX-License-Identifier: Apache-2.0
"""Write bags of rosbag2 (MCAP or SQLite) without ROS; `ros2 bag` and `mcap` read them."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer, WriterError
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from nightlab_core.data.bags.messages import COMPRESSED_TYPE, IMAGE_TYPE
from nightlab_core.data.bags.metadata import CLASSES_KEY
from nightlab_core.files import named_errors

StorageName = Literal["mcap", "sqlite3"]
Packing = Literal["none", "png", "jpeg"]
_TOPIC_NAME = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")
DETECTIONS_TYPE = "vision_msgs/msg/Detection2DArray"
#: The newest version of rosbag2's metadata that ROS 2 from Iron on reads.
_METADATA_VERSION: Literal[8] = 8
#: vision_msgs is not part of ROS's core, and rosbags does not contain it. https://github.com/ros-perception/vision_msgs
_VISION_MSGS = {
    "Point2D": "float64 x\nfloat64 y\n",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "ObjectHypothesis": "string class_id\nfloat64 score\n",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n",
    "Detection2D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\nvision_msgs/BoundingBox2D bbox\n"
        "string id\n"
    ),
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n",
}


class _SqliteWriter(Sqlite3Writer):
    """rosbags' writer, which takes the path for a URI and therefore cuts it at "#" and "?"."""

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        self.path = path / f"{path.name}.db3"
        self.conn = sqlite3.connect(self.path)
        self.conn.executescript(self.SQLITE_SCHEMA)
        self.cursor = self.conn.cursor()


class _Writer(Writer):
    STORAGE_PLUGINS = {**Writer.STORAGE_PLUGINS, StoragePlugin.SQLITE3: _SqliteWriter}  # noqa: RUF012 - as in Writer


class BagWriter:
    """A new bag; a context manager. The bag is complete if the block ends without an exception, else it is deleted."""

    def __init__(self, path: Path, storage: StorageName = "mcap", classes: str | None = None) -> None:
        """Prepare a new bag. `classes` is the key of the labels' class set. Raises WriterError if `path` exists."""
        self._path = path
        plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
        self._writer = _Writer(path, version=_METADATA_VERSION, storage_plugin=plugin)
        if classes is not None:
            self._writer.set_custom_data(CLASSES_KEY, classes)
        self._types = get_typestore(Stores.ROS2_HUMBLE)
        for name, text in _VISION_MSGS.items():
            self._types.register(get_types_from_msg(text, f"vision_msgs/msg/{name}"))
        self._topics: dict[str, Any] = {}

    def __enter__(self) -> BagWriter:
        try:
            with _named(self._path):
                self._writer.open()
        except WriterError:  # the folder is another process's
            raise
        except BaseException:
            shutil.rmtree(self._path, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        complete = False
        try:
            with _named(self._path):
                self._writer.__exit__(kind, error, traceback)
            complete = kind is None
        finally:
            if not complete:
                shutil.rmtree(self._path, ignore_errors=True)

    def add_topic(self, topic: str, kind: str) -> None:
        """Declare a topic, so that it exists even without a message. Raises ValueError for a name that ROS refuses."""
        if not _TOPIC_NAME.fullmatch(topic):
            raise ValueError(f"received the topic {topic!r}; expected a name such as /camera/image_raw")
        if topic not in self._topics:
            with _named(self._path):
                self._topics[topic] = self._writer.add_connection(topic, kind, typestore=self._types)

    def image(
        self, topic: str, pixels: np.ndarray, stamp_ns: int, frame_id: str, *, time_ns: int, packing: Packing = "none"
    ) -> None:
        """Write uint8 (H, W, 3) BGR as bgr8, or (H, W) as mono8; with a packing, as a CompressedImage on `topic`."""
        header, types = self._header(stamp_ns, frame_id), self._types.types
        if packing == "none":
            height, width = pixels.shape[:2]
            encoding, step = ("mono8", width) if pixels.ndim == 2 else ("bgr8", 3 * width)
            data = np.ascontiguousarray(pixels).reshape(-1)
            self._write(topic, types[IMAGE_TYPE](header, height, width, encoding, 0, step, data), time_ns)
        else:
            done, packed = cv2.imencode(f".{packing}", pixels)
            if not done:
                raise ValueError(f"an image {pixels.dtype} {pixels.shape} cannot be packed as {packing}")
            self._write(topic, types[COMPRESSED_TYPE](header, packing, packed.reshape(-1)), time_ns)

    def detections(
        self,
        topic: str,
        boxes_xyxy: np.ndarray,
        scores: np.ndarray,
        refined: np.ndarray,
        stamp_ns: int,
        frame_id: str,
        *,
        time_ns: int,
    ) -> None:
        """Write hard regions as the node publishes them on ~/regions.

        `boxes_xyxy` is (N, 4) in pixels, `scores` and `refined` are (N,).
        """
        types, header = self._types.types, self._header(stamp_ns, frame_id)

        def make(name: str, *fields: Any) -> Any:
            return types[name](*fields)

        found = []
        for index, (box, score, is_refined) in enumerate(zip(boxes_xyxy, scores, refined, strict=True)):
            x0, y0, x1, y1 = map(float, box)
            centre = make("vision_msgs/msg/Point2D", (x0 + x1) / 2, (y0 + y1) / 2)
            pose = make(
                "geometry_msgs/msg/Pose", _point(types), make("geometry_msgs/msg/Quaternion", 0.0, 0.0, 0.0, 1.0)
            )
            hypothesis = make(
                "vision_msgs/msg/ObjectHypothesisWithPose",
                make("vision_msgs/msg/ObjectHypothesis", "refined" if is_refined else "hard", float(score)),
                make("geometry_msgs/msg/PoseWithCovariance", pose, np.zeros(36)),
            )
            bbox = make("vision_msgs/msg/BoundingBox2D", make("vision_msgs/msg/Pose2D", centre, 0.0), x1 - x0, y1 - y0)
            found.append(make("vision_msgs/msg/Detection2D", header, [hypothesis], bbox, str(index)))
        self._write(topic, make(DETECTIONS_TYPE, header, found), time_ns)

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        stamp = self._types.types["builtin_interfaces/msg/Time"](seconds, nanoseconds)
        return self._types.types["std_msgs/msg/Header"](stamp, frame_id)

    def _write(self, topic: str, message: Any, time_ns: int) -> None:
        kind = message.__msgtype__
        self.add_topic(topic, kind)
        with _named(self._path):
            self._writer.write(self._topics[topic], time_ns, self._types.serialize_cdr(message, kind))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise OSError with the bag's path for the error of a disk that is full, also for SQLite's."""
    try:
        with named_errors(path):
            yield
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from error


def _point(types: Any) -> Any:
    return types["geometry_msgs/msg/Point"](0.0, 0.0, 0.0)
