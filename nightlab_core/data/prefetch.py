# SPDX-License-Identifier: Apache-2.0
"""Prefetch items on a thread, so that reading, inference and scoring overlap."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Iterator[T], Generic[T]):
    """Iterator over items that a thread takes from their source ahead of time; a context manager.

    An exception of the source is raised here, in the place of the next item. `close` ends the thread and closes the
    source if that is a generator; so do the end of the items and garbage collection.
    """

    def __init__(
        self,
        items: Iterable[T],
        *,
        max_items: int | None = None,
        max_bytes: int | None = None,
        size_of: Callable[[T], int] | None = None,
    ) -> None:
        """Start the thread. It waits while `max_items` items or at least `max_bytes` bytes are ready.

        `size_of` gives the bytes of an item. One limit or both must be given. Raises ValueError.
        """
        if max_items is None and (max_bytes is None or size_of is None):
            raise ValueError("received no limit; expected max_items, or max_bytes with size_of")
        self._buffer: _Buffer[T] = _Buffer(max_items, max_bytes, size_of)
        thread = threading.Thread(target=self._buffer.fill, args=(items,), name="prefetch", daemon=True)
        thread.start()
        # The thread refers to the buffer alone, so that an abandoned Prefetcher is collected and ends its thread.
        self._finalizer = weakref.finalize(self, _end, self._buffer, thread)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._buffer.take()
        except BaseException:
            self.close()
            raise

    def wait_until_full(self) -> None:
        """Block until a limit is reached or the source has ended."""
        self._buffer.wait_until_full()

    def close(self) -> None:
        """Drop the items that are ready, close the source, and wait for the end of the thread."""
        self._finalizer()


class _Buffer(Generic[T]):
    """The items that are ready, shared by the thread that fills and the one that takes."""

    def __init__(self, max_items: int | None, max_bytes: int | None, size_of: Callable[[T], int] | None) -> None:
        self._max_items, self._max_bytes, self._size_of = max_items, max_bytes, size_of
        self._changed = threading.Condition()
        self._ready: deque[tuple[T, int]] = deque()
        self._num_bytes = 0
        self._was_full = self._ended = self._closed = False
        self._error: BaseException | None = None

    def fill(self, items: Iterable[T]) -> None:
        """Put all items, then the end or the exception. Runs on the thread."""
        error: BaseException | None = None
        try:
            source = iter(items)
            try:
                while self._put_next(source):
                    pass
            finally:
                if (close := getattr(source, "close", None)) is not None:
                    close()
        except BaseException as raised:
            error = raised
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def take(self) -> T:
        """Return the next item, or raise the exception or StopIteration in its place."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended or self._closed)
            if self._ready:
                item, size = self._ready.popleft()
                self._num_bytes -= size
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        raise error if error is not None else StopIteration

    def wait_until_full(self) -> None:
        """Block until a limit was reached once, or the items have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._was_full or self._ended or self._closed)

    def close(self) -> None:
        """Drop what is ready, and let the thread end at its next item."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def _put_next(self, source: Iterator[T]) -> bool:
        """Move one item from the source; return False at its end or after `close`. Keeps no reference to the item."""
        if self._closed:
            return False
        try:
            item = next(source)
        except StopIteration:
            return False
        size = self._size_of(item) if self._size_of is not None else 0
        with self._changed:
            if self._is_full():
                self._was_full = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or not self._is_full())
            if self._closed:
                return False
            self._ready.append((item, size))
            self._num_bytes += size
            self._changed.notify_all()
        return True

    def _is_full(self) -> bool:
        too_many = self._max_items is not None and len(self._ready) >= self._max_items
        return too_many or (self._max_bytes is not None and self._num_bytes >= self._max_bytes)


def _end(buffer: _Buffer[Any], thread: threading.Thread) -> None:
    buffer.close()
    if thread is not threading.current_thread():  # garbage collection may run on any thread
        thread.join()
