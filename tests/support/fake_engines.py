# SPDX-License-Identifier: Apache-2.0
"""Engines whose answers are Python functions, with the names and shapes of the tiny bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from tiny_bundle import BOXES, SCORES

from nightlab_core.runtime.bundle import EngineKind
from nightlab_core.runtime.engines.engine import TensorSpec

UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
MAPS = {name: TensorSpec(UINT8, (None, None, None)) for name in ("labels", "confidence")}
FRAME = {"frame": TensorSpec(UINT8, (1, None, None, 3))}
SPECS: dict[EngineKind, tuple[Mapping[str, TensorSpec], Mapping[str, TensorSpec]]] = {
    "image": (FRAME, MAPS),
    "hardness": (FRAME, {"boxes": TensorSpec(FLOAT32, (1, None, 4)), "scores": TensorSpec(FLOAT32, (1, None))}),
    "region": ({"crops": TensorSpec(UINT8, (None, 32, 48, 3))}, MAPS),
}


class FakeEngine:
    """An engine whose answer is a Python function. It remembers the shapes it was given."""

    name = "fake"

    def __init__(self, kind: EngineKind, answer: Callable[..., dict[str, np.ndarray]]) -> None:
        self.inputs, self.outputs = SPECS[kind]
        self.answer = answer
        self.received: list[tuple[int, ...]] = []
        self.prepared: list[tuple[int, ...]] = []
        self.closed = 0

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        self.prepared.append(*shapes.values())

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        array, *others = arrays.values()
        self.received.append(array.shape)
        return self.answer(array, *others)

    def close(self) -> None:
        self.closed += 1


def plain_maps(label: int, confidence: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def answer(array: np.ndarray) -> dict[str, np.ndarray]:
        shape = array.shape[:3]
        return {"labels": np.full(shape, label, np.uint8), "confidence": np.full(shape, confidence, np.uint8)}

    return answer


def known_boxes(
    boxes: np.ndarray = BOXES, scores: np.ndarray = SCORES
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda _: {"boxes": boxes[None].astype(np.float32), "scores": scores[None].astype(np.float32)}


def black(height: int = 64, width: int = 96) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)
