# SPDX-License-Identifier: Apache-2.0
"""A bundle of three tiny networks that keep the contract and whose answers can be worked out by hand.

- image: label = green // 14 (0..18), confidence = red
- hardness: the boxes of BOXES with the scores of SCORES x the frame's largest blue / 255
- region: label = 18 - green // 14, or 255 where green is 250 or more; confidence = blue
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")  # a vehicle does not have it; what imports this module is skipped there

import onnx
from class_sets import CITYSCAPES19
from onnx import TensorProto, helper, numpy_helper

from nightlab_core.runtime.bundle import Classes, EngineFile, EngineFiles, Manifest, RegionFile, write_manifest

#: xyxy in 0..1; the second is nearly the first, which suppresses it, and the third overlaps the first a little.
BOXES = np.array(
    [[0.10, 0.20, 0.40, 0.60], [0.11, 0.20, 0.41, 0.60], [0.30, 0.50, 0.70, 0.90], [0.80, 0.10, 0.95, 0.30]], np.float32
)
SCORES = np.array([0.9, 0.8, 0.7, 0.4], np.float32)
BLUE, GREEN, RED = range(3)


Sizes = tuple[tuple[int, int], ...]


def write_tiny_bundle(
    folder: str | Path,
    input_hw: tuple[int, int] = (64, 96),
    region_hw: tuple[int, int] = (32, 48),
    further_hw: Sizes = (),
) -> Path:
    """Write the bundle into `folder`, which is made if need be, and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in {
        "image": _image(),
        "hardness": _hardness(),
        "region": _region(("h", "w") if further_hw else region_hw),
    }.items():
        onnx.save(model, folder / f"{name}.onnx")
    write_manifest(folder, tiny_manifest(input_hw, region_hw, further_hw))
    return folder


def tiny_manifest(
    input_hw: tuple[int, int] = (64, 96), region_hw: tuple[int, int] = (32, 48), further_hw: Sizes = ()
) -> Manifest:
    """The manifest of the tiny bundle, still without SHA-256."""
    return Manifest(
        name="tiny",
        created="2026-01-31",
        classes=Classes(names=CITYSCAPES19.names, colors_rgb=CITYSCAPES19.colors_rgb),
        hard_classes=("pole", "traffic light"),
        engines=EngineFiles(
            image=EngineFile(file="image.onnx", input_hw=input_hw, multiple=32),
            hardness=EngineFile(file="hardness.onnx", input_hw=input_hw, multiple=32),
            region=RegionFile(file="region.onnx", input_hw=region_hw, multiple=1, max_batch=10, further_hw=further_hw),
        ),
        preprocessing="in graph: none",
        deform="deform_conv",
        weights="float32",
        trained_on=("nothing",),
        accuracy={"none": 0.0},
        licence="Apache-2.0",
    )


def image_level(frame_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the image network answers: labels and confidence, uint8 (H, W)."""
    return frame_bgr[..., GREEN] // 14, frame_bgr[..., RED]


def region_level(crop_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the region network answers: labels and confidence, uint8 (..., h, w)."""
    green = crop_bgr[..., GREEN]
    return np.where(green >= 250, np.uint8(255), 18 - green // 14), crop_bgr[..., BLUE]


def _image() -> onnx.ModelProto:
    nodes = [*_channel("frame", "green", GREEN), *_channel("frame", "red", RED), *_quotient("green", "level")]
    nodes += [_to("level", "labels", TensorProto.UINT8), _to("red", "confidence", TensorProto.UINT8)]
    return _model(nodes, "frame", [1, "H", "W", 3], _maps(1, "H", "W"))


def _region(region_hw: tuple[int | str, int | str]) -> onnx.ModelProto:
    nodes = [*_channel("crops", "green", GREEN), *_channel("crops", "blue", BLUE), *_quotient("green", "level")]
    nodes += [
        _constant("top", np.array(18, np.int32)),
        _constant("bright", np.array(250, np.int32)),
        _constant("nothing", np.array(255, np.int32)),
        helper.make_node("Sub", ["top", "level"], ["opposite"]),
        helper.make_node("Less", ["green", "bright"], ["is_dark"]),
        helper.make_node("Where", ["is_dark", "opposite", "nothing"], ["chosen"]),
        _to("chosen", "labels", TensorProto.UINT8),
        _to("blue", "confidence", TensorProto.UINT8),
    ]
    return _model(nodes, "crops", ["K", *region_hw, 3], _maps("K", *region_hw))


def _hardness() -> onnx.ModelProto:
    nodes = [
        *_channel("frame", "blue", BLUE),
        _to("blue", "light", TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["light"], ["brightest"], axes=[1, 2], keepdims=0),
        _constant("share", SCORES[None] / 255),
        helper.make_node("Mul", ["share", "brightest"], ["scores"]),
        _constant("known", BOXES[None]),
        helper.make_node("Identity", ["known"], ["boxes"]),
    ]
    shapes = {"boxes": [1, len(BOXES), 4], "scores": [1, len(BOXES)]}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    return _model(nodes, "frame", [1, "H", "W", 3], outputs)


def _channel(source: str, name: str, index: int) -> list[onnx.NodeProto]:
    return [
        _constant(f"{name}_index", np.array(index, np.int64)),
        helper.make_node("Gather", [source, f"{name}_index"], [f"{name}_byte"], axis=3),
        _to(f"{name}_byte", name, TensorProto.INT32),
    ]


def _quotient(source: str, name: str) -> list[onnx.NodeProto]:
    return [_constant("step", np.array(14, np.int32)), helper.make_node("Div", [source, "step"], [name])]


def _to(source: str, name: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], to=dtype)


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _maps(*shape: int | str) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in ("labels", "confidence")]


def _model(
    nodes: list[onnx.NodeProto], name: str, shape: list[int | str], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape)]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
