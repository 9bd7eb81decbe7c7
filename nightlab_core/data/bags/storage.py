# SPDX-License-Identifier: Apache-2.0
"""Open a bag in any storage format, whole or damaged, and give access to single messages by number.

A replay starts at any frame, resumes, and runs on several machines. It needs an index that is built without decoding
images, and independent reads, so that one unreadable message does not affect the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nightlab_core.data.bags.compressed import CompressedFile, decompress_message, is_compressed
from nightlab_core.data.bags.metadata import METADATA_NAME, bag_information, custom_data, custom_data_of_file
from nightlab_core.data.bags.protocol import BagError, StorageFile, Topic, one_line
from nightlab_core.data.folders import describe_folder, natural_key

#: Columns of an index: time of recording in ns, number of the file, and two numbers that locate the message in it.
INDEX_COLUMNS = 4


@dataclass(frozen=True)
class Backend:
    """Module and class that read one format, imported when a file of the format is opened."""

    module: str
    class_name: str

    def open(self, path: Path) -> StorageFile:
        """Open a file. Raises BagError."""
        module = import_module(f"nightlab_core.data.bags.{self.module}")
        opened: StorageFile = getattr(module, self.class_name)(path)
        return opened


#: Storage formats by suffix. A new format needs one module and one line here.
BACKENDS = {
    ".mcap": Backend("mcap", "McapFile"),
    ".db3": Backend("sqlite", "SqliteFile"),
    ".bag": Backend("rosbag1", "Rosbag1File"),
}
SUFFIXES = tuple(BACKENDS)
#: Suffix of a file of rosbag2 that is compressed as a whole, as in drive_0.mcap.zstd.
_COMPRESSED = ".zstd"
_ROSBAG2_SUFFIXES = (".mcap", ".db3")


def is_bag(path: Path) -> bool:
    """Return whether a path is a bag: a file of a known suffix, or a folder with metadata.yaml or with such files."""
    if path.is_dir():
        return (path / METADATA_NAME).is_file() or bool(_rosbag2_files(path))
    return _format_of(path) in SUFFIXES


def bag_files(path: Path) -> list[Path]:
    """Return the files that make up a bag, in order of name, including metadata.yaml."""
    if path.is_file():
        return [path]
    return sorted(f for f in path.iterdir() if f.is_file() and (f.name == METADATA_NAME or _is_storage(f)))


def open_storage(path: Path) -> BagStorage:
    """Open a bag: a file, or a folder with or without metadata.yaml.

    Raises FileNotFoundError, and BagError if no part of it can be read.
    """
    expected = f"expected a rosbag: a folder, or a file ending in {', '.join(SUFFIXES)}"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {expected}")
    if path.is_dir():
        return _open_folder(path)
    if _format_of(path) not in SUFFIXES:
        raise BagError(f"{path} is no rosbag; {expected}")
    return BagStorage({path.name: _open_file(path)}, [], custom_data_of_file(path))


class BagStorage:
    """All messages of an opened bag, which may consist of several files. Used by one thread at a time."""

    def __init__(self, files: dict[str, StorageFile], problems: list[str], custom: dict[str, str]) -> None:
        """Take over opened files by name. `custom` is `custom_data` of metadata.yaml."""
        self._names, self._files = list(files), list(files.values())
        self._own_problems = problems
        self.kind, self.custom_data = self._files[0].kind, custom
        self.topics: dict[str, Topic] = {}
        for file in self._files:
            for name, topic in file.topics.items():
                known = self.topics.get(name, Topic(topic.type, 0))
                self.topics[name] = Topic(known.type, known.count + topic.count)

    @property
    def problems(self) -> list[str]:
        """Faults found so far, one sentence each; if there are any, messages may be missing."""
        found = [f"{name}: {p}" for name, file in zip(self._names, self._files, strict=True) for p in file.problems]
        return [*self._own_problems, *found]

    def index(self, topic: str) -> np.ndarray:
        """Return int64 (N, INDEX_COLUMNS) in the order of recording; messages of equal time in file order."""
        parts = [np.zeros((0, INDEX_COLUMNS), np.int64)]
        for number, file in enumerate(self._files):
            if topic in file.topics:
                parts.append(np.insert(file.index(topic), 1, number, axis=1))
        rows = np.concatenate(parts)
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def read(self, row: np.ndarray) -> bytes:
        """Return the serialised message (CDR) of an index row. Raises BagError."""
        message = self._files[row[1]].read(int(row[2]), int(row[3]))
        return decompress_message(message) if is_compressed(message) else message

    def head(self, row: np.ndarray, size: int) -> bytes:
        """Return the first `size` bytes of a message at little cost. Raises BagError."""
        head = self._files[row[1]].head(int(row[2]), int(row[3]), size)
        return self.read(row)[:size] if is_compressed(head) else head

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()


def _open_folder(path: Path) -> BagStorage:
    problems = []
    information: dict[str, Any] = {}
    try:
        information = bag_information(path)
    except FileNotFoundError:
        problems.append("metadata.yaml is missing: topics and times come from the storage files themselves")
    except (OSError, ValueError) as error:
        problems.append(f"metadata.yaml cannot be used ({one_line(error)}): the storage files themselves were read")
    found = _rosbag2_files(path)
    listed = [path / Path(str(name)).name for name in _listed_names(information)]
    if missing := [f.name for f in listed if not f.is_file()]:
        problems.append(f"{', '.join(missing)} is missing, although metadata.yaml lists it")
    paths = [f for f in listed if f.is_file() and _format_of(f) in _ROSBAG2_SUFFIXES]
    if paths:
        problems += _unlisted(found, paths)
    else:
        paths, copies = _without_copies(found)
        problems += copies
    if not paths:
        bags = sum(is_bag(f) for f in path.iterdir())
        advice = f"; {bags} of these are bags: name them one by one" if bags else ""
        raise BagError(
            f"{path} is no rosbag: it holds {describe_folder(path)}; expected .mcap or .db3 files with metadata.yaml"
            f"{advice}"
        )
    files: dict[str, StorageFile] = {}
    failures = []
    for file in paths:
        try:
            files[file.name] = _open_file(file)
        except BagError as error:
            failures.append(str(error))
    if not files:
        raise BagError("; ".join(failures))
    return BagStorage(files, [*problems, *failures], custom_data(information))


def _open_file(path: Path) -> StorageFile:
    try:
        if path.suffix == _COMPRESSED:
            return CompressedFile(path, _open_file)
        return BACKENDS[path.suffix.lower()].open(path)
    except OSError as error:
        raise BagError(f"{path} cannot be opened: {one_line(error)}") from error


def _format_of(path: Path) -> str:
    """Return the suffix of a file's format, in lower case, without that of the compression."""
    return (Path(path.stem) if path.suffix == _COMPRESSED else path).suffix.lower()


def _listed_names(information: dict[str, Any]) -> list[Any]:
    names = information.get("relative_file_paths")
    return names if isinstance(names, list) else []


def _rosbag2_files(folder: Path) -> list[Path]:
    """Return the .mcap and .db3 files of a folder without hidden ones: drive_2.mcap comes before drive_10.mcap."""
    files = [f for f in folder.iterdir() if _is_rosbag2_file(f)]
    return sorted(files, key=natural_key)


def _unlisted(found: list[Path], listed: list[Path]) -> list[str]:
    """Return a sentence on the files that metadata.yaml does not list, without copies of listed ones."""
    names = {_name_of(file) for file in listed}
    others = [file.name for file in found if file not in listed and _name_of(file) not in names]
    if not others:
        return []
    return [f"metadata.yaml does not list {', '.join(others)}, which is not read: without metadata.yaml all files are"]


def _without_copies(files: list[Path]) -> tuple[list[Path], list[str]]:
    """Return one file of each name, that without compression first, and a sentence on each other one."""
    kept: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: file.suffix == _COMPRESSED):
        kept.setdefault(_name_of(file), file)
    left_out = [file for file in files if file not in kept.values()]
    sentences = [f"{file.name} is not read: {kept[_name_of(file)].name} has its name" for file in left_out]
    return [file for file in files if file not in left_out], sentences


def _name_of(file: Path) -> str:
    """Return a file's name without the suffixes of compression and format."""
    return Path(file.stem).stem if file.suffix == _COMPRESSED else file.stem


def _is_rosbag2_file(path: Path) -> bool:
    return _format_of(path) in _ROSBAG2_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_storage(file: Path) -> bool:
    return _format_of(file) in SUFFIXES
