# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's networks on ONNX Runtime, which runs everywhere and is the reference for the other libraries."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from nightlab_core.runtime.engines.engine import OnnxEngine, PrecisionChoice, TensorSpec, check_inputs

_DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRuntimeEngine(OnnxEngine):
    """Run an ONNX network on ONNX Runtime's CPU provider, always in float32. `threads` 0 uses one thread per core."""

    name = "onnxruntime"
    arithmetic = "float32"  #: see `OpenVinoEngine.arithmetic`

    def __init__(self, onnx_path: str | Path, *, precision: PrecisionChoice = "auto", threads: int = 0) -> None:
        self._path = Path(onnx_path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.use_deterministic_compute = True
        # Idle threads that spin would take time from the other engines, which run at the same time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
            str(self._path), options, providers=["CPUExecutionProvider"]
        )
        self.inputs: Mapping[str, TensorSpec] = {node.name: _spec(node) for node in self._session.get_inputs()}
        self.outputs: Mapping[str, TensorSpec] = {node.name: _spec(node) for node in self._session.get_outputs()}
        self._lock = threading.Lock()

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Do nothing: one session serves every shape."""

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        arrays = check_inputs(self._path, self.inputs, arrays)
        with self._lock:
            if self._session is None:
                raise RuntimeError(f"{self._path}: the engine is closed")
            results = self._session.run(list(self.outputs), arrays)
        return dict(zip(self.outputs, results, strict=True))

    def close(self) -> None:
        """See `Engine`."""
        with self._lock:
            self._session = None


def _spec(node: onnxruntime.NodeArg) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ValueError(f"{node.name!r} is a {node.type}, expected one of {', '.join(_DTYPES)}")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(np.dtype(_DTYPES[node.type]), shape)
