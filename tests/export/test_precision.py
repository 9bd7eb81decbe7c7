# SPDX-License-Identifier: Apache-2.0
"""Half beside float32: roundings and overflows are seen although ONNX Runtime hides them, and the report tells them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tiny_bundle import write_tiny_bundle  # noqa: E402

from nightlab_core.config import replace  # noqa: E402
from nightlab_core.data.rendered import night  # noqa: E402
from nightlab_core.export import precision  # noqa: E402
from nightlab_core.runtime.bundle import Bundle, default_bundle, load_bundle, write_manifest  # noqa: E402
from nightlab_core.runtime.engines.tensorrt.graphs import tensorrt_graph  # noqa: E402
from nightlab_core.runtime.pipeline import PipelineSettings  # noqa: E402

HALF_MAX = float(np.finfo(np.float16).max)


def two_convolutions(path: Path, first: float, second: float) -> Path:
    """y = |x * first| * second, pixel by pixel, as two convolutions of one channel; x (1, 1, 4, 4)."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], name="first"),
        helper.make_node("Sigmoid", ["p"], ["s"], name="between"),
        helper.make_node("Mul", ["p", "s"], ["m"], name="product"),
        helper.make_node("Conv", ["m", "b"], ["y"], name="second"),
    ]
    weights = {"a": first, "b": second}
    tensors = [numpy_helper.from_array(np.full((1, 1, 1, 1), w, np.float32), n) for n, w in weights.items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "test", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_an_overflow_that_onnx_runtime_hides_is_seen(tmp_path: Path) -> None:
    path = two_convolutions(tmp_path / "x.onnx", 3e4, 1e-4)
    x = np.full((1, 1, 4, 4), 10, np.float32)
    half = tensorrt_graph(onnx.load(path), "float16").SerializeToString()
    assert onnxruntime.InferenceSession(half).run(None, {"x": x})[0].max() == pytest.approx(30, rel=1e-3)
    engine = precision.RoundedEngine(path, tmp_path)
    assert list(engine.outputs) == ["y"]
    assert not np.isfinite(engine(x=x)["y"]).any()
    peaks = {peak.node: peak for peak in engine.take_peaks()}
    assert peaks["first"].largest == pytest.approx(3e5, rel=1e-3) and not peaks["first"].fits
    assert set(peaks) == {"first", "between", "product", "second"} | {n for n in peaks if n.endswith("cast")}


def test_every_value_in_half_is_rounded_to_it(tmp_path: Path) -> None:
    engine = precision.RoundedEngine(two_convolutions(tmp_path / "x.onnx", 1.2345, 0.777), tmp_path)
    x = np.random.default_rng(0).normal(size=(1, 1, 4, 4)).astype(np.float32)

    def half(values: np.ndarray | float) -> np.ndarray:
        return np.asarray(values, np.float16).astype(np.float32)

    p = half(half(x) * half(1.2345))
    m = half(p * half(1 / (1 + np.exp(-p))))
    np.testing.assert_array_equal(engine(x=x)["y"], half(m * half(0.777)))
    assert all(peak.fits for peak in engine.take_peaks())


def test_not_a_number_comes_first_and_does_not_fit(tmp_path: Path) -> None:
    engine = precision.RoundedEngine(two_convolutions(tmp_path / "x.onnx", 1.0, 1.0), tmp_path)
    x = np.ones((1, 1, 4, 4), np.float32)
    x[0, 0, 2, 1] = np.nan
    engine(x=x)
    engine(x=np.ones((1, 1, 4, 4), np.float32))
    first = engine.take_peaks()[0]
    assert np.isnan(first.largest) and not first.fits
    assert not engine.take_peaks()


def test_proposals_are_compared_by_place_and_score() -> None:
    boxes = np.array([[[0, 0, 0.4, 0.4], [0.5, 0.5, 1, 1]]], np.float32)
    scores = np.array([[0.9, 0.8]], np.float32)
    swapped = (boxes[:, ::-1], scores[:, ::-1])
    assert precision.compare_proposals([(boxes, scores)], [swapped])[0] == 1
    moved = (boxes + np.array([0.1, 0, 0.1, 0], np.float32), scores)  # IoU 0.6 and 0.67
    assert precision.compare_proposals([(boxes, scores)], [moved])[0] == 0
    doubtful = (boxes, scores - np.array([0, 0.1], np.float32))
    assert precision.compare_proposals([(boxes, scores)], [doubtful]) == (0.5, 26)


def test_iou_by_hand() -> None:
    a = np.array([[0, 0, 2, 2], [5, 5, 6, 6]], np.float32)
    b = np.array([[1, 0, 3, 2]], np.float32)
    np.testing.assert_allclose(precision.iou_matrix(a, b), np.array([[1 / 3], [0]]))


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped bundle told to work on fewer pixels."""
    folder = tmp_path_factory.mktemp("bundle") / "small"
    shutil.copytree(default_bundle(), folder)
    manifest = load_bundle(folder).manifest
    files = {k: replace(getattr(manifest.engines, k), input_hw=(96, 128)) for k in ("image", "hardness")}
    write_manifest(folder, replace(manifest, engines=replace(manifest.engines, **files)))
    return load_bundle(folder)


@pytest.mark.slow
def test_the_shipped_bundle_keeps_its_labels_in_half(small_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    frame = night.render_scene(4, size_hw=(96, 128)).image_bgr
    rows = precision.check_half(small_bundle, [frame], PipelineSettings(max_regions=1))
    assert [row.network for row in rows] == ["image", "hardness", "region 320x320", "pipeline"]
    for row in rows[:3]:
        assert row.agreement > 0.99 and all(0 <= peak.largest < 1000 for peak in row.peaks)
        assert sum(peak.op_type == "Conv" for peak in row.peaks) > 30
    precision.print_half(rows, "rendered")
    assert "hardness" in capsys.readouterr().out


def test_the_region_network_is_compared_at_every_size(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path, further_hw=((64, 96),)))
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    rows = precision.check_half(bundle, [frame])
    assert [row.network for row in rows] == ["image", "hardness", "region 32x48", "region 64x96", "pipeline"]
    assert all(row.passed and row.calls for row in rows)


def test_a_failure_names_the_operator_and_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    peaks = (precision.Peak("block/conv", "Conv", 7e4), precision.Peak("other", "Add", 3.0))
    assert not precision.print_half([precision.HalfParity("image", 1, 1.0, 0, peaks)], "frames")
    out = capsys.readouterr().out
    assert "FAILED" in out and "Conv block/conv writes up to 7e+04: more than half's 65504; build" in out
    assert not precision.HalfParity("image", 1, 0.994, 0, peaks[1:]).passed


def test_the_command_tells_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["precision", str(tmp_path), "--frames", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        precision.main()
    assert "bundle.yaml: no such file" in capsys.readouterr().err
