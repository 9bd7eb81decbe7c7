# SPDX-License-Identifier: Apache-2.0
"""Values of the last seconds. Imports no ROS."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values that were added in the last `window_s` seconds of a clock that the caller reads."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._items: deque[tuple[float, T]] = deque()

    def add(self, now_s: float, value: T) -> None:
        """Add a value at `now_s`."""
        self._items.append((now_s, value))
        self._prune(now_s)

    def values(self, now_s: float) -> list[T]:
        """Return the values that are not older than the window, oldest first."""
        self._prune(now_s)
        return [value for _, value in self._items]

    def clear(self) -> None:
        """Forget all values."""
        self._items.clear()

    def _prune(self, now_s: float) -> None:
        while self._items and now_s - self._items[0][0] >= self._window_s:
            self._items.popleft()
