# SPDX-License-Identifier: Apache-2.0
"""The newest item only, fair turns, counted overwriting, errors that do not end the thread, and a stop that waits."""

from __future__ import annotations

import threading
import time

import pytest

from nightlab_core.runtime.latest import LatestWorker


class Gate:
    """A handler that holds every item until the test lets it go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.items: list[int] = []
        self.errors: list[Exception] = []

    def __call__(self, item: int) -> None:
        self.items.append(item)
        self.begun.release()
        assert self.go.acquire(timeout=10)
        if item < 0:
            raise ValueError(item)

    def begins(self) -> None:
        assert self.begun.acquire(timeout=10)


def test_only_the_newest_item_is_handled_and_the_others_are_counted() -> None:
    gate = Gate()
    worker = LatestWorker("test", gate, gate.errors.append)
    assert worker.submit(1) is False
    gate.begins()
    assert [worker.submit(item) for item in (2, 3, 4)] == [False, True, True]
    gate.go.release()
    gate.begins()
    gate.go.release()
    worker.stop()
    assert gate.items == [1, 4]


def test_an_error_is_reported_and_the_thread_continues() -> None:
    gate = Gate()
    worker = LatestWorker("test", gate, gate.errors.append)
    gate.go.release(2)
    worker.submit(-1)
    gate.begins()
    worker.submit(2)
    gate.begins()
    worker.stop()
    assert gate.items == [-1, 2]
    assert [str(error) for error in gate.errors] == ["-1"]


def test_stop_finishes_the_current_item_and_skips_the_next() -> None:
    gate = Gate()
    worker = LatestWorker("test", gate, gate.errors.append)
    worker.submit(1)
    gate.begins()
    worker.submit(2)

    def release() -> None:
        while not worker._stopping:
            time.sleep(0.001)
        gate.go.release()

    threading.Thread(target=release).start()
    assert worker.stop() == 1
    assert gate.items == [1] and "test" not in {thread.name for thread in threading.enumerate()}


def test_a_fast_source_does_not_starve_the_others() -> None:
    gate = Gate()
    worker = LatestWorker("test", gate, gate.errors.append)
    worker.submit(10, "fast")
    gate.begins()
    worker.submit(20, "slow")
    for turn in range(1, 4):
        assert [worker.submit(10 + turn, "fast") for _ in range(5)] == [False, True, True, True, True]
        gate.go.release()  # the slow source was first in the line
        gate.begins()
        worker.submit(20 + turn, "slow")
        gate.go.release()
        gate.begins()
    assert worker.withdraw("slow") == 1
    gate.go.release()
    worker.stop()
    assert gate.items == [10, 20, 11, 21, 12, 22, 13]


def test_a_waiting_source_keeps_its_turn_when_a_newer_item_comes() -> None:
    gate = Gate()
    worker = LatestWorker("test", gate, gate.errors.append)
    worker.submit(1, "a")
    gate.begins()
    assert [worker.submit(2, "b"), worker.submit(3, "c"), worker.submit(4, "b")] == [False, False, True]
    for _ in range(2):
        gate.go.release()
        gate.begins()
    gate.go.release()
    worker.stop()
    assert gate.items == [1, 4, 3]


def test_the_waiting_item_of_one_source_is_withdrawn() -> None:
    gate = Gate()
    worker = LatestWorker("test", gate, gate.errors.append)
    worker.submit(1, "a")
    gate.begins()
    worker.submit(2, "b")
    worker.submit(3, "c")
    assert (worker.withdraw("b"), worker.withdraw("b")) == (1, 0)
    gate.go.release(2)
    gate.begins()
    assert worker.stop() == 0
    assert gate.items == [1, 3]


def test_a_deeper_line_keeps_the_order_and_drops_the_oldest() -> None:
    gate = Gate()
    worker = LatestWorker("test", gate, gate.errors.append, depth=2)
    worker.submit(1)
    gate.begins()
    assert [worker.submit(item) for item in (2, 3, 4, 5)] == [False, False, True, True]
    for _ in range(2):
        gate.go.release()
        gate.begins()
    assert [worker.submit(item) for item in (6, 7)] == [False, False]
    assert worker.withdraw() == 2
    gate.go.release()
    assert worker.stop() == 0
    assert gate.items == [1, 4, 5]


def test_stop_does_not_wait_longer_than_its_limit() -> None:
    gate = Gate()
    worker = LatestWorker("test", gate, gate.errors.append)
    worker.submit(1)
    gate.begins()
    with pytest.raises(TimeoutError, match="the test thread did not finish its current item"):
        worker.stop(0.01)
    gate.go.release()
    worker.stop()
    assert gate.items == [1]
