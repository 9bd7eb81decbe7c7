# SPDX-License-Identifier: Apache-2.0
"""Let a thread work ahead, so that reading, inference and judging overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


class _End(Exception):
    """Goes through the queue behind the last item."""


def ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, taken by a thread of its own, at most `depth` of them ahead.

    What `items` raises is raised here, in its place. Closing the generator closes `items`, and joins the thread.
    """
    ready: queue.Queue[T | BaseException] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: T | BaseException) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        end: BaseException = _End()
        try:
            for item in items:
                if not put(item):
                    break
        except BaseException as error:
            end = error
        finally:
            if isinstance(items, Generator):
                items.close()
        put(end)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                return
            if isinstance(item, BaseException):
                raise item
            yield item
            del item  # a frame is megabytes: do not keep it until the next one comes
    finally:
        closed.set()
        thread.join()
