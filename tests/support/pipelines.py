# SPDX-License-Identifier: Apache-2.0
"""Open a bundle's engines and one pipeline for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nightlab_core.runtime.engines.engine import EngineOptions
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.settings import PipelineSettings


@contextmanager
def open_pipeline(
    bundle: Path,
    settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
    **options: Any,
) -> Iterator[Pipeline]:
    """Yield a pipeline of the bundle in a folder; `options` are those of `EngineOptions`."""
    with Engines.open(bundle, EngineOptions(**options)) as engines, Pipeline(engines, settings) as pipeline:
        yield pipeline
