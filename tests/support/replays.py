# SPDX-License-Identifier: Apache-2.0
"""Replays of tiny bags on the tiny bundle, as the tests of several modules need them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nightlab_core.labels import CITYSCAPES19
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay import run as rp
from nightlab_replay.execute import Span, replay_spans
from nightlab_replay.provenance import bundle_info
from nightlab_replay.records import Counts, FrameRecord, ReplaySettings, Run, RunData, load_run

SETTINGS = ReplaySettings(
    engine="onnxruntime", classes="cityscapes19", class_names=CITYSCAPES19.names, chunk_frames=4, threads=1
)


def begin(
    out: Path, bags: list[Path], pipeline: Pipeline, settings: ReplaySettings = SETTINGS
) -> tuple[Run, list[Span]]:
    """A run in `out`, begun or taken up again, and the spans that it still lacks."""
    info = bundle_info(pipeline.bundle, pipeline.engines.name)
    run = rp.begin(out, settings, info, rp.look_at(bags, None, None, settings.max_frames), restart=False)
    return run, rp.missing_spans(out, run)


def replay(out: Path, bags: list[Path], pipeline: Pipeline, stopped: Callable[[], bool] = lambda: False) -> RunData:
    """All of a run in `out`, in this process."""
    run, spans = begin(out, bags, pipeline)
    rp.carry_out(out, run, replay_spans(spans, pipeline, CITYSCAPES19, stopped=stopped))
    return load_run(out)


def assert_same(a: RunData, b: RunData) -> None:
    """All but the time it took."""

    def timeless(record: FrameRecord) -> FrameRecord:
        return dataclasses.replace(record, stages_ms={}, latency_ms=None)

    assert [timeless(r) for r in a.records] == [timeless(r) for r in b.records]
    for name in Counts.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a.counts, name), getattr(b.counts, name))
