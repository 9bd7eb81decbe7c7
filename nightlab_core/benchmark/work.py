# SPDX-License-Identifier: Apache-2.0
"""Count the parameters and the arithmetic of a network, and measure the most arithmetic that this machine can do.

Both need OpenVINO, which infers the shapes and has the machine's fastest matrix product in each precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from nightlab_core.benchmark.timing import Clock
from nightlab_core.runtime.engines.engine import Precision

#: Side of the square matrices whose product measures the peak: large enough to be bound by arithmetic alone.
PEAK_SIDE = 2048
PEAK_RUNS = 8


@dataclass(frozen=True)
class Work:
    """Size of one network at one input."""

    parameters: int  #: elements of all constants that are weights
    gflop: float  #: 10^9 operations of one call; a multiplication and an addition are two


def count_work(onnx_path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Work:
    """Count parameters and arithmetic of an ONNX file for inputs of these shapes.

    Counts convolutions, deformable or not, and matrix products, which hold nearly all arithmetic. Resizing, activations
    and softmax are left out. Raises ImportError if OpenVINO is missing.
    """
    from nightlab_core.runtime.engines.openvino import read_network

    model = read_network(onnx_path)
    model.reshape({name: list(shape) for name, shape in shapes.items()})
    operations = model.get_ordered_ops()
    parameters = sum(_size(op.output(0)) for op in operations if _is_weight(op))
    return Work(parameters, sum(_flop(op) for op in operations) / 1e9)


def _is_weight(operation: Any) -> bool:
    integers = ("i8", "u8", "i4", "u4")  # weights of 8 bits or less; shapes and indices are i32 or i64
    if operation.get_type_name() != "Constant":
        return False
    kind = operation.get_element_type()
    return bool(kind.is_real()) or kind.get_type_name() in integers


def _flop(operation: Any) -> int:
    kind = operation.get_type_name()
    if kind in ("Convolution", "DeformableConvolution", "GroupConvolution"):
        weights = operation.input_value(2 if kind == "DeformableConvolution" else 1)
        shape = [int(side) for side in weights.get_shape()]
        # Weights are (O, I, h, w), or (G, O, I, h, w) for groups; each output value needs I h w multiplications.
        per_value = math.prod(shape[2 if kind == "GroupConvolution" else 1 :])
        return 2 * _size(operation.output(0)) * per_value
    if kind == "ConvolutionBackpropData":
        shape = [int(side) for side in operation.input_value(1).get_shape()]
        return 2 * _size(operation.input_value(0)) * math.prod(shape[1:])
    if kind == "MatMul":
        first = operation.input_value(0).get_shape()
        depth = first[-2 if operation.get_attributes()["transpose_a"] and len(first) > 1 else -1]
        return 2 * _size(operation.output(0)) * int(depth)
    return 0


def _size(port: Any) -> int:
    return math.prod(int(side) for side in port.get_shape())


def matrix_peak_gflops(
    precision: Precision, threads: int = 0, *, side: int = PEAK_SIDE, runs: int = PEAK_RUNS, clock: Clock = perf_counter
) -> float:
    """Measure the most 10^9 operations per second: the fastest of `runs` products of two square matrices in OpenVINO.

    threads: 0 for the library's choice. Raises ImportError if OpenVINO is missing.
    """
    import openvino
    from openvino import opset8

    from nightlab_core.runtime.engines.openvino import HINTS

    values = np.random.default_rng(0).standard_normal((side, side), np.float32)
    left = opset8.parameter([side, side], np.float32)
    # The second factor is a constant, as weights are: the library may bring it into the order that it likes best.
    product = opset8.matmul(left, opset8.constant(values), False, False)
    model = openvino.Model([opset8.reduce_max(product, np.array([0, 1]))], [left], "peak")
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": HINTS[precision],
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    times_s = []
    for _ in range(runs + 1):
        start = clock()
        request.infer([values], share_inputs=True)
        times_s.append(clock() - start)
    return 2 * side**3 / min(times_s[1:]) / 1e9
