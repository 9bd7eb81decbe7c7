# SPDX-License-Identifier: Apache-2.0
"""The facts of ONNX files that are read without the package onnx, compared with what that package writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper, numpy_helper

from nightlab_core.runtime.bundle import BundleError, default_bundle, load_bundle, sha256_of
from nightlab_core.runtime.onnx_file import OnnxFacts, read_onnx


def classifier(channels: int, half: bool = False) -> onnx.ModelProto:
    """Frame -> 1x1 convolution to `channels` -> the strongest channel of each pixel."""
    weights = numpy_helper.from_array(np.ones((channels, 3, 1, 1), np.float16 if half else np.float32), "weights")
    nodes = [helper.make_node("Cast", ["weights"], ["kernel"], to=TensorProto.FLOAT)] if half else []
    nodes += [
        helper.make_node("Conv", ["frame", "kernel" if half else "weights"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
    ]
    inputs = [helper.make_tensor_value_info("frame", TensorProto.FLOAT, (1, 3, "H", "W"))]
    outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, (1, "H", "W"))]
    graph = helper.make_graph(nodes, "classifier", inputs, outputs, [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("half", [False, True])
def test_the_channels_that_labels_are_chosen_from_are_counted(tmp_path: Path, half: bool) -> None:
    onnx.save(classifier(7, half), tmp_path / "n.onnx")
    assert read_onnx(tmp_path / "n.onnx") == OnnxFacts(has_external_data=False, num_channels=7)


def test_a_table_between_channels_and_labels_leaves_their_number_open(tmp_path: Path) -> None:
    model = classifier(7)
    model.graph.initializer.append(numpy_helper.from_array(np.arange(7, dtype=np.int64), "table"))
    model.graph.node[-1].input[0] = "id"
    model.graph.node.insert(2, helper.make_node("Gather", ["table", "best"], ["id"]))
    onnx.save(model, tmp_path / "n.onnx")
    assert read_onnx(tmp_path / "n.onnx").num_channels is None


def test_the_shipped_networks_tell_their_classes() -> None:
    assert read_onnx(default_bundle() / "image.onnx") == OnnxFacts(has_external_data=False, num_channels=19)


def external(model: onnx.ModelProto, folder: Path) -> Path:
    weights = model.graph.initializer[0]
    onnx.save(model, folder / "n.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (folder / "w.bin").stat().st_size >= len(weights.raw_data)
    return folder / "n.onnx"


def test_weights_in_another_file_are_found(tmp_path: Path) -> None:
    assert read_onnx(external(classifier(7), tmp_path)).has_external_data


def test_weights_in_another_file_are_found_in_a_constant_of_a_branch(tmp_path: Path) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,))]
    branch = helper.make_graph([helper.make_node("Constant", [], ["x"], value=tensor)], "branch", [], outputs)
    model = classifier(7)
    model.graph.node.append(helper.make_node("If", ["c"], ["x"], then_branch=branch, else_branch=branch))
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    assert read_onnx(tmp_path / "n.onnx").has_external_data


def test_no_prefix_of_a_file_is_read_without_an_error_or_a_result(tmp_path: Path) -> None:
    content = classifier(7).SerializeToString()
    path = tmp_path / "n.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            facts = read_onnx(path)
        except ValueError:
            continue
        assert facts.num_channels in (7, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no network", "received"),
        (b"\x3a\x7f", "cut short: 127 bytes are announced, 0 are left"),
        (b"\xff" * 20, "a number without an end"),
        (b"\x38\x01", "a number where a message is expected"),
    ],
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "n.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_onnx(tmp_path / "n.onnx")


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    """Graphs in attributes of nodes of graphs."""
    message = b""
    for _ in range(100):
        for field in (6, 5, 1):
            message = bytes([field << 3 | 2]) + varint(len(message)) + message
    (tmp_path / "n.onnx").write_bytes(b"\x3a" + varint(len(message)) + message)
    with pytest.raises(ValueError, match="more than 64 levels"):
        read_onnx(tmp_path / "n.onnx")


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number >= 0x80 else bytes([number])


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def put(bundle: Path, network: Path | bytes) -> None:
    """Make a file the bundle's image network, with its SHA-256."""
    file, manifest = bundle / "image.onnx", bundle / "bundle.yaml"
    before = sha256_of(file)
    file.write_bytes(network if isinstance(network, bytes) else network.read_bytes())
    manifest.write_text(manifest.read_text().replace(before, sha256_of(file)))


def test_a_bundle_with_weights_in_another_file_is_refused(copy: Path, tmp_path: Path) -> None:
    put(copy, external(classifier(19), tmp_path))
    with pytest.raises(BundleError, match=r"image\.onnx: the network stores weights in another file"):
        load_bundle(copy)


def test_a_bundle_that_names_fewer_classes_than_its_network_has_is_refused(copy: Path) -> None:
    put(copy, classifier(20).SerializeToString())
    with pytest.raises(BundleError, match=r"the network has 20 classes, but bundle\.yaml names 19"):
        load_bundle(copy)


def test_a_bundle_whose_network_is_no_onnx_file_is_refused(copy: Path) -> None:
    put(copy, b"no network")
    with pytest.raises(BundleError, match=r"image\.onnx: not an ONNX file"):
        load_bundle(copy)
