# SPDX-License-Identifier: Apache-2.0
"""Rewrite a bundle's network for TensorRT: no DeformConv, constants folded, half precision where it is safe.

The entry point is `tensorrt_graph`. It returns plain ONNX, which ONNX Runtime runs as well. This module needs the
package `onnx`, which only machines that build plans need.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, inliner, numpy_helper, parser, shape_inference

from nightlab_core.runtime.engines.tensorrt.half import to_half

Precision = Literal["float32", "float16"]


class GraphError(ValueError):
    """A graph cannot be rewritten for TensorRT. The message names the node and the remedy."""


def tensorrt_graph(
    model: onnx.ModelProto, precision: Precision, sizes: Mapping[str, Sequence[int]] | None = None
) -> onnx.ModelProto:
    """Return a network rewritten for TensorRT. The model given is not changed.

    Every DeformConv becomes GridSample and a 1x1 convolution, exact up to float32 rounding, for free sizes too. With
    "float16" the graph is strongly typed: convolutions and matrix products in half precision, and everything that half
    precision would harm in float32 (see `half`). `sizes` fixes inputs by name, for example
    {"frame": (1, 480, 640, 3)}, where -1 leaves a side free. Plans of fixed sizes are faster.

    Raises GraphError that names the node or the input.
    """
    if precision not in ("float32", "float16"):
        raise ValueError(f"precision: received {precision!r}, expected 'float32' or 'float16'")
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    _fix_sizes(rewritten, sizes or {})
    _cast_bytes(rewritten.graph)
    folded = _fold(_without_deform_conv(rewritten))
    return to_half(folded) if precision == "float16" else folded


def _fix_sizes(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]]) -> None:
    """Write sizes into the inputs, and clear those of the outputs, which are inferred again."""
    inputs = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    if unknown := set(sizes) - set(inputs):
        raise GraphError(f"sizes name the inputs {sorted(unknown)}; the graph has {sorted(inputs)}")
    for name, size in sizes.items():
        dims = inputs[name]
        declared = [dim.dim_value or -1 for dim in dims]
        if len(size) != len(dims) or any(s not in (d, -1) and d != -1 for d, s in zip(declared, size, strict=True)):
            raise GraphError(f"input {name!r}: received the size {tuple(size)}, which does not fit {tuple(declared)}")
        for dim, side in zip(dims, size, strict=True):
            if side != -1:
                dim.dim_value = side
    if sizes:
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")


def _cast_bytes(graph: onnx.GraphProto) -> None:
    """Cast byte inputs to float32 first, since TensorRT supports bytes only in casts. Later casts are folded."""
    for value in graph.input:
        readers = [node for node in graph.node if value.name in node.input]
        is_byte = value.type.tensor_type.elem_type == TensorProto.UINT8
        if is_byte and any(node.op_type != "Cast" for node in readers):
            number = f"{value.name}.float"
            for node in readers:
                node.input[:] = [number if name == value.name else name for name in node.input]
            graph.node.insert(0, helper.make_node("Cast", [value.name], [number], name=number, to=TensorProto.FLOAT))
    del graph.value_info[:]


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and batch normalisation with ONNX Runtime, then infer the type and size of every value."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operators only
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["WeightBiasQuantization", "QDQPropagationTransformer"],  # for its own kernels only
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise GraphError(f"ONNX Runtime refuses the graph, so its constants cannot be folded: {error}") from error
        folded = onnx.load(path)
    used = {node.domain for node in folded.graph.node}
    opsets = [opset for opset in folded.opset_import if opset.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(opsets)
    for index, node in enumerate(folded.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return shape_inference.infer_shapes(folded, strict_mode=True, data_prop=True)


#: Deformable convolution (Dai et al., 2017) with TensorRT's operators, as in `models.deform.sample_conv2d`: the taps
#: are sampled one below the other into an image k x k times as high, and mixed by a 1x1 convolution.
#: x (B, Cin, H, W), offset (B, 2 * k * k, h, w) as (dy, dx) a tap in pixels, weight (Cout, Cin / group * k * k, 1, 1),
#: bias (Cout,), tap_y and tap_x (k * k, 1, 1): pixel that a tap reads for the first output pixel, without offset
#: -> out (B, Cout, h, w). Reads zero outside of x. A position p in pixels is (2 p + 1) / size - 1 for GridSample. Terms
#: without the offset are separate, so that they become constants when sizes are fixed.
_SAMPLE_CONV = """
<domain: "nightlab", opset_import: ["" : %(opset)d]>
SampleConv <group: int = 1> (x, offset, weight, bias, tap_y, tap_x, stride_y, stride_x) => (out)
{
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    from_y = Constant <value = int64[1] {0}> ()
    from_x = Constant <value = int64[1] {1}> ()
    end = Constant <value = int64[1] {2147483647}> ()
    channel = Constant <value = int64[1] {1}> ()
    pair = Constant <value = int64[1] {2}> ()
    rest = Constant <value = int64[1] {-1}> ()
    upright = Constant <value = int64[2] {-1, 1}> ()
    one_f = Constant <value = float {1.0}> ()
    two_f = Constant <value = float {2.0}> ()

    height_n = Shape <start = 2, end = 3> (x)
    width_n = Shape <start = 3, end = 4> (x)
    height = Cast <to = 1> (height_n)
    width = Cast <to = 1> (width_n)
    batch = Shape <start = 0, end = 1> (offset)
    rows = Shape <start = 2, end = 3> (offset)
    columns = Shape <start = 3, end = 4> (offset)
    num_rows = Squeeze (rows)
    num_columns = Squeeze (columns)
    row_n = Range (zero, num_rows, one)
    column_n = Range (zero, num_columns, one)
    row_f = Cast <to = 1> (row_n)
    column_f = Cast <to = 1> (column_n)
    row_y = Mul (row_f, stride_y)
    column_x = Mul (column_f, stride_x)
    row_upright = Reshape (row_y, upright)
    plain_y = Add (row_upright, tap_y)
    plain_x = Add (column_x, tap_x)
    double_y = Mul (plain_y, two_f)
    double_x = Mul (plain_x, two_f)
    centre_y = Add (double_y, one_f)
    centre_x = Add (double_x, one_f)
    share_y = Div (centre_y, height)
    share_x = Div (centre_x, width)
    base_y = Sub (share_y, one_f)
    base_x = Sub (share_x, one_f)

    pixel_y = Div (two_f, height)
    pixel_x = Div (two_f, width)
    shift_y = Slice (offset, from_y, end, channel, pair)
    shift_x = Slice (offset, from_x, end, channel, pair)
    scaled_y = Mul (shift_y, pixel_y)
    scaled_x = Mul (shift_x, pixel_x)
    y = Add (scaled_y, base_y)
    x_ = Add (scaled_x, base_x)
    y_last = Unsqueeze (y, rest)
    x_last = Unsqueeze (x_, rest)
    grid_5d = Concat <axis = -1> (x_last, y_last)
    grid_shape = Concat <axis = 0> (batch, rest, columns, pair)
    grid = Reshape (grid_5d, grid_shape)
    tall = GridSample <mode = "%(mode)s", padding_mode = "zeros", align_corners = 0> (x, grid)
    taps_shape = Concat <axis = 0> (batch, rest, rows, columns)
    taps = Reshape (tall, taps_shape)
    out = Conv <group: int = @group> (taps, weight, bias)
}
"""


def _without_deform_conv(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every DeformConv by `_SAMPLE_CONV`."""
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type == "DeformConv"]
    if not nodes:
        return model
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    mode = "linear" if opset >= 20 else "bilinear"  # the same mode, renamed
    constants = _constants(graph)
    for index, node in enumerate(nodes):
        inputs, group = _sample_conv_inputs(node, constants)
        names = {key: f"deform_conv_{index}.{key}" for key in inputs}
        graph.initializer.extend(numpy_helper.from_array(array, names[key]) for key, array in inputs.items())
        call = helper.make_node(
            "SampleConv", [*node.input[:1], *node.input[2:3], *names.values()], node.output,
            name=node.name, domain="nightlab", group=group,
        )  # fmt: skip
        node.CopyFrom(call)
    model.functions.append(parser.parse_function(_SAMPLE_CONV % {"opset": opset, "mode": mode}))
    model.opset_import.append(helper.make_opsetid("nightlab", 1))
    return inliner.inline_local_functions(model)


def _sample_conv_inputs(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Return the constant inputs of `_SAMPLE_CONV` in its order, and the groups. Raises GraphError for other forms."""
    where = f"DeformConv {node.name or node.output[0]!r}"
    attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight = constants.get(node.input[1])
    if weight is None or weight.ndim != 4:
        received = "computed" if weight is None else f"of shape {weight.shape}"
        raise GraphError(f"{where}: the weight is {received}; expected a constant of (Cout, Cin, k, k)")
    if (offset_group := attributes.get("offset_group", 1)) != 1:
        raise GraphError(f"{where}: received offset_group {offset_group}, expected 1: offsets that all channels share")
    if len(node.input) > 4 and node.input[4]:
        raise GraphError(f"{where}: received a mask; expected none: export the network without modulation")
    has_bias = len(node.input) > 3 and node.input[3]
    bias = constants.get(node.input[3]) if has_bias else np.zeros(len(weight), np.float32)
    if bias is None:
        raise GraphError(f"{where}: the bias is computed; expected a constant of (Cout,)")
    height, width = weight.shape[2:]
    dilation = attributes.get("dilations", (1, 1))
    pads = attributes.get("pads", (0, 0, 0, 0))
    stride = attributes.get("strides", (1, 1))
    tap = np.arange(height * width)
    inputs = {
        "weight": weight.reshape(len(weight), -1, 1, 1),
        "bias": bias,
        "tap_y": (tap // width * dilation[0] - pads[0]).reshape(-1, 1, 1),
        "tap_x": (tap % width * dilation[1] - pads[1]).reshape(-1, 1, 1),
        "stride_y": np.asarray(stride[0]),
        "stride_x": np.asarray(stride[1]),
    }
    return {key: array.astype(np.float32) for key, array in inputs.items()}, attributes.get("group", 1)


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return constants by name, including those behind a cast, since a bundle stores weights as float16."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type in ("Cast", "Identity") and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]  # the caller converts them
    return constants
