# SPDX-License-Identifier: Apache-2.0
"""Process the newest item on a thread and drop the older ones: a vehicle needs the newest frame only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestWorker(Generic[T]):
    """Calls ``handle(item)`` on its own thread, for the newest item of each source only.

    Sources, such as cameras, take turns: one item of every other waiting source is handled before the next item of the
    same source. ``failed(error)`` receives an exception of ``handle``; the thread continues.
    """

    def __init__(self, name: str, handle: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        self._name, self._handle, self._failed = name, handle, failed
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, T] = {}  # by source, in the order in which the sources began to wait
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T, source: Hashable = None) -> bool:
        """Hand over an item without waiting. Return True if it replaced an item whose processing had not started."""
        with self._changed:
            overwrote = source in self._waiting
            self._waiting[source] = item  # a source that waits already keeps its turn
            self._changed.notify()
        return overwrote

    def withdraw(self, source: Hashable = None) -> bool:
        """Remove the waiting item of a source. Return True if there was one."""
        with self._changed:
            had_one = source in self._waiting
            self._waiting.pop(source, None)
            return had_one

    def stop(self, timeout_s: float | None = None) -> bool:
        """Finish the current item and join the thread. Return True if an item was left unprocessed.

        Raises TimeoutError if the current item does not end within `timeout_s`; the thread then ends after it.
        """
        with self._changed:
            left = bool(self._waiting)
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
                item = self._waiting.pop(next(iter(self._waiting)))
            try:
                self._handle(item)
            except Exception as error:
                self._failed(error)
            del item  # a frame is megabytes: do not keep it until the next one comes
