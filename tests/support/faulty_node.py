# SPDX-License-Identifier: Apache-2.0
"""The node with engines that fail on demand: the blue of an image's first pixel says how. Also a program of its own.

python tests/support/faulty_node.py --ros-args ...   (as `python -m nightlab_ros.node`)
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import numpy as np
from fake_engines import SPECS
from tiny_bundle import BOXES, SCORES

from nightlab_core.runtime.bundle import Bundle, EngineKind
from nightlab_core.runtime.engines.open import Engines

#: Seconds for an image, so that images wait and are dropped as with a network of the real size.
FRAME_S = 0.02
#: Seconds for which the engine of `Fault.SLOW` answers nothing.
SLOW_S = 6.0
#: The same of `Fault.HARDNESS_SLOW`: longer than the pipeline waits.
HARDNESS_SLOW_S = 10.0
#: Ends the faults that hang. HANGING is set while an engine does.
RELEASE, HANGING = threading.Event(), threading.Event()


class Fault(IntEnum):
    """Blue of an image's pixels, and what the engines do with it."""

    NONE = 0
    IMAGE_RAISES = 10
    HARDNESS_RAISES = 20
    REGION_RAISES = 30
    HARDNESS_NAN = 40
    UNKNOWN_CLASS = 50  #: a label that no class has
    OTHER_SHAPE = 60  #: labels of half the size
    FLOAT_CONFIDENCE = 70  #: confidence that is not finite
    REGION_UNKNOWN_CLASS = 80
    IMAGE_EXITS = 90  #: SystemExit, which is no Exception
    SLOW = 100  #: no answer for SLOW_S
    HANGS = 110  #: no answer until RELEASE is set
    HARDNESS_HANGS = 120
    REGION_HANGS = 130
    HARDNESS_EXITS = 140
    REGION_EXITS = 150
    HARDNESS_INTERRUPTED = 160  #: KeyboardInterrupt, as SIGINT raises it
    HARDNESS_SLOW = 170  #: no answer for HARDNESS_SLOW_S


class FaultyEngine:
    """An engine of the tiny bundle's shapes: labels are green // 14 and confidence is red, or blue asks for a fault."""

    name = "faulty"

    def __init__(self, kind: EngineKind) -> None:
        self.inputs, self.outputs = SPECS[kind]
        self._lock = threading.Lock()  # calls run one at a time, also while one hangs
        self._answer: Callable[[np.ndarray, int], dict[str, np.ndarray]] = {
            "image": _image,
            "hardness": _hardness,
            "region": _region,
        }[kind]

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Do nothing."""

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Answer, or fail as the first pixel asks."""
        (array,) = arrays.values()
        with self._lock:
            return self._answer(array, int(array[0, 0, 0, 0]) if len(array) else 0)

    def close(self) -> None:
        """Do nothing."""


def _hang() -> None:
    HANGING.set()
    RELEASE.wait()
    HANGING.clear()


def _image(frame: np.ndarray, fault: int) -> dict[str, np.ndarray]:
    labels, confidence = frame[..., 1] // 14, frame[..., 2]
    if fault == Fault.IMAGE_RAISES:
        raise RuntimeError("the image engine failed")
    if fault == Fault.IMAGE_EXITS:
        raise SystemExit("the image engine ended the thread")
    if fault == Fault.HANGS:
        _hang()
    else:
        time.sleep(SLOW_S if fault == Fault.SLOW else FRAME_S)
    if fault == Fault.UNKNOWN_CLASS:
        labels = np.full_like(labels, 200)
    if fault == Fault.OTHER_SHAPE:
        labels = labels[:, ::2, ::2]
    if fault == Fault.FLOAT_CONFIDENCE:
        return {"labels": labels, "confidence": np.full(labels.shape, np.nan, np.float32)}
    return {"labels": labels, "confidence": confidence}


def _hardness(frame: np.ndarray, fault: int) -> dict[str, np.ndarray]:
    if fault == Fault.HARDNESS_RAISES:
        raise RuntimeError("the hardness engine failed")
    if fault == Fault.HARDNESS_EXITS:
        raise SystemExit("the hardness engine ended the thread")
    if fault == Fault.HARDNESS_INTERRUPTED:
        raise KeyboardInterrupt
    if fault == Fault.HARDNESS_HANGS:
        _hang()
    if fault == Fault.HARDNESS_SLOW:
        time.sleep(HARDNESS_SLOW_S)
    boxes, scores = BOXES[None].copy(), SCORES[None].copy()
    if fault == Fault.HARDNESS_NAN:
        scores[:] = np.nan
    return {"boxes": boxes, "scores": scores}


def _region(crops: np.ndarray, fault: int) -> dict[str, np.ndarray]:
    if fault == Fault.REGION_RAISES:
        raise RuntimeError("the region engine failed")
    if fault == Fault.REGION_EXITS:
        raise SystemExit("the region engine ended the thread")
    if fault == Fault.REGION_HANGS:
        _hang()
    labels = 18 - crops[..., 1] // 14
    if fault == Fault.REGION_UNKNOWN_CLASS:
        labels[:] = 200
    return {"labels": labels, "confidence": np.full(labels.shape, 255, np.uint8)}


def open_faulty(bundle: Bundle, options: Any = None, **_: Any) -> Engines:
    """Stand in for `Engines.open`."""
    return Engines(bundle, *(FaultyEngine(kind) for kind in ("image", "hardness", "region")))


def patched() -> Any:
    """Return a context manager in which every node opens faulty engines."""
    return mock.patch.object(Engines, "open", staticmethod(open_faulty))


if __name__ == "__main__":
    from nightlab_ros.node import main

    with patched():
        sys.exit(main())
