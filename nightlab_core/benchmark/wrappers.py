# SPDX-License-Identifier: Apache-2.0
"""Engines around an engine, which make a measurement repeatable."""

from __future__ import annotations

import threading

import numpy as np

from nightlab_core.runtime.engines.engine import Engine
from nightlab_core.runtime.settings import MAX_REGIONS

#: Columns and rows of the grid of given boxes, which do not overlap.
_GRID = (5, 2)
#: Side of a box as a fraction of its cell in the grid.
_FILL = 0.6


class WrappedEngine:
    """Pass every call on to another engine, which `close` leaves open."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name = engine, engine.name
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """See `Engine`."""
        self.engine.prepare(**shapes)

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        return self.engine(**arrays)

    def close(self) -> None:
        """Do nothing: whoever opened the engine closes it."""


class FixedRegions(WrappedEngine):
    """Hardness engine that runs its network and then answers with `count` given boxes in place of the network's.

    The network proposes few regions in some frames; the given boxes make the pipeline read exactly `count`.
    """

    def __init__(self, engine: Engine, count: int) -> None:
        super().__init__(engine)
        self.boxes = given_boxes(count)  #: float32 (1, count, 4)
        self.scores = np.linspace(1, 0.9, count, dtype=np.float32)[None]

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Run the network, and return the given boxes and scores."""
        self.engine(**arrays)
        return {"boxes": self.boxes.copy(), "scores": self.scores.copy()}


class OneAtATime(WrappedEngine):
    """Engine that waits while another engine with the same lock runs: the stages run one after another."""

    def __init__(self, engine: Engine, lock: threading.Lock) -> None:
        super().__init__(engine)
        self._lock = lock

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        with self._lock:
            return self.engine(**arrays)


def given_boxes(count: int) -> np.ndarray:
    """Return boxes that do not overlap, float32 (1, count, 4) xyxy in 0..1. Raises ValueError for more than 10."""
    if not 0 <= count <= MAX_REGIONS:
        raise ValueError(f"regions: received {count}, expected 0 to {MAX_REGIONS}")
    columns, rows = _GRID
    index = np.arange(count)
    top_left = np.stack([(index % columns + 0.2) / columns, (index // columns + 0.2) / rows], axis=1)
    sides = np.array([_FILL / columns, _FILL / rows])
    return np.concatenate([top_left, top_left + sides], axis=1).astype(np.float32)[None]
