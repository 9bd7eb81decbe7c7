# SPDX-License-Identifier: Apache-2.0
"""Record the inputs and outputs of engines while a pipeline runs on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nightlab_core.runtime.engines.engine import Engine
from nightlab_core.runtime.engines.open import Engines

Arrays = dict[str, np.ndarray]


class RecordingEngine:
    """An engine that keeps the inputs and outputs of every call."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs
        self.prepare, self.close = engine.prepare, engine.close
        self.calls: list[tuple[Arrays, Arrays]] = []  #: (inputs, outputs) of each call
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
