# SPDX-License-Identifier: Apache-2.0
"""Process the newest item on a thread and drop the older ones: a vehicle needs the newest frame only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestWorker(Generic[T]):
    """Calls ``handle(item)`` on its own thread, for the newest item only.

    ``failed(error)`` receives an exception of ``handle``; the thread continues.
    """

    def __init__(self, name: str, handle: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        self._handle, self._failed = handle, failed
        self._changed = threading.Condition()
        self._slot: list[T] = []  # empty, or the one item that waits
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T) -> bool:
        """Hand over an item without waiting. Return True if it replaced an item whose processing had not started."""
        with self._changed:
            overwrote = bool(self._slot)
            self._slot = [item]
            self._changed.notify()
        return overwrote

    def stop(self) -> bool:
        """Finish the current item and join the thread. Return True if an item was left unprocessed."""
        with self._changed:
            left = bool(self._slot)
            self._slot = []
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        return left

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._slot or self._stopping)
                if self._stopping:
                    return
                (item,) = self._slot
                self._slot = []
            try:
                self._handle(item)
            except Exception as error:
                self._failed(error)
            del item  # a frame is megabytes: do not keep it until the next one comes
