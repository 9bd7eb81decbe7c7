# SPDX-License-Identifier: Apache-2.0
"""Read rosbag2's SQLite files, including files that were cut off while they were written."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw
import numpy as np

from nightlab_core.data.bags.protocol import BagError, Topic, check_num_messages
from nightlab_core.data.bags.unpacking import MAX_UNPACKED_BYTES

_HEADER = b"SQLite format 3\x00"
#: The search for rows in a damaged file ends after this many consecutive misses.
_MOST_MISSES = 500
#: Tables that are stored in the file as they are: no view, and no column that SQLite would compute.
_STORED_TABLES = """
    SELECT name FROM pragma_table_list AS tables WHERE schema = 'main' AND type = 'table'
    AND NOT EXISTS (SELECT 1 FROM pragma_table_xinfo(tables.name) WHERE hidden)"""


class SqliteFile:
    """One SQLite file; see `protocol.StorageFile`."""

    kind = "sqlite3"

    def __init__(self, path: Path) -> None:
        """Raises BagError if the list of topics cannot be read, or there are more messages than the file can hold."""
        self.problems: list[str] = []
        self._path, self._size = path, path.stat().st_size
        page_bytes = _page_bytes(path)
        self._vfs = _WholePages(page_bytes) if self._size % page_bytes else None
        # A killed recorder leaves its last messages in a log beside the file, which SQLite ignores if immutable.
        log = path.with_name(path.name + "-wal")
        immutable = not (log.is_file() and log.stat().st_size)
        try:
            self._connection = apsw.Connection(
                f"file:{quote(str(path.resolve()))}?mode=ro{'&immutable=1' if immutable else ''}",
                flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
                vfs=self._vfs.vfs_name if self._vfs else None,
            )
            # Without this, SQLite refuses a file that is shorter than its own header says.
            self._connection.execute("PRAGMA writable_schema=ON").fetchall()
            self._check_tables()
            # SQLite refuses a larger text or message before it takes memory.
            self._connection.limit(apsw.SQLITE_LIMIT_LENGTH, MAX_UNPACKED_BYTES)
            rows: list[Any] = []
            for row in self._connection.execute("SELECT id, name, type FROM topics ORDER BY id"):
                rows.append(row)
                check_num_messages(len(rows), path, self._size)
            self._ids = {str(name): int(key) for key, name, _ in rows}
        except BagError:
            raise
        except (apsw.Error, ValueError, TypeError) as error:  # also for damaged text
            raise BagError(f"{path}: nothing can be read: {error}") from error
        self._rows = self._read_index()
        counts = {key: int(np.count_nonzero(self._rows[:, 1] == key)) for key in self._ids.values()}
        self.topics = {str(name): Topic(str(kind), counts[key]) for key, name, kind in rows}

    def index(self, topic: str) -> np.ndarray:
        """Return int64 (N, 3): time in ns, row id, 0."""
        rows = self._rows[self._rows[:, 1] == self._ids[topic]]
        return np.stack([rows[:, 2], rows[:, 0], np.zeros(len(rows), np.int64)], axis=1)

    def read(self, first: int, second: int) -> bytes:
        """Return the message of a row id. Raises BagError."""
        try:
            row = self._connection.execute("SELECT data FROM messages WHERE id = ?", (first,)).fetchone()
        except (apsw.Error, UnicodeDecodeError) as error:
            raise BagError(f"the message cannot be read: {error}") from error
        if row is None or not isinstance(row[0], bytes):
            raise BagError(f"the message {first} is missing")
        return row[0]

    def head(self, first: int, second: int, size: int) -> bytes:
        """Return the first bytes of a message without reading the rest. Raises BagError."""
        try:
            blob = self._connection.blob_open("main", "messages", "data", first, False)
            data = blob.read(size)
            blob.close()
            return data
        except apsw.Error as error:
            raise BagError(f"the message cannot be read: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _check_tables(self) -> None:
        """Raise BagError if topics or messages are no stored table, but computed: a few kB may give any number."""
        stored = {str(name) for (name,) in self._connection.execute(_STORED_TABLES)}
        if missing := {"topics", "messages"} - stored:
            raise BagError(
                f"{self._path}: nothing can be read: {', '.join(sorted(missing))} is missing, or is a view or "
                "computed; expected the tables that rosbag2 writes"
            )

    def _read_index(self) -> np.ndarray:
        """Return row id, topic id and time of every message that can be found, int64 (N, 3). Raises BagError."""
        found = array("q")

        def keep(rows: Iterable[Any]) -> int:
            before = len(found)
            for row in rows:
                if all(isinstance(value, int) for value in row):
                    found.extend(row)
                    check_num_messages(len(found) // 3, self._path, self._size)  # damaged pages may repeat others
            return len(found) - before

        query = "SELECT id, topic_id, timestamp FROM messages"
        try:
            keep(self._connection.execute(query))
        except (apsw.Error, UnicodeDecodeError) as error:
            # A lookup by row id reads only a few pages, so rows behind a damaged page may still be found.
            key = missed = 0
            del found[:]
            while missed < _MOST_MISSES:
                key += 1
                try:
                    has_row = keep(self._connection.execute(f"{query} WHERE id = ?", (key,)))
                except (apsw.Error, UnicodeDecodeError):
                    has_row = False
                missed = 0 if has_row else missed + 1
            self.problems.append(f"the file is damaged ({error}): {len(found) // 3} messages could be found")
        return np.array(found, np.int64).reshape(-1, 3)


class _WholePages(apsw.VFS):
    """File access that hides a page that was cut off: SQLite would fill it, and the end of an image, with zeros."""

    def __init__(self, page_bytes: int) -> None:
        self.vfs_name = f"nightlab-whole-pages-{id(self)}"
        self._page_bytes = page_bytes
        super().__init__(self.vfs_name, "")

    def xOpen(self, name: Any, flags: Any) -> apsw.VFSFile:
        return _WholePagesFile(name, flags, self._page_bytes)


class _WholePagesFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: Any, page_bytes: int) -> None:
        super().__init__("", name, flags)
        self._page_bytes = page_bytes

    def xFileSize(self) -> int:
        size = super().xFileSize()
        return size - size % self._page_bytes

    def xRead(self, amount: int, offset: int) -> bytes:
        return super().xRead(max(0, min(amount, self.xFileSize() - offset)), offset)


def _page_bytes(path: Path) -> int:
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise BagError(f"{path} cannot be opened: {error}") from error
    if len(header) < 100 or not header.startswith(_HEADER):
        raise BagError(f"{path}: nothing can be read: {len(header)} bytes that do not begin as a SQLite file does")
    size = int.from_bytes(header[16:18], "big")
    return 65536 if size == 1 else max(size, 512)
