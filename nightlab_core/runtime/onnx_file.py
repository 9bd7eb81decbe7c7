# SPDX-License-Identifier: Apache-2.0
"""Read facts from an ONNX file without the package onnx, which no vehicle needs, and without running anything.

An ONNX file is a protocol buffer. The numbers of fields below are those of onnx.proto3.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Message -> field -> message inside, for all messages that can hold tensors.
_INNER = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
_MAX_DEPTH = 64
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_WEIGHT = 7, 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 8, 13, 14
#: Operators between the last convolution and the label of a pixel that keep the number of channels.
_KEEPS_CHANNELS = {
    *("ArgMax", "Cast", "Exp", "Gather", "Identity", "LogSoftmax", "Reshape", "Resize", "Softmax", "Squeeze", "Sub"),
    *("Add", "Div", "Mul", "TopK", "Transpose", "DequantizeLinear", "QuantizeLinear"),
}
_Value = int | memoryview


@dataclass(frozen=True)
class OnnxFacts:
    """What a bundle needs to know of a network's file."""

    has_external_data: bool  #: True if weights are stored in other files, which no SHA-256 of this file covers
    num_channels: int | None  #: of the convolution that `labels` are chosen from; None if the graph is not recognised


def read_onnx(path: str | Path) -> OnnxFacts:
    """Read an ONNX file. Raises ValueError if it is none, and OSError."""
    with Path(path).open("rb") as file:
        if not file.seek(0, 2):
            raise ValueError("the file is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    graphs = [_message(value) for number, value in _fields(data) if number == _MODEL_GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"received {len(graphs)} ONNX graphs, expected 1")
    return OnnxFacts(_has_external_data("model", data), _num_channels(graphs[0]))


def _has_external_data(kind: str, data: memoryview, depth: int = 0) -> bool:
    """Return True if a tensor of the message, at any depth, is stored in another file."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"received more than {_MAX_DEPTH} levels of nested messages")
    for number, value in _fields(data):
        if kind == "tensor" and (number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0)):
            return True
        inner = _INNER.get(kind, {}).get(number)
        if inner and _has_external_data(inner, _message(value), depth + 1):
            return True
    return False


def _num_channels(graph: memoryview) -> int | None:
    """Follow the graph back from `labels` to the weights of a convolution, and return the number of its channels."""
    weights: dict[str, int] = {}  # name -> first dimension
    producers: dict[str, tuple[str, list[str]]] = {}  # output -> operator and inputs
    for number, value in _fields(graph):
        if number == _GRAPH_WEIGHT:
            name, dims = "", []
            for part, content in _fields(_message(value)):
                if part == _TENSOR_NAME:
                    name = _text(content)
                elif part == _TENSOR_DIMS:
                    dims += [content] if isinstance(content, int) else list(_varints(content))
            if dims:
                weights[name] = dims[0]
        elif number == _GRAPH_NODE:
            parts = list(_fields(_message(value)))
            inputs = [_text(content) for part, content in parts if part == _NODE_INPUT]
            operator = next((_text(content) for part, content in parts if part == _NODE_OPERATOR), "")
            producers |= {_text(content): (operator, inputs) for part, content in parts if part == _NODE_OUTPUT}
    name, passed_convolution = "labels", False
    for _ in range(len(producers)):
        operator, inputs = producers.get(name, ("", []))
        if operator == "Conv" and len(inputs) > 1:
            name, passed_convolution = inputs[1], True
        elif operator in _KEEPS_CHANNELS and inputs:
            name = inputs[0]
        else:
            break
    return weights.get(name) if passed_convolution else None


def _fields(data: memoryview) -> Iterator[tuple[int, _Value]]:
    """Yield number and value of each field of a message: an int, or the bytes of a message, text or packed list."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"received the wire type {wire} at byte {position}")
        if length > end - position:
            raise ValueError(f"the file is cut short: {length} bytes are announced, {end - position} are left")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return a number of variable length and the position behind it."""
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError(f"received a number without an end at byte {position}")


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _message(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("received a number where a message is expected")
    return value


def _text(value: _Value) -> str:
    return bytes(_message(value)).decode(errors="replace")
