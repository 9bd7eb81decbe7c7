# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from nightlab_replay.overlap import ahead


def test_items_come_in_order_and_never_too_many_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    for taken, item in enumerate(ahead(items(), 3)):
        assert item == taken
        time.sleep(0.001)
        assert len(made) <= taken + 1 + 3 + 1  # waiting, and one in the thread's hand


def test_an_error_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    taken = ahead(items(), 2)
    assert next(taken) == 1
    with pytest.raises(OSError, match="disk"):
        next(taken)


def test_closing_ends_the_whole_chain() -> None:
    ended: list[str] = []

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.append("inner")

    before = set(threading.enumerate())
    chain = ahead(ahead(items(), 2), 2)
    assert next(chain) == 1
    chain.close()
    assert ended == ["inner"] and set(threading.enumerate()) <= before


def test_reading_goes_on_while_an_item_is_worked_on() -> None:
    read_next = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        read_next.set()
        yield 1

    for item in ahead(items(), 2):
        assert item or read_next.wait(60)  # read while item 0 is still in hand, or this would wait in vain
