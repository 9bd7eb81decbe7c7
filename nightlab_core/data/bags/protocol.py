# SPDX-License-Identifier: Apache-2.0
"""The interface between the bag reader and the storage formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


class BagError(ValueError):
    """A bag, or one message of it, cannot be read; the text says why."""


class TooManyMessagesError(BagError):
    """A file names more messages than a file of its size is taken to hold."""


#: A file holds at most this many messages, or one for each BYTES_PER_MESSAGE of its size if that is more.
MAX_MESSAGES, BYTES_PER_MESSAGE = 1_000_000, 24


def check_num_messages(number: int, path: Path, file_bytes: int) -> None:
    """Raise TooManyMessagesError for more messages than the limit, which repetition or compression puts into few kB."""
    limit = max(MAX_MESSAGES, file_bytes // BYTES_PER_MESSAGE)
    if number > limit:
        raise TooManyMessagesError(
            f"{path}: received {file_bytes} bytes that name {number} messages or more; expected at most {limit}: "
            "the file is damaged or forged"
        )


@dataclass(frozen=True)
class Topic:
    """Type of a topic's messages as "package/msg/Name", and the number of messages that are present."""

    type: str
    count: int


class StorageFile(Protocol):
    """One opened file of a bag. Its constructor takes the path and raises BagError if nothing can be read."""

    kind: str  #: "sqlite3", "mcap", "rosbag1", or "compressed" for a file that is compressed as a whole
    topics: dict[str, Topic]
    problems: list[str]  #: one sentence per fault of the file; if there are any, messages may be missing

    def index(self, topic: str) -> np.ndarray:
        """Return int64 (N, 3), one row per message: time of recording in ns, and two numbers that locate it."""

    def read(self, first: int, second: int) -> bytes:
        """Return the serialised message (CDR) that the two numbers of an index row locate. Raises BagError."""

    def head(self, first: int, second: int, size: int) -> bytes:
        """Return the first `size` bytes of a message without reading all of it if possible. Raises BagError."""

    def close(self) -> None:
        """Close the file."""


def one_line(error: BaseException) -> str:
    """Return an exception's text on one line, or its type if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__
