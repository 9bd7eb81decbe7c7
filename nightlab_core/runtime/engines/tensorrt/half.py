# SPDX-License-Identifier: Apache-2.0
"""Convert a network to half precision: choose the operators and insert the casts around them.

The converters of onnxconverter-common and onnxruntime.transformers choose by operator or node name, and also round
between two operators that both stay in float32. Here a value is rounded only if an operator in half precision reads or
writes it, so that sampling positions, boxes and probabilities stay float32.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HALF_MAX = float(np.finfo(np.float16).max)

#: The operators that take most of the time: always half.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: These do not change values, so that rounding before or after is the same: half next to half.
EXACT = frozenset({
    "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Neg",
    "Pad", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    "Where"
})  # fmt: skip
#: These round: half only between products, where the next product would round their result anyway. Operators in none of
#: the sets (normalisation, softmax, exp, sums, sampling, top-k, casts) stay in float32.
ROUNDING = frozenset({
    "Add", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "PRelu", "QuantizeLinear",
    "Resize", "Sigmoid", "Sub", "Tanh"
})  # fmt: skip
#: It converts 8-bit values to floats: half if the reader is half. Its counterpart QuantizeLinear rounds.
DEQUANTIZE = "DequantizeLinear"
#: Operators whose first input only is data; the others have fixed types.
FIRST_INPUT_ONLY = frozenset({"Resize"})


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a strongly typed copy: `half_nodes` in float16, the others unchanged, with casts between them.

    The graph's constants must be initialisers and its values have known types, as `graphs` returns it.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    chosen = half_nodes(graph)
    floats = _float_values(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    written = {name for i in chosen for name in graph.node[i].output if name in floats}

    nodes: list[onnx.NodeProto] = []
    made: dict[tuple[str, int], str] = {}

    def cast(name: str, to: int) -> str:
        """Return the name of the value in another precision; one cast serves all readers."""
        if (name, to) not in made:
            made[name, to] = other = f"{name}.{'half' if to == TensorProto.FLOAT16 else 'float'}"
            if name in constants:
                values = numpy_helper.to_array(constants[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, other))
            else:
                nodes.append(helper.make_node("Cast", [name], [other], name=f"{other}.cast", to=to))
        return made[name, to]

    for i, node in enumerate(graph.node):
        if i in chosen:
            for k, name in enumerate(_data_inputs(node)):
                if name in floats and name not in written:
                    node.input[k] = cast(name, TensorProto.FLOAT16)
        else:
            for k, name in enumerate(node.input):
                if name in written:
                    node.input[k] = cast(name, TensorProto.FLOAT)
        nodes.append(node)
        for k, name in enumerate(node.output):
            if name in written and name in outputs:  # the outputs of the contract stay float32
                node.output[k] = made[name, TensorProto.FLOAT16] = f"{name}.half"
                nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
                written.remove(name)
                written.add(f"{name}.half")
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused_constants(graph)
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(half, strict_mode=True)


def half_nodes(graph: onnx.GraphProto) -> set[int]:
    """Return the indices in graph.node of the operators in half precision; see PRODUCTS, EXACT and ROUNDING.

    Every choice depends on a product: a chain of reshapes between two samplings, for example, stays in float32.
    """
    floats = _float_values(graph)
    scales = {node.input[1] for node in graph.node if node.op_type in (DEQUANTIZE, "QuantizeLinear")}
    unfit = {
        tensor.name
        for tensor in graph.initializer
        if tensor.name in floats and not _fits_half(numpy_helper.to_array(tensor), tensor.name in scales)
    }
    readers: dict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(graph.node):
        for name in node.input:
            readers[name].append(i)
    known = PRODUCTS | EXACT | ROUNDING | {DEQUANTIZE}
    chosen = {
        i
        for i, node in enumerate(graph.node)
        if node.op_type in known
        and (floats & set(node.output) or node.op_type == "QuantizeLinear")
        and not unfit & set(node.input)
    }
    products = {i for i in chosen if graph.node[i].op_type in PRODUCTS}
    while (kept := _kept_nodes(graph, chosen, products, readers, floats)) != chosen:
        chosen = kept
    return chosen


def _kept_nodes(
    graph: onnx.GraphProto, chosen: set[int], products: set[int], readers: dict[str, list[int]], floats: set[str]
) -> set[int]:
    """Return the chosen nodes that may stay in half precision, given the choice of all others."""
    lead, only_lead = _leading_nodes(graph, chosen, products, readers)
    constants = {tensor.name for tensor in graph.initializer}
    kept: set[int] = set()
    grounded: set[str] = set()  # values that depend on products only
    for i, node in enumerate(graph.node):
        data = [name for name in _data_inputs(node) if name in floats or node.op_type == DEQUANTIZE]
        data = [name for name in data if name and name not in constants]
        from_products = bool(data) and grounded.issuperset(data)
        if i not in products:
            if i not in chosen or (node.op_type in ROUNDING and not (from_products and i in lead)):
                continue
            if node.op_type in EXACT | {DEQUANTIZE} and not (from_products or i in only_lead):
                continue
        kept.add(i)
        if i in products or from_products:
            grounded.update(node.output)
    return kept


def _leading_nodes(
    graph: onnx.GraphProto, chosen: set[int], products: set[int], readers: dict[str, list[int]]
) -> tuple[set[int], set[int]]:
    """Return the nodes whose result reaches a product, perhaps through others, and those that nothing else reads."""
    outputs = {value.name for value in graph.output}
    lead, only_lead = set(products), set(products)
    for i, node in reversed(list(enumerate(graph.node))):
        read_by = [r for name in node.output for r in readers[name]]
        if i in chosen and any(r in lead for r in read_by):
            lead.add(i)
            if all(r in lead for r in read_by) and not outputs & set(node.output):
                only_lead.add(i)
    return lead, only_lead


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    return list(node.input[:1] if node.op_type in FIRST_INPUT_ONLY else node.input)


def _fits_half(values: np.ndarray, is_scale: bool) -> bool:
    """Return True if half precision can represent the values; a scale must not become zero."""
    finite = values[np.isfinite(values)]
    too_large = finite.size > 0 and np.abs(finite).max() > HALF_MAX
    return not too_large and not (is_scale and bool((values.astype(np.float16) == 0).any()))


def _float_values(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all float32 values."""
    values = [*graph.input, *graph.value_info, *graph.output]
    names = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _drop_unused_constants(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
