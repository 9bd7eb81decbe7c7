# SPDX-License-Identifier: Apache-2.0
"""Replays of tiny bags with the tiny bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from class_sets import CITYSCAPES19

from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.execute import Span, replay_spans
from nightlab_replay.provenance import describe_bags, describe_bundle
from nightlab_replay.records import FrameCounts, FrameRecord, ReplaySettings, Run, RunData
from nightlab_replay.session import missing_spans, start_or_resume, store_results
from nightlab_replay.store import load_run

SETTINGS = ReplaySettings(
    engine="onnxruntime", classes="cityscapes19", class_names=CITYSCAPES19.names, chunk_frames=4, threads=1
)


def start_run(
    out: Path, bags: list[Path], pipeline: Pipeline, settings: ReplaySettings = SETTINGS
) -> tuple[Run, list[Span]]:
    """Start or resume a run in `out`. Return it and its missing spans."""
    info = describe_bundle(pipeline.bundle, pipeline.engines.name)
    described = describe_bags(bags, None, None, settings.max_frames)
    run = start_or_resume(out, settings, info, described, restart=False)
    return run, missing_spans(out, run)


def run_replay(out: Path, bags: list[Path], pipeline: Pipeline, stopped: Callable[[], bool] = lambda: False) -> RunData:
    """Replay the bags into `out` in this process and load the run."""
    run, spans = start_run(out, bags, pipeline)
    store_results(out, run, replay_spans(spans, pipeline, CITYSCAPES19, stopped=stopped))
    return load_run(out)


def timeless(record: FrameRecord) -> FrameRecord:
    """Return the record without its times."""
    return dataclasses.replace(record, stages_ms={}, latency_ms=None)


def assert_same(a: RunData, b: RunData) -> None:
    """Check that two runs are equal in everything but time."""
    assert [timeless(r) for r in a.records] == [timeless(r) for r in b.records]
    for name in FrameCounts.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a.counts, name), getattr(b.counts, name))
