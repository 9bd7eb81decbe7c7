# SPDX-License-Identifier: Apache-2.0
"""Prefetching: order, limits, exceptions in their place, and the end of the thread."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from nightlab_core.data.prefetch import Prefetcher


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "prefetch"}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threads()
    yield
    assert threads() <= before


def endless(ended: list[str] | None = None) -> Iterator[int]:
    try:
        while True:
            yield 1
    finally:
        if ended is not None:
            ended.append("closed")


def test_items_come_in_order_and_never_too_many_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    prefetched = Prefetcher(items(), max_items=3)
    for taken, item in enumerate(prefetched):
        assert item == taken
        if taken == 0:
            prefetched.wait_until_full()
        assert len(made) <= taken + 1 + 3 + 1  # ready, and one that waits for room
    assert taken == 49


def test_a_limit_in_bytes_counts_what_is_ready() -> None:
    made: list[int] = []

    def items() -> Iterator[bytes]:
        for i in range(20):
            made.append(i)
            yield bytes(10)

    with Prefetcher(items(), max_bytes=45, size_of=len) as prefetched:
        prefetched.wait_until_full()
        assert len(made) == 6  # five reach the limit, and one waits for room
        assert len(list(prefetched)) == 20


def test_an_item_above_the_limit_still_comes_through() -> None:
    with Prefetcher([bytes(9), bytes(9)], max_bytes=1, size_of=len) as prefetched:
        assert len(list(prefetched)) == 2


def test_without_a_limit_it_does_not_start() -> None:
    with pytest.raises(ValueError, match="no limit"):
        Prefetcher([1], max_bytes=1)


def test_an_error_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    prefetched = Prefetcher(items(), max_items=2)
    prefetched.wait_until_full()
    assert next(prefetched) == 1
    with pytest.raises(OSError, match="disk"):
        next(prefetched)
    assert list(prefetched) == []


def test_closing_ends_the_whole_chain() -> None:
    ended: list[str] = []
    chain = Prefetcher(Prefetcher(endless(ended), max_items=2), max_items=2)
    assert next(chain) == 1
    chain.close()
    chain.close()
    assert ended == ["closed"]
    with pytest.raises(StopIteration):
        next(chain)


def test_leaving_the_block_early_ends_the_thread() -> None:
    ended: list[str] = []
    with pytest.raises(RuntimeError), Prefetcher(endless(ended), max_items=2) as prefetched:
        next(prefetched)
        raise RuntimeError
    assert ended == ["closed"]


def test_one_that_is_abandoned_ends_its_thread() -> None:
    ended: list[str] = []
    prefetched = Prefetcher(endless(ended), max_items=2)
    next(prefetched)
    del prefetched
    gc.collect()
    assert ended == ["closed"]


def test_reading_goes_on_while_an_item_is_in_use() -> None:
    read_next = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        read_next.set()
        yield 1

    for item in Prefetcher(items(), max_items=2):
        assert item or read_next.wait(60)  # without prefetching this would wait in vain
