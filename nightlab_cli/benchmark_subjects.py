# SPDX-License-Identifier: Apache-2.0
"""Engines that `nightlab benchmark` measures: a bundle on a library, and a checkpoint in eager PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nightlab_core.benchmark.measure import Subject
from nightlab_core.benchmark.wrappers import OneAtATime
from nightlab_core.runtime.bundle import Bundle
from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions, PrecisionChoice
from nightlab_core.runtime.engines.open import Engines

#: One in so many calls is made of eager PyTorch, which takes several times as long.
BASELINE_SHARE = 3


def bundle_subject(bundle: Bundle, engine: EngineChoice, precision: PrecisionChoice, threads: int) -> Subject:
    """Return a bundle on one library in one precision."""

    def open_engines(frame_hw: tuple[int, int]) -> Engines:
        return Engines.open(
            bundle, EngineOptions(engine=engine, precision=precision, threads=threads, frame_hw=frame_hw)
        )

    return Subject(engine, precision, open_engines)


def checkpoint_subject(path: Path, runs: int) -> Subject:
    """Return a checkpoint in eager PyTorch, one stage after another."""

    @contextmanager
    def open_engines(frame_hw: tuple[int, int]) -> Iterator[Engines]:
        from nightlab_core.models.engine import open_checkpoint

        with open_checkpoint(path) as engines:
            lock = threading.Lock()
            image, hardness, region = (
                OneAtATime(engine, lock) for engine in (engines.image, engines.hardness, engines.region)
            )
            yield replace(engines, image=image, hardness=hardness, region=region)

    return Subject("torch", "float32", open_engines, max(1, runs // BASELINE_SHARE))
