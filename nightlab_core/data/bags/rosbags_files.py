# SPDX-License-Identifier: Apache-2.0
"""Read undamaged bags through rosbags: ROS 1, compressed files or messages, and MCAP without the library `mcap`.

The index costs one pass over the bag.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag1 import Reader as Rosbag1Reader
from rosbags.rosbag2 import Reader as Rosbag2Reader
from rosbags.typesys import Stores, get_typestore

from nightlab_core.data.bags.messages import to_cdr
from nightlab_core.data.bags.protocol import BagError, Topic, one_line


class _RosbagsFile:
    """A bag that rosbags opens; subclasses choose the reader."""

    kind: str

    def __init__(self, path: Path, reader: Any, advice: str = "") -> None:
        self._reader = reader
        self.problems: list[str] = []
        self._entries: list[tuple[str, int, int]] = []  # topic, time in ns, place among messages of equal time
        try:
            reader.open()
        except Exception as error:  # rosbags raises errors of many kinds for damaged files
            raise BagError(f"{path} cannot be opened: {one_line(error)}{advice}") from error
        self.topics = {name: Topic(topic.msgtype or "", topic.msgcount) for name, topic in reader.topics.items()}

    def index(self, topic: str) -> np.ndarray:
        """Return int64 (N, 3): time in ns, number of the entry, 0."""
        times: list[int] = []
        try:
            for _, recorded_ns, _ in self._messages(topic):
                times.append(recorded_ns)  # one by one, to keep those before an error
        except Exception as error:  # from whichever library unpacks the file
            self.problems.append(f"{topic}: reading ends after {len(times)} messages: {one_line(error)}")
        time_ns = np.sort(np.asarray(times, np.int64))
        place = np.arange(len(times)) - np.searchsorted(time_ns, time_ns)
        first = len(self._entries)
        self._entries += [(topic, int(t), int(p)) for t, p in zip(time_ns, place, strict=True)]
        return np.stack([time_ns, first + np.arange(len(times)), np.zeros(len(times), np.int64)], axis=1)

    def read(self, first: int, second: int) -> bytes:
        """Return the message of an entry. Raises BagError."""
        topic, time_ns, place = self._entries[first]
        try:
            same_time = self._messages(topic, start=time_ns, stop=time_ns + 1)
            connection, _, raw = next(m for number, m in enumerate(same_time) if number == place)
            return self._to_cdr(bytes(raw), connection.msgtype)
        except Exception as error:  # from whichever library unpacks the file
            raise BagError(f"the message cannot be read: {one_line(error)}") from error

    def head(self, first: int, second: int, size: int) -> bytes:
        """Return the first bytes of a message, which is read whole. Raises BagError."""
        return self.read(first, second)[:size]

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _to_cdr(self, raw: bytes, message_type: str) -> bytes:
        return raw

    def _messages(self, topic: str, **window: int) -> Any:
        return self._reader.messages([c for c in self._reader.connections if c.topic == topic], **window)


class Rosbag1File(_RosbagsFile):
    """A .bag file of ROS 1. Its image messages are converted to ROS 2's serialisation."""

    kind = "rosbag1"

    def __init__(self, path: Path) -> None:
        super().__init__(path, Rosbag1Reader(path))
        self._types = get_typestore(Stores.ROS1_NOETIC)

    def _to_cdr(self, raw: bytes, message_type: str) -> bytes:
        return to_cdr(self._types.deserialize_ros1(raw, message_type), message_type)


class CompressedBag(_RosbagsFile):
    """A folder of rosbag2 whose files or messages are compressed."""

    kind = "compressed"

    def __init__(self, path: Path) -> None:
        super().__init__(path, Rosbag2Reader(path))


class WholeMcapFile(_RosbagsFile):
    """An undamaged MCAP file, read without the libraries of the extra "replay"."""

    kind = "mcap"

    def __init__(self, path: Path) -> None:
        advice = "; to read the rest of a damaged MCAP file, install the extra: pip install 'nightlab_ros[replay]'"
        super().__init__(path, Rosbag2Reader(path), advice)
