# SPDX-License-Identifier: Apache-2.0
"""A pipeline, bags and a finished run that the tests share. No test may change them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pipelines import open_pipeline
from replays import run_replay
from tiny_bags import make_frames, write_tiny_bag

from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.records import RunData


@pytest.fixture(scope="session")
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    """The tiny bundle on ONNX Runtime."""
    with open_pipeline(tiny_bundle, engine="onnxruntime", threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two labelled bags: one (mcap, 11 frames) and two (sqlite3, 6 frames)."""
    folder = tmp_path_factory.mktemp("bags")
    one = write_tiny_bag(folder / "one", make_frames(11))
    return [one, write_tiny_bag(folder / "two", make_frames(6, seed=1), storage="sqlite3")]


@pytest.fixture(scope="session")
def serial(tmp_path_factory: pytest.TempPathFactory, bags: list[Path], pipeline: Pipeline) -> RunData:
    """The finished run of `bags` in one process."""
    return run_replay(tmp_path_factory.mktemp("serial"), bags, pipeline)
