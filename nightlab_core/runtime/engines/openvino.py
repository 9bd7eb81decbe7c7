# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's networks on OpenVINO, the default on a CPU."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset8
from openvino.frontend.onnx import ConversionExtension

from nightlab_core.runtime.engines.engine import (
    KEPT_SIZES,
    Form,
    OnnxEngine,
    Precision,
    TensorSpec,
    check_inputs,
    check_precision,
    run_in_pieces,
)

log = logging.getLogger(__name__)

_Sizes = tuple[tuple[int, ...], ...]

#: Precision -> value of OpenVINO's property INFERENCE_PRECISION_HINT.
HINTS: Mapping[Precision, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
#: Precision -> name among OpenVINO's OPTIMIZATION_CAPABILITIES of a device that computes in it.
_CAPABILITIES: Mapping[Precision, str] = {"bfloat16": "BF16", "float16": "FP16"}


class OpenVinoEngine(OnnxEngine):
    """Run an ONNX network on OpenVINO's CPU device.

    The network is compiled for each size of its input, since fixed sizes run faster, and the compiled forms of the last
    few sizes are kept. With a form without `batch`, a free batch stays free; else it is compiled for each piece.
    """

    name = "openvino"
    version: str = openvino.__version__

    def __init__(self, onnx_path: str | Path, form: Form = Form()) -> None:  # noqa: B008 - frozen
        check_precision(self.name, form.precision, self.precisions)
        self._path = Path(onnx_path)
        self.form = form
        self._model: openvino.Model | None = read_network(self._path)
        self.inputs: Mapping[str, TensorSpec] = {port.any_name: _spec(port) for port in self._model.inputs}
        self.outputs: Mapping[str, TensorSpec] = {port.any_name: _spec(port) for port in self._model.outputs}
        #: Height, width and the like of the inputs -> form and batch -> compiled network. The latest size is last.
        self._requests: OrderedDict[_Sizes, dict[tuple[Form, int], openvino.InferRequest]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def precisions(self) -> Sequence[Precision]:
        """See `TunableEngine`."""
        return offered_precisions()

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Compile for these input shapes if necessary, and run once: the first run of a batch is slower."""
        self(**{name: np.zeros(shape, self.inputs[name].dtype) for name, shape in shapes.items()})

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`. Inputs are not copied; outputs are copied out of OpenVINO's memory."""
        arrays = check_inputs(self._path, self.inputs, arrays)
        with self._lock:
            has_free_batch = any(spec.shape[0] is None for spec in self.inputs.values())
            batch = len(next(iter(arrays.values())))
            pieces = self.form.pieces(batch) if has_free_batch else [batch]
            return run_in_pieces(arrays, pieces, self._run)

    @property
    def arithmetic(self) -> str:
        """Precision of the last compiled form, for example "float32" or "bfloat16"; "float32" before the first."""
        with self._lock:
            for requests in reversed(self._requests.values()):
                for request in reversed(requests.values()):
                    hint = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
                    return str(np.dtype(hint.to_dtype())) if hint != openvino.Type.bf16 else "bfloat16"
        return "float32"

    def keep_form(self) -> None:
        """See `TunableEngine`."""
        with self._lock:
            for sizes, requests in self._requests.items():
                self._requests[sizes] = {key: request for key, request in requests.items() if key[0] == self.form}

    def close(self) -> None:
        """See `Engine`."""
        with self._lock:
            self._requests.clear()
            self._model = None

    def _run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = self._request({name: array.shape for name, array in arrays.items()})
        request.infer(dict(arrays), share_inputs=True, share_outputs=True)
        return {name: request.get_tensor(name).data.copy() for name in self.outputs}

    def _request(self, shapes: Mapping[str, tuple[int, ...]]) -> openvino.InferRequest:
        if self._model is None:
            raise RuntimeError(f"{self._path}: the engine is closed")
        sizes = tuple(shapes[name][1:] for name in self.inputs)
        if sizes not in self._requests:
            log.info("%s: compiling %s for %s", self.name, self._path.name, _shown(sizes))
            self._requests[sizes] = {}
            if len(self._requests) > KEPT_SIZES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(sizes)
        piece = next(iter(shapes.values()))[0] if self.form.batch else -1
        requests, key = self._requests[sizes], (self.form, piece)
        if key not in requests:
            requests[key] = self._compile(shapes, piece)
        return requests[key]

    def _compile(self, shapes: Mapping[str, tuple[int, ...]], piece: int) -> openvino.InferRequest:
        assert self._model is not None
        model = self._model.clone()
        batch = {name: piece if spec.shape[0] is None else spec.shape[0] for name, spec in self.inputs.items()}
        model.reshape({name: [batch[name], *shape[1:]] for name, shape in shapes.items()})
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.form.threads,
            "INFERENCE_PRECISION_HINT": HINTS[self.form.precision],
            # Engines run at the same time, and pinned threads would share cores: on two cores both paths of the lite
            # bundle take 508 ms with pinning and 294 ms without.
            "ENABLE_CPU_PINNING": False,
        }
        return _core().compile_model(model, "CPU", options).create_infer_request()


def offered_precisions() -> Sequence[Precision]:
    """Return the precisions that this CPU computes in, float32 first."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", *(precision for precision, name in _CAPABILITIES.items() if name in capabilities))


def _shown(sizes: _Sizes) -> str:
    return ", ".join("x".join(map(str, size)) for size in sizes)


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
