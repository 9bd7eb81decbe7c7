# SPDX-License-Identifier: Apache-2.0
"""The one interface that every inference engine has. The pipeline never asks which engine it runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np


@dataclass(frozen=True)
class TensorSpec:
    """What one input or output holds. `None` in `shape` is a size that may change from call to call."""

    dtype: np.dtype
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('?' if size is None else str(size) for size in self.shape)})"

    def accepts_shape(self, shape: tuple[int, ...]) -> bool:
        """True if an array of this shape fits."""
        return len(shape) == len(self.shape) and all(
            s is None or s == n for s, n in zip(self.shape, shape, strict=True)
        )


#: What a user may ask for.
EngineChoice = Literal["auto", "openvino", "onnxruntime", "tensorrt"]


class Engine(Protocol):
    """A network ready to run. Calls may come from several threads; they are served one at a time."""

    name: str  #: the inference library, e.g. "openvino"
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Do ahead whatever the first call with inputs of these shapes would have to do, such as compiling."""

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Run the network. The arrays returned are the caller's own: a later call does not overwrite them.

        Raises ValueError for inputs that do not fit `inputs`.
        """

    def close(self) -> None:
        """Free the network's memory. Closing twice is harmless; a call after closing raises RuntimeError."""


def check_inputs(
    source: object, inputs: Mapping[str, TensorSpec], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The same arrays, each C-contiguous. Raises ValueError naming `source`, what was received and what is expected."""
    if set(arrays) != set(inputs):
        raise ValueError(f"{source}: received inputs {sorted(arrays)}, expected {sorted(inputs)}")
    for name, array in arrays.items():
        spec = inputs[name]
        if array.dtype != spec.dtype or not spec.accepts_shape(array.shape):
            received = TensorSpec(array.dtype, array.shape)
            raise ValueError(f"{source}: input {name!r} received {received}, expected {spec}")
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def engine_maker(
    engine: Literal["auto", "openvino", "onnxruntime"] = "auto",
    *,
    precision: Literal["auto", "float32"] = "auto",
    threads: int = 0,
) -> Callable[[Path], Engine]:
    """How an engine is made of an ONNX file. "auto" is OpenVINO, or ONNX Runtime where that is not installed.

    Raises ImportError that names what to install. Libraries are imported here alone, so that one of them is enough.
    """
    if engine not in ("auto", "openvino", "onnxruntime"):
        raise ValueError(f"engine: received {engine!r}, expected 'auto', 'openvino' or 'onnxruntime'")
    if engine != "onnxruntime":
        try:
            from nightlab_core.runtime.engines.openvino import OpenVinoEngine

            return lambda path: OpenVinoEngine(path, precision=precision, threads=threads)
        except ModuleNotFoundError as error:
            if engine == "openvino":
                raise ImportError("engine 'openvino' needs a package that is missing: pip install openvino") from error
    try:
        from nightlab_core.runtime.engines.onnxruntime import OnnxRuntimeEngine
    except ModuleNotFoundError as error:
        packages = "openvino (or onnxruntime)" if engine == "auto" else "onnxruntime"
        raise ImportError(f"engine {engine!r} needs a package that is missing: pip install {packages}") from error
    return lambda path: OnnxRuntimeEngine(path, threads=threads)  # always float32
