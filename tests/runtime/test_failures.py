# SPDX-License-Identifier: Apache-2.0
"""Engines that raise, or whose outputs cannot be used."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightlab_core.runtime.bundle import load_bundle
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.outputs import EngineError, checked_boxes, checked_maps
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.refinement import Outcome

pytest.importorskip("onnx")
from fake_engines import FakeEngine, black, known_boxes, plain_maps
from tiny_bundle import BOXES, SCORES

Answer = Callable[[np.ndarray], dict[str, np.ndarray]]


@pytest.fixture
def make(tiny_bundle: Path) -> Iterator[Callable[..., Pipeline]]:
    """Makes tolerant pipelines of fake engines: label 1 on the image level, 2 in regions, known boxes."""
    made = []

    def build(tolerant: bool = True, **answers: Answer) -> Pipeline:
        defaults = {"image": plain_maps(1, 100), "hardness": known_boxes(), "region": plain_maps(2, 200)}
        engines = {kind: FakeEngine(kind, answers.get(kind, answer)) for kind, answer in defaults.items()}  # type: ignore[arg-type]
        made.append(Pipeline(Engines(load_bundle(tiny_bundle), **engines), tolerant=tolerant))
        return made[-1]

    yield build
    for pipeline in made:
        pipeline.close()


def raising(error: BaseException) -> Answer:
    def answer(array: np.ndarray) -> dict[str, np.ndarray]:
        raise error

    return answer


def maps_with(**changes: Any) -> Answer:
    """Answer with plain maps of which some were replaced by a function of themselves."""

    def answer(array: np.ndarray) -> dict[str, np.ndarray]:
        maps = plain_maps(2, 200)(array)
        return maps | {name: change(maps[name]) for name, change in changes.items()}

    return answer


def one_pixel(label: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(labels: np.ndarray) -> np.ndarray:
        labels[-1, -1, -1] = label
        return labels

    return change


def boxes_with(value: float) -> np.ndarray:
    boxes = BOXES.copy()
    boxes[1, 2] = value
    return boxes


WRONG_MAPS = {
    "label 19": maps_with(labels=one_pixel(19)),
    "label 254": maps_with(labels=one_pixel(254)),
    "labels int64": maps_with(labels=lambda labels: labels.astype(np.int64)),
    "confidence float32": maps_with(confidence=lambda confidence: confidence / np.float32(np.nan)),
    r"labels uint8 \(\d+, \d+, 1\)": maps_with(labels=lambda labels: labels[:, :, :1]),
    r"outputs \['labels'\]": lambda array: {"labels": plain_maps(1, 1)(array)["labels"]},
}
WRONG_BOXES = {
    "boxes with nan": known_boxes(boxes_with(np.nan)),
    "boxes with inf": known_boxes(boxes_with(np.inf)),
    "boxes with 640": known_boxes(boxes_with(640)),
    "scores with nan": known_boxes(BOXES, SCORES * np.nan),
    "scores with 9": known_boxes(BOXES, SCORES * 10),
    r"scores float32 \(1, 3\)": known_boxes(BOXES, SCORES[:3]),
    r"boxes float32 \(1, 4, 3\)": known_boxes(BOXES[:, :3]),
    "boxes float64": lambda _: {"boxes": BOXES[None].astype(np.float64), "scores": SCORES[None]},
}
FAULTS = [
    *(("hardness", answer, received) for received, answer in WRONG_BOXES.items()),
    *(("region", answer, received) for received, answer in WRONG_MAPS.items()),
]


@pytest.mark.parametrize("received", WRONG_MAPS)
def test_a_wrong_output_of_the_image_engine_is_never_published(make: Callable[..., Pipeline], received: str) -> None:
    pipeline = make(image=WRONG_MAPS[received])
    with pytest.raises(EngineError, match=f"the image network: received {received}.*expected .*; export the bundle"):
        pipeline(black())


@pytest.mark.parametrize(("kind", "answer", "received"), FAULTS)
def test_a_wrong_output_of_the_lower_path_leaves_the_image_level(
    make: Callable[..., Pipeline], kind: str, answer: Answer, received: str
) -> None:
    result = make(**{kind: answer})(black())
    assert (result.labels == 1).all() and (result.confidence == 100).all()
    np.testing.assert_array_equal(result.labels, result.image_labels)
    assert re.search(f"the {kind} network: received {received}", result.refinement_error)
    assert not result.refined.any() and not result.hardness_late
    with pytest.raises(EngineError, match=f"the {kind} network: received {received}"):
        make(tolerant=False, **{kind: answer})(black())


@pytest.mark.parametrize(
    ("kind", "stage", "outcomes"),
    [
        ("hardness", "hard regions could not be found", []),
        ("region", "regions could not be read", [Outcome.FAILED] * 3),
    ],
)
def test_an_engine_that_raises_leaves_the_image_level_and_recovers(
    make: Callable[..., Pipeline], kind: str, stage: str, outcomes: list[Outcome]
) -> None:
    pipeline = make(**{kind: raising(RuntimeError("out of memory"))})
    for _ in range(3):
        result = pipeline(black())
        assert (result.labels == 1).all()
        assert result.refinement_error == f"{stage}: RuntimeError: out of memory"
        assert result.outcomes.tolist() == outcomes
    getattr(pipeline.engines, kind).answer = known_boxes() if kind == "hardness" else plain_maps(2, 200)
    result = pipeline(black())
    assert result.refinement_error == "" and result.labels[20, 20] == 2


@pytest.mark.parametrize("kind", ["hardness", "region"])
def test_an_exception_that_ends_programs_leaves_the_image_level(make: Callable[..., Pipeline], kind: str) -> None:
    pipeline = make(**{kind: raising(SystemExit("stop"))})
    pipeline.check_outputs()
    pipeline.prepare((64, 96))
    result = pipeline(black())
    assert (result.labels == 1).all() and result.refinement_error.endswith("SystemExit: stop")
    with pytest.raises(SystemExit, match="stop"):
        make(tolerant=False, **{kind: raising(SystemExit("stop"))})(black())
    engine = getattr(pipeline.engines, kind)
    working, engine.answer = known_boxes() if kind == "hardness" else plain_maps(2, 200), raising(KeyboardInterrupt())
    for run in (lambda: pipeline(black()), pipeline.check_outputs):
        with pytest.raises(KeyboardInterrupt):
            run()
    engine.answer = working
    assert pipeline(black()).refined.all()


@pytest.mark.parametrize("kind", ["hardness", "region"])
def test_prepare_survives_a_lower_path_that_fails(
    make: Callable[..., Pipeline], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = make(**{kind: raising(RuntimeError("out of memory"))})
    with caplog.at_level(logging.WARNING):
        pipeline.prepare((64, 96))
    assert pipeline(black()).labels.max() == 1
    assert ("out of memory" in caplog.text) == (kind == "region")  # the fake hardness engine runs in frames only
    with pytest.raises(RuntimeError, match="out of memory"):
        make(tolerant=False, **{kind: raising(RuntimeError("out of memory"))}).prepare((64, 96))


def test_prepare_raises_if_the_image_level_fails(make: Callable[..., Pipeline]) -> None:
    with pytest.raises(EngineError, match="label 19"):
        make(image=WRONG_MAPS["label 19"]).prepare((64, 96))


@pytest.mark.parametrize(
    ("kind", "answer", "received"),
    [
        ("image", WRONG_MAPS["label 19"], "label 19"),
        *(fault for fault in FAULTS if fault[2] in ("label 19", "boxes with nan")),
    ],
)
def test_each_network_is_run_once_and_checked(
    make: Callable[..., Pipeline], kind: str, answer: Answer, received: str
) -> None:
    make().check_outputs()
    with pytest.raises(EngineError, match=f"the {kind} network: received {received}"):
        make(**{kind: answer}).check_outputs()


@pytest.mark.parametrize("kind", ["image", "hardness", "region"])
def test_an_engine_that_raises_passes_the_check_unless_the_image_level_needs_it(
    make: Callable[..., Pipeline], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = {kind: raising(RuntimeError("out of memory"))}
    for tolerant in (False, True) if kind == "image" else (False,):
        with pytest.raises(RuntimeError, match="out of memory"):
            make(tolerant, **failing).check_outputs((64, 96))
    if kind != "image":
        make(**failing).check_outputs((64, 96))
        assert "hard regions cannot be refined: RuntimeError: out of memory" in caplog.text


def test_outputs_that_fit_pass_unchanged() -> None:
    labels = np.array([[[0, 18], [255, 7]]], np.uint8)
    output = {"labels": labels, "confidence": labels}
    assert checked_maps("image", output, (1, 2, 2), 19)[0] is labels
    with pytest.raises(EngineError, match="received label 18, expected labels from 0 to 17, or 255"):
        checked_maps("image", output, (1, 2, 2), 18)
    boxes, scores = checked_boxes(known_boxes(np.array([[-0.01, 0, 1.02, 1]]), np.array([1.001]))(black()))
    assert boxes.shape == (1, 4) and scores.shape == (1,)
    assert len(checked_boxes(known_boxes(np.zeros((0, 4)), np.zeros(0))(black()))[0]) == 0
