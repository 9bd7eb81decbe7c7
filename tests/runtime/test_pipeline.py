# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pipelines import open_pipeline
from pydantic import ValidationError

from nightlab_core.config import replace
from nightlab_core.runtime import regions as rg
from nightlab_core.runtime.bundle import BundleError, load_bundle
from nightlab_core.runtime.engines.calibration import Choice
from nightlab_core.runtime.engines.engine import OnnxEngine, TensorSpec
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.light import light_level
from nightlab_core.runtime.pipeline import STAGES, Pipeline
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings

pytest.importorskip("onnx")
from fake_engines import FakeEngine, black, known_boxes, plain_maps
from tiny_bundle import BOXES, SCORES, image_level, region_level


@pytest.fixture
def make(tiny_bundle: Path) -> Iterator[Callable[..., Pipeline]]:
    """Makes pipelines of fake engines: label 1 on the image level, 2 in regions, known boxes."""
    made = []

    def build(settings: PipelineSettings = PipelineSettings(), **answers: Any) -> Pipeline:  # noqa: B008 - frozen
        defaults = {"image": plain_maps(1, 100), "hardness": known_boxes(), "region": plain_maps(2, 200)}
        engines = {kind: FakeEngine(kind, answers.get(kind, answer)) for kind, answer in defaults.items()}  # type: ignore[arg-type]
        made.append(Pipeline(Engines(load_bundle(tiny_bundle), **engines), settings))
        return made[-1]

    yield build
    for pipeline in made:
        pipeline.close()


def random_frame(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_pipeline_on_real_engines_equals_the_numpy_reference(tiny_bundle: Path, engine: Any) -> None:
    pytest.importorskip(engine)
    frame = random_frame(96, 144)
    frame[:6, :6, 0] = 255  # the brightest blue, also when made smaller, so that the scores are SCORES
    with open_pipeline(tiny_bundle, engine=engine, settings=PipelineSettings(merge="replace")) as pipeline:
        result = pipeline(frame)
    assert pipeline.engines.name == engine

    labels, confidence = image_level(rg.resize_image(frame, (64, 96)))
    labels, confidence = rg.resize_labels(labels, (96, 144)), rg.resize_image(confidence, (96, 144))
    np.testing.assert_array_equal(result.image_labels, labels)
    np.testing.assert_array_equal(result.image_confidence, confidence)
    boxes = BOXES[[0, 2, 3]] * np.array([144, 96, 144, 96], np.float32)  # the second is suppressed
    np.testing.assert_allclose(result.boxes_xyxy, boxes)
    np.testing.assert_allclose(result.scores, SCORES[[0, 2, 3]], rtol=1e-6)
    assert result.refined.tolist() == [True, True, True]
    windows = rg.context_boxes(boxes, (96, 144), PipelineSettings().region_margin, 48 / 32)
    region_labels, region_confidence = region_level(rg.crop_and_enlarge(frame, windows, (32, 48)))
    regions = rg.Regions(boxes, SCORES[[0, 2, 3]], windows, region_labels, region_confidence)
    labels, confidence = rg.paste_replace(labels, confidence, regions)
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(result.confidence, confidence)
    assert result.light_level == light_level(frame)


ONE_PIXEL = pytest.param(
    (1, 1), marks=pytest.mark.skipif(not hasattr(cv2, "imdecodemulti"), reason="OpenCV 4.5 refuses a single pixel")
)


@pytest.mark.parametrize("size_hw", [(64, 96), ONE_PIXEL, (7, 300), (333, 211), (721, 1281), (2, 3)])
def test_results_have_the_size_of_the_frame(tiny_bundle: Path, size_hw: tuple[int, int]) -> None:
    with open_pipeline(tiny_bundle) as pipeline:
        result = pipeline(random_frame(*size_hw))
        for array in (result.labels, result.confidence, result.image_labels, result.image_confidence):
            assert array.shape == size_hw
            assert array.dtype == np.uint8
        assert (result.boxes_xyxy >= 0).all()
        assert (result.boxes_xyxy[:, [2, 3]] <= [size_hw[1], size_hw[0]]).all()


def test_frames_that_are_not_contiguous_are_accepted(tiny_bundle: Path) -> None:
    frame = random_frame(96, 144)
    with open_pipeline(tiny_bundle) as pipeline:
        for view in (frame[::2, ::2], frame[..., ::-1], frame[:, ::-1], np.asfortranarray(frame)):
            np.testing.assert_array_equal(pipeline(view).labels, pipeline(np.ascontiguousarray(view)).labels)


def test_image_and_region_path_run_at_the_same_time(make: Callable[..., Pipeline]) -> None:
    """Each engine waits for the other: one after the other, neither would ever answer."""
    meeting = threading.Barrier(2)

    def meet_then(
        answer: Callable[[np.ndarray], dict[str, np.ndarray]],
    ) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        def wait(array: np.ndarray) -> dict[str, np.ndarray]:
            meeting.wait(timeout=10)
            return answer(array)

        return wait

    for kind in ("hardness", "region"):
        answers = {kind: meet_then(known_boxes() if kind == "hardness" else plain_maps(2, 200))}
        pipeline = make(image=meet_then(plain_maps(1, 100)), **answers)
        for _ in range(2):
            assert pipeline(black()).refined.any()


def test_the_lower_path_follows_the_image_level_where_calibration_chose_that(make: Callable[..., Pipeline]) -> None:
    called: list[str] = []

    def noted(
        kind: str, answer: Callable[[np.ndarray], dict[str, np.ndarray]]
    ) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        return lambda array: called.append(kind) or answer(array)

    pipeline = make(
        image=noted("image", plain_maps(1, 100)),
        hardness=noted("hardness", known_boxes()),
        region=noted("region", plain_maps(2, 200)),
    )
    expected = pipeline(black())
    called.clear()
    pipeline.engines.preparation.choice = Choice(form=None, paths="in_turn")
    result = pipeline(black())
    assert called == ["image", "hardness", "region"]
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_array_equal(result.outcomes, expected.outcomes)


@pytest.mark.parametrize(
    ("settings", "inside", "refined"),
    [
        ({}, (2, 200), [True, True, True]),
        ({"merge": "replace"}, (2, 200), [True, True, True]),
        ({"refine": "never"}, (1, 100), []),
        ({"max_regions": 0}, (1, 100), [False, False, False]),
        ({"max_regions": 1}, (2, 200), [True, False, False]),
        ({"score_threshold": 0.5}, (2, 200), [True, True, False]),
        ({"score_threshold": 1.0}, (1, 100), [False, False, False]),
        ({"nms_iou": 1.0}, (2, 200), [True, True, True, True]),
        ({"nms_iou": 1.0, "max_regions": 3}, (2, 200), [True, True, True, False]),
        ({"nms_iou": 0.0}, (2, 200), [True, True]),
        ({"confidence_threshold": 0.5}, (2, 200), [True, True, True]),
        ({"confidence_threshold": 0.9}, (255, 200), [True, True, True]),
    ],
)
def test_settings_take_effect_on_the_next_frame(
    make: Callable[..., Pipeline], settings: dict[str, Any], inside: tuple[int, int], refined: list[bool]
) -> None:
    pipeline = make()
    pipeline(black())
    pipeline.settings = PipelineSettings(**settings)
    result = pipeline(black())
    y, x = 20, 20  # inside the best box
    assert (result.labels[y, x], result.confidence[y, x]) == inside
    assert result.refined.tolist() == refined
    assert len(result.boxes_xyxy) == len(result.scores) == len(refined)
    pipeline.settings = PipelineSettings()
    assert pipeline(black()).labels[y, x] == 2


def test_merge_replace_overwrites_labels_that_are_more_confident(make: Callable[..., Pipeline]) -> None:
    pipeline = make(image=plain_maps(1, 250))
    assert (pipeline(black()).labels == 1).all()
    pipeline.settings = PipelineSettings(merge="replace")
    result = pipeline(black())
    assert result.labels[20, 20] == 2
    assert result.confidence[20, 20] == 200
    assert (result.image_labels == 1).all()
    assert (result.image_confidence == 250).all()


@pytest.mark.parametrize(("threshold", "hidden"), [(0.0, []), (0.4, []), (0.41, [1]), (0.79, [1, 2]), (1.0, [1, 2])])
def test_pixels_below_the_confidence_threshold_are_unlabelled_on_both_levels(
    make: Callable[..., Pipeline], threshold: float, hidden: list[int]
) -> None:
    pipeline = make(PipelineSettings(confidence_threshold=threshold), image=plain_maps(1, 102))  # 102 / 255 = 0.4
    result = pipeline(black())
    expected = {label for label in (1, 2) if label not in hidden} | ({255} if hidden else set())
    assert set(np.unique(result.labels)) == expected
    assert set(np.unique(result.image_labels)) == ({255} if 1 in hidden else {1})
    assert set(np.unique(result.confidence)) == {102, 200}  # confidence is kept


def test_refine_never_runs_the_image_network_only(make: Callable[..., Pipeline]) -> None:
    pipeline = make(PipelineSettings(refine="never"))
    result = pipeline(black())
    assert pipeline.engines.hardness.received == pipeline.engines.region.received == []  # type: ignore[attr-defined]
    assert result.boxes_xyxy.shape == (0, 4)
    assert result.stages_ms["hardness"] == result.stages_ms["region"] == 0
    np.testing.assert_array_equal(result.labels, result.image_labels)


def test_refine_night_runs_the_lower_path_in_dark_frames_only(make: Callable[..., Pipeline]) -> None:
    pipeline = make(PipelineSettings(refine="night"))
    hardness: FakeEngine = pipeline.engines.hardness  # type: ignore[assignment]
    reasons, calls = [], []
    for grey in (80, 120, 80, 30, 80):  # light levels 0.08, 0.19, 0.08, 0.01, 0.08
        result = pipeline(np.full((64, 96, 3), grey, np.uint8))
        reasons.append(result.refine_reason)
        calls.append(len(hardness.received))
        assert bool(result.refined.any()) == (result.refine_reason == "night")
    assert reasons == ["night", "day", "day", "night", "night"] and calls == [1, 1, 1, 2, 3]
    pipeline.settings = PipelineSettings()
    assert pipeline(black()).refine_reason == "always"


def test_the_light_gate_belongs_to_one_camera(make: Callable[..., Pipeline]) -> None:
    first = make(PipelineSettings(refine="night"))
    with Pipeline(first.engines, first.settings) as second:
        assert first(np.full((64, 96, 3), 120, np.uint8)).refine_reason == "day"
        dusk = np.full((64, 96, 3), 80, np.uint8)
        assert [first(dusk).refine_reason, second(dusk).refine_reason] == ["day", "night"]


def test_a_frame_without_boxes_keeps_the_image_level(make: Callable[..., Pipeline]) -> None:
    pipeline = make(hardness=known_boxes(np.zeros((0, 4)), np.zeros(0)))
    result = pipeline(black())
    assert (result.labels == 1).all()
    assert result.boxes_xyxy.shape == (0, 4)
    assert result.scores.shape == result.refined.shape == (0,)
    assert pipeline.engines.region.received == []  # type: ignore[attr-defined]


def test_boxes_are_at_most_ten_and_inside_the_frame_and_the_best_are_read(make: Callable[..., Pipeline]) -> None:
    x0 = np.linspace(-0.1, 0.95, 30)
    boxes = np.stack([x0, np.full(30, 0.1), x0 + 0.01, np.full(30, 2.0)], axis=1)
    pipeline = make(hardness=known_boxes(boxes, np.linspace(1, 0, 30)))
    result = pipeline(black(64, 200))
    assert len(result.boxes_xyxy) == 10
    assert (result.boxes_xyxy >= 0).all()
    assert (result.boxes_xyxy[:, 3] == 64).all()
    assert (np.diff(result.scores) < 0).all()
    pipeline.settings = PipelineSettings(max_regions=3)
    assert pipeline(black(64, 200)).refined.tolist() == [True] * 3 + [False] * 7
    received = pipeline.engines.region.received  # type: ignore[attr-defined]
    assert received == [(MAX_REGIONS, 32, 48, 3), (3, 32, 48, 3)]


def test_every_stage_is_timed(make: Callable[..., Pipeline]) -> None:
    pause = threading.Event()

    def slow(array: np.ndarray) -> dict[str, np.ndarray]:
        pause.wait(0.2)
        return plain_maps(2, 200)(array)

    pipeline = make(region=slow)
    begin = time.perf_counter()
    stages = pipeline(black()).stages_ms
    elapsed_ms = 1e3 * (time.perf_counter() - begin)
    assert tuple(stages) == STAGES
    assert all(ms > 0 for ms in stages.values())
    assert 200 <= stages["region"] <= stages["total"] <= elapsed_ms
    assert stages["image"] < stages["region"]


@pytest.mark.parametrize("kind", ["image", "hardness", "region"])
def test_an_engines_error_reaches_the_caller_and_the_next_frame_works(make: Callable[..., Pipeline], kind: str) -> None:
    answers: list[Any] = [RuntimeError("out of memory")]
    good = {"image": plain_maps(1, 100), "hardness": known_boxes(), "region": plain_maps(2, 200)}[kind]

    def answer(array: np.ndarray) -> dict[str, np.ndarray]:
        if answers:
            raise answers.pop()
        return good(array)

    pipeline = make(**{kind: answer})
    with pytest.raises(RuntimeError, match="out of memory"):
        pipeline(black())
    assert pipeline(black()).labels[20, 20] == 2


@pytest.mark.parametrize(
    ("frame", "received"),
    [
        (np.zeros((64, 96), np.uint8), r"uint8 \(64, 96\)"),
        (np.zeros((64, 96, 1), np.uint8), r"uint8 \(64, 96, 1\)"),
        (np.zeros((64, 96, 4), np.uint8), r"uint8 \(64, 96, 4\)"),
        (np.zeros((64, 96, 3), np.float32), r"float32 \(64, 96, 3\)"),
        (np.zeros((64, 96, 3), np.uint16), r"uint16 \(64, 96, 3\)"),
        (np.zeros((1, 64, 96, 3), np.uint8), r"uint8 \(1, 64, 96, 3\)"),
        ([[1, 2, 3]], "list"),
    ],
)
def test_frames_of_a_wrong_shape_or_dtype_are_refused(make: Callable[..., Pipeline], frame: Any, received: str) -> None:
    with pytest.raises(ValueError, match=rf"received {received}, expected uint8 \(H, W, 3\) in BGR order"):
        make()(frame)
    with pytest.raises(ValueError, match="empty image"):
        make()(np.zeros((0, 96, 3), np.uint8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_regions": 11},
        {"refine": "both"},
        {"nms_iou": 1.5},
        {"margin": 1},
        {"max_regions": "3"},
        {"day_above": 0.05},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PipelineSettings(**wrong)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in PipelineSettings.model_fields.values())


def test_prepare_compiles_the_shapes_of_the_frames(make: Callable[..., Pipeline]) -> None:
    pipeline = make()
    seconds = pipeline.prepare((720, 1280))
    assert 0 < seconds < 60
    image, hardness, region = pipeline.engines.image, pipeline.engines.hardness, pipeline.engines.region
    pipeline(black(720, 1280))
    for engine in (image, hardness):
        assert set(engine.received) == set(engine.prepared) == {(1, 64, 96, 3)}  # type: ignore[attr-defined]
    assert region.prepared == [(batch, 32, 48, 3) for batch in range(1, 11)]  # type: ignore[attr-defined]


def test_closing_a_pipeline_leaves_shared_engines_open(make: Callable[..., Pipeline]) -> None:
    first = make()
    engines = first.engines
    with Pipeline(engines, PipelineSettings(refine="never")) as second:
        first.close()
        with pytest.raises(RuntimeError):
            first(black())
        assert second(black()).labels[20, 20] == 1
    assert [engines.image.closed, engines.hardness.closed, engines.region.closed] == [0, 0, 0]  # type: ignore[attr-defined]
    engines.close()
    assert [engines.image.closed, engines.hardness.closed, engines.region.closed] == [1, 1, 1]  # type: ignore[attr-defined]


def test_an_engine_that_breaks_the_contract_is_refused(tiny_bundle: Path) -> None:
    image, hardness = FakeEngine("image", plain_maps(1, 1)), FakeEngine("hardness", known_boxes())
    with pytest.raises(BundleError, match="the region network's inputs"):
        Engines(load_bundle(tiny_bundle), image, hardness, region=image)


def test_engines_that_break_the_contract_are_closed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that stay open would keep their GPU memory."""
    image, hardness = FakeEngine("image", plain_maps(1, 1)), FakeEngine("hardness", known_boxes())
    region = FakeEngine("image", plain_maps(1, 1))
    opened = {"image": image, "hardness": hardness, "region": region}
    monkeypatch.setattr(OnnxEngine, "open_bundle", lambda *_: opened)
    with pytest.raises(BundleError, match="the region network's inputs"):
        Engines.open(tiny_bundle)
    assert [engine.closed for engine in (image, hardness, region)] == [1, 1, 1]


BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "lightning", "rclpy"}:
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Block())
import pkgutil
import nightlab_core.config, nightlab_core.labels, nightlab_core.metrics
import nightlab_core.runtime, nightlab_core.data
for package in (nightlab_core.runtime, nightlab_core.data):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        __import__(module.name)
from nightlab_core.runtime.engines.calibration import Choice
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
import numpy as np
with Engines.open(sys.argv[1]) as engines, Pipeline(engines) as pipeline:
    print(pipeline(np.zeros((64, 96, 3), np.uint8)).labels.shape)
assert "torch" not in sys.modules
"""


def test_the_vehicle_needs_no_torch(tiny_bundle: Path) -> None:
    """Every module of the runtime and the data half is imported where an attempt to import torch is an error."""
    command = [sys.executable, "-c", BLOCKED, str(tiny_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(64, 96)"


def with_context(
    tiny_bundle: Path,
    image: Any,
    region: Any,
    settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
    *,
    gives_probabilities: bool = True,
) -> Pipeline:
    """A pipeline whose region network reads the image level's probabilities of three classes."""
    bundle = load_bundle(tiny_bundle)
    files = bundle.manifest.engines
    files = replace(files, region=replace(files.region, context=True))
    engines = {
        "image": FakeEngine("image", image),
        "hardness": FakeEngine("hardness", known_boxes()),
        "region": FakeEngine("region", region),
    }
    anything = TensorSpec(np.dtype(np.uint8), (None, None, None, None))
    if gives_probabilities:
        engines["image"].outputs = {**engines["image"].outputs, "probabilities": anything}
    engines["region"].inputs = {**engines["region"].inputs, "context": anything}
    opened = Engines(dataclasses.replace(bundle, manifest=replace(bundle.manifest, engines=files)), **engines)
    return Pipeline(opened, settings)


def test_a_region_network_with_context_reads_the_probabilities_of_its_windows(tiny_bundle: Path) -> None:
    left_is_first = np.zeros((1, 16, 24, 3), np.uint8)
    left_is_first[:, :, :12, 0], left_is_first[:, :, 12:, 1] = 255, 255
    received = []

    def read(crops: np.ndarray, context: np.ndarray) -> dict[str, np.ndarray]:
        received.append(context)
        return plain_maps(2, 10)(crops)

    def image(frame: np.ndarray) -> dict[str, np.ndarray]:
        return {**plain_maps(1, 200)(frame), "probabilities": left_is_first}

    with with_context(tiny_bundle, image, read) as pipeline:
        result = pipeline(black())
    (context,) = received
    assert context.shape == (3, 8, 12, 3)  # a quarter of crops of 32 x 48
    windows = rg.context_boxes(result.boxes_xyxy, (64, 96), PipelineSettings().region_margin, 48 / 32)
    centres = windows[:, [0]] + (np.arange(12) + 0.5) * (windows[:, [2]] - windows[:, [0]]) / 12
    expected = np.interp(centres, [46, 50], [255, 0])  # from the centre of one pixel to the next, of four pixels each
    np.testing.assert_allclose(context[:, 4, :, 0], expected, atol=5)
    # The region level is less confident, and still replaces its windows.
    regions = rg.Regions(result.boxes_xyxy, result.scores, windows, *plain_maps(2, 10)(np.zeros((3, 32, 48))).values())
    for x0, y0, x1, y1 in rg.inner_windows(regions, (64, 96)):
        assert (result.labels[y0:y1, x0:x1] == 2).all()
    assert result.refined.all()


@pytest.mark.parametrize("deadline_ms", [0.0, 1000.0])
def test_regions_with_context_do_not_wait_for_an_image_level_that_failed(tiny_bundle: Path, deadline_ms: float) -> None:
    def fail(frame: np.ndarray) -> dict[str, np.ndarray]:
        raise RuntimeError("no image level")

    settings = PipelineSettings(deadline_ms=deadline_ms)
    with with_context(tiny_bundle, fail, lambda crops, context: plain_maps(2, 10)(crops), settings) as pipeline:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no image level"):
                pipeline(black())


def test_an_image_network_without_probabilities_is_refused_for_regions_with_context(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"image network's outputs: received .* expected .*probabilities"):
        with_context(tiny_bundle, plain_maps(1, 200), plain_maps(2, 10), gives_probabilities=False)
