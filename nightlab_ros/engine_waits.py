# SPDX-License-Identifier: Apache-2.0
"""Limits on the waits for engines, which may hang or take long to be freed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class EngineWaits:
    """Wait for engines up to `timeout_s`, which is 0 once one of them did not return in time."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s  #: assign a time for new engines
        self._timed_out = False  # True once an engine did not return in time
        self._freeing: list[threading.Thread] = []  # those that were left to free engines

    @property
    def is_freeing(self) -> bool:
        """True while a thread waits for engines that are to be freed."""
        return any(thread.is_alive() for thread in self._freeing)

    @property
    def is_hanging(self) -> bool:
        """True while an engine does not return that did not in time."""
        return self._timed_out and self.is_freeing

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Note a TimeoutError of the block: nothing that follows waits for the same engine again."""
        try:
            yield
        except TimeoutError:
            self._timed_out, self.timeout_s = True, 0.0
            raise

    def free(self, action: Callable[[], None]) -> bool:
        """Free engines on a thread. Raises the action's error. Returns False if it takes longer; it then goes on."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                action()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="freeing the engines", daemon=True)
        thread.start()
        thread.join(self.timeout_s)
        if thread.is_alive():
            self._freeing = [*filter(threading.Thread.is_alive, self._freeing), thread]
            return False
        if errors:
            raise errors[0]
        return True
