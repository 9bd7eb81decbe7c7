# SPDX-License-Identifier: Apache-2.0
"""How the commands answer signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any], *numbers: signal.Signals) -> Iterator[None]:
    """Call `handler` for signals within a `with` block, except for those that are ignored, as by `nohup`."""
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Treat a signal as Ctrl-C, so that temporary files are removed and child processes end in order."""
    raise KeyboardInterrupt
