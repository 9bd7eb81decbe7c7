# SPDX-License-Identifier: Apache-2.0
"""Process the newest items on a thread and drop the older ones: a vehicle needs the newest frame only."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestWorker(Generic[T]):
    """Calls ``handle(item)`` on its own thread, in order, for the newest item or the ``depth`` newest of each source.

    Sources, such as cameras, take turns: one item of every other waiting source is handled before the next item of the
    same source. ``failed(error)`` receives an exception of ``handle``; the thread continues.
    """

    def __init__(
        self, name: str, handle: Callable[[T], None], failed: Callable[[BaseException], None], depth: int = 1
    ) -> None:
        self._name, self._handle, self._failed, self._depth = name, handle, failed, depth
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, deque[T]] = {}  # by source, in the order in which the sources began to wait
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T, source: Hashable = None) -> bool:
        """Hand over an item without waiting. Return True if the oldest item that waited is dropped for it."""
        with self._changed:
            items = self._waiting.setdefault(source, deque())  # a source that waits already keeps its turn
            overwrote = len(items) == self._depth
            if overwrote:
                items.popleft()
            items.append(item)
            self._changed.notify()
        return overwrote

    def withdraw(self, source: Hashable = None) -> int:
        """Drop the waiting items of a source, and return their number."""
        with self._changed:
            return len(self._waiting.pop(source, ()))

    def stop(self, timeout_s: float | None = None) -> int:
        """Finish the current item and join the thread. Return the number of items left unprocessed.

        Raises TimeoutError if the current item does not end within `timeout_s`; the thread then ends after it.
        """
        with self._changed:
            left = sum(map(len, self._waiting.values()))
            self._waiting.clear()
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the {self._name} thread did not finish its current item within {timeout_s:g} s")
        return left

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                source = next(iter(self._waiting))
                items = self._waiting.pop(source)
                item = items.popleft()
                if items:
                    self._waiting[source] = items  # at the end of the line
            try:
                self._handle(item)
            except BaseException as error:  # also SystemExit, which would end the thread without a word
                self._failed(error)
            del item  # a frame is megabytes: do not keep it until the next one comes
