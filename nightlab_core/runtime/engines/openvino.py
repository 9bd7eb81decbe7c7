# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's networks on OpenVINO, the default on a CPU."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset8
from openvino.frontend.onnx import ConversionExtension

from nightlab_core.runtime.engines.engine import OnnxEngine, PrecisionChoice, TensorSpec, check_inputs

CACHED_SHAPES = 4


class OpenVinoEngine(OnnxEngine):
    """Run an ONNX network on OpenVINO's CPU device.

    The network is compiled for each size of its input, since fixed sizes run faster, and the last few compiled forms
    are kept. A free batch stays free: that costs little, and the number of regions changes with every frame.

    `precision` "auto" is the CPU's choice (bfloat16 with tile units, float16 on ARM), or float32 where bfloat16 is
    slower; "float32" is exact. `threads` 0 uses one thread per core.
    """

    name = "openvino"

    def __init__(self, onnx_path: str | Path, *, precision: PrecisionChoice = "auto", threads: int = 0) -> None:
        self._path = Path(onnx_path)
        self._model: openvino.Model | None = read_network(self._path)
        self.inputs: Mapping[str, TensorSpec] = {port.any_name: _spec(port) for port in self._model.inputs}
        self.outputs: Mapping[str, TensorSpec] = {port.any_name: _spec(port) for port in self._model.outputs}
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # Engines run at the same time, and pinned threads would share cores: on two cores both paths of the lite
            # bundle take 508 ms with pinning and 294 ms without.
            "ENABLE_CPU_PINNING": False,
        }
        if precision == "float32" or _bfloat16_is_slow():
            self._options["INFERENCE_PRECISION_HINT"] = "f32"
        self._requests: OrderedDict[tuple[tuple[int, ...], ...], openvino.InferRequest] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Compile for these input shapes if necessary, and run once: the first run of a batch is slower."""
        self(**{name: np.zeros(shape, self.inputs[name].dtype) for name, shape in shapes.items()})

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`. Inputs are not copied; outputs are copied out of OpenVINO's memory."""
        arrays = check_inputs(self._path, self.inputs, arrays)
        with self._lock:
            request = self._request({name: array.shape for name, array in arrays.items()})
            request.infer(arrays, share_inputs=True, share_outputs=True)
            return {name: request.get_tensor(name).data.copy() for name in self.outputs}

    @property
    def arithmetic(self) -> str:
        """Precision of the last compiled form, for example "float32" or "bfloat16"; "float32" before the first."""
        with self._lock:
            for request in reversed(self._requests.values()):
                hint = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
                return str(np.dtype(hint.to_dtype())) if hint != openvino.Type.bf16 else "bfloat16"
        return "float32"

    def close(self) -> None:
        """See `Engine`."""
        with self._lock:
            self._requests.clear()
            self._model = None

    def _request(self, shapes: dict[str, tuple[int, ...]]) -> openvino.InferRequest:
        if self._model is None:
            raise RuntimeError(f"{self._path}: the engine is closed")
        key = tuple(shapes[name][1:] for name in self.inputs)
        if key not in self._requests:
            model = self._model.clone()
            batch = {name: -1 if spec.shape[0] is None else spec.shape[0] for name, spec in self.inputs.items()}
            model.reshape({name: [batch[name], *shape[1:]] for name, shape in shapes.items()})
            self._requests[key] = _core().compile_model(model, "CPU", self._options).create_infer_request()
            if len(self._requests) > CACHED_SHAPES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(key)
        return self._requests[key]


def _bfloat16_is_slow() -> bool:
    """Return True on a CPU with bfloat16 in its vector units and no tile units.

    OpenVINO chooses bfloat16 there, though it is slower than float32: 180 against 155 ms for ten regions of the lite
    bundle on two cores.
    """
    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text(encoding="utf-8", errors="replace").split()) if cpu.is_file() else set()
    return "avx512_bf16" in flags and "amx_bf16" not in flags


def read_network(onnx_path: str | Path) -> openvino.Model:
    """Read an ONNX file, also one with DeformConv, which OpenVINO lacks."""
    return _core().read_model(Path(onnx_path))


@lru_cache(maxsize=1)
def _core() -> openvino.Core:
    core = openvino.Core()
    core.add_extension(ConversionExtension("DeformConv", _convert_deform_conv))
    return core


def _spec(port: Any) -> TensorSpec:
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(np.dtype(port.element_type.to_dtype()), shape)


def _convert_deform_conv(node: Any) -> list[openvino.Output]:
    """Convert ONNX DeformConv (opset 19 and later), which OpenVINO lacks, to DeformableConvolution of its opset 8.

    Both take offsets as (y, x) pairs per kernel position. `bilinear_interpolation_pad` blends samples between the
    border and one pixel outside with zero, as ONNX and torchvision do.
    """
    data, weights, offsets, *optional = (node.get_input(i) for i in range(node.get_input_size()))
    pads = node.get_attribute("pads", [0, 0, 0, 0])
    result = opset8.deformable_convolution(
        data,
        offsets,
        weights,
        node.get_attribute("strides", [1, 1]),
        pads[:2],
        pads[2:],
        node.get_attribute("dilations", [1, 1]),
        mask=optional[1] if len(optional) > 1 else None,
        group=node.get_attribute("group", 1),
        deformable_group=node.get_attribute("offset_group", 1),
        bilinear_interpolation_pad=True,
    )
    if optional:
        result = opset8.add(result, opset8.reshape(optional[0], np.array([1, -1, 1, 1]), special_zero=False))
    return [result.output(0)]
