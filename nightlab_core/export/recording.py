# SPDX-License-Identifier: Apache-2.0
"""Record the inputs and outputs of engines while a pipeline runs on them, and read crops at every size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nightlab_core.runtime.bundle import EngineKind
from nightlab_core.runtime.engines.engine import Engine
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.regions import CONTEXT_STRIDE, crop_probabilities, resize_image

Arrays = dict[str, np.ndarray]
Call = tuple[Arrays, Arrays]  #: inputs and outputs


class RecordingEngine:
    """An engine that keeps the inputs and outputs of every call."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs
        self.prepare, self.close = engine.prepare, engine.close
        self.calls: list[Call] = []
        self._engine = engine

    def __call__(self, **arrays: np.ndarray) -> Arrays:
        """See `Engine`."""
        results = self._engine(**arrays)
        self.calls.append((arrays, results))
        return results


def recording(engines: Engines) -> tuple[Engines, dict[str, RecordingEngine]]:
    """Return the same engines with a recorder around each, and the recorders by kind."""
    recorders = {kind: RecordingEngine(getattr(engines, kind)) for kind in ("image", "hardness", "region")}
    return replace(engines, **recorders), recorders  # type: ignore[arg-type]


def read_at_every_size(region: RecordingEngine, sizes_hw: Sequence[tuple[int, int]]) -> None:
    """Read the crops of the recorded calls at each of the sizes (height, width) at which they were not read.

    Raises ValueError if there is no call.
    """
    if not region.calls:
        raise ValueError("on these frames the region network is never called; give more frames")
    for inputs, _ in list(region.calls):
        crops = inputs["crops"]
        crops_hw = crops.shape[1], crops.shape[2]
        for height, width in sizes_hw:
            if crops_hw == (height, width):
                continue
            resized = {"crops": np.stack([resize_image(crop, (height, width)) for crop in crops])}
            if "context" in inputs:
                whole = np.array([[0, 0, *crops_hw[::-1]]])
                size_hw = height // CONTEXT_STRIDE, width // CONTEXT_STRIDE
                parts = [crop_probabilities(one, whole, crops_hw, size_hw) for one in inputs["context"]]
                resized["context"] = np.concatenate(parts)
            region(**resized)


def by_network(kind: EngineKind, calls: Sequence[Call]) -> dict[str, list[Call]]:
    """Return the calls of an engine under its kind, and those of a region engine under kind and size of crop."""
    if kind != "region":
        return {kind: list(calls)}
    sizes_hw = sorted({inputs["crops"].shape[1:3] for inputs, _ in calls})
    return {
        f"{kind} {height}x{width}": [call for call in calls if call[0]["crops"].shape[1:3] == (height, width)]
        for height, width in sizes_hw
    }
