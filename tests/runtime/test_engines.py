# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from nightlab_core.runtime.engines.calibration import TunableEngine
from nightlab_core.runtime.engines.engine import KEPT_SIZES, Engine, EngineOptions, Form, TensorSpec
from nightlab_core.runtime.engines.open import Engines, open_network

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tiny_bundle import BOXES, SCORES, image_level, region_level  # noqa: E402

LIBRARIES = ("openvino", "onnxruntime")


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def image_engine(library: str, tiny_bundle: Path) -> Iterator[Engine]:
    engine = open_network(tiny_bundle / "image.onnx", EngineOptions(engine=library))
    yield engine
    engine.close()


def random_frame(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def test_specs_give_dtypes_and_variable_sizes(image_engine: Engine, library: str) -> None:
    assert image_engine.name == library
    assert image_engine.inputs == {"frame": TensorSpec(np.dtype(np.uint8), (1, None, None, 3))}
    assert {name: spec.dtype for name, spec in image_engine.outputs.items()} == {
        "labels": np.uint8,
        "confidence": np.uint8,
    }
    assert str(image_engine.inputs["frame"]) == "uint8 (1, ?, ?, 3)"


def test_the_three_networks_equal_the_numpy_reference(library: str, tiny_bundle: Path) -> None:
    make = partial(open_network, options=EngineOptions(engine=library))
    frame, crops = random_frame(1, 64, 96), random_frame(3, 32, 48)
    frame[0, 0, 0, 0] = 255
    labels, confidence = image_level(frame)
    output = make(tiny_bundle / "image.onnx")(frame=frame)
    np.testing.assert_array_equal(output["labels"], labels)
    np.testing.assert_array_equal(output["confidence"], confidence)
    labels, confidence = region_level(crops)
    output = make(tiny_bundle / "region.onnx")(crops=crops)
    np.testing.assert_array_equal(output["labels"], labels)
    np.testing.assert_array_equal(output["confidence"], confidence)
    output = make(tiny_bundle / "hardness.onnx")(frame=frame)
    np.testing.assert_allclose(output["boxes"][0], BOXES)
    np.testing.assert_allclose(output["scores"][0], SCORES, rtol=1e-6)


def test_results_are_not_overwritten_by_later_calls(image_engine: Engine) -> None:
    frame = random_frame(1, 64, 96)
    first = image_engine(frame=frame)
    kept = {name: array.copy() for name, array in first.items()}
    image_engine(frame=255 - frame)
    frame[:] = 0
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
        assert array.flags.writeable


def test_more_sizes_than_the_cache_holds_are_accepted(image_engine: Engine) -> None:
    for side in (32, 64, 96, 128, 160, 192, 32, 64):
        frame = random_frame(1, side, 32, seed=side)
        np.testing.assert_array_equal(image_engine(frame=frame)["labels"], image_level(frame)[0])


def test_arrays_that_are_not_contiguous_are_read_correctly(image_engine: Engine) -> None:
    frame = random_frame(1, 64, 96)[..., ::-1]
    assert not frame.flags.c_contiguous
    np.testing.assert_array_equal(image_engine(frame=frame)["confidence"], image_level(frame)[1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"picture": (1, 32, 32, 3)}, r"received inputs \['picture'\], expected \['frame'\]"),
        ({"frame": (1, 32, 32, 4)}, r"received uint8 \(1, 32, 32, 4\), expected uint8 \(1, \?, \?, 3\)"),
        ({"frame": (32, 32, 3)}, r"received uint8 \(32, 32, 3\), expected uint8 \(1, \?, \?, 3\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    image_engine: Engine, arrays: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        image_engine(**{name: np.zeros(shape, np.uint8) for name, shape in arrays.items()})
    with pytest.raises(ValueError, match=r"received float32 \(1, 32, 32, 3\)"):
        image_engine(frame=np.zeros((1, 32, 32, 3), np.float32))


def test_concurrent_calls_run_one_at_a_time(image_engine: Engine) -> None:
    frames = [random_frame(1, 32 * (1 + n % 3), 64, seed=n) for n in range(24)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda frame: image_engine(frame=frame)["labels"], frames))
    for frame, labels in zip(frames, results, strict=True):
        np.testing.assert_array_equal(labels, image_level(frame)[0])


def test_a_closed_engine_raises_an_error(image_engine: Engine) -> None:
    image_engine.close()
    image_engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        image_engine(frame=random_frame(1, 32, 32))


def test_prepare_leaves_nothing_to_compile(tiny_bundle: Path) -> None:
    pytest.importorskip("openvino")
    from nightlab_core.runtime.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(tiny_bundle / "image.onnx")
    engine.prepare(frame=(1, 64, 96, 3))
    compiled = dict(engine._requests)
    engine(frame=random_frame(1, 64, 96))
    assert engine._requests == compiled
    for height in range(32, 32 * 8, 32):
        engine.prepare(frame=(1, height, 96, 3))
    assert len(engine._requests) == KEPT_SIZES


def test_one_compiled_network_serves_every_batch_size(tiny_bundle: Path) -> None:
    pytest.importorskip("openvino")
    from nightlab_core.runtime.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(tiny_bundle / "region.onnx")
    for batch in (10, 1, 7, 2, 10):
        crops = random_frame(batch, 32, 48, seed=batch)
        np.testing.assert_array_equal(engine(crops=crops)["labels"], region_level(crops)[0])
    assert len(engine._requests) == 1


def deform_model(
    batch: int | str, *, groups: int, offset_groups: int, stride: int, dilation: int, extras: int
) -> bytes:
    """X (N, 4, H, W) -> DeformConv 3x3 -> Y (N, 6, H', W'); `extras` counts the optional inputs: bias, then mask."""
    rng = np.random.default_rng(7)
    taps, names = 9 * offset_groups, ["X", "W", "offset", "bias", "mask"][: 3 + extras]
    values = {"W": rng.normal(size=(6, 4 // groups, 3, 3)), "bias": rng.normal(size=6)}
    node = helper.make_node(
        "DeformConv",
        names,
        ["Y"],
        kernel_shape=[3, 3],
        pads=[1, 2, 1, 0],
        strides=[stride, stride],
        dilations=[dilation, dilation],
        group=groups,
        offset_group=offset_groups,
    )
    inputs = {"X": [batch, 4, "H", "W"], "offset": [batch, 2 * taps, "h", "w"], "mask": [batch, taps, "h", "w"]}
    value_info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "deform",
        [value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items() if name in names],
        [value_info("Y", TensorProto.FLOAT, [batch, 6, "h", "w"])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items() if n in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.mark.parametrize("reach", [0.8, 3.0, 40.0], ids=["near", "over the borders", "far outside"])
@pytest.mark.parametrize(
    "form",
    [
        {"groups": 1, "offset_groups": 1, "stride": 1, "dilation": 1, "extras": 0},
        {"groups": 1, "offset_groups": 1, "stride": 1, "dilation": 1, "extras": 1},
        {"groups": 2, "offset_groups": 2, "stride": 2, "dilation": 1, "extras": 2},
        {"groups": 1, "offset_groups": 2, "stride": 1, "dilation": 2, "extras": 2},
    ],
    ids=["plain", "bias", "groups, stride, mask", "dilation, mask"],
)
def test_openvino_equals_onnxruntime_in_deformable_convolution_also_at_borders(
    tmp_path: Path, form: dict[str, int], reach: float
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    if sys.version_info < (3, 11):
        pytest.skip("ONNX Runtime for Python 3.10 has no DeformConv")
    from nightlab_core.runtime.engines.onnxruntime import OnnxRuntimeEngine
    from nightlab_core.runtime.engines.openvino import OpenVinoEngine

    path = tmp_path / "deform.onnx"
    path.write_bytes(deform_model("N", **form))
    rng = np.random.default_rng(3)
    height, width = 11, 13
    out = [(s + 2 - 2 * form["dilation"] - 1) // form["stride"] + 1 for s in (height, width)]
    taps = 9 * form["offset_groups"]
    arrays = {"X": rng.normal(size=(2, 4, height, width)), "offset": rng.normal(size=(2, 2 * taps, *out)) * reach}
    if form["extras"] == 2:
        arrays["mask"] = rng.uniform(size=(2, taps, *out))
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    expected = OnnxRuntimeEngine(path)(**arrays)["Y"]
    assert np.abs(expected).max() > 0.5
    received = OpenVinoEngine(path)(**arrays)["Y"]
    np.testing.assert_allclose(received, expected, atol=1e-4, rtol=0)


def test_the_same_input_gives_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from nightlab_core.runtime.engines.openvino import OpenVinoEngine

    path = tmp_path / "deform.onnx"
    path.write_bytes(deform_model(1, groups=1, offset_groups=1, stride=1, dilation=1, extras=0))
    rng = np.random.default_rng(3)
    arrays = {
        "X": rng.normal(size=(1, 4, 31, 33)).astype(np.float32),
        "offset": rng.normal(size=(1, 18, 31, 33)).astype(np.float32),
    }
    engine = OpenVinoEngine(path)
    first = engine(**arrays)["Y"]
    for _ in range(5):
        np.testing.assert_array_equal(engine(**arrays)["Y"], first)


def test_the_form_is_compiled(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    from nightlab_core.runtime.engines import openvino as module

    monkeypatch.setattr(module, "offered_precisions", lambda: ("float32", "bfloat16"))
    engine = module.OpenVinoEngine(tiny_bundle / "image.onnx", Form(threads=1))
    frame = random_frame(1, 32, 32)
    engine(frame=frame)
    engine.form = Form("bfloat16", threads=2)
    engine(frame=frame)
    properties = []
    for request in engine._requests[((32, 32, 3),)].values():
        compiled = request.get_compiled_model()
        properties.append([compiled.get_property(n) for n in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS")])
    assert properties[0] == [openvino.Type.f32, 1] and properties[1][1] == 2
    engine.keep_form()
    assert [form for form, _ in engine._requests[((32, 32, 3),)]] == [engine.form]


def test_a_batch_in_pieces_equals_the_whole(library: str, tiny_bundle: Path) -> None:
    engine = open_network(tiny_bundle / "region.onnx", EngineOptions(engine=library))
    assert isinstance(engine, TunableEngine) and engine.version
    crops = random_frame(7, 32, 48)
    for batch in (0, 1, 3, 8):
        engine.form = Form(batch=batch, threads=batch % 3)
        output = engine(crops=crops)
        np.testing.assert_array_equal(output["labels"], region_level(crops)[0])
        np.testing.assert_array_equal(output["confidence"], region_level(crops)[1])
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine(crops=crops)


def test_a_precision_that_is_not_offered_is_refused(library: str, tiny_bundle: Path) -> None:
    options = EngineOptions(engine=library, precision="float16")
    if library == "openvino":
        from nightlab_core.runtime.engines.openvino import offered_precisions

        if "float16" in offered_precisions():
            pytest.skip("this CPU computes in float16")
    for open_it in (
        lambda: open_network(tiny_bundle / "image.onnx", options),
        lambda: Engines.open(tiny_bundle, options),
    ):
        with pytest.raises(ValueError, match=f"precision: received float16, but {library} offers float32"):
            open_it()


def test_sizes_that_alternate_are_compiled_once(
    library: str, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sizes_hw = ((64, 96), (96, 64), (32, 128))
    with Engines.open(tiny_bundle, EngineOptions(engine=library, calibration_s=0.0)) as engines:
        for frame_hw in sizes_hw * 3:
            engines.image(frame=random_frame(1, *frame_hw))
            engines.hardness(frame=random_frame(1, *frame_hw))
    compiled = [message for message in caplog.messages if "compiling" in message]
    assert len(compiled) == len(set(compiled)) == (6 if library == "openvino" else 0)


@pytest.mark.parametrize(
    ("missing", "engine", "expected"),
    [
        ({"openvino"}, "auto", "onnxruntime"),
        ({"onnxruntime"}, "auto", "openvino"),
        ({"openvino"}, "openvino", "pip install openvino"),
        ({"onnxruntime"}, "onnxruntime", "pip install onnxruntime"),
        ({"openvino", "onnxruntime"}, "auto", r"pip install openvino \(or onnxruntime\)"),
    ],
)
def test_auto_skips_a_missing_library_and_an_explicit_choice_names_it(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, missing: set[str], engine: str, expected: str
) -> None:
    for name in LIBRARIES:
        if name not in missing:
            pytest.importorskip(name)
        monkeypatch.delitem(sys.modules, f"nightlab_core.runtime.engines.{name}", raising=False)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    options = EngineOptions(engine=engine)
    if expected in LIBRARIES:
        assert open_network(tiny_bundle / "image.onnx", options).name == expected
    else:
        with pytest.raises(ImportError, match=expected):
            open_network(tiny_bundle / "image.onnx", options)
        with pytest.raises(ImportError, match=expected):
            Engines.open(tiny_bundle, options)


def test_a_new_library_is_one_module_and_one_line_in_the_table(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("nightlab_core.runtime.engines.onnxruntime")
    module = types.ModuleType("my_library")
    module.MyEngine = type("MyEngine", (onnxruntime.OnnxRuntimeEngine,), {"name": "mine"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_library", module)
    monkeypatch.setattr("nightlab_core.runtime.engines.open.LIBRARIES", {"mine": "my_library:MyEngine"})
    with Engines.open(tiny_bundle) as engines:
        assert engines.name == "mine" and engines.note == ""


def test_an_unknown_engine_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ValidationError, match="Input should be 'auto', 'tensorrt', 'openvino' or 'onnxruntime'"):
        EngineOptions(engine="tpu")
    with pytest.raises(ValueError, match="engine 'tensorrt' opens bundles, not single ONNX files"):
        open_network(tiny_bundle / "image.onnx", EngineOptions(engine="tensorrt"))


def test_openvino_starts_for_a_user_without_a_home_folder_and_without_telemetry() -> None:
    pytest.importorskip("openvino")
    code = """
import os, pwd, sys
os.environ.pop("HOME", None)
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
import nightlab_core.runtime.engines.openvino
assert not [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
