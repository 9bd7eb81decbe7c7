# SPDX-License-Identifier: Apache-2.0
"""Engines that hang or fail while they are checked and prepared: only what needs them waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightlab_core.runtime import pipeline as pipeline_module
from nightlab_core.runtime.bundle import load_bundle
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.worker import NOT_PREPARED

pytest.importorskip("onnx")
from fake_engines import FakeEngine, black, known_boxes, plain_maps

SIZE_HW, OTHER_HW = (64, 96), (96, 64)


class HangingEngine(FakeEngine):
    """A fake engine that neither prepares nor answers while `free` is not set, and then raises `error`, if any."""

    def __init__(self, kind: Any, answer: Callable[..., dict[str, np.ndarray]]) -> None:
        super().__init__(kind, answer)
        self.free, self.error = threading.Event(), None
        self.free.set()

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        self._hang()
        super().prepare(**shapes)

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        self._hang()
        return super().__call__(**arrays)

    def _hang(self) -> None:
        assert self.free.wait(60)
        if self.error is not None:
            raise self.error


@pytest.fixture
def engines(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    """Engines of which the image level says 1, and the regions 2. None hangs when the test has ended."""
    for name in ("PATIENCE_S", "FIRST_PATIENCE_S"):
        monkeypatch.setattr(pipeline_module, name, 0.05)
    lower = HangingEngine("hardness", known_boxes()), HangingEngine("region", plain_maps(2, 200))
    yield Engines(load_bundle(tiny_bundle), FakeEngine("image", plain_maps(1, 100)), *lower)
    for engine in lower:
        engine.free.set()


@pytest.fixture(params=["hardness", "region"])
def hanging(engines: Engines, request: pytest.FixtureRequest) -> HangingEngine:
    """The engine that is to hang."""
    return getattr(engines, request.param)


def become_idle(pipeline: Pipeline) -> None:
    """Wait until the pipeline's worker has done all that was asked of it."""
    pipeline._worker._pool.submit(lambda: None).result(timeout=20)


def refine(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, size_hw: tuple[int, int]) -> None:
    """Assert that a frame is refined, however slow the machine is."""
    monkeypatch.setattr(pipeline_module, "PATIENCE_S", 60.0)
    result = pipeline(black(*size_hw))
    assert result.refinement_error == "" and set(np.unique(result.labels)) == {1, 2}


def test_an_engine_that_hangs_while_it_is_prepared_costs_refinement_only(
    engines: Engines, hanging: HangingEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hanging.free.clear()
    with Pipeline(engines, tolerant=True) as pipeline:
        for size_hw in (SIZE_HW, OTHER_HW):
            pipeline.prepare(size_hw)
            assert pipeline.is_prepared(size_hw)
            result = pipeline(black(*size_hw))
            assert (result.labels == 1).all() and result.refinement_error == NOT_PREPARED
        assert caplog.messages.count(NOT_PREPARED) == 2
        assert engines.image.prepared == [(1, 64, 96, 3), (1, 96, 64, 3)]  # type: ignore[attr-defined]
        hanging.free.set()
        become_idle(pipeline)
        for size_hw in (SIZE_HW, OTHER_HW):
            refine(pipeline, monkeypatch, size_hw)


def test_a_camera_that_comes_later_does_not_stop_the_others(
    engines: Engines, hanging: HangingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "FIRST_PATIENCE_S", 60.0)
    with Pipeline(engines, tolerant=True) as first, Pipeline(engines, tolerant=True) as second:
        first.prepare(SIZE_HW)
        hanging.free.clear()
        assert "does not answer" in first(black()).refinement_error
        for pipeline, size_hw in ((second, SIZE_HW), (second, OTHER_HW), (first, OTHER_HW)):
            pipeline.prepare(size_hw)
            result = pipeline(black(*size_hw))
            assert (result.labels == 1).all() and "does not answer" in result.refinement_error
        hanging.free.set()
        for pipeline in (first, second):
            become_idle(pipeline)
            refine(pipeline, monkeypatch, OTHER_HW)


def test_an_engine_that_hangs_while_it_is_checked_costs_refinement_only(
    engines: Engines, hanging: HangingEngine, caplog: pytest.LogCaptureFixture
) -> None:
    hanging.free.clear()
    with Pipeline(engines, tolerant=True) as pipeline:
        pipeline.check_outputs()
        assert caplog.messages == [NOT_PREPARED]
        assert pipeline(black()).refinement_error == NOT_PREPARED
        hanging.error = RuntimeError("out of memory")
        with caplog.at_level(logging.WARNING):
            hanging.free.set()
            become_idle(pipeline)
        assert caplog.messages[1:] == ["hard regions cannot be refined: RuntimeError: out of memory"]
