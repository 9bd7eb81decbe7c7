# SPDX-License-Identifier: Apache-2.0
"""The n-th message of a recorded topic, from a whole bag or from what is left of one.

A replay starts anywhere, goes on where it stopped, and is spread over machines: it needs an index, made without reading
the pictures, and each message on its own, so that one that cannot be read costs no other. rosbag2's two storages are
therefore read through the libraries below rosbags: SQLite and MCAP. Everything else that rosbags reads (compressed
files or messages, ROS 1) goes through rosbags itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.typesys import Stores, get_typestore

from nightlab_core.config import ConfigError, read_yaml
from nightlab_core.data.bags.bags import custom_data

#: Columns of an index: time of recording in ns, number of the file, and where in the file.
INDEX_COLUMNS = 4
SUFFIXES = (".mcap", ".db3", ".bag")


class BagError(ValueError):
    """A bag, or a message of one, that cannot be read; says why."""


@dataclass(frozen=True)
class Topic:
    """Type as "package/msg/Name", and the number of messages that are there."""

    type: str
    count: int


class Storage(Protocol):
    """One bag, opened."""

    kind: str  #: "sqlite3", "mcap" or "rosbag1"
    topics: dict[str, Topic]
    problems: list[str]  #: what is wrong, in words; not empty means that messages may be missing
    custom_data: dict[str, str]  #: of metadata.yaml, of a bare file's too where it lies beside it

    def index(self, topic: str) -> np.ndarray:
        """int64 (N, INDEX_COLUMNS), in the order of recording; messages of equal time in the file's order."""

    def read(self, row: np.ndarray) -> bytes:
        """The serialised message of a row of the index. Raises BagError."""

    def head(self, row: np.ndarray, size: int) -> bytes:
        """Its first bytes, at little cost. Raises BagError."""

    def close(self) -> None:
        """Free the files."""


class StorageFile(Protocol):
    """One file of a bag in one of rosbag2's own formats."""

    topics: dict[str, Topic]
    problems: list[str]

    def index(self, topic: str) -> np.ndarray:
        """int64 (N, 3): time in ns, and two numbers that say where."""

    def read(self, first: int, second: int) -> bytes:
        """Raises BagError."""

    def head(self, first: int, second: int, size: int) -> bytes:
        """Raises BagError."""

    def close(self) -> None:
        """Free the file."""


def open_storage(path: Path) -> Storage:
    """Open a bag: a folder, with or without metadata.yaml, or a file. Raises FileNotFoundError, and BagError if nothing
    of it can be read."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a rosbag: a folder, or a file of {_expected()}")
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise BagError(f"{path} is no rosbag; expected a folder, or a file of {_expected()}")
        return _Rosbags(path) if path.suffix == ".bag" else _Rosbag2([path], [], custom_data(path))
    return _open_folder(path)


def bag_files(path: Path) -> list[Path]:
    """The files that make up a bag, in order of name; metadata.yaml among them."""
    if path.is_file():
        return [path]
    return sorted(f for f in path.iterdir() if f.is_file() and (f.name == "metadata.yaml" or _is_storage(f)))


def _open_folder(path: Path) -> Storage:
    problems = []
    info: dict[str, Any] = {}
    try:
        info = dict(read_yaml(path / "metadata.yaml")["rosbag2_bagfile_information"])
    except FileNotFoundError:
        problems.append("metadata.yaml is missing: topics and times come from the storage files themselves")
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        problems.append(f"metadata.yaml cannot be used ({_line(error)}): the storage files themselves were read")
    if info.get("compression_mode"):
        return _Rosbags(path)
    found = sorted((f for f in path.iterdir() if f.suffix in (".mcap", ".db3")), key=_number)
    listed = [path / Path(str(name)).name for name in info.get("relative_file_paths") or []]
    if missing := [f.name for f in listed if f not in found]:
        problems.append(f"{', '.join(missing)} is missing, though metadata.yaml lists it")
    files = [f for f in listed if f in found] or found
    if not files:
        there = ", ".join(sorted(f.name for f in path.iterdir())) or "nothing"
        raise BagError(f"{path} is no rosbag: it holds {there}; expected .mcap or .db3 files with metadata.yaml")
    return _Rosbag2(files, problems, custom_data(path))


class _Rosbag2:
    """Plain .mcap or .db3 files, one after the other."""

    def __init__(self, paths: list[Path], problems: list[str], custom: dict[str, str]) -> None:
        from nightlab_core.data.bags.storage_mcap import McapFile
        from nightlab_core.data.bags.storage_sqlite import SqliteFile

        self.kind = "mcap" if paths[0].suffix == ".mcap" else "sqlite3"
        self.problems, self.custom_data = list(problems), custom
        self._files: list[StorageFile] = []
        failures = []
        for path in paths:
            try:
                file: StorageFile = McapFile(path) if path.suffix == ".mcap" else SqliteFile(path)
            except BagError as error:
                failures.append(str(error))
                continue
            self._files.append(file)
            self.problems += [f"{path.name}: {problem}" for problem in file.problems]
        if not self._files:
            raise BagError("; ".join(failures))
        self.problems += failures
        self.topics: dict[str, Topic] = {}
        for file in self._files:
            for name, topic in file.topics.items():
                known = self.topics.get(name, Topic(topic.type, 0))
                self.topics[name] = Topic(known.type, known.count + topic.count)

    def index(self, topic: str) -> np.ndarray:
        parts = [np.zeros((0, INDEX_COLUMNS), np.int64)]
        for number, file in enumerate(self._files):
            if topic in file.topics:
                rows = file.index(topic)
                parts.append(np.insert(rows, 1, number, axis=1))
        return _in_order(np.concatenate(parts))

    def read(self, row: np.ndarray) -> bytes:
        return self._files[row[1]].read(int(row[2]), int(row[3]))

    def head(self, row: np.ndarray, size: int) -> bytes:
        return self._files[row[1]].head(int(row[2]), int(row[3]), size)

    def close(self) -> None:
        for file in self._files:
            file.close()


class _Rosbags:
    """What rosbags alone can read. The index costs one reading of the bag."""

    def __init__(self, path: Path) -> None:
        self._reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        try:
            self._reader.open()
        except (AnyReaderError, OSError, EOFError, ValueError) as error:
            raise BagError(f"{path} cannot be opened: {_line(error)}") from error
        self.kind = "rosbag1" if path.suffix == ".bag" else "compressed"
        self.problems: list[str] = []
        self.custom_data = custom_data(path)
        self.topics = {n: Topic(t.msgtype or "", t.msgcount) for n, t in self._reader.topics.items()}

    def index(self, topic: str) -> np.ndarray:
        times = []
        try:
            times += [time_ns for _, time_ns, _ in self._messages(topic)]
        except Exception as error:  # of whatever library unpacks the file
            self.problems.append(f"{topic}: reading ends after {len(times)} messages: {_line(error)}")
        time_ns = np.sort(np.asarray(times, np.int64))
        rows = np.zeros((len(times), INDEX_COLUMNS), np.int64)
        rows[:, 0] = time_ns
        rows[:, 2] = sorted(self.topics).index(topic)
        rows[:, 3] = np.arange(len(times)) - np.searchsorted(time_ns, time_ns)  # place among those of equal time
        return rows

    def read(self, row: np.ndarray) -> bytes:
        topic = sorted(self.topics)[row[2]]
        try:
            same = self._messages(topic, start=int(row[0]), stop=int(row[0]) + 1)
            connection, _, raw = next(m for place, m in enumerate(same) if place == row[3])
        except Exception as error:
            raise BagError(f"the message cannot be read: {_line(error)}") from error
        if self.kind != "rosbag1":
            return bytes(raw)
        message = self._reader.deserialize(raw, connection.msgtype)
        return bytes(self._reader.typestore.serialize_cdr(message, connection.msgtype))

    def head(self, row: np.ndarray, size: int) -> bytes:
        return self.read(row)[:size]

    def close(self) -> None:
        self._reader.close()

    def _messages(self, topic: str, **window: int) -> Any:
        return self._reader.messages([c for c in self._reader.connections if c.topic == topic], **window)


def _in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.argsort(rows[:, 0], kind="stable")]


def _is_storage(file: Path) -> bool:
    return any(suffix in SUFFIXES for suffix in file.suffixes)


def _number(file: Path) -> tuple[int, str]:
    """rosbag2 numbers the files of a split bag: drive_2.mcap comes before drive_10.mcap."""
    digits = re.search(r"_(\d+)$", file.stem)
    return (int(digits[1]) if digits else 0, file.name)


def _expected() -> str:
    return ", ".join(SUFFIXES)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
