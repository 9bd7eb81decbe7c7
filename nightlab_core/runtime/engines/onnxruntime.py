# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's networks on ONNX Runtime, which runs everywhere and is the reference for the other libraries."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from nightlab_core.runtime.engines.engine import (
    Form,
    OnnxEngine,
    Precision,
    TensorSpec,
    check_inputs,
    check_precision,
    run_in_pieces,
)

onnxruntime.disable_telemetry_events()  # a vehicle reports to nobody
_DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRuntimeEngine(OnnxEngine):
    """Run an ONNX network on ONNX Runtime's CPU provider, always in float32."""

    name = "onnxruntime"
    arithmetic = "float32"  #: see `OpenVinoEngine.arithmetic`
    precisions: Sequence[Precision] = ("float32",)  #: see `TunableEngine`
    version = onnxruntime.__version__

    def __init__(self, onnx_path: str | Path, form: Form = Form()) -> None:  # noqa: B008 - frozen
        check_precision(self.name, form.precision, self.precisions)
        self._path = Path(onnx_path)
        self.form = form
        self._lock = threading.Lock()
        self._closed = False
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}  # by number of threads; each serves every shape
        session = self._session()
        self.inputs: Mapping[str, TensorSpec] = {node.name: _spec(node) for node in session.get_inputs()}
        self.outputs: Mapping[str, TensorSpec] = {node.name: _spec(node) for node in session.get_outputs()}

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Open the session for the current number of threads, if it is not open. It serves every shape."""
        with self._lock:
            self._session()

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        arrays = check_inputs(self._path, self.inputs, arrays)
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._path}: the engine is closed")
            session = self._session()
            pieces = self.form.pieces(len(next(iter(arrays.values()))))
            return run_in_pieces(arrays, pieces, lambda piece: self._run(session, piece))

    def keep_form(self) -> None:
        """See `TunableEngine`."""
        with self._lock:
            self._sessions = {n: session for n, session in self._sessions.items() if n == self.form.threads}

    def close(self) -> None:
        """See `Engine`."""
        with self._lock:
            self._closed = True
            self._sessions.clear()

    def _run(self, session: onnxruntime.InferenceSession, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, session.run(list(self.outputs), dict(arrays)), strict=True))

    def _session(self) -> onnxruntime.InferenceSession:
        threads = self.form.threads
        if threads not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.use_deterministic_compute = True
            # Idle threads that spin would take time from the other engines, which run at the same time.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._sessions[threads] = onnxruntime.InferenceSession(
                str(self._path), options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[threads]


def _spec(node: onnxruntime.NodeArg) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ValueError(f"{node.name!r} is a {node.type}, expected one of {', '.join(_DTYPES)}")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(np.dtype(_DTYPES[node.type]), shape)
