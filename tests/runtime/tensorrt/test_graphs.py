# SPDX-License-Identifier: Apache-2.0
"""A network rewritten for TensorRT: the same answers at every size, the right types, refusals that name the node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from nightlab_core.runtime.bundle import ENGINE_KINDS, EngineKind, default_bundle, load_bundle  # noqa: E402
from nightlab_core.runtime.engines.tensorrt.graphs import GraphError, tensorrt_graph  # noqa: E402
from nightlab_core.runtime.engines.tensorrt.half import half_nodes  # noqa: E402

RNG = np.random.default_rng(0)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def network(nodes: Iterable[Any], inputs: dict[str, list[Any]], outputs: Iterable[str], **constants: Any) -> Any:
    """A model of opset 20 from nodes, its inputs' shapes, the outputs' names and constants by name."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        list(nodes), "test",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: Any, **arrays: np.ndarray) -> list[np.ndarray]:
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString())
    except Exception as error:  # its class is not public
        if "implementation for DeformConv" not in str(error):
            raise
        pytest.skip("ONNX Runtime on Python 3.10 is too old for DeformConv")
    return session.run(None, arrays)


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def types(model: Any) -> dict[str, int]:
    """Type of every value by name."""
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def type_of(model: Any, op_type: str) -> set[int]:
    """Types of what the operators of one kind write."""
    known = types(model)
    return {known[node.output[0]] for node in model.graph.node if node.op_type == op_type}


def deform_conv(
    *, channels: int = 4, outputs: int = 6, kernel: tuple[int, int] = (3, 3), group: int = 1, bias: bool = True,
    names: tuple[str, ...] = ("x", "weight", "offset"), **attributes: Any,
) -> Any:  # fmt: skip
    weight = RNG.normal(size=(outputs, channels // group, *kernel)).astype(np.float32)
    constants = {"weight": weight} | ({"bias": RNG.normal(size=outputs).astype(np.float32)} if bias else {})
    inputs = [*names, "bias"] if bias else list(names)
    node = helper.make_node("DeformConv", inputs, ["y"], name="bend", group=group, kernel_shape=kernel, **attributes)
    shapes = {"x": ["B", channels, "H", "W"], "offset": ["B", 2 * kernel[0] * kernel[1], "h", "w"]}
    return network([node], shapes, ["y"], **constants)


@pytest.mark.parametrize("size_hw", [(8, 8), (5, 11), (1, 7), (33, 20)])
@pytest.mark.parametrize(
    ("options", "out"),
    [
        ({"pads": [1, 1, 1, 1]}, lambda n: n),
        ({"pads": [1, 1, 1, 1], "group": 2, "bias": False}, lambda n: n),
        ({"pads": [2, 2, 2, 2], "dilations": [2, 2]}, lambda n: n),
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, lambda n: (n + 1) // 2),
        ({"kernel": (1, 1)}, lambda n: n),
        ({"kernel": (5, 5), "pads": [2, 2, 2, 2]}, lambda n: n),
    ],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_the_rewritten_graph_equals_deformable_convolution(
    size_hw: tuple[int, int], options: Any, out: Any, fixed: bool
) -> None:
    """Offsets reach far out of the picture, and the batch is free."""
    model = deform_conv(**options)
    kernel = options.get("kernel", (3, 3))
    offset_size = (2, 2 * kernel[0] * kernel[1], out(size_hw[0]), out(size_hw[1]))
    x = RNG.normal(size=(2, 4, *size_hw)).astype(np.float32)
    offset = RNG.normal(size=offset_size, scale=4).astype(np.float32)
    rewritten = tensorrt_graph(model, "float32", {"x": x.shape, "offset": offset.shape} if fixed else None)
    assert "DeformConv" not in operators(rewritten) and "GridSample" in operators(rewritten)
    assert not fixed or not {"Range", "Shape"} & set(operators(rewritten))
    (expected,), (got,) = run(model, x=x, offset=offset), run(rewritten, x=x, offset=offset)
    np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize("options", [{"offset_group": 2}, {"names": ("x", "w2", "offset")}])
def test_the_error_names_a_deform_conv_that_cannot_be_rewritten(options: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match=r"DeformConv 'bend'.*expected"):
        tensorrt_graph(deform_conv(pads=[1, 1, 1, 1], **options), "float32")


def test_the_error_names_a_deform_conv_with_a_mask() -> None:
    model = deform_conv(pads=[1, 1, 1, 1])
    model.graph.node[0].input.append("mask")
    with pytest.raises(GraphError, match="'bend': received a mask"):
        tensorrt_graph(model, "float32")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"frame": (1, 8, 8)}, "input 'x'|name the inputs \\['frame'\\]"),
        ({"x": (1, 4, 8)}, "input 'x'.*does not fit"),
        ({"x": (1, 5, 8, 8)}, "input 'x'.*does not fit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        tensorrt_graph(deform_conv(pads=[1, 1, 1, 1]), "float32", sizes)


def test_an_error_of_onnx_runtime_is_passed_on() -> None:
    model = network([helper.make_node("Nonsense", ["x"], ["y"], name="what")], {"x": [1]}, ["y"])
    with pytest.raises(GraphError, match="Nonsense"):
        tensorrt_graph(model, "float32")


def test_the_given_model_is_not_changed() -> None:
    model = deform_conv(pads=[1, 1, 1, 1])
    before = model.SerializeToString()
    tensorrt_graph(model, "float16", {"x": (1, 4, 8, 8), "offset": (1, 18, 8, 8)})
    assert model.SerializeToString() == before


def conv(source: str, target: str, weight: str = "w") -> Any:
    return helper.make_node("Conv", [source, weight], [target], kernel_shape=[1, 1])


W = (RNG.normal(size=(4, 4, 1, 1)) / 2).astype(np.float32)


def half_of(nodes: list[Any], outputs: list[str], **constants: Any) -> Any:
    model = network(nodes, {"x": [1, 4, 6, 6]}, outputs, w=W, **constants)
    half = tensorrt_graph(model, "float16")
    x = RNG.normal(size=(1, 4, 6, 6)).astype(np.float32)
    for expected, got in zip(run(model, x=x), run(half, x=x), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=0.02)
    return half


def test_convolutions_and_the_operators_between_them_are_half() -> None:
    nodes = [conv("x", "a"), helper.make_node("Sigmoid", ["a"], ["b"]), helper.make_node("Add", ["a", "b"], ["c"])]
    half = half_of([*nodes, conv("c", "y")], ["y"])
    assert type_of(half, "Conv") == type_of(half, "Sigmoid") == type_of(half, "Add") == {HALF}
    assert operators(half).count("Cast") == 2, "one at the start and one at the end"


def test_operators_before_the_first_and_after_the_last_convolution_stay_float() -> None:
    """Mean and deviation before the first convolution; probabilities and boxes behind the last."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("Div", ["t", "scale"], ["a"]),
        conv("a", "b"),
        helper.make_node("Sigmoid", ["b"], ["scores"]),
        helper.make_node("Reshape", ["b", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "scale"], ["boxes"]),
    ]
    half = half_of(nodes, ["scores", "boxes"], scale=np.float32(255), shape=np.array([1, -1]))
    assert type_of(half, "Div") == type_of(half, "Sigmoid") == type_of(half, "Mul") == {FLOAT}
    assert type_of(half, "Conv") == type_of(half, "Reshape") == {HALF}


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("LayerNormalization", ["a", "one"], ["b"]),
        helper.make_node("InstanceNormalization", ["a", "four", "four"], ["b"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("ReduceMean", ["a", "axes"], ["b"]),
        helper.make_node("AveragePool", ["a"], ["b"], kernel_shape=[2, 2]),
        helper.make_node("GridSample", ["a", "grid"], ["b"]),
    ],
)
def test_normalisations_sums_exponents_and_sampling_stay_float(node: Any) -> None:
    constants = {"one": np.ones(6), "four": np.ones(4), "grid": RNG.uniform(-1, 1, (1, 5, 5, 2))}
    used = {k: v.astype(np.float32) for k, v in constants.items() if k in node.input}
    if "axes" in node.input:
        used["axes"] = np.array([2, 3])
    half = half_of([conv("x", "a"), node, helper.make_node("Relu", ["b"], ["c"]), conv("c", "y")], ["y"], **used)
    assert type_of(half, node.op_type) == {FLOAT}
    assert type_of(half, "Relu") == type_of(half, "Conv") == {HALF}, (
        "operators without arithmetic have the type of the convolution"
    )


def test_values_between_two_float_operators_are_not_rounded() -> None:
    """Positions for sampling: reshapes between them rest on no product, so no cast to half comes near."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["a"]),
        helper.make_node("Concat", ["a", "a"], ["b"], axis=1),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    half = half_of(nodes, ["y"], shape=np.array([1, 4, 36]))
    assert "Cast" not in operators(half) and HALF not in types(half).values()


def test_a_residual_sum_that_a_normalisation_reads_stays_float() -> None:
    """In a Swin network the sum grows from block to block; the products between are half."""
    nodes = [conv("x", "stem")]
    for i, source in enumerate(["stem", "sum0", "sum1"]):
        nodes += [
            helper.make_node("LayerNormalization", [source, "one"], [f"n{i}"]),
            conv(f"n{i}", f"h{i}"),
            helper.make_node("Gelu", [f"h{i}"], [f"g{i}"]),
            conv(f"g{i}", f"p{i}"),
            helper.make_node("Add", [source, f"p{i}"], [f"sum{i}"]),
        ]
    nodes.append(helper.make_node("LayerNormalization", ["sum2", "one"], ["y"]))
    half = half_of(nodes, ["y"], one=np.ones(6, np.float32))
    assert type_of(half, "Add") == type_of(half, "LayerNormalization") == {FLOAT}
    assert type_of(half, "Conv") == type_of(half, "Gelu") == {HALF}


def test_a_constant_too_large_for_half_keeps_its_operator_in_float() -> None:
    nodes = [conv("x", "a"), helper.make_node("Sigmoid", ["a"], ["b"]), helper.make_node("Mul", ["b", "huge"], ["c"])]
    nodes += [helper.make_node("Mul", ["c", "tiny"], ["d"]), conv("d", "y")]
    half = half_of(nodes, ["y"], huge=np.float32(1e5), tiny=np.float32(1e-5))
    assert type_of(half, "Mul") == {FLOAT}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "hardness" else pytest.mark.slow) for kind in ENGINE_KINDS]
)
def test_the_shipped_bundle_is_rewritten(kind: EngineKind) -> None:
    """The float32 graph gives the same results; the other has its convolutions in half precision."""
    bundle = load_bundle(default_bundle())
    model = onnx.load(bundle.path(kind))
    (name,) = [value.name for value in model.graph.input]
    size = (2, *bundle.manifest.engines.region.input_hw, 3) if kind == "region" else (1, 96, 128, 3)
    array = RNG.integers(0, 256, size, dtype=np.uint8)
    expected = run(model, **{name: array})
    for sizes in (None, {name: size}):
        same = tensorrt_graph(model, "float32", sizes)
        for a, b in zip(expected, run(same, **{name: array}), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            assert np.abs(a.astype(float) - b).mean() < 0.01
        half = tensorrt_graph(model, "float16", sizes)
        onnx.checker.check_model(half, full_check=True)
        readers = [node for node in half.graph.node if name in node.input]
        assert [node.op_type for node in readers] == ["Cast"]
        assert type_of(half, "Conv") == {HALF}
        for op_type in ("GridSample", "InstanceNormalization", "Exp", "ReduceMean", "ReduceSum", "TopK", "Sigmoid"):
            assert type_of(half, op_type) <= {FLOAT}
        for a, b in zip(expected, run(half, **{name: array}), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            if a.dtype == np.uint8:
                assert np.abs(a.astype(float) - b).mean() < 1.5
    assert sizes and [d.dim_value for d in half.graph.input[0].type.tensor_type.shape.dim] == list(size)


def test_rewriting_twice_is_allowed() -> None:
    """A quantised bundle holds such graphs."""
    model = onnx.load(load_bundle(default_bundle()).path("image"))
    once = tensorrt_graph(model, "float32")
    size = {"frame": (1, 64, 96, 3)}
    again, direct = (tensorrt_graph(m, "float16", size) for m in (once, model))
    assert sorted(operators(again)) == sorted(operators(direct))


def test_the_choice_of_precision_does_not_depend_on_node_names() -> None:
    model = onnx.load(load_bundle(default_bundle()).path("image"))
    folded = tensorrt_graph(model, "float32", {"frame": (1, 64, 96, 3)})
    chosen = half_nodes(folded.graph)
    for node in folded.graph.node:
        node.name = ""
    assert chosen == half_nodes(folded.graph) and len(chosen) > 60
