# SPDX-License-Identifier: Apache-2.0
"""Tests that need a GPU: parity, overlap, memory over many frames, and a second process on the same cache."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from nightlab_core.data.rendered.night import render_scene
from nightlab_core.runtime.bundle import ENGINE_KINDS, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import EngineOptions
from nightlab_core.runtime.engines.onnxruntime import OnnxRuntimeEngine
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.engines.tensorrt.cuda import Cuda, find_device
from nightlab_core.runtime.engines.tensorrt.engine import TensorRtEngine
from nightlab_core.runtime.engines.tensorrt.libraries import installed_libraries
from nightlab_core.runtime.engines.tensorrt.plans import plan_files, read_plan

DEVICE, REASON = find_device()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE is None, reason=f"no GPU can be used: {REASON}"),
    pytest.mark.skipif(not installed_libraries(), reason="no TensorRT is installed"),
]
FRAME_HW = (480, 640)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("plans")
    before, os.environ["NIGHTLAB_PLANS"] = os.environ.get("NIGHTLAB_PLANS"), str(path)
    yield path
    del os.environ["NIGHTLAB_PLANS"]
    if before is not None:
        os.environ["NIGHTLAB_PLANS"] = before


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[Engines]:
    opened = Engines.open(default_bundle(), EngineOptions(engine="tensorrt", frame_hw=FRAME_HW, build=True))
    yield opened
    for kind in ENGINE_KINDS:
        getattr(opened, kind).close()


def frames(number: int) -> list[np.ndarray]:
    """Real night frames where they are, else rendered ones: uint8 (1, 480, 640, 3)."""
    root = Path(os.environ.get("NIGHTLAB_DATA", ROOT.parent / "shared/data")) / "camvid/test/images"
    paths = sorted(root.glob("0001TP_*"))[:number] if root.is_dir() else []
    if paths:
        import cv2

        return [cv2.resize(cv2.imread(str(path)), FRAME_HW[::-1])[None] for path in paths]
    return [render_scene(seed, size_hw=FRAME_HW).image_bgr[None] for seed in range(number)]


def test_labels_equal_those_of_onnx_runtime(engines: Engines) -> None:
    bundle = load_bundle(default_bundle())
    reference = OnnxRuntimeEngine(bundle.path("image"))
    for frame in frames(8):
        expected, received = reference(frame=frame), engines.image(frame=frame)
        assert (received["labels"] == expected["labels"]).mean() >= 0.995
        difference = received["confidence"].astype(int) - expected["confidence"].astype(int)
        assert np.percentile(np.abs(difference), 99) <= 8
    reference = OnnxRuntimeEngine(bundle.path("region"))
    pictures = frames(5)
    height, width = bundle.manifest.engines.region.input_hw
    crops = np.concatenate([p[:, y : y + height, 100 : 100 + width] for p in pictures for y in (0, 150)])
    for batch in (10, 1, 3, 7, 10):
        expected, received = reference(crops=crops[:batch]), engines.region(crops=crops[:batch])
        assert (received["labels"] == expected["labels"]).mean() >= 0.995
    reference = OnnxRuntimeEngine(bundle.path("hardness"))
    for frame in frames(4):
        expected, received = reference(frame=frame), engines.hardness(frame=frame)
        assert np.isfinite(received["boxes"]).all() and np.isfinite(received["scores"]).all()
        np.testing.assert_allclose(received["scores"][0, :10], expected["scores"][0, :10], atol=0.02)


def test_the_inspector_finds_half_precision(engines: Engines, folder: Path) -> None:
    library = next(f for f in installed_libraries() if f.name == engines.image.name)
    image = next(path for path in plan_files(folder) if path.name.startswith("image"))
    runtime = library.trt.Runtime(library.logger())
    engine = runtime.deserialize_cuda_engine(read_plan(image)[1])
    layers = engine.create_engine_inspector().get_engine_information(library.trt.LayerInformationFormat.JSON)
    assert re.search("Half|FP16", layers), layers[:2000]


def median_ms(action: Callable[[], object], runs: int = 100) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[runs // 10 :])


def test_two_engines_run_at_the_same_time(engines: Engines) -> None:
    """The two paths side by side take less than one after the other."""
    frame, crops = frames(1)[0], np.zeros((10, 256, 256, 3), np.uint8)

    def upper() -> None:
        engines.image(frame=frame)

    def lower() -> None:
        engines.hardness(frame=frame)
        engines.region(crops=crops)

    def both() -> None:
        thread = threading.Thread(target=lower)
        thread.start()
        upper()
        thread.join()

    upper_ms, lower_ms, both_ms = median_ms(upper), median_ms(lower), median_ms(both)
    print(f"image {upper_ms:.2f} ms, hardness and region {lower_ms:.2f} ms, side by side {both_ms:.2f} ms")
    assert both_ms < 0.95 * (upper_ms + lower_ms)


@pytest.mark.slow
def test_memory_does_not_grow_over_ten_thousand_frames(engines: Engines) -> None:
    cuda, frame = Cuda(), frames(1)[0]
    crops = np.random.default_rng(0).integers(0, 256, (10, 256, 256, 3), np.uint8)

    def turn(number: int) -> None:
        engines.image(frame=frame)
        engines.hardness(frame=frame)
        engines.region(crops=crops[: 1 + number % 10])

    for number in range(100):
        turn(number)
    before = cuda.free_bytes()
    for number in range(10_000):
        turn(number)
    assert before - cuda.free_bytes() < 1 << 20


def test_closing_frees_the_memory_every_time(engines: Engines, folder: Path) -> None:
    cuda, left = Cuda(), []
    bundle = load_bundle(default_bundle())
    for _ in range(6):
        opened = Engines.open(bundle, EngineOptions(engine="tensorrt", frame_hw=FRAME_HW))
        for kind in ENGINE_KINDS:
            getattr(opened, kind).close()
        left.append(cuda.free_bytes())
    assert left[1] - left[-1] < 4 << 20, left


def test_a_cuda_graph_gives_the_same_results(engines: Engines, folder: Path) -> None:
    library = next(f for f in installed_libraries() if f.name == engines.image.name)
    image = next(path for path in plan_files(folder) if path.name.startswith("image"))
    graphs = TensorRtEngine(library, lambda shapes: read_plan(image), {"frame": (1, *FRAME_HW, 3)}, cuda_graphs=True)
    for frame in frames(3):
        expected = engines.image(frame=frame)
        received = graphs(frame=frame)
        for name in expected:
            np.testing.assert_array_equal(received[name], expected[name])
    graphs.close()


def test_a_second_process_loads_the_same_plans(engines: Engines, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in plan_files(folder)}
    code = (
        "from nightlab_core.runtime.bundle import *; from nightlab_core.runtime.engines.open import open_engines\n"
        f"print(open_engines(load_bundle(default_bundle()), engine='tensorrt', frame_hw={FRAME_HW}).image.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == engines.image.name, done.stderr
    assert {path: path.stat().st_mtime_ns for path in plan_files(folder)} == before
