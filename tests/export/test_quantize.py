# SPDX-License-Identifier: Apache-2.0
"""8 bits: which products keep float, what TensorRT needs of the nodes, and the comparison's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from class_sets import CITYSCAPES19  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tiny_bundle import write_tiny_bundle  # noqa: E402

from nightlab_core.data.frames import Frame, FrameSource  # noqa: E402
from nightlab_core.export import quantize  # noqa: E402
from nightlab_core.runtime.bundle import ENGINE_KINDS, default_bundle, load_bundle  # noqa: E402
from nightlab_core.runtime.engines.tensorrt.graphs import tensorrt_graph  # noqa: E402

RNG = np.random.default_rng(0)
HW = (12, 16)


def small_network() -> Any:
    """frame, bytes -> first -> middle -> offset -> sampling of what middle says -> mix -> last -> scores."""

    def conv(source: str, name: str) -> Any:
        return helper.make_node("Conv", [source, f"{name}.w"], [name], name=name, kernel_shape=[1, 1])

    nodes = [
        helper.make_node("Cast", ["frame"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["bytes"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "scale"], ["image"]),
        conv("image", "first"),
        helper.make_node("Relu", ["first"], ["a"]),
        conv("a", "middle"),
        helper.make_node("Relu", ["middle"], ["b"]),
        conv("b", "offset"),
        helper.make_node("Transpose", ["offset"], ["grid"], perm=[0, 2, 3, 1]),
        helper.make_node("GridSample", ["b", "grid"], ["taps"]),
        conv("taps", "mix"),
        helper.make_node("Relu", ["mix"], ["c"]),
        conv("c", "last"),
        helper.make_node("Sigmoid", ["last"], ["scores"]),
    ]
    channels = {"first": (8, 3), "middle": (8, 8), "offset": (2, 8), "mix": (8, 8), "last": (2, 8)}
    tensors = [numpy_helper.from_array(np.float32(255).reshape(1), "scale")]
    for name, (out, into) in channels.items():
        weight = RNG.normal(size=(out, into, 1, 1)).astype(np.float32) / into
        tensors.append(numpy_helper.from_array(weight, f"{name}.w"))
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, *HW, 3])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2, *HW])
    graph = helper.make_graph(nodes, "test", [frame], [scores], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def frames(count: int) -> list[dict[str, np.ndarray]]:
    return [{"frame": RNG.integers(0, 256, (1, *HW, 3), dtype=np.uint8)} for _ in range(count)]


def test_the_first_the_last_and_the_positions_keep_float() -> None:
    graph = tensorrt_graph(small_network(), "float32").graph
    assert quantize.sensitive(graph) == {"first", "offset", "last"}


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_of_the_shipped_networks_most_convolutions_are_quantised(kind: quantize.EngineKind) -> None:
    graph = tensorrt_graph(onnx.load(load_bundle(default_bundle()).path(kind)), "float32").graph
    products = {node.name for node in graph.node if node.op_type == "Conv"}
    kept = quantize.sensitive(graph)
    assert kept < products and 2 <= len(kept) <= 12


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("quantised") / "x.onnx"
    quantize._quantize(tensorrt_graph(small_network(), "float32"), frames(4), path)
    return onnx.load(path)


def test_nodes_are_what_tensorrt_takes(quantised: Any) -> None:
    """Signed bytes with zero at zero, no bias in 32 bits, a scale a channel for weights."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    quantise = [node for node in quantised.graph.node if node.op_type == "QuantizeLinear"]
    dequantise = [node for node in quantised.graph.node if node.op_type == "DequantizeLinear"]
    assert len(quantise) == 2, "what middle and mix read"
    for node in [*quantise, *dequantise]:
        assert tensors[node.input[2]].dtype == np.int8 and not tensors[node.input[2]].any()
    weights = [node for node in dequantise if node.input[0] in tensors]
    assert len(weights) == 2 and all(tensors[node.input[1]].shape == (8,) for node in weights)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_it_can_be_rewritten_and_says_nearly_the_same(quantised: Any, precision: str) -> None:
    rewritten = tensorrt_graph(quantised, precision)  # type: ignore[arg-type]
    onnx.checker.check_model(rewritten, full_check=True)
    types = {v.name: v.type.tensor_type.elem_type for v in rewritten.graph.value_info}
    integers = [n for n in rewritten.graph.node if n.op_type == "QuantizeLinear"]
    assert len(integers) == 2 and {types[n.output[0]] for n in integers} == {TensorProto.INT8}
    (call,) = frames(1)
    for model, worst in ((quantised, 1e-2), (small_network(), 5e-2)):
        expected, got = (
            onnxruntime.InferenceSession(m.SerializeToString()).run(None, call)[0] for m in (model, rewritten)
        )
        assert np.abs(expected - got).max() < worst


def test_a_bundle_is_not_written_over_itself(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path))
    with pytest.raises(ValueError, match="the bundle itself"):
        quantize.quantize_bundle(bundle, tmp_path, [])


def test_without_frames_there_is_nothing_to_calibrate_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the region network is never called; give more frames"):
        quantize.record_inputs(load_bundle(write_tiny_bundle(tmp_path)), [])


def test_a_quantised_bundle_is_a_bundle(tmp_path: Path) -> None:
    """The tiny networks have nothing to quantise, so that their answers stay and only the manifest changes."""
    bundle = load_bundle(write_tiny_bundle(tmp_path / "float"))
    pictures = [RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(2)]
    result = quantize.quantize_bundle(bundle, tmp_path / "int8", pictures)
    assert result.manifest.name == "tiny-int8" and result.manifest.weights == "int8"
    labels = [np.full((64, 96), 3, np.uint8), np.full((64, 96), 7, np.uint8)]
    pairs = list(zip(pictures, labels, strict=True))
    source = FrameSource("test", CITYSCAPES19, 2, lambda: (Frame(p, t, 0.0, "frame") for p, t in pairs))
    for row in quantize.compare_accuracy(bundle, result, source):
        assert row.frames == 2 and row.original == row.quantized and row.difference == (0, 0, 0)
    calls = quantize.record_inputs(bundle, pictures)
    assert len(calls["image"]) == 2 and calls["image"][0]["frame"].shape == (1, 64, 96, 3)
    speeds = quantize.compare_speed(bundle, result, calls, repeats=1)
    assert [(s.library, s.kind) for s in speeds] == [(x, k) for x in ("onnxruntime", "openvino") for k in ENGINE_KINDS]
    assert all(s.original_ms > 0 and s.quantized_ms > 0 for s in speeds)


def test_crops_are_recorded_at_every_size(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path, further_hw=((64, 96),)))
    calls = quantize.record_inputs(bundle, [RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)])
    assert {inputs["crops"].shape[1:3] for inputs in calls["region"]} == {(32, 48), (64, 96)}


def test_frames_without_labels_are_refused(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path))
    picture = np.zeros((64, 96, 3), np.uint8)
    source = FrameSource("test", CITYSCAPES19, 1, lambda: iter([Frame(picture, None, 0.0, "frame_7")]))
    with pytest.raises(ValueError, match="frame_7 has no labels"):
        quantize.compare_accuracy(bundle, bundle, source)


def test_the_tables_say_ratio_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    speeds = [quantize.SpeedComparison("image", "openvino", 100.0, 40.0)]
    quantize.print_comparison(speeds, [quantize.AccuracyComparison("both levels", 3, 60.0, 59.0, (-1.0, -2.0, 0.5))])
    out = capsys.readouterr().out
    assert "2.50" in out and "-1.00 [-2.00, +0.50]" in out
